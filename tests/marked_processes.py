"""A flow started beside the test, all of whose processes can be found, whoever their parent is by now."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.conftest import ROOT

MARK = "TEST_FLOW"
"""An environment variable by which every process of a flow is known."""

PROMISED_SECONDS = 16
"""Within which every process of a flow that is told to end has ended, as docs/reference/status.md says."""

ON_A_BUSY_MACHINE = 4 * PROMISED_SECONDS
"""What the tests allow instead: a machine that runs other tests too may keep a process waiting, or still importing."""


def processes_of(mark: str) -> Iterator[psutil.Process]:
    """Yield the processes that are alive and have *mark*."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


class Started:
    """`command`, running in `folder`; `processes` yields all of its processes that are alive."""

    def __init__(self, *command: str, folder: Path = ROOT, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.outer = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {MARK: self.mark, "PATH": path} | environment,
            start_new_session=True,
            # A shell starts what it runs in the background with SIGINT ignored, and so everything below it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def processes(self) -> Iterator[psutil.Process]:
        return processes_of(self.mark)

    def named(self, name: str) -> list[psutil.Process]:
        """Return the processes whose command line holds *name*; not the shells that start them."""
        found = []
        for process in self.processes():
            try:
                if name in " ".join(process.cmdline()) and process.name() != "bash":
                    found.append(process)
            except psutil.Error:  # ended between the two questions
                continue
        return found

    def send(self, name: str, number: int) -> None:
        """Send *number* to the processes whose command line holds *name*."""
        targets = self.named(name)
        assert targets, f"no process of {name}"
        for target in targets:
            target.send_signal(number)

    def kill(self) -> None:
        """Kill all of its processes, and return when none is left."""
        while alive := list(self.processes()):
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.05)
        self.outer.wait()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once *condition* holds; AssertionError when the command ends first."""
        while not condition():
            assert self.outer.poll() is None, f"ended with {self.outer.returncode} too soon"
            time.sleep(0.05)

    def wait_for_silence(self) -> None:
        """Return once no process is left. AssertionError when one is there ON_A_BUSY_MACHINE later."""
        deadline = time.monotonic() + ON_A_BUSY_MACHINE
        while self.outer.poll() is None or any(True for _ in self.processes()):
            assert time.monotonic() < deadline, [each.cmdline() for each in self.processes()]
            time.sleep(0.1)
