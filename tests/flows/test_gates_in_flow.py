"""Damaged builds, logged as they are with true records, and the gates that stop each for its own reason."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from onnx import numpy_helper

from steps.build_onnx_wrapper import log_wrapper
from steps.config.command_line import compose_config
from steps.config.schema import CANDIDATES, STEPS
from steps.evaluation.gates import Verdict, judge, read_gates
from steps.evaluation.metrics import flatten, measure
from steps.evaluation.predictions import score
from steps.logged_models.logged_model import logged_folder, record_model
from steps.logged_models.process import Candidate, candidate
from steps.measurement.measure import measure_candidates
from steps.records.errors import StepError
from steps.records.tags import DIGEST, OUTPUT, outputs
from tests.conftest import QUICK, do_step, examples_of
from tests.shared_flow import Flow, run_chain

pytestmark = pytest.mark.slow

FEW = ["evaluate.limit=40", *QUICK]

LENIENT = ["evaluate.gates.onnx_accuracy.min=0.8", "evaluate.gates.onnx_difference.min=-0.1"]
"""For so few questions."""

Weights = npt.NDArray[np.float32]
Change = Callable[[str, Weights], Weights]


@dataclass(frozen=True)
class Built:
    """A store with finished runs of the build steps, and the folders of ONNX builds to damage."""

    store: str
    runs: dict[str, Run]
    int4: Path
    fp32: Path


@pytest.fixture(scope="module")
def built(flow: Flow, fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Yield what the chain built from the embedded checkpoint; this process and those it starts use its store."""
    own = flow.copy_to(tmp_path_factory.mktemp("built") / "user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", own.store)
        with logged_folder(outputs(own.steps["build_onnx_wrapper"])["model_uri"]) as folder:
            yield Built(own.store, own.steps, folder / "artifacts" / "onnx", fp32)


def damaged(source: Path, folder: Path, change: Change) -> Path:
    """Return *folder*, made a copy of the ONNX model in *source* with every weight as *change* makes it."""
    shutil.copytree(source, folder)
    model = onnx.load(str(folder / "model.onnx"))
    for weight in model.graph.initializer:
        before = numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(change(weight.name, before).astype(before.dtype), weight.name))
    (folder / "model.onnx.data").unlink()
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="model.onnx.data")
    return folder


def noisy(name: str, weights: Weights) -> Weights:
    """Add noise of half their size to the scales of int4 weights."""
    noise = 1 + 0.5 * np.random.default_rng(0).normal(size=weights.shape)
    return weights * noise if "_scales" in name else weights


def in_2_bits(name: str, weights: Weights) -> Weights:
    """Round the matrices, but for the embedding, to four values for every 32 weights."""
    if "MatMul" not in name:
        return weights
    blocks = weights.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 2
    return (np.clip(np.round(blocks / scale), -2, 1) * scale).reshape(weights.shape)


def with_nan(name: str, weights: Weights) -> Weights:
    """Make the scale of one block of one token's weights NaN."""
    if name != "lm_head.MatMul.weight_scales_fp16":
        return weights
    return np.concatenate([[np.nan], weights.ravel()[1:]]).reshape(weights.shape)


def logged(built: Built, onnx_folder: Path) -> Run:
    """Return a finished run of build_onnx_wrapper that logged *onnx_folder* as it is, with its records."""
    config = compose_config([])
    fetched = built.runs["fetch_model"].info.run_id
    with mlflow.start_run(tags={"step": "build_onnx_wrapper", "fetch_run_id": fetched}) as active:
        uri = log_wrapper(onnx_folder, "tiny_phi3", config.question, config.build_onnx_wrapper)
        with logged_folder(uri) as folder:
            digest = record_model(uri, folder)
        mlflow.set_tags({f"{OUTPUT}model_uri": uri, DIGEST: digest})
    return mlflow.get_run(active.info.run_id)


