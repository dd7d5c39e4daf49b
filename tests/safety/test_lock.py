"""A lock lets one process of this machine do a thing at a time; the others wait, unless they are ending."""

import tempfile
from pathlib import Path

import pytest
from filelock import Timeout

from steps.safety import processes
from steps.safety.lock import one_at_a_time

from .started import line_of, start


def test_a_second_process_waits_for_the_first_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with start("lock_holder.py", "abc", "600") as first:
        assert line_of(first) == "has it"
        second = start("lock_holder.py", "abc", "0")
        assert line_of(second) == "waits"
        first.kill()
        with second:
            assert line_of(second) == "has it"


def test_a_process_that_is_ending_waits_for_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with start("lock_holder.py", "abc", "600") as first:
        assert line_of(first) == "has it"
        with pytest.raises(Timeout), one_at_a_time("abc", waiting=processes.closing):
            pass
        first.kill()


def test_different_things_are_made_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with start("lock_holder.py", "one", "600") as first, start("lock_holder.py", "two", "600") as second:
        assert (line_of(first), line_of(second)) == ("has it", "has it")
        first.kill()
        second.kill()
