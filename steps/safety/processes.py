"""Processes and the runs they are responsible for: none lives on without its caller, none leaves a run RUNNING.

Every run says in its tags which process works on it. A process watches the one that started it, and ends when that is
gone; what a SIGKILL left behind is marked when the next chain on this machine starts.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

PROCESS = "process"
"""The tag that says, in three words, on which machine, under which number, and since when a process works on a run."""

PAUSE_SECONDS = 0.5
"""Between two looks at a launcher, and between two signals."""

GRACE_SECONDS = 2
"""How long a step may take to close its run after SIGTERM, before SIGKILL."""

TRIAL_GRACE_SECONDS = 3
"""The same for a trial of a sweep: it ends its step first."""

OWN_GRACE_SECONDS = 4
"""The same for a process whose launcher is gone: it ends all below it first. One look more, and 5 s are not over."""

LAUNCHER_PID = "SLM_LAUNCHER_PID"
"""The environment variable by which an entry point's shell tells who started it, before anybody can be gone."""

_closing = threading.Event()


def end_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP leave the main thread by SystemExit, unless they are ignored (nohup)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number: int, _frame: object) -> None:
    if not _closing.is_set():
        sys.exit(128 + number)


def closing() -> None:
    """Let further signals pass: this process is ending, and what it closes now must not be cut short.

    Nor may it take long: from now on nobody waits for a tracking server that does not answer.
    """
    _closing.set()
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"


def end(send: Callable[[int], None], grace: float = GRACE_SECONDS) -> None:
    """*send* SIGTERM, and after *grace* seconds SIGKILL, until it raises ProcessLookupError: nobody is left.

    Again and again, because the exception that a signal raises is lost when it falls into a destructor.
    """
    deadline = time.monotonic() + grace
    with contextlib.suppress(ProcessLookupError):
        while (left := deadline - time.monotonic()) > 0:
            send(signal.SIGTERM)
            time.sleep(min(PAUSE_SECONDS, left))
        send(signal.SIGKILL)


def send_to(processes: Iterable[psutil.Process], number: int) -> None:
    """Send the signal *number* to those of *processes* that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def process_tag(process: psutil.Process | None = None) -> str:
    """Return what identifies *process* of this machine, by default this one, among all that ever ran on any machine."""
    process = process or psutil.Process()
    return f"{_machine()} {process.pid} {_identity(process)}"


def _machine() -> str:
    """Return the name of this machine, and where there is one, of the namespace that its processes' numbers are of."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):  # containers may share a name, but not their processes
        return f"{name}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return name


def _identity(process: psutil.Process) -> str:
    """Return what tells *process* from another that has its number later: its start, whatever happens to the clock."""
    return str(hash(process))


def watch_launcher() -> None:
    """End this process, with SIGTERM, soon after the one that started its entry point is gone; return at once.

    A process that was started by hand is not watched: it may outlive its terminal.
    """
    told = int(os.environ.pop(LAUNCHER_PID, "0"))
    if told <= 1:  # by hand; or from outside of this container, or by its first process, which takes all with it
        return
    # Above this one, as long as it lives: another process may have its number by now.
    launcher = next((process for process in psutil.Process().parents() if process.pid == told), None)
    if launcher is None:
        sys.exit(128 + signal.SIGTERM)
    watch(launcher)


def watch(process: psutil.Process) -> None:
    """End this process, with SIGTERM, soon after *process* is gone; return at once."""
    threading.Thread(target=_end_with, args=(process,), daemon=True).start()


def _end_with(launcher: psutil.Process) -> None:
    # is_running compares the start time too: another process with the same number is not the launcher.
    with contextlib.suppress(psutil.NoSuchProcess):  # gone between the two questions
        while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE:
            time.sleep(PAUSE_SECONDS)
    own = psutil.Process()

    def send(number: int) -> None:
        # With SIGKILL nobody is left to end the children.
        send_to([*(own.children(recursive=True) if number == signal.SIGKILL else []), own], number)

    end(send, OWN_GRACE_SECONDS)


def close_abandoned_runs() -> list[Run]:
    """Mark as KILLED, and print, every RUNNING run whose process, on this machine, is gone, and all below; return them.

    Those below may be on other machines, where nobody can see that the process above is gone.
    """
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    closed: list[Run] = []
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'"):
        # A process that is gone by now may have finished its run since we asked.
        if _is_gone(run.data.tags.get(PROCESS, "")) and close_run(run.info.run_id):
            closed += [run, *close_below(run.info.run_id)]
    for run in closed:
        print(f"run {run.info.run_id} ({run.data.tags.get('step')}) was abandoned by its process: marked KILLED")
    return closed


def close_below(run_id: str) -> list[Run]:
    """Mark as KILLED every RUNNING run below *run_id*, on whatever machine: the one above has ended; return them."""
    client = MlflowClient()
    experiment = client.get_run(run_id).info.experiment_id
    closed: list[Run] = []
    for child in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'"):
        closed += close_below(child.info.run_id)
        if close_run(child.info.run_id):
            closed.append(child)
    return closed


def close_run(run_id: str) -> bool:
    """Mark the run *run_id* as KILLED if it is still RUNNING; return whether it was."""
    client = MlflowClient()
    if client.get_run(run_id).info.status != "RUNNING":
        return False
    client.set_terminated(run_id, "KILLED")
    return True


def _is_gone(tag: str) -> bool:
    machine, _, rest = tag.partition(" ")
    pid, _, identity = rest.partition(" ")
    if machine != _machine() or not pid.isdigit():
        return False
    try:
        process = psutil.Process(int(pid))
        # A zombie has ended; in a container whose first process does not see to it, it stays one.
        return process.status() == psutil.STATUS_ZOMBIE or _identity(process) != identity
    except psutil.NoSuchProcess:
        return True
