"""`benchmarks/promises.py` finds the tests of every promise, and tells what failed and what was skipped."""

from pathlib import Path

from benchmarks.promises import STATUS, Promise, outcome, promises
from tests.conftest import ROOT

PAGE = """
| what | runs | tested by |
|---|---|---|
| a disk | FAILED | `test_disk.py`, `test_main.py` |
| a fresh database | none is left | |
"""

TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert False
@pytest.fixture
def broken(): raise ValueError
def test_broken(broken): pass
@pytest.mark.skip
def test_later(): pass
@pytest.mark.slow
def test_long(): pass
"""


def test_a_row_is_known_by_its_first_cell_and_its_tests() -> None:
    assert promises(PAGE) == [Promise("a disk", ("test_disk.py", "test_main.py"))]


def test_every_promise_of_the_page_has_tests_that_exist() -> None:
    found = promises(STATUS.read_text(encoding="utf-8"))
    assert len(found) > 20
    assert all(list((ROOT / "tests").rglob(name)) for each in found for name in each.tests)


def test_what_failed_was_skipped_or_is_slow_is_counted(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    assert outcome(tmp_path / "test_some.py") == {"passed": 2, "failed": 2, "skipped": 1}
