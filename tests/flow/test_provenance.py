"""A run can be told from the commit it was made at, and from what was not committed."""

import shutil
from pathlib import Path

import pytest

from steps.flow.provenance import provenance_tags, uncommitted_changes
from tests.conftest import ROOT, run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a repository of its own with the project's code, committed."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "steps", folder / "steps", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", folder)
    (folder / ".gitignore").write_text("__pycache__\n")
    run("git", "init", "-q", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "code", cwd=folder)
    return folder


@pytest.fixture(autouse=True)
def root(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the project be that of these tests."""
    monkeypatch.setattr("steps.flow.provenance.ROOT", project)


def test_a_clean_tree_has_nothing_to_show(project: Path) -> None:
    assert provenance_tags(0)["code.dirty"] == "false"
    assert not uncommitted_changes().strip()


def test_a_change_that_is_not_committed_is_shown_as_a_patch(project: Path) -> None:
    (project / "steps" / "flow" / "runs.py").write_text("changed = 1\n")
    assert provenance_tags(0)["code.dirty"] == "true"
    lines = uncommitted_changes().splitlines()
    assert "+++ b/steps/flow/runs.py" in lines
    assert "+changed = 1" in lines


def test_a_file_that_git_does_not_know_is_named(project: Path) -> None:
    (project / "new.py").write_text("")
    assert provenance_tags(0)["code.dirty"] == "true"
    assert uncommitted_changes().splitlines()[0] == "# not tracked: new.py"


def test_a_change_in_another_encoding_is_shown_with_what_can_be_read(project: Path) -> None:
    (project / "steps" / "flow" / "runs.py").write_bytes("# Grüße\nchanged = 1\n".encode("latin-1"))
    assert "+changed = 1" in uncommitted_changes().splitlines()


def test_without_a_repository_nothing_is_known(project: Path) -> None:
    shutil.rmtree(project / ".git")
    assert provenance_tags(0)["code.dirty"] == "unknown"
    assert not uncommitted_changes().strip()
