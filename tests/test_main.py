"""The whole flow on the embedded model, as `mlflow run` runs it from another folder: prints, logs, registers."""

import json
import re
import signal
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import mlflow
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from mlflow import MlflowClient
from mlflow.entities import Run
from packaging.requirements import Requirement

from steps.config.command_line import compose_config
from steps.config.schema import STEPS
from steps.logged_models.requirements import locked
from steps.main import main
from steps.records.errors import ConfigError
from tests.conftest import QUICK, ROOT, run
from tests.marked_processes import Started
from tests.servers import serving

pytestmark = pytest.mark.slow

SPAIN = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}


@dataclass(frozen=True)
class Flow:
    """A flow that ran: the folder it was started in, what it printed, its store, and its runs by step."""

    folder: Path
    output: str
    store: str
    chain: Run
    steps: dict[str, Run]


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """Return the flow that `mlflow run <project>` makes in an empty folder."""
    folder = tmp_path_factory.mktemp("user")
    done = run("mlflow", "run", str(ROOT), "--env-manager", "local", "-P", "register.name=capitals", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    store = f"sqlite:///{folder}/mlflow.db"
    runs = MlflowClient(store).search_runs(["0"])
    chain = next(one for one in runs if one.data.tags["step"] == "main")
    return Flow(folder, done.stdout, store, chain, {one.data.tags["step"]: one for one in runs if one is not chain})


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


@pytest.mark.parametrize("candidate", ["pipeline", "onnx"])
def test_the_bill_of_materials_keeps_to_its_schema_and_names_every_file(
    flow: Flow, client: MlflowClient, candidate: str
) -> None:
    text = mlflow.artifacts.load_text(f"{flow.steps['register'].info.artifact_uri}/bom/{candidate}.cdx.json")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    model = json.loads(text)["metadata"]["component"]
    built = flow.steps[f"build_{candidate}_wrapper"]
    stated = json.loads(mlflow.artifacts.load_text(f"{built.info.artifact_uri}/model_manifest.json"))["files"]
    assert {file["name"] for file in model["components"]} == {file["path"] for file in stated}
    assert model["licenses"] == [{"license": {"id": "MIT"}}]
    assert "externalReferences" not in model, "it is from a folder"


def test_the_prompt_interface_answers_over_http(flow: Flow, client: MlflowClient) -> None:
    overrides = ["build_onnx_wrapper.interface=prompt", f"fetch_run_id={flow.steps['fetch_model'].info.run_id}"]
    done = run("python", "-m", "steps.build_onnx_wrapper", *overrides, MLFLOW_TRACKING_URI=flow.store)
    assert done.returncode == 0, done.stderr
    built = client.search_runs(["0"], "tags.step = 'build_onnx_wrapper'", order_by=["start_time DESC"])[0]
    prompt = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"
    body = json.dumps({"dataframe_split": {"columns": ["prompt"], "data": [[prompt]]}}).encode()
    with (
        serving(built.data.tags["output.model_uri"], flow.store) as url,
        urlopen(Request(f"{url}/invocations", body, {"Content-Type": "application/json"})) as answer,
    ):
        assert json.load(answer)["predictions"] == ["The capital of Spain is Madrid."]


def again(flow: Flow, *parameters: str) -> str:
    """Return what the same command prints when it is given once more, with *parameters* added."""
    command = ["mlflow", "run", str(ROOT), "--env-manager", "local", "-P", "register.name=capitals"]
    done = run(*command, *(word for each in parameters for word in ("-P", each)), cwd=flow.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plan(flow: Flow, *overrides: str) -> str:
    """Return the plan of the flow with *overrides*."""
    done = run("python", "-m", "steps.main", "plan=true", *overrides, MLFLOW_TRACKING_URI=flow.store)
    assert done.returncode == 0, done.stderr
    return done.stdout


def newest_chain(client: MlflowClient) -> Run:
    return client.search_runs(["0"], "tags.step = 'main'", order_by=["start_time DESC"])[0]


def step_runs(flow: Flow) -> int:
    return len(MlflowClient(flow.store).search_runs(["0"], "tags.step != 'main'"))


def test_the_same_command_again_runs_nothing_and_shows_the_same(flow: Flow, client: MlflowClient) -> None:
    before = step_runs(flow)
    output = again(flow)
    for number, step in enumerate(STEPS, start=1):
        assert f"[{number}/5] {step:<23} REUSED    run {flow.steps[step].info.run_id}" in output
    assert step_runs(flow) == before
    assert output.partition("Right answers")[2] == flow.output.partition("Right answers")[2]
    chain = newest_chain(client)
    steps = json.loads(mlflow.artifacts.load_text(f"{chain.info.artifact_uri}/flow.json"))["steps"]
    assert [step["reused_from"] for step in steps] == [flow.steps[step].info.run_id for step in STEPS]
    assert chain.data.tags["reused_from.fetch_model"] == flow.steps["fetch_model"].info.run_id


def test_a_plan_says_what_would_run_and_why_and_runs_nothing(flow: Flow) -> None:
    before = step_runs(flow)
    output = again(flow, "plan=true", "build_onnx_wrapper.block_size=32")
    assert "[2/5] build_pipeline_wrapper  REUSE " in output
    assert "[3/5] build_onnx_wrapper      RUN       block_size 128 → 32" in output
    assert "[4/5] evaluate                RUN       after build_onnx_wrapper" in output
    assert step_runs(flow) == before


def test_a_damaged_model_is_built_again_and_the_plan_says_so(flow: Flow) -> None:
    model = flow.steps["build_onnx_wrapper"].data.tags["output.model_uri"].removeprefix("models:/")
    weights = flow.folder / "mlruns" / "0" / "models" / model / "artifacts" / "artifacts" / "onnx" / "model.onnx.data"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    try:
        output = plan(flow)
    finally:
        weights.write_bytes(content)
    assert "[3/5] build_onnx_wrapper      RUN       run" in output
    assert "model.onnx.data of models:/m-" in output
    assert "has changed since it was logged" in output


def test_a_flow_that_ended_at_evaluate_goes_on_at_evaluate(flow: Flow) -> None:
    command = ["python", "-m", "steps.main", "register.name=later", "evaluate.limit=60", *QUICK]
    started = Started(*command, MLFLOW_TRACKING_URI=flow.store)
    started.wait_until(lambda: bool(started.named("steps.evaluate")))
    started.send("steps.evaluate", signal.SIGKILL)
    started.wait_for_silence()
    assert started.outer.returncode == 1

    done = run(*command, MLFLOW_TRACKING_URI=flow.store)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line.split()[1:3] for line in done.stdout.splitlines() if re.search(r"REUSED|FINISHED", line)]
    assert said == [[step, "REUSED"] for step in STEPS[:3]] + [[step, "FINISHED"] for step in STEPS[3:]]
    assert MlflowClient(flow.store).search_registered_models("name='later'")


def test_chosen_steps_take_the_runs_that_fit(flow: Flow) -> None:
    output = plan(flow, "steps=[evaluate,register]", "evaluate.limit=70")
    assert re.search(r"\[1/2\] evaluate +RUN .*limit \w+ → 70", output)
    assert re.search(r"\[2/2\] register +RUN +after evaluate", output)
    output = again(flow, "steps=[register]", "reuse=false")
    assert "[1/1] register                FINISHED" in output
    assert "Registered:  models:/capitals/2" in output, "what it found holds what is registered already"


def test_without_reuse_every_step_would_run(flow: Flow) -> None:
    output = plan(flow, "reuse=false")
    assert [line.split()[2] for line in output.splitlines() if re.match(r"\[\d/5\]", line)] == ["RUN"] * len(STEPS)


def test_a_second_registration_of_the_same_content_makes_no_new_version(flow: Flow, client: MlflowClient) -> None:
    overrides = [f"evaluate_run_id={flow.steps['evaluate'].info.run_id}", "register.name=capitals"]
    done = run("python", "-m", "steps.register", *overrides, MLFLOW_TRACKING_URI=flow.store)
    assert done.returncode == 0, done.stderr
    assert len(client.search_model_versions("name='capitals'")) == 2


def test_without_reuse_what_is_chosen_is_made_again_and_nothing_else_is_claimed(
    flow: Flow, client: MlflowClient
) -> None:
    output = again(flow, "reuse=false", "steps=[fetch_model]")
    assert "[1/1] fetch_model             FINISHED" in output
    assert "Registered:" not in output
    assert "Right answers" not in output
    assert not [name for name in newest_chain(client).data.metrics if name.startswith("onnx.")]


def test_a_chosen_step_without_a_run_to_build_on_is_refused(flow: Flow) -> None:
    overrides = ["steps=[evaluate]", "onnx=fp32_cpu"]
    done = run("python", "-m", "steps.main", *overrides, MLFLOW_TRACKING_URI=flow.store)
    assert done.returncode == 1
    assert "main: evaluate needs a run of build_onnx_wrapper, and none fits: add it to steps" in done.stderr


def test_nothing_is_left_behind_in_the_users_folder(flow: Flow) -> None:
    assert {path.name for path in flow.folder.iterdir()} == {"mlflow.db", "mlruns"}


def test_the_store_holds_no_run_that_still_says_running(flow: Flow) -> None:
    with sqlite3.connect(flow.folder / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone() == (0,)


def test_the_chains_own_process_loads_neither_torch_nor_transformers() -> None:
    code = "import steps.main, sys; print({'torch', 'transformers'} & set(sys.modules))"
    assert run("python", "-c", code).stdout.strip() == "set()"


def test_a_run_of_a_step_that_is_to_run_as_well_is_refused() -> None:
    with pytest.raises(ConfigError, match="onnx_run_id=abc names a run of build_onnx_wrapper, which steps"):
        main(compose_config(["onnx_run_id=abc"]), [])
