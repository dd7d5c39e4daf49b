"""A second flow on the store of a first: what it reuses, what it would run, what it refuses."""

import json
import re
import signal
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from steps.config.command_line import compose_config
from steps.config.schema import STEPS
from steps.main import main
from steps.records.errors import ConfigError, StepError
from steps.records.tags import outputs
from tests.conftest import FEW_QUESTIONS, committed, do_step, run
from tests.marked_processes import Started
from tests.shared_flow import COMMAND, Flow, run_chain

pytestmark = pytest.mark.slow

CAPITALS = "register.name=capitals"


def plan(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """Return the plan of the flow with *overrides*."""
    run_chain("plan=true", CAPITALS, *overrides)
    return capsys.readouterr().out


def test_the_same_command_again_runs_nothing_and_shows_the_same(own: Flow) -> None:
    first, before = own.steps, len(own.runs())
    done = run(*COMMAND, cwd=own.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for number, step in enumerate(STEPS, start=1):
        assert f"[{number}/5] {step:<23} REUSED    run {first[step].info.run_id}" in done.stdout
    assert len(own.runs()) == before + 1
    assert figures(done.stdout) == figures(own.output)
    steps = json.loads(mlflow.artifacts.load_text(f"{own.chain.info.artifact_uri}/flow.json"))["steps"]
    assert [step["reused_from"] for step in steps] == [first[step].info.run_id for step in STEPS]
    assert own.chain.data.tags["reused_from.fetch_model"] == first["fetch_model"].info.run_id


def figures(output: str) -> str:
    """Return the table of figures that *output* shows, and what was registered."""
    return output.partition("Right answers")[2].partition("\nNext:")[0]


def test_a_plan_says_what_would_run_and_why_and_runs_nothing(own: Flow, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(own.runs())
    output = plan(capsys, "build_onnx_wrapper.block_size=32")
    assert "[2/5] build_pipeline_wrapper  REUSE " in output
    assert "[3/5] build_onnx_wrapper      RUN       block_size 128 → 32" in output
    assert "[4/5] evaluate                RUN       after build_onnx_wrapper" in output
    assert len(own.runs()) == before + 1, "the chain's own"
    note = own.runs()[0].data.tags["mlflow.note.content"]
    assert note == "A plan (`plan=true`): no step was run."


def test_an_edit_of_a_file_that_computes_no_result_runs_nothing_again(own: Flow, tmp_path: Path) -> None:
    copy = committed(tmp_path / "copy")
    config = [copy / "steps" / "config" / f"{name}.py" for name in ("command_line", "suggestions")]
    safety = [copy / "steps" / "safety" / f"{name}.py" for name in ("secrets", "processes")]
    for file in (*config, *safety, *(copy / "steps" / "flow").glob("*.py")):
        file.write_text(file.read_text() + "\nEDITED = True\n")
    done = run("python", "-m", "steps.main", "plan=true", CAPITALS, cwd=copy)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"\[\d/5\] (\w+) +REUSE ", done.stdout) == list(STEPS)


def test_a_damaged_model_is_built_again_and_the_plan_says_so(own: Flow, capsys: pytest.CaptureFixture[str]) -> None:
    model = outputs(own.steps["build_onnx_wrapper"])["model_uri"].removeprefix("models:/")
    (weights,) = (own.folder / "mlruns" / "0" / "models" / model).rglob("model.onnx.data")
    weights.write_bytes(weights.read_bytes()[:-1])
    output = plan(capsys)
    assert "[3/5] build_onnx_wrapper      RUN       run" in output
    assert "model.onnx.data of models:/m-" in output
    assert "has changed since it was logged" in output


def test_a_flow_that_ended_at_evaluate_goes_on_at_evaluate(own: Flow) -> None:
    command = ["python", "-m", "steps.main", "register.name=later", *FEW_QUESTIONS]
    started = Started(*command)
    started.wait_until(lambda: bool(started.named("steps evaluate")))
    started.send("steps evaluate", signal.SIGKILL)
    started.wait_for_silence()
    assert started.outer.returncode == 1

    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    said = {
        line.split()[1]: line.split()[2] for line in done.stdout.splitlines() if re.search(r"REUSED|FINISHED", line)
    }
    assert said == dict.fromkeys(STEPS, "REUSED") | {"evaluate": "FINISHED", "register": "FINISHED"}
    assert MlflowClient().search_registered_models("name='later'")


def test_chosen_steps_take_the_runs_that_fit(own: Flow, capsys: pytest.CaptureFixture[str]) -> None:
    output = plan(capsys, "steps=[evaluate,register]", "evaluate.limit=70")
    assert re.search(r"\[1/2\] evaluate +RUN .*limit \w+ → 70", output)
    assert re.search(r"\[2/2\] register +RUN +after evaluate", output)
    run_chain("steps=[register]", "reuse=false", CAPITALS)
    output = capsys.readouterr().out
    assert "[1/1] register                FINISHED" in output
    assert "Registered:  models:/capitals/2" in output, "what it found holds what is registered already"


def test_without_reuse_every_step_would_run(own: Flow, capsys: pytest.CaptureFixture[str]) -> None:
    output = plan(capsys, "reuse=false")
    assert [line.split()[2] for line in output.splitlines() if re.match(r"\[\d/5\]", line)] == ["RUN"] * len(STEPS)


def test_a_second_registration_of_the_same_content_makes_no_new_version(own: Flow) -> None:
    do_step("register", compose_config([f"evaluate_run_id={own.steps['evaluate'].info.run_id}", CAPITALS]))
    assert len(MlflowClient().search_model_versions("name='capitals'")) == 2


def test_without_reuse_only_the_chosen_step_is_made_again(own: Flow, capsys: pytest.CaptureFixture[str]) -> None:
    run_chain("reuse=false", "steps=[fetch_model]", CAPITALS)
    output = capsys.readouterr().out
    assert "[1/1] fetch_model             FINISHED" in output
    assert "Registered:" not in output
    assert "Right answers" not in output
    assert not [name for name in own.chain.data.metrics if name.startswith("onnx.")]


def test_a_chosen_step_without_a_run_to_build_on_is_refused(own: Flow) -> None:
    with pytest.raises(StepError, match="evaluate needs a run of build_onnx_wrapper, and none fits: add it to steps"):
        run_chain("steps=[evaluate]", "onnx=fp32_cpu")
    assert own.chain.info.status == "FAILED"


def test_a_run_of_a_step_that_is_to_run_as_well_is_refused() -> None:
    with pytest.raises(ConfigError, match="onnx_run_id=abc names a run of build_onnx_wrapper, which steps"):
        main(compose_config(["onnx_run_id=abc"]), [])
