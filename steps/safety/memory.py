"""Memory: how much of it there is left."""

import contextlib
from pathlib import Path

import psutil

MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


def available_memory(limit: Path = MEMORY_LIMIT) -> float:
    """Return the bytes of memory that this machine, within the limit of its container, still has."""
    available = float(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no container, or `max`
        used = int(limit.with_name("memory.current").read_text())
        available = min(available, float(int(limit.read_text()) - used))
    return available
