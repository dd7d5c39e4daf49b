"""A sweep tries every combination, refuses what it cannot try, and names the best with the command for it."""

import shlex
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from steps.config.command_line import translate
from steps.config.entry_points import Sweep as Options
from steps.flow.typed import split_options
from steps.records.errors import ConfigError
from steps.sweep import write_results
from steps.sweeps.plan import plan_of, trials_of, varied
from steps.sweeps.table import best_of, no_best
from tests.conftest import run

OBJECTIVE = "onnx.task.accuracy"


def refused(*arguments: str, **environment: str) -> str:
    """Return the line in which the sweep *arguments* is refused, before anything is opened."""
    done = run(sys.executable, "-m", "steps.sweep", *arguments, **environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


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


@pytest.mark.slow
def test_an_impossible_value_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    said = refused("--build_onnx_wrapper.block_size", "32,33", MLFLOW_TRACKING_URI=f"sqlite:///{store}")
    assert said.startswith("sweep: build_onnx_wrapper.block_size=33 cannot be used")
    assert not store.exists()


def test_a_sweep_without_evaluate_is_refused() -> None:
    fact = r"^steps=\['fetch_model'\] cannot be used in a sweep: add evaluate, which measures sweep\.objective$"
    with pytest.raises(ConfigError, match=fact):
        plan_of(["steps=[fetch_model]", "seed=1,2"])


def test_what_is_no_override_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^onnx cannot be read"):
        trials("onnx")


@pytest.mark.slow
def test_values_without_an_end_are_refused_with_hydras_own_flag_too() -> None:
    assert refused("--multirun", "seed=interval(0,1)").startswith(
        "sweep: seed=interval(0,1) cannot be tried one by one"
    )


@pytest.mark.slow
def test_help_helps_and_runs_nothing() -> None:
    done = run(sys.executable, "-m", "steps.sweep", "--help")
    assert done.returncode == 0
    assert "sweep, with several VALUES separated by commas" in done.stdout


def test_a_key_that_hydra_adds_or_removes_is_a_parameter_that_mlflow_takes(store: str, tmp_path: Path) -> None:
    (trial,) = trials("--overrides", "'+evaluate.gates.x={metric: a.b.c, max: 1}' ~evaluate.gates.onnx_accuracy")
    table = pd.DataFrame({"status": ["FINISHED"], "seconds": [1.0], "run_id": ["r"], OBJECTIVE: [1.0]})
    with mlflow.start_run() as active:
        write_results([trial], table, 0, Options(OBJECTIVE, "maximize", 1, None, register=False), "command")
    params = MlflowClient().get_run(active.info.run_id).data.params
    assert params == {"best.evaluate.gates.x": "{metric: a.b.c, max: 1}", "best.evaluate.gates.onnx_accuracy": ""}


def test_an_objective_that_no_trial_measured_is_said_with_the_nearest() -> None:
    said = no_best(TABLE, "onnx.task.acuracy")
    assert said.startswith("no trial measured sweep.objective=onnx.task.acuracy; did you mean onnx.task.accuracy?")


@pytest.mark.parametrize(
    ("typed", "uri", "options"),
    [
        (". -e sweep -P a=1,2", ".", ""),
        ("https://x/y -v main --env-manager uv -Pa=1 --param-list b=2", "https://x/y", "--env-manager uv"),
        ("--env-manager=local --experiment-name mine -e sweep /p", "/p", "--env-manager=local --experiment-name mine"),
    ],
)
def test_the_command_for_the_best_keeps_the_options_that_say_where(typed: str, uri: str, options: str) -> None:
    assert split_options(shlex.split(typed)) == (uri, shlex.split(options))
