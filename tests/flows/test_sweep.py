"""A sweep at work: trials share what is new, one that fails stops no other, and a killed one goes on."""

import csv
import html
import io
import shlex
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.config.schema import STEPS
from tests.conftest import FEW_QUESTIONS, ROOT, run
from tests.marked_processes import Started
from tests.shared_flow import Flow

pytestmark = pytest.mark.slow


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
def swept(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Return a sweep in which one trial fails a gate, one passes and is registered, and one cannot be built.

    It finds the models of an earlier flow; that its trials share what is new, they have to see to themselves.
    """
    folder = flow.copy_to(tmp_path_factory.mktemp("sweep") / "user").folder
    gate = "+evaluate.gates.small={metric: onnx.cost.size_bytes, max: 1.39e6}"  # blocks of 32: 1.41 MB, of 64: 1.37
    parameters = [
        "build_onnx_wrapper.block_size=32,64,128",
        "build_onnx_wrapper.algorithm=k_quant",  # which needs an even number of blocks in a row
        "fetch_model.log_files_mb=9",
    ]
    parameters += [
        f"overrides={shlex.join([gate, *FEW_QUESTIONS])}",
        "sweep.jobs=2",
        "sweep.register=true",
        "register.name=swept",
    ]
    done = run(*sweep_command(*parameters), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (sweep,) = client.search_runs(["0"], "tags.step = 'sweep'")
    rows = list(csv.DictReader(io.StringIO((Path(sweep.info.artifact_uri) / "sweep.csv").read_text())))
    return Swept(folder, done.stdout, client, sweep, rows)


def test_trials_are_nested_and_make_once_what_they_share(swept: Swept) -> None:
    below = f"tags.`mlflow.parentRunId` = '{swept.run.info.run_id}' and tags.step = 'main'"
    chains = swept.client.search_runs(["0"], below)
    assert {one.info.run_name for one in chains} == {f"build_onnx_wrapper.block_size={size}" for size in (32, 64, 128)}
    assert len(chains) == 3
    trials = {one.info.run_id for one in chains}
    fetched = swept.client.search_runs(["0"], "tags.step = 'fetch_model' and attributes.status = 'FINISHED'")
    assert len([one for one in fetched if one.data.tags["mlflow.parentRunId"] in trials]) == 1
    assert not swept.client.search_runs(["0"], "attributes.status = 'RUNNING'")


def test_a_trial_that_failed_is_reported_with_its_reason_and_stops_no_other(swept: Swept) -> None:
    keys = ("build_onnx_wrapper.block_size", "status")
    assert [" ".join(row[key] for key in keys) for row in swept.rows] == ["32 FAILED", "64 FINISHED", "128 FAILED"]
    gate, refused = swept.rows[0], swept.rows[2]
    assert gate["verdict"] == "failed"
    assert gate["reason"].startswith("evaluate: onnx.cost.size_bytes ")
    assert "is above evaluate.gates.small.max=1.39e+06" in gate["reason"]
    assert float(gate["onnx.task.accuracy"]) > 0.9, "it was measured all the same"
    assert refused["reason"].startswith("build_onnx_wrapper: ")
    assert "k_quant needs an even number of blocks" in refused["reason"]
    assert "2 of 3 trials did not finish" in swept.output
    page = html.unescape((Path(swept.run.info.artifact_uri) / "sweep.html").read_text())
    for number, row in ((1, gate), (3, refused)):
        assert f"trial {number} FAILED: {row['reason']}" in swept.output
        assert row["reason"] in page


def test_the_best_that_passed_its_gates_is_registered_and_nothing_else(swept: Swept) -> None:
    best = swept.rows[1]
    assert swept.run.data.tags["best.run_id"] == best["run_id"]
    assert swept.run.data.params["best.build_onnx_wrapper.block_size"] == "64"
    assert {model.name for model in swept.client.search_registered_models()} == {"capitals", "swept"}
    versions = swept.client.search_model_versions("name='swept'")
    assert len(versions) == 2, "one for each wrapper"
    for version in versions:
        tags = swept.client.get_model_version("swept", version.version).tags
        assert tags["evaluate.run_id"] == best["evaluate_run_id"]
    assert swept.client.get_model_version_by_alias("swept", "champion").tags["onnx.block_size"] == "64"


def test_the_command_for_the_best_runs_it_again_in_a_shell(swept: Swept) -> None:
    command = swept.run.data.tags["best.command"]
    assert f"\n  {command}\n" in swept.output
    done = run("bash", "-c", command, cwd=swept.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("REUSED") == 5
    chain = swept.client.search_runs(["0"], "tags.step = 'main'", order_by=["start_time DESC"])[0]
    assert chain.data.tags["reused_from.evaluate"] == swept.rows[1]["evaluate_run_id"]
    assert len(swept.client.search_model_versions("name='swept'")) == 2


def test_a_sweep_that_is_killed_again_and_again_goes_on_where_it_stopped(own: Flow) -> None:
    client, models = MlflowClient(), MlflowClient().search_registered_models()
    parameters = ["build_onnx_wrapper.block_size=32,128", "sweep.objective=onnx.cost.size_bytes", "sweep.jobs=2"]
    parameters += ["sweep.direction=minimize", *FEW_QUESTIONS]
    before = {step: len(own.runs(step)) for step in STEPS}

    def running(step: str) -> int:
        """Return how many processes of *step* are at work; one that still imports has not named its code yet."""
        found = client.search_runs(["0"], f"tags.step = '{step}' and attributes.status = 'RUNNING'")
        return sum("code.commit" in one.data.tags for one in found)

    # Each time later, so that each sweep has to go on from what the one before it finished.
    by_mlflow = sweep_command(f"overrides={shlex.join(parameters)}")
    for command, step, victim, number in [
        (by_mlflow, "main", "steps.sweep", signal.SIGKILL),
        (by_mlflow, "build_onnx_wrapper", "steps.sweep", signal.SIGTERM),
        (by_mlflow, "evaluate", "mlflow run", signal.SIGKILL),
    ]:
        started = Started(*command)
        started.wait_until(lambda step=step: bool(running(step)))
        started.send(victim, number)
        started.wait_for_silence()
        assert started.outer.returncode != 0
        assert not client.search_runs(["0"], "attributes.status = 'RUNNING'")

    done = run(*by_mlflow)
    assert done.returncode == 0, done.stdout + done.stderr
    finished = {step: sum(one.info.status == "FINISHED" for one in own.runs(step)) for step in STEPS}
    assert [finished[step] - before[step] for step in STEPS] == [0, 0, 1, 2, 0]
    assert not client.search_runs(["0"], "attributes.status = 'RUNNING'")
    assert client.search_registered_models() == models, "trials do not register"
