"""A flow in small, made of real runs: models that always say one thing, and an evaluation that they passed."""

import json
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema

from steps.checkpoint.manifest import MANIFEST, Manifest
from steps.evaluation.asking import Answer
from steps.evaluation.gates import Gate, judge, write_gates
from steps.evaluation.predictions import score, write_predictions
from steps.evaluation.tasks import Example
from steps.logged_models.logged_model import logged_folder, record_model
from steps.records.artifacts import record_artifacts
from steps.records.files import File, hash_file
from steps.records.tags import DIGEST, GATES_DIGEST, OUTPUT
from steps.wrappers.onnx.signatures import chat_signature
from tests.conftest import PROGRAMS

PROVENANCE = {"code.commit": "c" * 40, "code.dirty": "false", "lock.sha256": "l" * 64}

OTHER_SIGNATURE = ModelSignature(Schema([ColSpec("string", "question")]), Schema([ColSpec("string")]))


def fetched() -> Run:
    """Return a finished run of fetch_model: a manifest, and nothing else."""
    manifest = Manifest("hub", "someone/echo", "a" * 40, "mit", (File("config.json", 2, "0" * 64),))
    with mlflow.start_run(tags={"step": "fetch_model"}) as run:
        mlflow.log_text(manifest.to_json(), MANIFEST)
    return mlflow.get_run(run.info.run_id)


def built(folder: Path, answer: str, fetch: Run | None = None, signature: ModelSignature | None = None) -> Run:
    """Return a finished run of a build step that logged a chat model which always says *answer*."""
    (folder / "answer.txt").write_text(answer)
    fetch = fetch or fetched()
    options = {"precision": "int4", "block_size": "32", "accuracy_level": "4", "execution_provider": "cpu"}
    with mlflow.start_run(tags={"step": "build_onnx_wrapper", **PROVENANCE}) as run:
        mlflow.log_params(
            {f"build_onnx_wrapper.{key}": value for key, value in {**options, "interface": "chat"}.items()}
        )
        mlflow.set_tag("fetch_run_id", fetch.info.run_id)
        signature = signature or chat_signature()
        info = mlflow.pyfunc.log_model(
            name="onnx",
            python_model=str(PROGRAMS / "echo.py"),
            artifacts={"answer": str(folder / "answer.txt")},
            signature=signature,
            pip_requirements=["mlflow==3.17.2", "numpy"],
        )
        with logged_folder(info.model_uri) as logged:
            digest = record_model(info.model_uri, logged)
        mlflow.set_tags({f"{OUTPUT}model_uri": info.model_uri, DIGEST: digest})
    return mlflow.get_run(run.info.run_id)


def evaluated(folder: Path, pipeline: Run, onnx: Run, references: list[str], verdict: str = "passed") -> Run:
    """Return a finished run of evaluate that asked for each of *references*, with that *verdict*."""
    examples = [
        Example(f"q{number}", [{"role": "user", "content": "Yes?"}], reference)
        for number, reference in enumerate(references)
    ]
    answers = {name: [Answer(each.id, "yes", 1, 0.1) for each in examples] for name in ("pipeline", "onnx")}
    metrics = {f"{name}.task.examples": float(len(examples)) for name in answers} | {"onnx.task.accuracy": 1.0}
    gates = {"passed": {"accuracy": Gate("onnx.task.accuracy", min=1)}, "inconclusive": {}}
    failing = {"accuracy": Gate("onnx.task.accuracy", min=2)}
    with mlflow.start_run(tags={"step": "evaluate"}) as run:
        mlflow.set_tags({"pipeline_run_id": pipeline.info.run_id, "onnx_run_id": onnx.info.run_id})
        mlflow.log_params({"evaluate.task": "data/echo.jsonl", "evaluate.max_tokens": 8, "seed": 0})
        mlflow.log_metrics(metrics)
        work = folder / f"evaluate-{run.info.run_id}"
        work.mkdir()
        write_predictions(work / "predictions.jsonl", score(examples, answers))
        write_gates(work / "gates.json", judge(metrics, gates.get(verdict, failing)))
        (work / "scores.md").write_text("| | pipeline | onnx |\n|---|---|---|\n| Right answers | 100 % | 100 % |\n")
        mlflow.log_artifacts(str(work))
        mlflow.set_tag(GATES_DIGEST, hash_file(work / "gates.json"))
        record_artifacts(run)
    return mlflow.get_run(run.info.run_id)


def artifact(run: Run, path: str) -> Path:
    """Return the file of *run*'s artifact at *path*."""
    return Path(run.info.artifact_uri.removeprefix("file://")) / path


def registered(run_id: str) -> dict[str, object]:
    """Return what a register run wrote down."""
    content: dict[str, object] = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/registered.json"))
    return content
