"""onnx=auto takes the first recipe that keeps the fidelity gates, says what it tried, and measures nothing twice."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.config.command_line import compose_config
from steps.config.onnx import BuildOnnxWrapper
from steps.config.schema import ROOT
from steps.ladder.climb import climb, recipes_of
from steps.records.errors import StepError

TINY = ROOT / "models" / "tiny_phi3"
GATE = "evaluate.gates.onnx_divergence.max=%s"
NAMES = "build_onnx_wrapper.ladder.recipes=[%s]"
STRICT, LENIENT, IMPOSSIBLE = GATE % 1e-7, GATE % 0.01, GATE % 1e-30


def options(*overrides: str) -> BuildOnnxWrapper:
    return compose_config(["onnx=auto", "evaluate.limit=20", *overrides]).build_onnx_wrapper


class Climbs:
    """Ladders of the embedded model in one store: the runs of their steps, and their builds, by name."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.runs: dict[str, Run] = {}
        self.errors: dict[str, str] = {}

    def climb(self, name: str, *overrides: str) -> None:
        work = self.work / name
        work.mkdir()
        with mlflow.start_run() as run:
            try:
                climb(TINY, "digest", options(*overrides), work, work / "builder.log", reuse=True)
            except StepError as error:
                self.errors[name] = str(error)
        self.runs[name] = mlflow.get_run(run.info.run_id)

    def ladder(self, name: str) -> dict[str, object]:
        return dict(mlflow.artifacts.load_dict(f"{self.runs[name].info.artifact_uri}/ladder.json"))

    def rungs(self, name: str) -> list[tuple[str, str, bool]]:
        """Return name, verdict, and whether it was reused, of each rung."""
        found = json.loads(json.dumps(self.ladder(name)["rungs"]))
        return [(each["recipe"]["name"], each["verdict"], each["reused"]) for each in found]


@pytest.fixture(scope="module")
def climbs(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Climbs]:
    """Yield three ladders: under a gate that int4 breaks, under one that it keeps, and under one that none can."""
    work = tmp_path_factory.mktemp("climbs")
    shutil.copy(empty_store, work / "store.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work}/store.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        # Not mlflow.set_experiment: other files' tests, and the processes they start, would inherit it.
        patch.setenv("MLFLOW_EXPERIMENT_ID", mlflow.create_experiment("ladder", str(work / "artifacts")))
        found = Climbs(work)
        found.climb("strict", STRICT, NAMES % "int4,int8_shared,fp32,int8")
        found.climb("lenient", LENIENT, NAMES % "int4,int8_shared,fp32")
        found.climb("impossible", IMPOSSIBLE, NAMES % "int4,fp32")
        yield found


@pytest.mark.slow
def test_recipes_are_tried_in_their_order_until_one_keeps_the_gates(climbs: Climbs) -> None:
    assert climbs.rungs("strict") == [
        ("int4", "failed", False),
        ("int8_shared", "skipped", False),  # the embedded model ties no embedding
        ("fp32", "passed", False),
    ]
    assert climbs.ladder("strict")["chosen"] == "fp32"
    assert {rung["reference_dtype"] for rung in climbs.ladder("strict")["rungs"]} == {
        "float32",
        None,
    }  # none was skipped
    assert (climbs.work / "strict" / "onnx" / "model.onnx").is_file()


@pytest.mark.slow
def test_the_step_says_the_chosen_recipe_as_if_it_had_been_named(climbs: Climbs) -> None:
    run = climbs.runs["lenient"]
    assert run.data.tags["onnx.recipe"] == "int4"
    stated = {key: run.data.params[f"build_onnx_wrapper.{key}"] for key in ("precision", "block_size", "algorithm")}
    assert stated == {"precision": "int4", "block_size": "32", "algorithm": "default"}


@pytest.mark.slow
def test_other_gates_measure_nothing_again_and_build_the_winner_alone(climbs: Climbs) -> None:
    assert climbs.rungs("lenient") == [("int4", "passed", True)]
    assert not (climbs.work / "lenient" / "reference").exists()
    assert (climbs.work / "lenient" / "onnx" / "model.onnx").is_file()


@pytest.mark.slow
def test_where_no_recipe_keeps_the_gates_one_line_says_how_near_the_nearest_comes(climbs: Climbs) -> None:
    assert climbs.rungs("impossible") == [("int4", "failed", True), ("fp32", "failed", True)]
    line = climbs.errors["impossible"]
    nearest = "no recipe keeps the fidelity gates; fp32 comes nearest with a perplexity ratio of 1,"
    assert line.startswith(f"onnx=auto: {nearest}")
    assert "evaluate.gates.onnx_divergence.max=1e-30" in line
    assert "\n" not in line


@pytest.mark.slow
def test_each_measured_recipe_is_a_run_below_the_steps_with_its_figures(climbs: Climbs) -> None:
    run = climbs.runs["strict"]
    below = MlflowClient().search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'", order_by=["start_time ASC"]
    )
    assert [each.info.run_name for each in below] == ["int4", "fp32"]
    figures = below[0].data.metrics
    assert figures["fidelity.kl_mean"] > below[1].data.metrics["fidelity.kl_mean"]
    assert figures["cost.size_ratio"] < below[1].data.metrics["cost.size_ratio"]
    assert figures["cost.decode_tokens_per_second"] > 0
    assert figures["fidelity.texts"] == 20


@pytest.mark.slow
def test_the_ladder_is_logged_for_programs_as_a_table_and_as_a_plot(climbs: Climbs) -> None:
    root = climbs.runs["strict"].info.artifact_uri
    assert "| fp32 |" in mlflow.artifacts.load_text(f"{root}/ladder.md")
    assert "int8_shared" in mlflow.artifacts.load_text(f"{root}/ladder.md")
    names = {each.path for each in mlflow.artifacts.list_artifacts(f"{root}/plots")}
    assert {Path(name).name for name in names} == {"ladder.png", "ladder.svg"}


def test_a_block_size_that_is_given_holds_for_every_recipe() -> None:
    chosen = recipes_of(options("build_onnx_wrapper.block_size=128", NAMES % "int4,int8"))
    assert [(each.name, each.block_size) for each in chosen] == [("int4", 128), ("int8", 128)]
