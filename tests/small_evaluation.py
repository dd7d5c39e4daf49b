"""A task of ten questions and the answers of two candidates: enough for every figure to be known by hand."""

from pathlib import Path

import mlflow
import pytest

from steps.build_onnx_wrapper import log_wrapper
from steps.build_pipeline_wrapper import log_pipeline
from steps.checkpoint.onnx_export import build_onnx, recipe_of
from steps.config.command_line import compose_config
from steps.config.schema import ROOT, ExecutionProvider
from steps.evaluation.asking import Answer
from steps.evaluation.predictions import Prediction, score
from steps.evaluation.tasks import Example
from steps.logged_models.logged_model import without_bytecode


@pytest.fixture(scope="session")
def logged_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the embedded model, logged as `pipeline` and, in int4, as `onnx`."""
    work, tiny = tmp_path_factory.mktemp("logged_models"), ROOT / "models" / "tiny_phi3"
    config = compose_config([])
    recipe = recipe_of(config.build_onnx_wrapper)
    build_onnx(tiny, work / "built", recipe, ExecutionProvider.cpu, work / "builder.log")
    with pytest.MonkeyPatch.context() as patch, without_bytecode():
        # Not mlflow.set_tracking_uri: other files' tests, and the processes they start, would inherit it.
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work}/store.db")
        experiment = mlflow.create_experiment("evaluation", artifact_location=str(work / "artifacts"))
        with mlflow.start_run(experiment_id=experiment):
            uris = {
                "pipeline": log_pipeline(tiny, config.question, config.build_pipeline_wrapper),
                "onnx": log_wrapper(work / "built", "tiny_phi3", config.question, config.build_onnx_wrapper),
            }
        return {
            name: Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(work / name)))
            for name, uri in uris.items()
        }


@pytest.fixture
def examples() -> list[Example]:
    """Return ten questions whose right answers are `city 0` to `city 9`."""
    return [
        Example(f"q{number}", [{"role": "user", "content": f"Question {number}?"}], f"city {number}")
        for number in range(10)
    ]


@pytest.fixture
def predictions(examples: list[Example]) -> list[Prediction]:
    """Return the answers of `pipeline`, wrong at 8 and 9, and `onnx`, wrong at 0 and 9, an error at 1."""
    wrong = {"pipeline": {8: "city 0", 9: "town"}, "onnx": {0: "<script>alert(1)</script>", 9: "village"}}
    answers = {
        name: [
            Answer(example.id, wrong[name].get(number, example.reference), 4, seconds)
            for number, example in enumerate(examples)
        ]
        for name, seconds in (("pipeline", 2.0), ("onnx", 1.0))
    }
    answers["onnx"][1] = Answer("q1", "", None, 9.0, "RuntimeError: out of memory")
    return score(examples, answers)
