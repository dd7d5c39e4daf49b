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
from collections.abc import Callable

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

PROCESS = "process"
"""The tag that holds `<host> <pid> <start time>` of the process that works on a run."""

PAUSE_SECONDS = 0.5
"""Between two looks at a launcher, and between two signals."""

GRACE_SECONDS = 3
"""How long a process may take to close its run after SIGTERM, before SIGKILL."""

LAUNCHER_PID = "SLM_LAUNCHER_PID"
"""The environment variable that tells a process who started it: once that is gone, it cannot be found any more."""

LAUNCHERS = ("mlflow", "steps.main", "steps.sweep")

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


def end(send: Callable[[int], None]) -> None:
    """*send* SIGTERM, and after GRACE_SECONDS SIGKILL, until it raises ProcessLookupError: nobody is left.

    Again and again, because the exception that a signal raises is lost when it falls into a destructor.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            send(signal.SIGTERM)
            time.sleep(PAUSE_SECONDS)
        send(signal.SIGKILL)


def process_tag() -> str:
    """Return what identifies this process among all that ever ran on any machine."""
    own = psutil.Process()
    return f"{socket.gethostname()} {own.pid} {own.create_time():.2f}"


def watch_launcher() -> None:
    """End this process, with SIGTERM, soon after the `mlflow run` or chain above it is gone; return at once.

    A process that was started by hand is not watched: it may outlive its terminal.
    """
    told = os.environ.pop(LAUNCHER_PID, None)
    try:
        above = [psutil.Process(int(told))] if told else filter(_is_launcher, psutil.Process().parents())
    except psutil.NoSuchProcess:
        sys.exit(128 + signal.SIGTERM)
    if launcher := next(iter(above), None):
        watch(launcher)


def watch(process: psutil.Process) -> None:
    """End this process, with SIGTERM, soon after *process* is gone; return at once."""
    threading.Thread(target=_end_with, args=(process,), daemon=True).start()


def _is_launcher(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return any(word in LAUNCHERS or word.endswith("/mlflow") for word in words) and "bash" not in words[:1]


def _end_with(launcher: psutil.Process) -> None:
    # is_running compares the start time too: another process with the same number is not the launcher.
    with contextlib.suppress(psutil.NoSuchProcess):  # gone between the two questions
        while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE:
            time.sleep(PAUSE_SECONDS)
    own = psutil.Process()

    def send(number: int) -> None:
        # With SIGKILL nobody is left to end the children.
        for process in [*(own.children(recursive=True) if number == signal.SIGKILL else []), own]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    end(send)


def close_abandoned_runs() -> list[Run]:
    """Mark as KILLED every RUNNING run whose process, on this machine, is gone; return them."""
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    running = client.search_runs(experiments, "attributes.status = 'RUNNING'")
    abandoned = [run for run in running if _is_gone(run.data.tags.get(PROCESS, ""))]
    for run in abandoned:
        client.set_terminated(run.info.run_id, "KILLED")
    return abandoned


def _is_gone(tag: str) -> bool:
    host, _, rest = tag.partition(" ")
    pid, _, started = rest.partition(" ")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True