@pytest.fixture(scope="module")
def reference(built: Built) -> Iterator[Candidate]:
    """Yield the pipeline, loaded once for all the builds that are measured against it."""
    with (
        logged_folder(outputs(built.runs["build_pipeline_wrapper"])["model_uri"]) as folder,
        candidate("pipeline", folder) as loaded,
    ):
        yield loaded


def verdicts_on(reference: Candidate, folder: Path, *overrides: str) -> dict[str, Verdict]:
    """Return what each gate says of the logged model in *folder*, measured on few questions, by the gate's name."""
    config = compose_config([*FEW, *overrides])
    examples = examples_of(config.evaluate)
    with candidate("onnx", folder) as build:
        found = measure_candidates({"pipeline": reference, "onnx": build}, "pipeline", examples, config.evaluate)
    metrics = measure(score(examples, found.answers), found.measured, "pipeline", 0)
    return {verdict.gate: verdict for verdict in judge(flatten(metrics), read_gates(config.evaluate.gates))}


def failed(verdicts: dict[str, Verdict]) -> set[str]:
    return {name for name, verdict in verdicts.items() if verdict.verdict == "failed"}


def copy_of_the_build(built: Built, folder: Path) -> Path:
    """Return *folder*, made a copy of the whole logged model."""
    shutil.copytree(built.int4.parents[1], folder)
    return folder


def test_an_honest_build_keeps_every_gate(built: Built, reference: Candidate, tmp_path: Path) -> None:
    folder = copy_of_the_build(built, tmp_path / "model")
    shutil.rmtree(folder / "artifacts" / "onnx")
    shutil.copytree(built.fp32, folder / "artifacts" / "onnx")
    verdicts = verdicts_on(reference, folder, *LENIENT)
    assert {verdict.reason for verdict in verdicts.values() if verdict.verdict != "passed"} == set()


@pytest.mark.parametrize(
    ("change", "stopped_by", "kept"),
    [
        (
            noisy,
            {"onnx_perplexity", "onnx_divergence", "onnx_top_token"},
            {"onnx_answers", "onnx_repeatable", "onnx_speed"},
        ),
        (
            with_nan,
            {"onnx_perplexity", "onnx_divergence", "onnx_top_token", "onnx_accuracy"},
            {"onnx_size", "onnx_tokens"},
        ),
    ],
)
def test_a_build_with_damaged_weights_fails_the_gates_of_fidelity(
    built: Built, reference: Candidate, tmp_path: Path, change: Change, stopped_by: set[str], kept: set[str]
) -> None:
    folder = copy_of_the_build(built, tmp_path / "model")
    shutil.rmtree(folder / "artifacts" / "onnx")
    damaged(built.int4, folder / "artifacts" / "onnx", change)
    verdicts = verdicts_on(reference, folder)
    assert stopped_by <= failed(verdicts)
    assert not kept & failed(verdicts)
    if change is with_nan:
        assert "onnx.fidelity.kl_mean is nan, not a finite number" in verdicts["onnx_divergence"].reason


def test_a_truncated_build_fails_because_it_answers_nothing(built: Built, reference: Candidate, tmp_path: Path) -> None:
    folder = copy_of_the_build(built, tmp_path / "model")
    weights = folder / "artifacts" / "onnx" / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    verdicts = verdicts_on(reference, folder)
    assert verdicts["onnx_answers"].figure == 0
    assert "onnx_answers" in failed(verdicts)
    assert "was not measured" in verdicts["onnx_divergence"].reason


def test_a_slow_build_fails_the_gate_of_speed_alone(built: Built, reference: Candidate, tmp_path: Path) -> None:
    folder = copy_of_the_build(built, tmp_path / "model")
    code = folder / "artifacts" / "wrapper" / "engine" / "runner.py"
    step = "        batch.generator.generate_next_token()\n"
    source = code.read_text()
    assert source.count(step) == 1
    code.write_text(source.replace(step, f"        __import__('time').sleep(0.3)\n{step}"))
    verdicts = verdicts_on(reference, folder, "evaluate.limit=2", "evaluate.contract_examples=1")
    assert failed(verdicts) == {"onnx_speed"}


