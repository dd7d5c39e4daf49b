"""What the tests share: the project's folder, an empty store, and real processes."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import mlflow
import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.config.onnx import ExecutionProvider
from steps.config.schema import CANDIDATES, Config, Evaluate, project_path
from steps.evaluation.tasks import Example, read_task
from steps.flow.runs import run_name, run_step
from steps.onnx_build.export import build_onnx
from steps.records.onnx_recipes import Recipe
from steps.records.tags import outputs
from steps.safety.processes import ENDING
from tests.shared_flow import COMMAND, Flow
from tests.small_evaluation import examples, predictions  # noqa: F401  fixtures

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "models" / "tiny_phi3"
PROGRAMS = ROOT / "tests" / "programs"
"""Programs that tests start."""

QUICK = (
    "evaluate.cost.prompt_lengths=[16]",
    "evaluate.cost.batches=[1]",
    "evaluate.cost.repeats=1",
    "evaluate.contract_examples=1",
)
"""What a flow is started with when its test says nothing of cost."""

FEW_QUESTIONS = (
    *QUICK,
    "evaluate.limit=4",
    *(
        f"~evaluate.gates.onnx_{name}"
        for name in ("perplexity", "divergence", "top_token", "accuracy", "difference", "speed")
    ),
)
"""What a flow is started with when its test says nothing of figures: without the gates that need many questions."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the file that makes the shared flow first, then the files with the largest share of slow tests.

    Whole files go to the workers: a flow that begins last would keep one busy while the others idle. Among equals, the
    files that take the shared flow come last: they would wait for it.
    """
    every = Counter(item.path for item in items)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    sharing = {item.path for item in items if "flow" in getattr(item, "fixturenames", ())}
    order = {path: (-slow[path] / every[path], path in sharing, path) for path in every}
    makes_it = min(sharing, key=order.__getitem__, default=None)
    items.sort(key=lambda item: (item.path != makes_it, order[item.path]))


class FailuresAtOnce:
    """Prints a line as soon as a test fails; pytest itself prints the details when all have ended."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.terminal.ensure_newline()
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message if crash else report.longreprtext.strip().rpartition("\n")[2]
            self.terminal.write_line(f"{report.nodeid} failed in {report.when}: {reason.partition(chr(10))[0][:300]}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Print failures at once where pytest prints at all: not in the processes that pytest-xdist starts."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(terminal))


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Put the environment back after each test: MLflow, and a step that ends, write into it for their children.

    And forget that a step of a test has ended: this process goes on.
    """
    with patch.dict(os.environ):
        yield
    ENDING.clear()


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder *name*, which *make* fills once for all processes that run these tests side by side."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, done = shared / name, shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an fp32 ONNX build of the embedded checkpoint; read only."""

    def build(folder: Path) -> None:
        build_onnx(TINY, folder / "onnx", Recipe("fp32", "fp32"), ExecutionProvider.cpu, folder / "builder.log")

    return once(tmp_path_factory, "fp32", build) / "onnx"


@pytest.fixture(scope="session")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """Return the flow that `mlflow run <project>` makes in an empty folder; read only."""

    def make(folder: Path) -> None:
        (folder / "user").mkdir()
        done = run(*COMMAND, cwd=folder / "user")
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "output.txt").write_text(done.stdout)

    made = once(tmp_path_factory, "flow", make)
    return Flow(made / "user", (made / "output.txt").read_text())


@pytest.fixture(scope="session")
def logged_models(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the embedded model as the flow logged it, by the name of the candidate."""
    work, client, folders = tmp_path_factory.mktemp("logged_models"), MlflowClient(flow.store), {}
    for name, step in CANDIDATES.items():
        model = client.get_logged_model(outputs(flow.steps[step])["model_uri"].removeprefix("models:/"))
        folders[name] = Path(shutil.copytree(model.artifact_location.removeprefix("file://"), work / name))
    return folders


@pytest.fixture
def own(flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow]:
    """Yield a copy of the flow, whose store this process and those it starts use."""
    copy = flow.copy_to(tmp_path / "user")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", copy.store)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    yield copy
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the database of an empty tracking store: making one takes MLflow seconds, copying it none."""

    def make(folder: Path) -> None:
        run("mlflow", "experiments", "search", cwd=folder, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/store.db")

    return once(tmp_path_factory, "empty_store", make) / "store.db"


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


def program(name: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the program *name* of tests/programs with *arguments*, as `run` does."""
    return run(sys.executable, str(PROGRAMS / name), *arguments, **{"PYTHONPATH": str(ROOT)} | environment)


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
    return read_task(project_path(evaluate.task), evaluate.scorer)[: evaluate.limit]
