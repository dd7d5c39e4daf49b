"""Several processes on this machine side by side: how many, and how one signal ends all."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar
from uuid import uuid4

import psutil

from steps.safety.memory import available_memory
from steps.safety.processes import closing, end, send_to

T = TypeVar("T")

IsOver = Callable[[], bool]

WAITING = "OMP_WAIT_POLICY"
"""The environment variable that says how OpenMP's threads, and so PyTorch's, wait for each other."""

BYTES_PER_CHECKPOINT_BYTE, BYTES_OF_LIBRARIES = 2.7, 3e9
"""Memory of both builds together: onnxruntime-genai's builder takes up to 1.6 times the checkpoint, the pipeline 1.1.

Measured at Phi-3-mini's size: docs/reference/benchmarks.md.
"""


def side_by_side(calls: Sequence[Callable[[], T]], jobs: int, stop: Callable[[IsOver], None]) -> list[T]:
    """Return the results of *calls*, *jobs* at a time. Several calls run in threads.

    If a call or a signal raises, all calls are ended: *stop* is called with a function that says whether all are over.
    """
    if len(calls) == 1:
        return [calls[0]()]
    name = f"side-by-side-{uuid4().hex}"
    pool = ThreadPoolExecutor(jobs, thread_name_prefix=name)
    with sharing_cores() if jobs > 1 else nullcontext():
        try:
            futures = [pool.submit(call) for call in calls]
            return [future.result() for future in futures]
        except BaseException:
            # A signal reaches this thread only; the threads that wait for a process go on until it has ended.
            closing()
            pool.shutdown(wait=False, cancel_futures=True)
            # By name: a signal that came while they were being started left no future of theirs.
            stop(lambda: not any(thread.name.startswith(name) for thread in threading.enumerate()))
            raise


@contextmanager
def sharing_cores() -> Iterator[None]:
    """Let PyTorch's threads sleep while they wait for each other, in the processes that start meanwhile.

    By default they spin, and take the cores from the other process. A setting of the user's own stays.
    """
    given = WAITING in os.environ
    os.environ.setdefault(WAITING, "PASSIVE")
    try:
        yield
    finally:
        if not given:
            del os.environ[WAITING]


def end_children(is_over: IsOver, grace: float) -> None:
    """Send SIGTERM, and after *grace* seconds SIGKILL, to this process's children until *is_over*."""

    def send(number: int) -> None:
        if is_over():
            raise ProcessLookupError
        send_to(psutil.Process().children(), number)

    end(send, grace)


def jobs_for(checkpoint_bytes: float) -> int:
    """Return how many steps may run at a time: two if cores and memory suffice for both builds, otherwise one."""
    needed = BYTES_PER_CHECKPOINT_BYTE * checkpoint_bytes + BYTES_OF_LIBRARIES
    return 2 if len(os.sched_getaffinity(0)) > 1 and needed < available_memory() else 1
