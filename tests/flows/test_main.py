"""The whole flow on the embedded model, as `mlflow run` runs it from another folder: prints, logs, registers."""

import json
import re
from pathlib import Path
from urllib.request import Request, urlopen

import mlflow
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from mlflow import MlflowClient
from packaging.requirements import Requirement

from steps.build_onnx_wrapper import log_wrapper
from steps.config.command_line import compose_config
from steps.config.schema import CANDIDATES, STEPS
from steps.logged_models.logged_model import logged_folder
from steps.logged_models.requirements import locked
from steps.records.tags import outputs
from tests.conftest import ROOT, do_step, run
from tests.servers import serving
from tests.shared_flow import Flow

pytestmark = pytest.mark.slow

SPAIN = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}


@pytest.fixture
def client(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", flow.store)
    return MlflowClient()


def test_every_step_has_a_finished_run_under_the_chains(flow: Flow) -> None:
    assert set(flow.steps) == set(STEPS)
    for step, one in flow.steps.items():
        assert one.info.status == "FINISHED"
        assert one.info.run_name == step
        assert one.data.tags["mlflow.parentRunId"] == flow.chain.info.run_id
        assert one.data.tags["mlflow.project.entryPoint"] == step


def test_the_terminal_shows_a_line_a_step_and_then_what_matters(flow: Flow) -> None:
    for number, step in enumerate(STEPS, start=1):
        assert f"[{number}/5] {step:<23} FINISHED" in flow.output
    assert "Right answers" in flow.output
    assert "Registered:  models:/capitals/2" in flow.output
    assert "mlflow models serve -m models:/capitals/2" in flow.output
    assert f"\n  mlflow run {ROOT} --env-manager local -e serve -P serve.model=models:/capitals/2  " in flow.output


def test_the_chain_logs_its_configuration_and_how_each_step_went(flow: Flow, client: MlflowClient) -> None:
    config = yaml.safe_load(mlflow.artifacts.load_text(f"{flow.chain.info.artifact_uri}/config.yaml"))
    assert config["model"]["name"] == "tiny_phi3"
    assert config["register"]["name"] == "capitals"
    steps = json.loads(mlflow.artifacts.load_text(f"{flow.chain.info.artifact_uri}/flow.json"))["steps"]
    assert [step["step"] for step in steps] == list(STEPS)
    assert {step["status"] for step in steps} == {"FINISHED"}
    assert all(step["run_id"] == flow.steps[step["step"]].info.run_id and step["seconds"] > 0 for step in steps)


def test_the_figures_of_the_evaluation_are_metrics_of_the_chain_too(flow: Flow) -> None:
    accuracy = flow.steps["evaluate"].data.metrics["onnx.task.accuracy"]
    assert accuracy >= 0.95
    assert flow.chain.data.metrics["onnx.task.accuracy"] == accuracy


def test_the_ui_says_on_the_chains_run_what_came_of_it_with_links(flow: Flow) -> None:
    text = flow.chain.data.tags["mlflow.note.content"]
    assert "[models:/capitals/2](#/models/capitals/versions/2)" in text
    run_id = flow.steps["evaluate"].info.run_id
    assert f"Verdict of the gates: passed ([report.html](#/experiments/0/runs/{run_id}/artifacts/report.html))" in text


def test_the_evaluation_leaves_its_report_gates_predictions_and_plots(flow: Flow, client: MlflowClient) -> None:
    one = flow.steps["evaluate"].info
    names = {item.path for item in client.list_artifacts(one.run_id)}
    assert {"report.html", "gates.json", "predictions.jsonl", "plots"} <= names
    assert json.loads(mlflow.artifacts.load_text(f"{one.artifact_uri}/gates.json"))["verdict"] == "passed"
    predictions = mlflow.artifacts.load_text(f"{one.artifact_uri}/predictions.jsonl").splitlines()
    assert len(predictions) == flow.steps["evaluate"].data.metrics["onnx.task.examples"]


@pytest.mark.parametrize("alias", ["challenger", "champion"])
def test_the_build_is_challenger_and_the_first_champion(flow: Flow, client: MlflowClient, alias: str) -> None:
    version = client.get_model_version_by_alias("capitals", alias)
    assert version.tags["wrapper"] == "onnx"
    assert version.tags["code.commit"] == flow.chain.data.tags["code.commit"]
    assert version.tags["evaluate.run_id"] == flow.steps["evaluate"].info.run_id
    assert (version.tags["onnx.precision"], version.tags["onnx.block_size"]) == ("int4", "128")
    assert "# capitals: onnx" in version.description


def test_a_logged_model_holds_no_compiled_code_even_after_it_was_loaded(flow: Flow) -> None:
    assert list(flow.folder.rglob("onnx_chat.py"))
    assert not list(flow.folder.rglob("*.pyc"))


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_registered_model_answers_in_python(flow: Flow, client: MlflowClient, number: str) -> None:
    (response,) = mlflow.pyfunc.load_model(f"models:/capitals/{number}").predict(SPAIN)
    assert response["choices"][0]["message"]["content"].strip() == "The capital of Spain is Madrid."


def test_the_registered_model_answers_over_http(flow: Flow) -> None:
    with serving("models:/capitals@champion", flow.store) as url:
        body = json.dumps(SPAIN).encode()
        with urlopen(Request(f"{url}/invocations", body, {"Content-Type": "application/json"})) as answer:
            (response,) = json.load(answer)
    assert response["choices"][0]["message"]["content"] == "The capital of Spain is Madrid."
    assert response["choices"][0]["finish_reason"] == "stop"


def test_the_registered_model_answers_in_an_environment_of_its_own_requirements(flow: Flow, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text(json.dumps(SPAIN))
    files = ["-i", f"{tmp_path}/request.json", "-t", "json", "-o", f"{tmp_path}/answer.json"]
    command = ["mlflow", "models", "predict", "-m", "models:/capitals@champion", "--env-manager", "uv", *files]
    done = run(*command, MLFLOW_TRACKING_URI=flow.store)
    assert done.returncode == 0, done.stderr
    (response,) = json.loads((tmp_path / "answer.json").read_text())
    assert response["choices"][0]["message"]["content"] == "The capital of Spain is Madrid."
    installed = set(re.findall(r"^ \+ ([\w-]+)==", done.stderr, re.MULTILINE))  # uv says so; MLflow removes it all
    assert "onnxruntime-genai" in installed
    assert not installed & {"torch", "transformers"}


def test_an_image_of_the_registered_model_has_all_it_needs(flow: Flow, tmp_path: Path) -> None:
    command = ["mlflow", "models", "generate-dockerfile", "-m", "models:/capitals@champion", "-d", f"{tmp_path}/image"]
    done = run(*command, MLFLOW_TRACKING_URI=flow.store)
    assert done.returncode == 0, done.stderr
    model = tmp_path / "image" / "model_dir"
    assert "COPY model_dir /opt/ml/model" in (tmp_path / "image" / "Dockerfile").read_text()
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= {
        path.name for path in (model / "artifacts" / "onnx").iterdir()
    }
    # Released versions of public packages: what pip finds anywhere.
    lines = (model / "requirements.txt").read_text().split()
    requirements = [Requirement(line) for line in lines]
    assert all(re.fullmatch(r"==[\d.]+", str(each.specifier)) and not each.url for each in requirements)
    assert set(locked("onnxruntime-genai", "onnxruntime")) <= set(lines)


def test_the_bill_of_materials_keeps_to_its_schema_and_names_every_file(own: Flow) -> None:
    evaluated = f"evaluate_run_id={own.steps['evaluate'].info.run_id}"
    register = do_step("register", compose_config([evaluated, "register.name=capitals", "register.bom=true"]))
    for candidate, step in CANDIDATES.items():
        text = mlflow.artifacts.load_text(f"{register.info.artifact_uri}/bom/{candidate}.cdx.json")
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        model = json.loads(text)["metadata"]["component"]
        manifest = mlflow.artifacts.load_text(f"{own.steps[step].info.artifact_uri}/model_manifest.json")
        assert {file["name"] for file in model["components"]} == {
            file["path"] for file in json.loads(manifest)["files"]
        }
        assert model["licenses"] == [{"license": {"id": "MIT"}}]
        assert "externalReferences" not in model, "it is from a folder"


def test_the_prompt_interface_answers_over_http(own: Flow) -> None:
    config = compose_config(["build_onnx_wrapper.interface=prompt"])
    with logged_folder(outputs(own.steps["build_onnx_wrapper"])["model_uri"]) as built, mlflow.start_run():
        uri = log_wrapper(built / "artifacts" / "onnx", "tiny_phi3", config.question, config.build_onnx_wrapper)
    prompt = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"
    body = json.dumps({"dataframe_split": {"columns": ["prompt"], "data": [[prompt]]}}).encode()
    with (
        serving(uri, own.store) as url,
        urlopen(Request(f"{url}/invocations", body, {"Content-Type": "application/json"})) as answer,
    ):
        assert json.load(answer)["predictions"] == ["The capital of Spain is Madrid."]


def test_nothing_is_left_behind_in_the_users_folder(flow: Flow) -> None:
    assert {path.name for path in flow.folder.iterdir()} == {"mlflow.db", "mlruns"}


def test_the_store_holds_no_run_that_still_says_running(flow: Flow) -> None:
    assert {one.info.status for one in flow.runs()} == {"FINISHED"}


def test_the_chains_own_process_loads_neither_torch_nor_transformers() -> None:
    code = "import steps.main, sys; print({'torch', 'transformers'} & set(sys.modules))"
    assert run("python", "-c", code).stdout.strip() == "set()"
