"""A sweep tries every combination, computes what trials share once, and names the best with the command for it."""

import csv
import html
import io
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.config.command_line import translate
from steps.config.schema import STEPS
from steps.config.schema import Sweep as Options
from steps.sweep import write_results
from steps.sweeps.plan import trials_of, varied
from steps.sweeps.rerun import split_options
from steps.sweeps.table import best_of, no_best
from tests.conftest import QUICK, ROOT, run
from tests.marked_processes import Started

OBJECTIVE = "onnx.task.accuracy"


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


def test_a_sweep_without_evaluate_is_refused() -> None:
    done = run(sys.executable, "-m", "steps.sweep", "steps=[fetch_model]", "seed=1,2")
    assert done.returncode == 2
    assert (
        done.stderr
        == "sweep: steps=['fetch_model'] cannot be used in a sweep: add evaluate, which measures sweep.objective\n"
    )


def test_what_is_no_override_is_refused_in_one_line() -> None:
    done = run(sys.executable, "-m", "steps.sweep", "onnx")
    assert done.returncode == 2
    assert done.stderr.startswith("sweep: onnx cannot be read")
    assert len(done.stderr.splitlines()) == 1


def test_values_without_an_end_are_refused_also_where_hydras_own_flag_asks_for_a_sweep() -> None:
    done = run(sys.executable, "-m", "steps.sweep", "--multirun", "seed=interval(0,1)")
    assert done.returncode == 2
    assert done.stderr.startswith("sweep: seed=interval(0,1) cannot be tried one by one")
    assert len(done.stderr.splitlines()) == 1


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


def sweep_command(*parameters: str) -> list[str]:
    words = [word for each in parameters for word in ("-P", each)]
    return ["mlflow", "run", str(ROOT), "--env-manager", "local", "-e", "sweep", *words]


