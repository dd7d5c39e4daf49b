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
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cpus(tmp_path / "cpu.max") == cpus
    assert usable_cpus(tmp_path / "no quota here") == 3
