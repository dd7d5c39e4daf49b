"""SHA256SUMS: what sha256sum reads, and every way in which a folder may differ from it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from steps.exporting.checksums import SUMS, damage_of, write_sums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"\0\1\2")
    (tmp_path / "README.md").write_text("hello")
    write_sums(tmp_path)
    return tmp_path


def test_sha256sum_checks_every_file(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["README.md: OK", "model/weights: OK"]
    assert damage_of(folder) is None


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "model" / "weights").write_bytes(b"\0\1"), "model/weights has changed"),
        (lambda folder: (folder / "README.md").unlink(), "README.md is missing"),
        (lambda folder: (folder / "model" / "more.py").touch(), f"model/more.py is not in {SUMS}"),
        (lambda folder: (folder / SUMS).unlink(), f"it has no {SUMS}"),
    ],
)
def test_a_difference_is_named(folder: Path, harm: Callable[[Path], object], said: str) -> None:
    harm(folder)
    assert damage_of(folder) == said