def test_too_few_examples_are_inconclusive_and_nothing_fails(
    built: Built, reference: Candidate, tmp_path: Path
) -> None:
    verdicts = verdicts_on(reference, copy_of_the_build(built, tmp_path / "model"), "evaluate.limit=1")
    assert failed(verdicts) == set()
    inconclusive = {name for name, verdict in verdicts.items() if verdict.verdict == "inconclusive"}
    assert inconclusive == {
        "onnx_perplexity", "onnx_divergence", "onnx_top_token", "onnx_accuracy", "onnx_difference"
    }  # fmt: skip


def test_a_flow_stops_at_the_gates_of_a_build_that_is_quantised_too_far(
    built: Built, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = logged(built, damaged(built.fp32, tmp_path / "onnx", in_2_bits))
    inputs = [f"pipeline_run_id={built.runs['build_pipeline_wrapper'].info.run_id}", f"onnx_run_id={bad.info.run_id}"]
    registrations = len(runs_of(built, "register"))
    with pytest.raises(StepError, match="evaluate ended FAILED"):
        run_chain("steps=[evaluate,register]", *inputs, *QUICK, "evaluate.limit=100", "register.name=bad")
    said = capfd.readouterr().err
    assert "is above evaluate.gates.onnx_divergence.max=0.01" in said
    assert "Traceback" not in said
    assert not MlflowClient().search_registered_models("name='bad'")
    assert len(runs_of(built, "register")) == registrations


def runs_of(built: Built, step: str) -> list[Run]:
    """Return the runs of *step*, the newest first."""
    return list(MlflowClient(built.store).search_runs(["0"], f"tags.step = '{step}'", order_by=["start_time DESC"]))


def test_an_evaluation_leaves_in_mlflow_what_its_page_compares_models_by(built: Built, tmp_path: Path) -> None:
    """A further candidate, the very build again, and a text of the user's own are measured too."""
    text = tmp_path / "text.txt"
    text.write_text("The capital of Spain is Madrid. The capital of France is Paris.\n" * 20)
    models = {name: outputs(built.runs[step])["model_uri"] for name, step in CANDIDATES.items()}
    few = [*FEW, *LENIENT, "evaluate.cost.prompt_lengths=[16,48]", f"evaluate.fidelity.text={text}"]
    few += ["evaluate.gates.onnx_top_token.min=0.9"]  # such text is not what the model was trained on
    inputs = [f"{STEPS[step].run_key}={built.runs[step].info.run_id}" for step in CANDIDATES.values()]
    found = do_step("evaluate", compose_config([*inputs, *few, f"+evaluate.candidates.again={models['onnx']}"]))
    metrics = found.data.metrics

    same = [name.removeprefix("onnx.") for name in metrics if name.startswith(("onnx.task.", "onnx.fidelity."))]
    assert {name: metrics[f"again.{name}"] for name in same} == {name: metrics[f"onnx.{name}"] for name in same}
    assert metrics["onnx.fidelity.texts"] > 40, "the task's and the text's"

    client = MlflowClient()
    series = client.get_metric_history(found.info.run_id, "onnx.latency.batch_1.first_token_seconds")
    assert [point.step for point in series] == sorted(point.step for point in series)
    assert len(series) == 2
    for name, uri in models.items():
        linked = {metric.key for metric in client.get_logged_model(uri.removeprefix("models:/")).metrics or []}
        assert f"{name}.task.accuracy" in linked
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, [tag.value for tag in data.tags]) == ("capitals", ["evaluation"])
    table = mlflow.load_table("predictions_table.json", [found.info.run_id])
    assert len(table) == 40
    assert {"pipeline.answer", "onnx.right", "again.seconds"} <= set(table.columns)
    assert [name for name in metrics if name.startswith("system/cpu")]
    assert int(found.data.tags["threads.onnx"]) >= 1
