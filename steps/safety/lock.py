"""Locks between the processes of one machine."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from steps.safety.processes import ENDING


@contextmanager
def one_at_a_time(name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock *name* on this machine; call *waiting* once if another process holds it.

    The kernel releases the lock of a process that dies. Raises Timeout if this process begins to end while it waits.
    """
    folder = Path(tempfile.gettempdir()) / f"slm-project-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire(poll_interval=0.5, cancel_check=ENDING.is_set)
    try:
        yield
    finally:
        lock.release()
