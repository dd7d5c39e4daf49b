"""No process outlives the one that started it, and no run stays RUNNING when its process is gone."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow.exceptions import MlflowException

from steps.config.command_line import compose_config
from steps.flow import runs
from steps.flow.launch import launch
from steps.records.tags import PROCESS
from steps.safety import processes
from steps.safety.processes import close_abandoned_runs, process_tag
from tests.conftest import ROOT
from tests.marked_processes import PROMISED_SECONDS


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a Python process that runs *code* and prints to us."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def a_running_run(tag: str, above: str = "") -> str:
    tags = {PROCESS: tag, "mlflow.parentRunId": above}
    run_id: str = mlflow.MlflowClient().create_run("0", tags=tags).info.run_id
    return run_id


def status_of(run_id: str) -> str:
    status: str = mlflow.get_run(run_id).info.status
    return status


def test_a_run_whose_process_is_gone_is_closed(store: str) -> None:
    with start("from steps.safety.processes import process_tag; print(process_tag())") as process:
        run_id = a_running_run(line_of(process))
    assert [run.info.run_id for run in close_abandoned_runs()] == [run_id]
    assert status_of(run_id) == "KILLED"


def test_a_run_whose_process_is_a_zombie_is_closed(store: str) -> None:
    child = start("")
    machine, _pid, _identity = process_tag().split()
    run_id = a_running_run(f"{machine} {child.pid} {processes._identity(psutil.Process(child.pid))}")
    # Not `wait`: until it is asked after, it is a zombie, as where the first process of a container asks after nobody.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    close_abandoned_runs()
    child.communicate()
    assert status_of(run_id) == "KILLED"


def test_what_is_below_a_run_whose_process_is_gone_is_closed_on_whatever_machine(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine, pid, _identity = process_tag().split()
    sweep = a_running_run(f"{machine} {pid} 1")
    trial = a_running_run("another-machine 1 1", above=sweep)
    step = a_running_run("another-machine 2 1", above=trial)
    closed = {run.info.run_id for run in close_abandoned_runs()}
    assert closed == {sweep, trial, step}
    assert {status_of(each) for each in closed} == {"KILLED"}
    said = capsys.readouterr().out
    assert said.count("was abandoned by its process: marked KILLED") == 3
    assert all(each in said for each in closed)


def test_a_run_that_finishes_before_its_process_is_seen_to_be_gone_stays_finished(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start("import sys; from steps.safety.processes import *; print(process_tag(), flush=True); input()") as child:
        run_id = a_running_run(line_of(child))
        is_gone = processes._is_gone

        def after_it_has_finished(tag: str) -> bool:
            mlflow.MlflowClient().set_terminated(run_id, "FINISHED")
            child.communicate("\n")
            return is_gone(tag)

        monkeypatch.setattr(processes, "_is_gone", after_it_has_finished)
        assert close_abandoned_runs() == []
    assert status_of(run_id) == "FINISHED"


def test_a_step_says_whose_it_is_before_anything_can_go_wrong(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def look(_seed: int) -> dict[str, str]:
        seen.extend(run.data.tags for run in mlflow.MlflowClient().search_runs(["0"]))
        return {}

    monkeypatch.setattr(runs, "provenance_tags", look)
    with runs.open_run("fetch_model", compose_config([])):
        pass
    (tags,) = seen
    assert (tags[PROCESS], tags["step"], tags["mlflow.runName"]) == (process_tag(), "fetch_model", "fetch_model")


def test_a_step_that_cannot_be_started_leaves_a_closed_run_that_says_whose_it_was(store: str) -> None:
    with mlflow.start_run() as parent:
        with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
            refuse = "BEGIN SELECT RAISE(ABORT, 'no parameters today'); END"
            database.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON params {refuse}")
        with pytest.raises(MlflowException, match="no parameters today"):
            launch("fetch_model", {"overrides": "seed=1"}, parent)
    (step,) = (run for run in mlflow.MlflowClient().search_runs(["0"]) if run.info.run_id != parent.info.run_id)
    assert (step.info.status, step.info.run_name) == ("KILLED", "fetch_model")
    assert step.data.tags[PROCESS] == process_tag()
    assert step.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_run_whose_process_is_alive_is_left(store: str) -> None:
    run_id = a_running_run(process_tag())
    assert close_abandoned_runs() == []
    assert status_of(run_id) == "RUNNING"


def test_a_number_that_another_process_has_now_is_not_the_process_of_the_run(store: str) -> None:
    machine, pid, _identity = process_tag().split()
    run_id = a_running_run(f"{machine} {pid} 1")
    close_abandoned_runs()
    assert status_of(run_id) == "KILLED"


def test_a_run_whose_process_is_alive_is_left_when_the_clock_is_set(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = a_running_run(process_tag())
    an_hour_later = psutil.boot_time() + 3600  # what the system then takes for the time of its start
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: an_hour_later)
    assert close_abandoned_runs() == []
    assert status_of(run_id) == "RUNNING"


def test_a_run_of_another_container_of_the_same_name_is_left(store: str) -> None:
    machine, _pid, _identity = process_tag().split()
    namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    run_id = a_running_run(f"{machine.replace(namespace, '1')} 1 1")
    close_abandoned_runs()
    assert status_of(run_id) == "RUNNING"


@pytest.mark.parametrize("tag", ["another-machine 1 1", "", "nonsense"])
def test_a_run_of_another_machine_or_program_is_left(store: str, tag: str) -> None:
    run_id = a_running_run(tag)
    close_abandoned_runs()
    assert status_of(run_id) == "RUNNING"


PARENT = """
import subprocess, sys, time
child = subprocess.Popen(["bash", "-c", f'SLM_LAUNCHER_PID=$PPID "{sys.executable}" -c "$CHILD"'])
print(child.pid, flush=True)
time.sleep(600)
"""

CHILD = """
import time
from steps.safety.processes import watch_launcher
watch_launcher()
print('watches', flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_step_ends_when_its_chain_is_gone(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHILD", CHILD)
    with start(PARENT) as parent:
        child = psutil.Process(int(line_of(parent)))
        assert line_of(parent) == "watches"
        os.kill(parent.pid, number)
        child.wait(timeout=30)  # before it ends by itself


def test_a_step_whose_chain_was_gone_before_it_could_look_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with start("") as gone:
        pass
    monkeypatch.setenv("SLM_LAUNCHER_PID", str(gone.pid))
    with start(CHILD) as child:
        assert line_of(child) == ""
    assert child.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("pid", ["0", "1"])
def test_a_launcher_outside_of_the_container_is_not_waited_for(pid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_LAUNCHER_PID", pid)
    with start(CHILD) as child:
        assert line_of(child) == "watches"
        child.kill()


CHAIN = """
import sys
from steps.config.command_line import compose_config
from steps.flow.launch import launch, start_here
from steps.safety.processes import end_on_signals, watch_launcher
from steps.flow.runs import open_run
end_on_signals()
watch_launcher()
STEP = 'trap : TERM; echo started; while true; do sleep 0.1; done'
with open_run('main', compose_config([])) as chain:
    launch('fetch_model', {}, chain, lambda _command, variables: start_here(STEP, variables))
"""


def test_a_chain_whose_launcher_is_gone_closes_the_run_of_a_step_that_does_not_end(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHILD", CHAIN)
    with start(PARENT) as parent:
        chain = psutil.Process(int(line_of(parent)))
        assert line_of(parent) == "started"
        parent.kill()
        chain.wait(timeout=30)
    runs = mlflow.MlflowClient().search_runs(["0"])
    assert {run.info.run_name: run.info.status for run in runs} == {"main": "KILLED", "fetch_model": "KILLED"}


def test_each_has_ended_what_is_below_it_and_closed_its_runs_before_it_is_ended_itself() -> None:
    closing_takes = 0.5
    assert processes.GRACE_SECONDS + closing_takes < processes.TRIAL_GRACE_SECONDS
    assert processes.TRIAL_GRACE_SECONDS + closing_takes < processes.OWN_GRACE_SECONDS
    assert processes.PAUSE_SECONDS + processes.OWN_GRACE_SECONDS < PROMISED_SECONDS


@pytest.mark.parametrize("grace", [0, 0.3, 0.7])
def test_the_last_signal_comes_when_the_grace_is_over_and_no_pause_later(grace: float) -> None:
    sent: list[int] = []
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processes.time, "monotonic", lambda: sum(slept))
        patched.setattr(processes.time, "sleep", slept.append)
        processes.end(sent.append, grace)
    assert sent[-1] == signal.SIGKILL
    assert set(sent[:-1]) <= {signal.SIGTERM}
    assert sum(slept) == pytest.approx(grace)


HOLDER = """
import sys, time
from steps.safety.lock import one_at_a_time
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
