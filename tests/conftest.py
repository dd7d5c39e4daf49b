"""What the tests share: the project's folder, an empty store, and real processes."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.config.schema import Config, Evaluate, project_path
from steps.evaluation.tasks import Example, read_examples
from steps.flow.runs import run_name, run_step
from tests.small_evaluation import examples, logged_models, predictions  # noqa: F401  fixtures

ROOT = Path(__file__).resolve().parent.parent

QUICK = (
    "evaluate.cost.prompt_lengths=[16]",
    "evaluate.cost.batches=[1]",
    "evaluate.cost.repeats=1",
    "evaluate.contract_examples=1",
)
"""What a flow is started with when its test says nothing of cost."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with the largest share of slow tests first.

    Whole files go to the workers: a flow that begins last would keep one busy while the others idle.
    """
    every = Counter(item.path for item in items)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path] / every[item.path])


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Put the environment back after each test: MLflow, and a step that ends, write into it for their children."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the database of an empty tracking store: making one takes MLflow seconds, copying it none."""
    folder = tmp_path_factory.mktemp("empty_store")
    run("mlflow", "experiments", "search", cwd=folder, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/store.db")
    return folder / "store.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the URI of an empty tracking store, which this process and those it starts use."""
    shutil.copy(empty_store, tmp_path / "store.db")
    with sqlite3.connect(tmp_path / "store.db") as database:
        database.execute("UPDATE experiments SET artifact_location = ?", (f"{tmp_path}/mlruns/0",))
    uri = f"sqlite:///{tmp_path}/store.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    yield uri
    while mlflow.active_run():
        mlflow.end_run()


def run(*command: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run *command* with the tests' own Python first on PATH; return its exit code and output as text."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": ""} | environment
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # as on a user's machine
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def committed(folder: Path) -> Path:
    """Return *folder*, made a repository whose one commit, on branch main, is the working tree of the project."""
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], [*identity, "commit", "-qm", "the project"]):
        assert run("git", *arguments, cwd=folder).returncode == 0
    return folder


def do_step(step: str, config: Config) -> Run:
    """Run *step* with *config* as its entry point does, in this process; return its run."""
    run_step(step, import_module(f"steps.{step}").run, config)
    return last_run(run_name(step, config))


def last_run(step: str) -> Run:
    """Return the newest run of *step*."""
    experiments = [each.experiment_id for each in MlflowClient().search_experiments()]
    newest = ["attributes.start_time DESC"]
    return MlflowClient().search_runs(experiments, f"tags.step = '{step}'", order_by=newest, max_results=1)[0]


def examples_of(evaluate: Evaluate) -> list[Example]:
    """Return the examples that *evaluate* asks."""
    return read_examples(project_path(evaluate.task), evaluate.limit, evaluate.scorer)
