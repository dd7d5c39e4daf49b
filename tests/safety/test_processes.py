"""No process outlives the one that started it, and no run stays RUNNING when its process is gone."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from sqlalchemy import Connection, Engine, event

from steps.config.command_line import compose_config
from steps.flow import runs
from steps.flow.entry import reporting
from steps.flow.launch import launch, start_here
from steps.records.tags import PROCESS
from steps.safety import processes
from steps.safety.processes import close_abandoned_runs, process_tag
from tests.conftest import PROGRAMS, ROOT
from tests.marked_processes import ON_A_BUSY_MACHINE, PROMISED_SECONDS

from .started import line_of, start


def sleeping() -> "subprocess.Popen[bytes]":
    """Start a process that only waits."""
    return subprocess.Popen(["sleep", "600"])


def tag_of(child: "subprocess.Popen[bytes]") -> str:
    return process_tag(psutil.Process(child.pid))


def a_running_run(tag: str, above: str = "") -> str:
    tags = {PROCESS: tag, "mlflow.parentRunId": above}
    run_id: str = mlflow.MlflowClient().create_run("0", tags=tags).info.run_id
    return run_id


def status_of(run_id: str) -> str:
    status: str = mlflow.get_run(run_id).info.status
    return status


@pytest.fixture
def handlers() -> Iterator[None]:
    """Signals end this process, as they end a step; the handlers of the tests come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    processes.end_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_whose_process_is_gone_is_closed(store: str) -> None:
    with sleeping() as child:
        run_id = a_running_run(tag_of(child))
        child.kill()
    assert [run.info.run_id for run in close_abandoned_runs()] == [run_id]
    assert status_of(run_id) == "KILLED"


def test_a_run_whose_process_is_a_zombie_is_closed(store: str) -> None:
    child = sleeping()
    run_id = a_running_run(tag_of(child))
    child.kill()
    # Not `wait`: until it is asked after, it is a zombie, as where the first process of a container asks after nobody.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    close_abandoned_runs()
    child.wait()
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
    search = mlflow.MlflowClient.search_runs
    with sleeping() as child:
        run_id = a_running_run(tag_of(child))

        def and_then_it_finishes(*arguments: object) -> object:
            found = search(*arguments)
            mlflow.MlflowClient().set_terminated(run_id, "FINISHED")
            child.kill()
            child.wait()
            return found

        monkeypatch.setattr(mlflow.MlflowClient, "search_runs", and_then_it_finishes)
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


def test_a_second_signal_does_not_keep_a_flow_from_closing_the_run_of_its_step(store: str, handlers: None) -> None:
    get_run = mlflow.MlflowClient.get_run

    def interrupted(client: mlflow.MlflowClient, run_id: str) -> Run:
        signal.raise_signal(signal.SIGTERM)
        return get_run(client, run_id)

    def start(_command: str, _variables: dict[str, str]) -> int:
        patched.setattr(mlflow.MlflowClient, "get_run", interrupted)
        signal.raise_signal(signal.SIGTERM)
        return 0

    with mlflow.start_run() as parent, pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit):
        launch("fetch_model", {"overrides": "seed=1"}, parent, start)
    (step,) = (run for run in mlflow.MlflowClient().search_runs(["0"]) if run.info.run_id != parent.info.run_id)
    assert step.info.status == "KILLED"


