"""No process outlives the one that started it, and no run stays RUNNING when its process is gone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import psutil
import pytest

from steps.flow.processes import PROCESS, close_abandoned_runs, process_tag
from tests.conftest import ROOT


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a Python process that runs *code* and prints to us."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def a_running_run(tag: str) -> str:
    run_id: str = mlflow.MlflowClient().create_run("0", tags={PROCESS: tag}).info.run_id
    return run_id


def status_of(run_id: str) -> str:
    status: str = mlflow.get_run(run_id).info.status
    return status


def test_a_run_whose_process_is_gone_is_closed(store: str) -> None:
    with start("from steps.flow.processes import process_tag; print(process_tag())") as process:
        run_id = a_running_run(line_of(process))
    assert [run.info.run_id for run in close_abandoned_runs()] == [run_id]
    assert status_of(run_id) == "KILLED"


def test_a_run_whose_process_is_alive_is_left(store: str) -> None:
    run_id = a_running_run(process_tag())
    assert close_abandoned_runs() == []
    assert status_of(run_id) == "RUNNING"


def test_a_number_that_another_process_has_now_is_not_the_process_of_the_run(store: str) -> None:
    host, pid, _started = process_tag().split()
    run_id = a_running_run(f"{host} {pid} 1.00")
    close_abandoned_runs()
    assert status_of(run_id) == "KILLED"


@pytest.mark.parametrize("tag", ["another-host 1 1.00", "", "nonsense"])
def test_a_run_of_another_machine_or_program_is_left(store: str, tag: str) -> None:
    run_id = a_running_run(tag)
    close_abandoned_runs()
    assert status_of(run_id) == "RUNNING"


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]])
print(child.pid, flush=True)
time.sleep(600)
"""

CHILD = """
import time
from steps.flow.processes import watch_launcher
watch_launcher()
print("watches", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_step_ends_when_its_chain_is_gone(number: int) -> None:
    # A launcher is known by a word of its command line.
    with start(PARENT, "steps.main", CHILD) as parent:
        child = psutil.Process(int(line_of(parent)))
        assert line_of(parent) == "watches"
        os.kill(parent.pid, number)
        child.wait()
    assert not child.is_running()


HOLDER = """
import sys, time
from steps.flow.lock import one_at_a_time
with one_at_a_time(sys.argv[1], waiting=lambda: print("waits", flush=True)):
    print("has it", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_second_process_waits_for_the_first_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with start(HOLDER, "abc", "600") as first:
        assert line_of(first) == "has it"
        second = start(HOLDER, "abc", "0")
        assert line_of(second) == "waits"
        first.kill()
        with second:
            assert line_of(second) == "has it"


def test_different_things_are_made_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with start(HOLDER, "one", "600") as first, start(HOLDER, "two", "600") as second:
        assert (line_of(first), line_of(second)) == ("has it", "has it")
        first.kill()
        second.kill()
