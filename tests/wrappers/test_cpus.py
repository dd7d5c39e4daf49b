"""How many CPUs a process may use."""

import os
from pathlib import Path

import pytest

from steps.wrappers.onnx.cpus import usable_cpus


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 3), ("900000 100000", 3), ("250000 100000", 2), ("50000 100000", 1)]
)
def test_the_quota_of_a_container_limits_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cpus(tmp_path / "cpu.max") == cpus
    assert usable_cpus(tmp_path / "no quota here") == 3


@pytest.mark.parametrize(("wanted", "cpus"), [("1", 1), ("2", 2), ("64", 3), ("", 3), ("4,2", 3)])
def test_omp_num_threads_limits_the_cpus_as_it_limits_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert usable_cpus(tmp_path / "no quota here") == cpus
