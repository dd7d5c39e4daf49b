"""How many CPUs a process may use."""

import os
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus(limit: Path = CPU_QUOTA) -> int:
    """Return how many CPUs this process may use: its affinity, within its container's quota, *limit* (cgroup v2)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = limit.read_text().split() if limit.exists() else ("max", "0")
    return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))
