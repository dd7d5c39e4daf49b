"""Runs are found where they are, and a run that is not what a step needs is refused."""

import os
import sys
from pathlib import Path

import mlflow
import pytest

from steps.config.command_line import compose_config
from steps.config.schema import Config
from steps.flow.entry import settle_store
from steps.flow.runs import input_run, open_run, run_step
from steps.records.errors import StepError
from steps.records.step import Inputs, Outputs
from tests.conftest import ROOT, last_run, run


def a_run(step: str, status: str = "FINISHED") -> str:
    with mlflow.start_run(tags={"step": step}) as active:
        pass
    mlflow.MlflowClient().set_terminated(active.info.run_id, status)
    run_id: str = active.info.run_id
    return run_id


def test_a_finished_run_of_the_right_step_is_an_input_and_leaves_its_id(store: str) -> None:
    run_id = a_run("fetch_model")
    seen: list[Inputs] = []

    def build(_config: Config, inputs: Inputs) -> Outputs:
        seen.append(inputs)
        return Outputs({"model_uri": "models:/m-1"}, digest="of the model")

    run_step("build_onnx_wrapper", build, compose_config([f"fetch_run_id={run_id}"]))
    assert {step: run.info.run_id for step, run in seen[0].items()} == {"fetch_model": run_id}
    tags = last_run("build_onnx_wrapper").data.tags
    assert tags["fetch_run_id"] == run_id
    assert (tags["output.model_uri"], tags["digest"]) == ("models:/m-1", "of the model")


@pytest.mark.parametrize(
    ("step", "status", "line"),
    [
        ("evaluate", "FINISHED", "is a FINISHED run of evaluate: name a FINISHED run of fetch_model"),
        ("fetch_model", "FAILED", "is a FAILED run of fetch_model"),
        ("fetch_model", "RUNNING", "is a RUNNING run of fetch_model"),
    ],
)
def test_a_run_of_another_step_or_status_is_refused(store: str, step: str, status: str, line: str) -> None:
    with pytest.raises(StepError, match=line):
        input_run("fetch_model", compose_config([f"fetch_run_id={a_run(step, status)}"]))


def test_a_run_that_does_not_exist_is_refused_with_the_store_that_was_asked(store: str) -> None:
    with pytest.raises(StepError, match="fetch_run_id=beef is not a run in sqlite"):
        input_run("fetch_model", compose_config(["fetch_run_id=beef"]))


def test_an_input_that_is_not_named_is_asked_for(store: str) -> None:
    with pytest.raises(StepError, match="no fetch_run_id: name a finished run of fetch_model"):
        input_run("fetch_model", compose_config([]))


def test_a_step_that_fails_leaves_a_failed_run_with_no_output(store: str) -> None:
    with pytest.raises(ValueError, match="broken"), open_run("fetch_model", compose_config([])) as step:
        raise ValueError("broken")
    left = mlflow.get_run(step.info.run_id)
    assert left.info.status == "FAILED"
    assert not [tag for tag in left.data.tags if tag.startswith("output.")]


def test_a_step_that_is_told_to_end_leaves_a_killed_run(store: str) -> None:
    with pytest.raises(SystemExit), open_run("fetch_model", compose_config([])) as step:
        sys.exit(143)
    assert mlflow.get_run(step.info.run_id).info.status == "KILLED"


def test_a_run_that_was_being_created_below_one_that_is_told_to_end_is_closed_too(store: str) -> None:
    with pytest.raises(SystemExit), open_run("main", compose_config([])) as chain:
        step = mlflow.MlflowClient().create_run("0", tags={"mlflow.parentRunId": chain.info.run_id})
        sys.exit(143)
    assert mlflow.get_run(step.info.run_id).info.status == "KILLED"


def test_a_run_says_which_code_lock_and_versions_made_it(store: str) -> None:
    with open_run("fetch_model", compose_config(["seed=7"])) as step:
        pass
    tags = mlflow.get_run(step.info.run_id).data.tags
    assert tags["code.commit"] == run("git", "rev-parse", "HEAD").stdout.strip()
    assert len(tags["lock.sha256"]) == 64
    assert (tags["step"], tags["seed"], tags["version.mlflow"]) == ("fetch_model", "7", mlflow.__version__)


def test_what_mlflow_logged_of_a_parameter_stays(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow.start_run() as outer:
        mlflow.log_param("model.name", "'a name'")
    monkeypatch.setenv("MLFLOW_RUN_ID", outer.info.run_id)
    with open_run("fetch_model", compose_config(["model.name=other"])):
        pass
    parameters = mlflow.get_run(outer.info.run_id).data.params
    assert (parameters["model.name"], parameters["fetch_model.offline"]) == ("'a name'", "False")


@pytest.fixture
def relative_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `sqlite:///x.db` the store, relative to this process's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x.db")
    return tmp_path / "x.db"


@pytest.mark.slow
def test_a_relative_store_is_in_the_folder_of_the_launcher(
    relative_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_LAUNCHER_PID", str(os.getpid()))
    code = (
        "import os; from steps.flow.entry import settle_store; settle_store(); print(os.environ['MLFLOW_TRACKING_URI'])"
    )
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert done.stdout.strip() == f"sqlite:///{relative_store}", done.stderr


@pytest.mark.parametrize("launcher", ["0", "1", "4194999"], ids=["by hand", "outside of the container", "gone"])
def test_without_a_launcher_a_relative_store_is_in_the_folder_one_is_in(
    relative_store: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    monkeypatch.setenv("SLM_LAUNCHER_PID", launcher)
    settle_store()
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{relative_store}"


@pytest.mark.parametrize("uri", ["sqlite:////abs/x.db", "http://localhost:5000", ""])
def test_other_stores_are_left_as_they_are(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    settle_store()
    assert os.environ["MLFLOW_TRACKING_URI"] == uri
