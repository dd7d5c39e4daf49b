"""A finished run is reused when it fits and is complete, and otherwise the reason is said."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import mlflow
import pytest
from mlflow.entities import Run

from steps.config.command_line import compose_config
from steps.config.schema import STEPS, Config
from steps.flow.fingerprint import fingerprint, sources
from steps.flow.reuse import Decision, decide
from steps.flow.runs import log_artifact_list, run_step
from steps.logged_models.logged_model import checked_model, model_damage
from steps.records.artifacts import missing_artifact
from steps.records.errors import StepError
from steps.records.step import Inputs, Outputs
from steps.records.tags import FINGERPRINT, STEP, outputs
from tests.conftest import last_run
from tests.registry.models import built


def make(*overrides: str, body: Callable[[], None] = lambda: None) -> Run:
    """Return a finished run of fetch_model with one artifact; *body* runs in it."""

    def fetch(_config: Config, _inputs: Inputs) -> Outputs:
        mlflow.log_text("what it made", "made/thing.txt")
        body()
        return Outputs({"snapshot": "runs:/x/snapshot"})

    run_step("fetch_model", fetch, compose_config(list(overrides)))
    return last_run("fetch_model")


def decision(*overrides: str) -> Decision:
    config = compose_config(list(overrides))
    return decide(fingerprint("fetch_model", config, {}), config, {})


def test_the_first_time_there_is_no_earlier_run(store: str) -> None:
    assert decision() == Decision(None, "no earlier run")


def test_a_finished_run_that_fits_is_reused(store: str) -> None:
    run = make()
    found = decision()
    assert found.reused is not None
    assert found.reused.info.run_id == run.info.run_id


def test_the_newest_of_several_is_reused(store: str) -> None:
    make()
    newest = make()
    found = decision()
    assert found.reused is not None
    assert found.reused.info.run_id == newest.info.run_id


def test_a_run_of_another_experiment_is_reused_too(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not mlflow.set_experiment: other files' tests, and the processes they start, would inherit it.
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", mlflow.create_experiment("another"))
    make()
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    found = decision().reused
    assert found is not None
    assert found.info.experiment_id != "0"


def test_a_changed_value_is_the_reason_to_run(store: str) -> None:
    make()
    assert decision("fetch_model.log_files_mb=1") == Decision(None, "log_files_mb 64.0 → 1.0")


def test_of_many_reasons_the_telling_ones_are_named_and_the_others_counted(store: str) -> None:
    make("model=hub", "model.repo_id=me/mine", f"model.revision={'a' * 40}", "fetch_model.log_files_mb=1")
    reason = decision().reason
    assert reason.startswith("log_files_mb 1.0 → 64.0, ")
    assert re.search(r", and \d+ more$", reason)
    assert reason.count(",") == 4


def test_with_reuse_false_nothing_is_reused(store: str) -> None:
    make()
    assert decision("reuse=false") == Decision(None, "reuse=false")


def test_what_may_have_moved_is_made_again_and_found_by_a_later_step(store: str) -> None:
    branch = ["model=hub", "model.repo_id=me/mine", "model.revision=main"]
    run = make(*branch)
    config = compose_config(branch)
    facts = fingerprint("fetch_model", config, {})
    assert decide(facts, config, {}) == Decision(None, "model.revision=main is not a commit: it may have moved")
    found = decide(facts, config, {}, always_look=True).reused
    assert found is not None
    assert found.info.run_id == run.info.run_id


def test_a_step_whose_source_was_saved_while_it_ran_is_not_reused(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = {path: "another" for path in sources("fetch_model") if path.endswith("fetch_model.py")}
    make(body=lambda: monkeypatch.setattr("steps.flow.runs.sources", lambda _step, **_options: saved))
    assert "fetch_model will not be reused: steps/fetch_model.py changed while it ran" in capsys.readouterr().out
    assert decision().reused is None


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING"])
def test_a_run_that_did_not_finish_is_not_reused(store: str, status: str) -> None:
    run = make()
    mlflow.MlflowClient().update_run(run.info.run_id, status)
    assert decision() == Decision(None, "no earlier run")


def test_a_run_that_failed_halfway_is_not_reused(store: str) -> None:
    def fail() -> None:
        raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        make(body=fail)
    assert decision().reused is None


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda file: file.unlink(), "its artifact made/thing.txt is missing"),
        (lambda file: file.write_text("what it mad_"), "its artifact made/thing.txt has changed"),
        (lambda file: (file.parent.parent / "artifacts.json").unlink(), "its artifacts.json cannot be read"),
    ],
)
def test_a_run_whose_artifacts_are_damaged_is_not_reused(store: str, harm: Callable[[Path], None], reason: str) -> None:
    run = make()
    harm(Path(urlparse(run.info.artifact_uri).path) / "made" / "thing.txt")
    assert missing_artifact(run) == reason
    assert decision() == Decision(None, f"run {run.info.run_id} cannot be reused: {reason}")


def test_an_older_complete_run_is_reused_when_the_newest_is_damaged(store: str) -> None:
    older, newest = make(), make()
    (Path(urlparse(newest.info.artifact_uri).path) / "made" / "thing.txt").unlink()
    found = decision()
    assert found.reused is not None
    assert found.reused.info.run_id == older.info.run_id


def test_a_model_whose_files_come_back_is_reused_again(store: str, tmp_path: Path) -> None:
    build = built(tmp_path, "yes")
    mlflow.MlflowClient().set_tag(build.info.run_id, FINGERPRINT, "f" * 64)
    (file,) = (tmp_path / "mlruns").rglob("echo.py")
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(StepError, match="is missing"), checked_model(build):
        pass
    assert str(model_damage(build)).endswith("is missing")
    (tmp_path / "elsewhere").rename(file)
    assert model_damage(build) is None
    assert FINGERPRINT in mlflow.get_run(build.info.run_id).data.tags


def test_an_evaluation_is_not_reused_when_the_build_that_it_judged_is_gone_and_an_equal_one_was_made(
    store: str, tmp_path: Path
) -> None:
    pipeline, old, new = (built(tmp_path, "yes") for _ in range(3))
    mlflow.MlflowClient().set_tag(pipeline.info.run_id, STEP, "build_pipeline_wrapper")
    with mlflow.start_run(run_id=old.info.run_id):
        log_artifact_list()  # as a step does

    def judge(_config: Config, _inputs: Inputs) -> Outputs:
        return Outputs(dict.fromkeys(STEPS["evaluate"].hands_over, "runs:/x/y"))

    config = compose_config([f"pipeline_run_id={pipeline.info.run_id}", f"onnx_run_id={old.info.run_id}"])
    run_step("evaluate", judge, config)
    inputs = {"build_pipeline_wrapper": pipeline, "build_onnx_wrapper": new}
    facts = fingerprint("evaluate", config, inputs)
    assert decide(facts, config, inputs).reused is not None

    model = mlflow.MlflowClient().get_logged_model(outputs(old)["model_uri"].removeprefix("models:/"))
    (file,) = Path(urlparse(model.artifact_location).path).rglob("echo.py")
    file.unlink()
    decided = decide(facts, config, inputs)
    assert decided.reused is None
    assert f"of its onnx_run_id, echo.py of {outputs(old)['model_uri']} is missing" in decided.reason
