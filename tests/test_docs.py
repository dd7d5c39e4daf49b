"""What the documentation points at exists: links, files, and the names that docs/reference/where.md gives."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

TRACKED = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n")
PAGES = [name for name in TRACKED if name.endswith(".md")]
EXAMPLES = {"steps/size_of_weights.py"}
"""Files that docs/architecture.md shows how to write."""


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of *page*, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    for name in re.findall(r"`((?:steps|tests|conf|docs|data|deploy|benchmarks)/[\w./-]*\w)`", text_of(page)):
        assert (ROOT / name).exists() or name in EXAMPLES, name
    for name in re.findall(r"`(test_\w+\.py)`", text_of(page)):
        assert list((ROOT / "tests").rglob(name)), name


def test_every_name_is_in_the_file_in_which_the_documentation_says_it_is() -> None:
    found = [
        (name, path)
        for page in PAGES
        for name, path in re.findall(r"`(\w+)`\s+in\s+`(steps/[\w/]+\.py)`", text_of(page))
    ]
    assert len(found) > 20
    for name, path in found:
        assert re.search(rf"^\s*(def |class )?{name}\b", text_of(path), re.MULTILINE), f"{name} is not in {path}"


def test_code_and_configuration_name_pages_that_exist() -> None:
    sources = [
        name for name in TRACKED if name.endswith((".py", ".yaml", ".in", ".jinja", ".toml")) or name == "MLproject"
    ]
    named = [(name, page) for name in sources for page in re.findall(r"\bdocs/[\w/]+\.md\b", text_of(name))]
    assert len(named) > 5
    assert [(name, page) for name, page in named if not (ROOT / page).exists()] == []
