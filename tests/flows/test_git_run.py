"""`mlflow run <git URL>` from a real git server: by commit, branch and tag. Two clones of a commit give the same."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import FEW_QUESTIONS, ROOT, committed, run
from tests.servers import free_port, process

pytestmark = pytest.mark.slow

FEW = (*FEW_QUESTIONS, "evaluate.limit=12")
"""The task has no more."""

QUALITY = ("task", "integrity", "fidelity")
"""The areas of metrics, `<candidate>.<area>.<name>`, that measure answers and not time."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bare repository with the project as it is in the working tree, on branch main, tagged v1."""
    work = committed(tmp_path_factory.mktemp("work"))
    assert run("git", "tag", "v1", cwd=work).returncode == 0
    bare = tmp_path_factory.mktemp("server") / "project.git"
    run("git", "clone", "-q", "--bare", str(work), str(bare))
    return bare


@pytest.fixture(scope="module")
def url(repository: Path) -> Iterator[str]:
    """Yield the URL at which `git daemon` serves the repository."""
    port = free_port()
    base = f"--base-path={repository.parent}"
    with process("git", "daemon", "--export-all", "--listen=127.0.0.1", f"--port={port}", base, str(repository.parent)):
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionError:
                time.sleep(0.05)
        yield f"git://127.0.0.1:{port}/project.git"


def commit_of(repository: Path) -> str:
    return run("git", "rev-parse", "main", cwd=repository).stdout.strip()


def own_task(folder: Path) -> Path:
    """Write a task file outside the project: half of it questions to answer, half of it multiple choice."""
    halves = [(ROOT / "data" / name).read_text().splitlines() for name in ("capitals.jsonl", "capitals_choice.jsonl")]
    examples = [
        {**json.loads(line), "id": f"{half}-{number}"}
        for half, lines in enumerate(halves)
        for number, line in enumerate(lines[:6])
    ]
    (folder / "mine.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    return folder / "mine.jsonl"


@dataclass(frozen=True)
class Flows:
    """What two flows left, each from a clone of its own in a store of its own: the first whole, the second less."""

    client: MlflowClient
    runs: list[dict[str, Run]]


@pytest.fixture(scope="module")
def flows(url: str, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Flows:
    """Return two flows, one by commit and whole, one by branch and up to evaluate, that ran side by side.

    Their store is relative to the folder in which `mlflow run` is typed; their task is a file of the user's own.
    """
    task, up_to = (
        own_task(tmp_path_factory.mktemp("task")),
        "fetch_model,build_pipeline_wrapper,build_onnx_wrapper,evaluate",
    )
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": ""}
    env["MLFLOW_TRACKING_URI"] = "sqlite:///x.db"
    folders, running = [tmp_path_factory.mktemp(name) for name in ("one", "another_place")], []
    for folder, version, steps in zip(
        folders, (commit_of(repository), "main"), (f"{up_to},register", up_to), strict=True
    ):
        given = (f"evaluate.task={task}", f"steps=[{steps}]", f"overrides={shlex.join(FEW)}")
        parameters = [word for each in given for word in ("-P", each)]
        command = ["mlflow", "run", url, "-v", version, "--env-manager", "local", *parameters]
        running.append(subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    said = [flow.communicate()[0].decode() for flow in running]
    assert [flow.returncode for flow in running] == [0, 0], "\n".join(said)
    assert "WAITING" not in "".join(said), "what another store is given is of no use to this one"
    clients = [MlflowClient(f"sqlite:///{folder}/x.db") for folder in folders]
    found = [{one.data.tags["step"]: one for one in client.search_runs(["0"])} for client in clients]
    return Flows(clients[0], found)


def test_a_flow_runs_from_a_commit_into_a_relative_store_with_a_task_of_ones_own(
    flows: Flows, repository: Path
) -> None:
    commit, runs = commit_of(repository), flows.runs[0]
    assert len(runs) == 6
    assert {one.info.status for one in runs.values()} == {"FINISHED"}
    metrics = runs["evaluate"].data.metrics
    assert (metrics["onnx.task.examples"], metrics["onnx.task.accuracy"]) == (12, 1)
    assert {one.data.tags["mlflow.source.git.commit"] for one in runs.values()} == {commit}
    assert flows.client.get_model_version_by_alias("tiny_phi3", "champion").tags["code.commit"] == commit


def test_a_tag_runs_too(url: str, repository: Path, tmp_path: Path) -> None:
    command = ["mlflow", "run", url, "-v", "v1", "--env-manager", "local", "-e", "fetch_model"]
    done = run(*command, cwd=tmp_path, MLFLOW_TRACKING_URI="sqlite:///x.db")
    assert done.returncode == 0, done.stdout + done.stderr
    (one,) = MlflowClient(f"sqlite:///{tmp_path}/x.db").search_runs(["0"])
    assert one.data.tags["code.commit"] == commit_of(repository)


def test_both_clones_are_the_same_commit_and_clean(flows: Flows, repository: Path) -> None:
    tags = [one.data.tags for runs in flows.runs for one in runs.values()]
    assert {(each["code.commit"], each["code.dirty"]) for each in tags} == {(commit_of(repository), "false")}


@pytest.mark.parametrize("step", ["fetch_model", "build_onnx_wrapper", "evaluate"])
def test_the_fingerprints_are_equal(flows: Flows, step: str) -> None:
    one, other = (runs[step].data.tags["step.fingerprint"] for runs in flows.runs)
    assert one == other


def test_the_onnx_files_are_equal_to_the_byte(flows: Flows) -> None:
    one, other = (model_files(runs["build_onnx_wrapper"], "artifacts/onnx/") for runs in flows.runs)
    assert {"model.onnx", "model.onnx.data", "genai_config.json"} <= {name.rpartition("/")[2] for name in one}
    assert one == other


def test_the_predictions_are_equal_but_for_their_times(flows: Flows) -> None:
    one, other = (predictions(runs["evaluate"]) for runs in flows.runs)
    assert one
    assert one == other


def test_the_figures_of_quality_are_equal(flows: Flows) -> None:
    one, other = (quality(runs["evaluate"]) for runs in flows.runs)
    assert "onnx.task.accuracy" in one
    assert one == other


def model_files(build: Run, below: str) -> dict[str, str]:
    """Return the sha256 of each file of the model that *build* logged, by path, as its manifest states them."""
    stated = json.loads(mlflow.artifacts.load_text(f"{build.info.artifact_uri}/model_manifest.json"))
    return {file["path"]: file["sha256"] for file in stated["files"] if file["path"].startswith(below)}


def predictions(evaluate: Run) -> list[dict[str, object]]:
    """Return what was asked and answered, without what a clock measured."""
    lines = mlflow.artifacts.load_text(f"{evaluate.info.artifact_uri}/predictions.jsonl").splitlines()
    return [without_times(json.loads(line)) for line in lines]


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if "seconds" not in key}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def quality(evaluate: Run) -> dict[str, float]:
    """Return the metrics of *evaluate* that measure answers."""
    return {name: value for name, value in evaluate.data.metrics.items() if set(name.split(".")[1:2]) & set(QUALITY)}
