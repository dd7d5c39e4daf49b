"""What passed becomes a version, once, with its history; aliases move as asked; users of @champion do not break."""

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema

from steps.flow.errors import StepError
from steps.flow.logged_model import checked_model, logged_folder, record_model
from steps.flow.tracking import set_output
from steps.register import passed_gates, refuse_new_signature, set_aliases, version_of, version_with_alias

MODEL = """
import mlflow
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return {answer!r}
mlflow.models.set_model(Echo())
"""


def build(folder: Path, answer: str = "yes", column: str = "prompt") -> Run:
    """Return a finished run that logged a small model which always says *answer*."""
    code = folder / "echo.py"
    code.write_text(MODEL.format(answer=answer))
    signature = ModelSignature(Schema([ColSpec("string", column)]), Schema([ColSpec("string")]))
    with mlflow.start_run(tags={"step": "build_onnx_wrapper"}) as run:
        info = mlflow.pyfunc.log_model(name="onnx", python_model=str(code), signature=signature, pip_requirements=[])
        with logged_folder(info.model_uri) as logged:
            record_model(info.model_uri, logged)
        set_output("model_uri", info.model_uri)
    return mlflow.get_run(run.info.run_id)


def register(run: Run, name: str = "echo") -> str:
    """Return the number of the version that *run*'s model has, or gets."""
    tags = {"model.sha256": run.data.tags["model.sha256"], "build.run_id": run.info.run_id}
    return str(version_of(name, run.data.tags["output.model_uri"], tags, "# A card").version)


def test_each_content_is_a_version_and_the_same_content_the_same_version(store: str, tmp_path: Path) -> None:
    first = register(build(tmp_path))
    assert (first, register(build(tmp_path, answer="no")), register(build(tmp_path))) == ("1", "2", "1")


def test_a_version_has_its_tags_its_card_and_its_run(store: str, tmp_path: Path) -> None:
    run = build(tmp_path)
    version = MlflowClient().get_model_version("echo", register(run))
    assert version.description == "# A card"
    assert version.run_id == run.info.run_id
    assert version.tags["model.sha256"] == run.data.tags["model.sha256"]
    assert mlflow.pyfunc.load_model("models:/echo/1").predict({"prompt": "x"}) == "yes"


def test_the_first_version_becomes_challenger_and_champion(store: str, tmp_path: Path) -> None:
    assert set_aliases("echo", register(build(tmp_path)), promote=False) == ["challenger", "champion"]


def aliases() -> dict[str, str | None]:
    found = {alias: version_with_alias("echo", alias) for alias in ("challenger", "champion", "previous")}
    return {alias: str(version.version) if version else None for alias, version in found.items()}


@pytest.mark.parametrize(
    ("promote", "expected"),
    [
        (False, {"challenger": "2", "champion": "1", "previous": None}),
        (True, {"challenger": "2", "champion": "2", "previous": "1"}),
    ],
)
def test_a_later_version_is_champion_only_when_it_is_promoted(
    store: str, tmp_path: Path, promote: bool, expected: dict[str, str | None]
) -> None:
    set_aliases("echo", register(build(tmp_path)), promote=False)
    set_aliases("echo", register(build(tmp_path, answer="no")), promote=promote)
    assert aliases() == expected


def test_promoting_the_champion_again_keeps_the_previous_one(store: str, tmp_path: Path) -> None:
    set_aliases("echo", register(build(tmp_path)), promote=False)
    set_aliases("echo", register(build(tmp_path, answer="no")), promote=True)
    set_aliases("echo", "2", promote=True)
    assert aliases() == {"challenger": "2", "champion": "2", "previous": "1"}


def test_a_model_with_another_signature_than_the_champion_is_refused(store: str, tmp_path: Path) -> None:
    set_aliases("echo", register(build(tmp_path)), promote=False)
    with checked_model(build(tmp_path, column="messages")) as (_uri, folder):
        with pytest.raises(StepError, match=r"not that of echo@champion \(version 1\): register it under another name"):
            refuse_new_signature("echo", folder)
        refuse_new_signature("another", folder)


def test_a_model_with_the_champions_signature_is_welcome(store: str, tmp_path: Path) -> None:
    set_aliases("echo", register(build(tmp_path)), promote=False)
    with checked_model(build(tmp_path, answer="no")) as (_uri, folder):
        refuse_new_signature("echo", folder)


def test_a_model_with_a_damaged_file_is_not_used(store: str, tmp_path: Path) -> None:
    run = build(tmp_path)
    with logged_folder(run.data.tags["output.model_uri"]) as folder:
        code = next(folder.rglob("echo.py"))
        code.write_text(code.read_text().replace("yes", "no!"))
    with (
        pytest.raises(StepError, match=r"echo\.py of models:/m-.* has changed since it was logged"),
        checked_model(run),
    ):
        pass


def test_a_model_with_a_missing_file_is_not_used(store: str, tmp_path: Path) -> None:
    run = build(tmp_path)
    with logged_folder(run.data.tags["output.model_uri"]) as folder:
        next(folder.rglob("echo.py")).unlink()
    with pytest.raises(StepError, match=r"echo\.py of models:/m-.* is missing"), checked_model(run):
        pass


def test_a_model_that_is_not_ready_is_not_used(store: str, tmp_path: Path) -> None:
    run = build(tmp_path)
    model_id = run.data.tags["output.model_uri"].removeprefix("models:/")
    MlflowClient().finalize_logged_model(model_id, "FAILED")
    with pytest.raises(StepError, match="is FAILED, not READY"), checked_model(run):
        pass


@pytest.mark.parametrize("verdict", ["failed", "inconclusive"])
def test_what_evaluate_did_not_pass_is_not_registered(store: str, verdict: str) -> None:
    with mlflow.start_run() as run:
        mlflow.log_text(json.dumps({"verdict": verdict, "gates": []}), "gates.json")
    with pytest.raises(StepError, match=f"has the verdict {verdict}, not passed: nothing is registered"):
        passed_gates(mlflow.get_run(run.info.run_id))
