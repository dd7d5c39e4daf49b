"""A flow started beside the test, all of whose processes can be found, whoever their parent is by now."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

MARK = "TEST_FLOW"


class Started:
    """`command`, running; `processes` yields all of its processes that are alive."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.outer = subprocess.Popen(
            command,
            env=os.environ | {MARK: self.mark, "PATH": path} | environment,
            start_new_session=True,
            # A shell starts what it runs in the background with SIGINT ignored, and so everything below it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
            except psutil.Error:
                continue

    def send(self, name: str, number: int) -> None:
        """Send *number* to the processes whose command line holds *name*."""
        targets = [one for one in self.processes() if name in " ".join(one.cmdline()) and one.name() != "bash"]
        assert targets, f"no process of {name}"
        for target in targets:
            target.send_signal(number)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once *condition* holds; AssertionError when the command ends first."""
        while not condition():
            assert self.outer.poll() is None, f"ended with {self.outer.returncode} too soon"
            time.sleep(0.05)

    def wait_for_silence(self) -> None:
        """Return once no process is left; they have 5 s, and on a busy machine longer. AssertionError otherwise."""
        self.outer.wait(60)
        psutil.wait_procs(list(self.processes()), timeout=30)
        assert not list(self.processes())