def test_a_signal_while_mlflow_opens_the_run_of_a_step_closes_it(
    store: str, handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = a_running_run(tag="")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    get_run, calls = mlflow.MlflowClient.get_run, []

    def interrupted(client: mlflow.MlflowClient, run_id: str) -> Run:
        calls.append(run_id)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return get_run(client, run_id)

    monkeypatch.setattr(mlflow.MlflowClient, "get_run", interrupted)
    with pytest.raises(SystemExit), reporting("fetch_model"), runs.open_run("fetch_model", compose_config([])):
        pass
    assert status_of(run_id) == "KILLED"


def test_a_signal_in_the_middle_of_a_statement_does_not_lock_the_database_for_the_process_itself(
    store: str, handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = a_running_run(tag="")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    asked = []

    def interrupt(_connection: Connection, _cursor: object, statement: str, *_more: object) -> None:
        if "FROM tags" in statement and not asked:
            asked.append(statement)
            signal.raise_signal(signal.SIGTERM)

    event.listen(Engine, "after_cursor_execute", interrupt)
    try:
        with pytest.raises(SystemExit), reporting("fetch_model"), runs.open_run("fetch_model", compose_config([])):
            time.sleep(600)
    finally:
        event.remove(Engine, "after_cursor_execute", interrupt)
    assert asked
    assert status_of(run_id) == "KILLED"


def test_a_process_that_is_ending_starts_nothing_more(tmp_path: Path) -> None:
    assert start_here(f"touch {tmp_path}/before", {}) == 0
    processes.closing()
    assert start_here(f"touch {tmp_path}/after", {}) == -signal.SIGTERM
    assert [each.name for each in tmp_path.iterdir()] == ["before"]


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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_step_ends_when_its_chain_is_gone(number: int) -> None:
    with start("launcher.py", str(PROGRAMS / "watched_child.py")) as parent:
        child = psutil.Process(int(line_of(parent)))
        assert line_of(parent) == "watches"
        os.kill(parent.pid, number)
        child.wait(timeout=ON_A_BUSY_MACHINE)  # before it ends by itself


@pytest.mark.slow
def test_a_step_whose_chain_was_gone_before_it_could_look_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen("true") as gone:
        pass
    monkeypatch.setenv("SLM_LAUNCHER_PID", str(gone.pid))
    with start("watched_child.py") as child:
        assert line_of(child) == ""
    assert child.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("pid", ["0", "1"])
def test_a_launcher_outside_of_the_container_is_not_waited_for(pid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_LAUNCHER_PID", pid)
    with start("watched_child.py") as child:
        assert line_of(child) == "watches"
        child.kill()


@pytest.mark.slow
def test_a_chain_whose_launcher_is_gone_closes_the_run_of_a_step_that_does_not_end(store: str) -> None:
    with start("launcher.py", str(PROGRAMS / "stubborn_chain.py")) as parent:
        chain = psutil.Process(int(line_of(parent)))
        assert line_of(parent) == "started"
        parent.kill()
        chain.wait(timeout=ON_A_BUSY_MACHINE)
    runs = mlflow.MlflowClient().search_runs(["0"])
    assert {run.info.run_name: run.info.status for run in runs} == {"main": "KILLED", "fetch_model": "KILLED"}


@pytest.mark.slow
def test_a_run_is_closed_though_its_database_is_locked_for_longer_than_sqlite_waits(store: str) -> None:
    run_id = a_running_run(tag="")
    others = sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None)
    others.execute("BEGIN EXCLUSIVE")
    program = f"from steps.safety.processes import close_run; print('asks', flush=True); close_run({run_id!r})"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert line_of(child) == "asks"
        time.sleep(9)  # SQLite waits for five
        others.execute("ROLLBACK")
        assert child.wait() == 0
    assert status_of(run_id) == "KILLED"


def test_a_signal_during_an_import_takes_effect_after_it() -> None:
    with start("importing.py") as child:
        assert line_of(child) == "begins"
        child.terminate()
        assert line_of(child) == "complete"
        assert child.wait() == 128 + signal.SIGTERM


def test_each_has_time_to_end_what_is_below_it_and_close_its_runs() -> None:
    closing_takes = 4
    assert processes.GRACE_SECONDS + closing_takes < processes.TRIAL_GRACE_SECONDS
    assert processes.TRIAL_GRACE_SECONDS + closing_takes < processes.OWN_GRACE_SECONDS
    assert processes.PAUSE_SECONDS + processes.OWN_GRACE_SECONDS <= PROMISED_SECONDS


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
