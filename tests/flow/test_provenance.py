"""A run can be told from the commit it was made at, and from what was not committed."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run

CODE = "from steps.flow.provenance import *; print(provenance_tags(0)['code.dirty']); print(uncommitted_changes())"


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


def said(project: Path) -> str:
    return run(sys.executable, "-c", CODE, cwd=project).stdout


def test_a_clean_tree_has_nothing_to_show(project: Path) -> None:
    assert said(project).split() == ["false"]


def test_a_change_that_is_not_committed_is_shown_as_a_patch(project: Path) -> None:
    (project / "steps" / "flow" / "launch.py").write_text("changed = 1\n")
    lines = said(project).splitlines()
    assert lines[0] == "true"
    assert "+++ b/steps/flow/launch.py" in lines
    assert "+changed = 1" in lines


def test_a_file_that_git_does_not_know_is_named(project: Path) -> None:
    (project / "new.py").write_text("")
    assert said(project).split("\n")[:2] == ["true", "# not tracked: new.py"]


def test_a_change_in_another_encoding_is_shown_with_what_can_be_read(project: Path) -> None:
    (project / "steps" / "flow" / "launch.py").write_bytes("# Grüße\nchanged = 1\n".encode("latin-1"))
    assert "+changed = 1" in said(project).splitlines()


def test_without_a_repository_nothing_is_known(project: Path) -> None:
    shutil.rmtree(project / ".git")
    assert said(project).split() == ["unknown"]
