"""A sweep tries every combination, computes what trials share once, and names the best with the command for it."""

import csv
import io
import shlex
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from steps.flow.command_line import translate
from steps.sweep import best_of, trials_of, varied
from tests.conftest import ROOT, run


def trials(*arguments: str) -> list[tuple[str, ...]]:
    overrides, _ = translate(list(arguments), sweep=True)
    return trials_of(overrides)


def test_commas_make_every_combination() -> None:
    found = trials("--build_onnx_wrapper.block_size", "16,32", "--onnx", "int4_cpu,int8_cpu", "--seed", "3")
    assert found == [
        ("build_onnx_wrapper.block_size=16", "onnx=int4_cpu", "seed=3"),
        ("build_onnx_wrapper.block_size=16", "onnx=int8_cpu", "seed=3"),
        ("build_onnx_wrapper.block_size=32", "onnx=int4_cpu", "seed=3"),
        ("build_onnx_wrapper.block_size=32", "onnx=int8_cpu", "seed=3"),
    ]
    assert varied(found) == ["build_onnx_wrapper.block_size", "onnx"]


@pytest.mark.parametrize("text", ["16,32,64", "range(16,80,16)", "choice(16,32,48,64)"])
def test_hydras_sweep_syntax_is_understood(text: str) -> None:
    assert {trial[0] for trial in trials("--evaluate.limit", text)} >= {"evaluate.limit=16", "evaluate.limit=64"}


def test_a_list_is_one_value() -> None:
    assert trials("--steps", "[fetch_model,evaluate]") == [("steps=[fetch_model,evaluate]",)]


TABLE = pd.DataFrame(
    {"status": ["FINISHED", "FAILED", "FINISHED", "FINISHED"], "onnx.task.accuracy": [0.9, 1.0, 0.95, None]}
)


@pytest.mark.parametrize(("direction", "best"), [("maximize", 2), ("minimize", 0)])
def test_the_best_is_among_those_that_finished(direction: str, best: int) -> None:
    assert best_of(TABLE, "onnx.task.accuracy", direction) == best


def test_a_sweep_of_which_nothing_finished_has_no_best() -> None:
    assert best_of(TABLE[TABLE["status"] == "FAILED"], "onnx.task.accuracy", "maximize") is None


def test_an_impossible_value_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    arguments = ["--build_onnx_wrapper.block_size", "32,33"]
    store = f"sqlite:///{tmp_path}/store.db"
    done = run(sys.executable, "-m", "steps.sweep", *arguments, MLFLOW_TRACKING_URI=store)
    assert done.returncode == 2
    assert done.stderr.startswith("sweep: build_onnx_wrapper.block_size=33 cannot be used")
    assert not (tmp_path / "store.db").exists()


def test_what_is_no_override_is_refused_in_one_line() -> None:
    done = run(sys.executable, "-m", "steps.sweep", "onnx")
    assert done.returncode == 2
    assert done.stderr.startswith("sweep: onnx cannot be read")
    assert len(done.stderr.splitlines()) == 1


def test_help_helps_and_runs_nothing() -> None:
    done = run(sys.executable, "-m", "steps.sweep", "--help")
    assert done.returncode == 0
    assert "sweep, with several VALUES separated by commas" in done.stdout


@pytest.mark.slow
def test_a_sweep_runs_nested_trials_shares_their_steps_and_names_the_best(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = ["build_onnx_wrapper.block_size=32,128", "evaluate.limit=60", "sweep.objective=onnx.cost.size_bytes"]
    parameters += ["sweep.direction=minimize", "sweep.jobs=2"]
    words = [word for each in parameters for word in ("-P", each)]
    done = run("mlflow", "run", str(ROOT), "--env-manager", "local", "-e", "sweep", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient()
    runs = {step: client.search_runs(["0"], f"tags.step = '{step}'") for step in ("sweep", "main", "fetch_model")}
    (sweep,) = runs["sweep"]
    assert [one.data.tags["mlflow.parentRunId"] for one in runs["main"]] == [sweep.info.run_id] * 2
    assert len(runs["fetch_model"]) == 1, "the trials share it"
    assert len(client.search_runs(["0"], "tags.step = 'build_onnx_wrapper'")) == 2
    assert not client.search_registered_models(), "trials do not register"

    rows = list(csv.DictReader(io.StringIO(mlflow.artifacts.load_text(f"{sweep.info.artifact_uri}/sweep.csv"))))
    assert [row["build_onnx_wrapper.block_size"] for row in rows] == ["32", "128"]
    assert {row["status"] for row in rows} == {"FINISHED"}
    assert sweep.data.tags["best.run_id"] == rows[1]["run_id"]
    assert "build_onnx_wrapper.block_size=128" in shlex.split(sweep.data.tags["best.command"])[-1]
    assert sweep.data.tags["best.command"] in done.stdout
    assert sweep.data.params["best.build_onnx_wrapper.block_size"] == "128"
    assert "<h1>2 trials</h1>" in mlflow.artifacts.load_text(f"{sweep.info.artifact_uri}/sweep.html")
