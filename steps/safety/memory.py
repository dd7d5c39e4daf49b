"""Memory: how much of it there is, and how much is left."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")

GROUPS = Path("/proc/self/cgroup")
"""Says to which control groups this process belongs."""


def available_memory(limit: Path = MEMORY_LIMIT) -> float:
    """Return the bytes of memory that this machine, within the limits of this process's groups, still has."""
    available = float(psutil.virtual_memory().available)
    for most, used in _limits(limit):
        available = min(available, most - used)
    return available


def total_memory(limit: Path = MEMORY_LIMIT) -> float:
    """Return the bytes of memory that this process could have at most, if nothing else ran."""
    return min([float(psutil.virtual_memory().total), *(most for most, _used in _limits(limit))])


def _limits(container: Path) -> Iterator[tuple[float, float]]:
    """Yield limit and use, in bytes, of the container and of every control group above this process."""
    names = [(container, "memory.current")]
    with contextlib.suppress(OSError):
        for line in GROUPS.read_text(encoding="utf-8").splitlines():
            _number, kinds, path = line.split(":", 2)
            if kinds == "":  # version 2, as under systemd-run and Slurm
                names += [(each / "memory.max", "memory.current") for each in _upwards(container.parent, path)]
            elif "memory" in kinds.split(","):
                folders = _upwards(container.parent / "memory", path)
                names += [(each / "memory.limit_in_bytes", "memory.usage_in_bytes") for each in folders]
    for file, use in names:
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit: `max`
            yield float(int(file.read_text())), float(int(file.with_name(use).read_text()))


def _upwards(root: Path, path: str) -> list[Path]:
    group = root / path.lstrip("/")
    return [each for each in (group, *group.parents) if each.is_relative_to(root)]
