"""A real language model, SmolLM2-135M-Instruct, goes through the whole flow with the defaults of any model."""

import json
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from benchmarks.smollm2 import make_smollm2
from tests.conftest import QUICK, once, run
from tests.serving.conftest import Store, serving

pytestmark = pytest.mark.slow

FEW = (
    "evaluate.limit=12",
    "evaluate.timed_examples=2",
    "evaluate.max_tokens=12",
    "evaluate.gates.onnx_difference.use=point",  # of so few questions, no interval is narrow enough
    *QUICK,
)


@dataclass(frozen=True)
class Real:
    """The flow's folder, which holds its store; `given`: what names the model on the command line."""

    folder: Path
    given: tuple[str, ...]

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def artifact(self, step: str, path: str) -> dict[str, object]:
        """Return the JSON file *path* of the oldest run of *step*."""
        found = MlflowClient(self.store).search_runs(["0"], f"tags.step = '{step}'", order_by=["start_time"])[0]
        return dict(mlflow.artifacts.load_dict(f"{found.info.artifact_uri}/{path}"))


@pytest.fixture(scope="module")
def real(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Real:
    """Return the flow of the real model: 12 questions, and of the ladder the two recipes that decide it."""
    checkpoint = once(tmp_path_factory, "smollm2", lambda folder: make_smollm2(folder / "checkpoint")) / "checkpoint"
    folder = tmp_path_factory.mktemp("real")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    given = ("model=local", f"model.path={checkpoint}", "model.name=smollm2", "register.name=smollm2")
    found = Real(folder, given)
    recipes = "build_onnx_wrapper.ladder.recipes=[int4,int8_shared]"
    done = run("python", "-m", "steps.main", *given, recipes, *FEW, MLFLOW_TRACKING_URI=found.store)
    assert done.returncode == 0, done.stdout + done.stderr
    return found


def test_the_smallest_build_that_keeps_what_the_model_can_is_chosen(real: Real) -> None:
    ladder = real.artifact("build_onnx_wrapper", "ladder.json")
    assert ladder["chosen"] == "int8_shared"
    rungs = json.loads(json.dumps(ladder["rungs"]))
    assert [(each["recipe"]["name"], each["verdict"]) for each in rungs] == [
        ("int4", "failed"),
        ("int8_shared", "passed"),
    ]
    figures = rungs[1]["figures"]
    assert figures["cost.size_ratio"] < 0.6
    assert figures["fidelity.perplexity_ratio"] < 1.05


def test_both_wrappers_are_as_good_as_the_checkpoint_and_the_build_is_champion(real: Real) -> None:
    metrics = MlflowClient(real.store).search_runs(["0"], "tags.step = 'evaluate'")[0].data.metrics
    assert metrics["pipeline.task.accuracy"] > 0.2
    assert metrics["onnx.task.accuracy"] > 0.2
    for name in ("pipeline", "onnx"):
        assert metrics[f"{name}.integrity.checkpoint_tokens"] == 1
    champion = MlflowClient(real.store).get_model_version_by_alias("smollm2", "champion")
    assert champion.tags["wrapper"] == "onnx"


def test_the_champion_answers_over_http_what_it_answered_in_its_step(real: Real, tmp_path: Path) -> None:
    before = real.artifact("build_onnx_wrapper", "answer.json")
    with serving(Store(real.store), tmp_path / "log", "serve.model=models:/smollm2@champion") as server:
        question = [{"role": "user", "content": before["question"]}]
        said = server.post({"model": "smollm2", "messages": question}).json()["choices"][0]["message"]["content"]
    assert said == before["answer"]
