"""Processes and their runs: no process outlives its launcher, and none leaves a run RUNNING.

Each run's tag says which process works on it. A process watches its launcher and ends when that is gone. If a SIGKILL
left a run RUNNING, the next chain on this machine marks it KILLED.
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
from types import FrameType

import psutil
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Run
from sqlalchemy.exc import OperationalError

from steps.records.tags import PROCESS
from steps.safety.search import runs_in_store

PAUSE_SECONDS = 0.5
"""Between two checks of a launcher, and between two signals."""

GRACE_SECONDS = 5
"""How long a step may take to close its run after SIGTERM, before it gets SIGKILL.

One second is usual. A busy machine needs more, and SIGKILL would leave the run RUNNING.
"""

TRIAL_GRACE_SECONDS = 10
"""The same for a trial of a sweep, which ends its step first."""

OWN_GRACE_SECONDS = 15
"""The same for a process whose launcher is gone, which ends its children first."""

LAUNCHER_PID = "SLM_LAUNCHER_PID"
"""The environment variable in which an entry point's shell records the launcher's PID, before it can exit."""

SQLALCHEMY = f"{Path(sqlalchemy.__file__).parent}{os.sep}"

ENDING = threading.Event()
"""Set when this process is ending: it ignores further signals, starts nothing more, and waits for no other."""


def end_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise SystemExit in the main thread, unless they are ignored (nohup).

    A signal that comes during an import, or while SQLAlchemy asks the database, takes effect after it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    if ENDING.is_set():
        return
    if _must_not_be_left(frame):
        later = threading.Timer(PAUSE_SECONDS / 5, os.kill, (os.getpid(), number))
        later.daemon = True
        later.start()
        return
    sys.exit(128 + number)


def _must_not_be_left(frame: FrameType | None) -> bool:
    """Return whether *frame* is in the middle of what closing a run needs whole: an import, or SQLAlchemy.

    What is imported by half cannot be imported again. A statement that is left by an exception holds SQLite's lock for
    as long as the exception lives, so this process would wait for itself.
    """
    while frame is not None:
        name = frame.f_code.co_filename
        if name == "<frozen importlib._bootstrap>" or name.startswith(SQLALCHEMY):
            return True
        frame = frame.f_back
    return False


def closing() -> None:
    """Set ENDING, because this process must be able to close its runs.

    From now on it does not wait for a tracking server that does not answer.
    """
    ENDING.set()
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"


def end(send: Callable[[int], None], grace: float = GRACE_SECONDS) -> None:
    """*send* SIGTERM repeatedly, and after *grace* seconds SIGKILL, until *send* raises ProcessLookupError.

    Repeatedly, because an exception raised by a signal inside `__del__` is swallowed.
    """
    deadline = time.monotonic() + grace
    with contextlib.suppress(ProcessLookupError):
        while (left := deadline - time.monotonic()) > 0:
            send(signal.SIGTERM)
            time.sleep(min(PAUSE_SECONDS, left))
        send(signal.SIGKILL)


def send_to(processes: Iterable[psutil.Process], number: int) -> None:
    """Send the signal *number* to each of *processes* that still exists."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def process_tag(process: psutil.Process | None = None) -> str:
    """Return a text that identifies *process*, by default this one, among all processes of all machines."""
    process = process or psutil.Process()
    return f"{_machine()} {process.pid} {_identity(process)}"


def _machine() -> str:
    """Return the name of this machine, with the PID namespace if there is one."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):  # two containers may have the same name
        return f"{name}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return name


def _identity(process: psutil.Process) -> str:
    """Return what distinguishes *process* from a later one with the same PID: its start, independent of the clock."""
    return str(hash(process))


def watch_launcher() -> None:
    """End this process with SIGTERM soon after its launcher is gone; return at once.

    A process that was started by hand has no launcher: it may outlive its terminal.
    """
    told = int(os.environ.pop(LAUNCHER_PID, "0"))
    if told <= 1:  # started by hand, from outside this container, or by its init process, whose end ends all
        return
    # Look among the ancestors, because another process may have reused the PID.
    launcher = next((process for process in psutil.Process().parents() if process.pid == told), None)
    if launcher is None:
        sys.exit(128 + signal.SIGTERM)
    watch(launcher)


def watch(process: psutil.Process) -> None:
    """End this process with SIGTERM soon after *process* is gone; return at once."""
    threading.Thread(target=_end_with, args=(process,), daemon=True).start()


def _end_with(launcher: psutil.Process) -> None:
    # is_running compares the start time too, so a reused PID is not taken for the launcher.
    with contextlib.suppress(psutil.NoSuchProcess):  # gone between the two calls
        while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE:
            time.sleep(PAUSE_SECONDS)
    own = psutil.Process()

    def send(number: int) -> None:
        # After SIGKILL this process could not end its children.
        send_to([*(own.children(recursive=True) if number == signal.SIGKILL else []), own], number)

    end(send, OWN_GRACE_SECONDS)


def close_abandoned_runs() -> list[Run]:
    """Mark as KILLED, print and return every RUNNING run whose process on this machine is gone, and the runs below it.

    Runs below may be on other machines, which cannot see that the process above is gone.
    """
    closed: list[Run] = []
    # Only this machine's: a store that many use may have hundreds of others, and each would be sent with all its data.
    here = f"tags.{PROCESS} LIKE '{_machine()} %'"
    for run in runs_in_store(f"attributes.status = 'RUNNING' and {here}", most=1_000):
        # The process may have finished its run since the search.
        if _is_gone(run.data.tags.get(PROCESS, "")) and close_run(run.info.run_id):
            closed += [run, *close_below(run.info.run_id)]
    for run in closed:
        print(f"run {run.info.run_id} ({run.data.tags.get('step')}) was abandoned by its process: marked KILLED")
    return closed


def close_below(run_id: str) -> list[Run]:
    """Mark as KILLED and return every RUNNING run below *run_id*, which has ended, on any machine."""
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
    client = _patient_client()
    if client.get_run(run_id).info.status != "RUNNING":
        return False
    client.set_terminated(run_id, "KILLED")
    return True


def _patient_client() -> MlflowClient:
    """Return a client; wait for a locked SQLite database as long as a process has to end."""
    deadline = time.monotonic() + OWN_GRACE_SECONDS
    while True:
        try:
            return MlflowClient()
        except OperationalError:  # opening the store waits for five seconds only, and a slow disk takes longer
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_SECONDS)


def _is_gone(tag: str) -> bool:
    machine, _, rest = tag.partition(" ")
    pid, _, identity = rest.partition(" ")
    if machine != _machine() or not pid.isdigit():
        return False
    try:
        process = psutil.Process(int(pid))
        # A zombie has ended. It stays one if the container's init process does not reap it.
        return process.status() == psutil.STATUS_ZOMBIE or _identity(process) != identity
    except psutil.NoSuchProcess:
        return True
