"""How many CPUs a process may use."""

import os
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus(limit: Path = CPU_QUOTA) -> int:
    """Return how many CPUs this process may use.

    The least of its affinity, its container's quota, *limit* (cgroup v2), and OMP_NUM_THREADS, which PyTorch follows.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = limit.read_text().split() if limit.exists() else ("max", "0")
    if quota != "max":
        cpus = min(cpus, int(quota) // int(period))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit():
        cpus = min(cpus, int(wanted))
    return max(1, cpus)
