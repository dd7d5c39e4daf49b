"""What the tests share: the project's folder, an empty store, and real processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URI of an empty tracking store, which this process and those it starts use."""
    uri = f"sqlite:///{tmp_path}/store.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    # The default experiment's artifacts go to ./mlruns of the process that makes the store.
    monkeypatch.chdir(tmp_path)
    return uri


def run(*command: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run *command* with the tests' own Python first on PATH; return its exit code and output as text."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": ""} | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
