"""The rooms of steps/: how large they are, and that each opens with a map of its files; no step knows the flow.

Which room imports which: test_architecture.py.
"""

import ast
from pathlib import Path

import pytest

from steps.config.schema import STEPS
from steps.flow.fingerprint import sources_of
from tests.conftest import ROOT

ROOMS = sorted(path.parent.relative_to(ROOT / "steps").as_posix() for path in (ROOT / "steps").glob("*/**/__init__.py"))


def room_of(path: Path) -> str:
    """Return the room of the module at *path*; of one that stands in steps/ itself, its own name."""
    return path.relative_to(ROOT / "steps").parts[0].removesuffix(".py")


@pytest.mark.parametrize("step", STEPS)
def test_no_step_imports_the_flow(step: str) -> None:
    assert not [path for path in sources_of(f"steps.{step}") if room_of(path) == "flow"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_at_most_twelve_files_and_its_docstring_names_each(room: str) -> None:
    files = {path.name for path in (ROOT / "steps" / room).glob("*.py")} - {"__init__.py"}
    assert len(files) <= 12
    text = ast.get_docstring(ast.parse((ROOT / "steps" / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert files - set(text.split()) == set()


@pytest.mark.parametrize(("folder", "most"), [("steps", 350), ("tests", 400)])
def test_no_file_is_longer_than_one_reads_at_once(folder: str, most: int) -> None:
    length = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {path: lines for path, lines in length.items() if lines > most} == {}
