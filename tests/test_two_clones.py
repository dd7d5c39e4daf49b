"""Two fresh clones at one commit give the same: ONNX files to the byte, answers, and figures of quality."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import QUICK, committed, run

pytestmark = pytest.mark.slow

QUALITY = ("task", "integrity", "fidelity")
"""The areas of metrics, `<candidate>.<area>.<name>`, that measure answers and not time."""


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Run]]]:
    """Yield the runs by step, from the client of their own store, of the flows that two clones ran side by side."""
    source = committed(tmp_path_factory.mktemp("source"))
    folders, running = [tmp_path_factory.mktemp(name) for name in ("one", "another_place")], []
    for folder in folders:
        assert run("git", "clone", "-q", str(source), str(folder / "clone")).returncode == 0
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": ""}
        env["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/store.db"
        chosen = "steps=[fetch_model,build_pipeline_wrapper,build_onnx_wrapper,evaluate]"
        parameters = [word for each in (chosen, "evaluate.limit=60", *QUICK) for word in ("-P", each)]
        command = ["mlflow", "run", str(folder / "clone"), "--env-manager", "local", *parameters]
        running.append(subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    said = [flow.communicate()[0].decode() for flow in running]
    assert [flow.returncode for flow in running] == [0, 0], "\n".join(said)
    assert "WAITING" not in "".join(said), "what another store is given is of no use to this one"
    yield [
        {one.data.tags["step"]: one for one in MlflowClient(f"sqlite:///{folder}/store.db").search_runs(["0"])}
        for folder in folders
    ]


def test_both_are_the_same_commit_and_clean(flows: list[dict[str, Run]]) -> None:
    assert len({one.data.tags["code.commit"] for runs in flows for one in runs.values()}) == 1
    assert {one.data.tags["code.dirty"] for runs in flows for one in runs.values()} == {"false"}


@pytest.mark.parametrize("step", ["fetch_model", "build_onnx_wrapper", "evaluate"])
def test_the_fingerprints_are_equal(flows: list[dict[str, Run]], step: str) -> None:
    one, other = (runs[step].data.tags["step.fingerprint"] for runs in flows)
    assert one == other


def test_the_onnx_files_are_equal_to_the_byte(flows: list[dict[str, Run]]) -> None:
    one, other = (model_files(runs["build_onnx_wrapper"], "artifacts/onnx/") for runs in flows)
    assert {"model.onnx", "model.onnx.data", "genai_config.json"} <= {name.rpartition("/")[2] for name in one}
    assert one == other


def test_the_predictions_are_equal_but_for_their_times(flows: list[dict[str, Run]]) -> None:
    one, other = (predictions(runs["evaluate"]) for runs in flows)
    assert one
    assert one == other


def test_the_figures_of_quality_are_equal(flows: list[dict[str, Run]]) -> None:
    one, other = (quality(runs["evaluate"]) for runs in flows)
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