@dataclass(frozen=True)
class Swept:
    """A sweep that ran: the folder it was started in, what it printed, its run, and the rows of sweep.csv."""

    folder: Path
    output: str
    client: MlflowClient
    run: Run
    rows: list[dict[str, str]]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Return a sweep in which one trial fails its gate, two crash, and the best of the others is registered."""
    folder = tmp_path_factory.mktemp("sweep")
    gate = "+evaluate.gates.small={metric: onnx.cost.size_bytes, max: 1.3e6}"  # block size 32 gives 1.34 MB
    parameters = [
        "build_onnx_wrapper.block_size=32,128",
        "build_pipeline_wrapper.dtype=auto,float1",
        "evaluate.limit=60",
        *QUICK,
    ]
    parameters += [f"overrides={shlex.quote(gate)}", "sweep.jobs=2", "sweep.register=true", "register.name=swept"]
    done = run(*sweep_command(*parameters), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (sweep,) = client.search_runs(["0"], "tags.step = 'sweep'")
    rows = list(csv.DictReader(io.StringIO((Path(sweep.info.artifact_uri) / "sweep.csv").read_text())))
    return Swept(folder, done.stdout, client, sweep, rows)


@pytest.mark.slow
def test_trials_are_nested_and_make_once_what_they_share(swept: Swept) -> None:
    chains = swept.client.search_runs(["0"], "tags.step = 'main'")
    assert [one.data.tags["mlflow.parentRunId"] for one in chains] == [swept.run.info.run_id] * 4
    assert len(swept.client.search_runs(["0"], "tags.step = 'fetch_model' and attributes.status = 'FINISHED'")) == 1
    assert not swept.client.search_runs(["0"], "attributes.status = 'RUNNING'")


@pytest.mark.slow
def test_a_trial_that_failed_is_reported_with_its_reason_and_stops_no_other(swept: Swept) -> None:
    keys = ("build_onnx_wrapper.block_size", "build_pipeline_wrapper.dtype", "status")
    assert [" ".join(row[key] for key in keys) for row in swept.rows] == [
        "32 auto FAILED",
        "32 float1 FAILED",
        "128 auto FINISHED",
        "128 float1 FAILED",
    ]
    gate, crash = swept.rows[0], swept.rows[1]
    assert gate["verdict"] == "failed"
    assert gate["reason"].startswith("evaluate: onnx.cost.size_bytes ")
    assert "is above evaluate.gates.small.max=1.3e+06" in gate["reason"]
    assert float(gate["onnx.task.accuracy"]) > 0.9, "it was measured all the same"
    assert crash["reason"].startswith("build_pipeline_wrapper: ")
    assert "float1" in crash["reason"]
    assert "3 of 4 trials did not finish" in swept.output
    page = html.unescape((Path(swept.run.info.artifact_uri) / "sweep.html").read_text())
    for number, row in ((1, gate), (2, crash)):
        assert f"trial {number} FAILED: {row['reason']}" in swept.output
        assert row["reason"] in page


@pytest.mark.slow
def test_the_best_that_passed_its_gates_is_registered_and_nothing_else(swept: Swept) -> None:
    best = swept.rows[2]
    assert swept.run.data.tags["best.run_id"] == best["run_id"]
    assert swept.run.data.params["best.build_onnx_wrapper.block_size"] == "128"
    assert [model.name for model in swept.client.search_registered_models()] == ["swept"]
    versions = swept.client.search_model_versions("name='swept'")
    assert len(versions) == 2, "one for each wrapper"
    for version in versions:
        tags = swept.client.get_model_version("swept", version.version).tags
        assert tags["evaluate.run_id"] == best["evaluate_run_id"]
    assert swept.client.get_model_version_by_alias("swept", "champion").tags["onnx.block_size"] == "128"


@pytest.mark.slow
def test_the_command_for_the_best_runs_it_again_in_a_shell(swept: Swept) -> None:
    command = swept.run.data.tags["best.command"]
    assert f"\n  {command}\n" in swept.output
    done = run("bash", "-c", command, cwd=swept.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("REUSED") == 5
    chain = swept.client.search_runs(["0"], "tags.step = 'main'", order_by=["start_time DESC"])[0]
    assert chain.data.tags["reused_from.evaluate"] == swept.rows[2]["evaluate_run_id"]
    assert len(swept.client.search_model_versions("name='swept'")) == 2


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_goes_on_where_it_stopped(store: str) -> None:
    client = MlflowClient()
    parameters = ["build_onnx_wrapper.block_size=32,128", "evaluate.limit=60", "sweep.objective=onnx.cost.size_bytes"]
    parameters += ["sweep.direction=minimize", *QUICK]

    def runs_of(step: str, status: str) -> list[Run]:
        return list(client.search_runs(["0"], f"tags.step = '{step}' and attributes.status = '{status}'"))

    # Each time at a later step, so that each sweep has to go on from what the one before it finished.
    for step, running, jobs, victim, number in [
        ("build_pipeline_wrapper", 1, 1, "steps.sweep", signal.SIGKILL),
        ("build_onnx_wrapper", 2, 2, "steps.sweep", signal.SIGTERM),
        ("evaluate", 1, 2, "mlflow run", signal.SIGKILL),
    ]:
        started = Started(*sweep_command(*parameters, f"sweep.jobs={jobs}"))
        started.wait_until(lambda step=step, running=running: len(runs_of(step, "RUNNING")) >= running)
        started.send(victim, number)
        started.wait_for_silence()
        assert started.outer.returncode != 0
        assert not client.search_runs(["0"], "attributes.status = 'RUNNING'")

    done = run(*sweep_command(*parameters, "sweep.jobs=2"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [len(runs_of(step, "FINISHED")) for step in STEPS] == [1, 1, 2, 2, 0]
    assert not client.search_runs(["0"], "attributes.status = 'RUNNING'")
    assert not client.search_registered_models(), "trials do not register"
