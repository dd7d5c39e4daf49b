"""The step around the evaluation: which questions, in whose words."""

import json
import math
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.config.command_line import compose_config
from steps.config.schema import Evaluate
from steps.evaluate import fetched, hand_over, judgement, log_measurements
from steps.evaluation.gates import Gate, judge
from steps.measurement.measure import Measurements
from steps.records.errors import ConfigError, StepError
from steps.records.tags import DIGEST
from tests.conftest import ROOT, examples_of, run


def options(*overrides: str) -> Evaluate:
    return compose_config(list(overrides)).evaluate


def test_two_builds_with_the_same_gates_are_not_one_judgement(store: str) -> None:
    def built(content: str) -> dict[str, Run]:
        with mlflow.start_run(tags={DIGEST: content}) as run:
            return {"onnx": mlflow.get_run(run.info.run_id)}

    assert judgement("gates", built("one")) == judgement("gates", built("one"))
    assert judgement("gates", built("one")) != judgement("gates", built("other"))
    assert judgement("gates", built("one")) != judgement("other gates", built("one"))


def test_the_embedded_task_asks_every_country() -> None:
    countries = {example.id.partition("-")[0] for example in examples_of(options())}
    assert len(examples_of(options())) >= 195
    assert {"spain", "zimbabwe"} <= countries


def test_a_limit_takes_the_first_questions() -> None:
    assert [each.id for each in examples_of(options("evaluate.limit=2"))] == [
        each.id for each in examples_of(options())[:2]
    ]


def test_a_general_model_may_name_a_capital_in_any_words_and_a_task_that_names_its_scorer_is_scored_by_it(
    tmp_path: Path,
) -> None:
    assert {example.scorer for example in examples_of(options("evaluate=general"))} == {"contains"}
    assert {example.scorer for example in examples_of(options("evaluate=capitals"))} == {"exact"}
    task = tmp_path / "task.jsonl"
    question = {"id": "one", "messages": [{"role": "user", "content": "Why?"}], "reference": "So.", "scorer": "exact"}
    task.write_text(json.dumps(question))
    (example,) = examples_of(options("evaluate=general", f"evaluate.task={task}"))
    assert example.scorer == "exact"


def test_a_scorer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.scorer=contain cannot be used: .*did you mean contains"):
        options("evaluate.scorer=contain")


def test_a_text_for_fidelity_that_is_no_text_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes("für".encode("latin-1"))
    for onnx in ("onnx=int4_cpu", "onnx=auto"):
        with pytest.raises(ConfigError, match=r"evaluate\.fidelity\.text=.* an existing text file in UTF-8"):
            options(onnx, f"evaluate.fidelity.text={text}")


def test_a_candidate_that_is_no_logged_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=f"evaluate.candidates names {ROOT}/data, which holds no MLmodel: name a"):
        fetched(f"{ROOT}/data", tmp_path / "model")


def test_a_line_that_is_no_question_is_named(tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text('{"messages": [{"role": "user", "content": "Why?"}], "reference": "So."}\n')
    with pytest.raises(ConfigError, match=r"task\.jsonl:1: 'id' is missing"):
        options(f"evaluate.task={task}")


@pytest.mark.slow
def test_a_task_with_a_line_that_is_no_question_stops_the_chain_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_text("[]\n")
    store = tmp_path / "store.db"
    done = run(
        "python", "-m", "steps.main", f"evaluate.task={tmp_path}/task.jsonl", MLFLOW_TRACKING_URI=f"sqlite:///{store}"
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == f"main: {tmp_path}/task.jsonl:1: holds an empty list; write one JSON object with id, messages, reference\n"
    )
    assert not store.exists()


def test_what_is_not_finite_is_a_metric_of_the_run_and_of_no_model(store: str) -> None:
    figures = {"fidelity.kl_mean": math.nan, "fidelity.kl_max": math.inf, "task.accuracy": 0.5}
    with mlflow.start_run():
        model = mlflow.initialize_logged_model(name="onnx")
    with mlflow.start_run() as active:
        log_measurements(Measurements(), {"onnx": figures}, {"onnx": model.model_id})
    client = MlflowClient(store)
    linked = {metric.key: metric.value for metric in client.get_logged_model(model.model_id).metrics or []}
    assert linked == {"onnx.task.accuracy": 0.5}
    assert math.isnan(client.get_run(active.info.run_id).data.metrics["onnx.fidelity.kl_mean"])


def test_the_presets_of_the_evaluation_name_files_that_exist() -> None:
    for preset in (ROOT / "conf" / "evaluate").glob("*.yaml"):
        assert examples_of(options(f"evaluate={preset.stem}"))


@pytest.mark.parametrize(
    ("metric", "chosen", "named"),
    [("onnx.fidelity.kl_mean", False, True), ("onnx.fidelity.kl_mean", True, False), ("onnx.cost.x", False, False)],
)
def test_a_build_that_is_not_close_enough_names_onnx_auto_unless_that_made_it(
    store: str, metric: str, chosen: bool, named: bool
) -> None:
    verdicts = judge({metric: 2.0}, {"limit": Gate(metric, max=1)})
    with mlflow.start_run(), pytest.raises(StepError) as caught:
        hand_over(verdicts, "digest", chosen=chosen)
    assert ("try -P onnx=auto" in str(caught.value)) == named
    assert "evaluate.gates.limit.max=1" in str(caught.value)
