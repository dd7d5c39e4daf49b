"""Climb the ladder: build and measure recipes in their order, and stop at the first that keeps the fidelity gates."""

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from steps.config.onnx import BuildOnnxWrapper, Ladder
from steps.config.schema import BUILD
from steps.evaluation.fidelity import fidelity_metrics
from steps.evaluation.gates import FAILED, PASSED, judge, overall, read_gates
from steps.ladder.beside_checkpoint import (
    Reference,
    material_of,
    measure_build,
    reference_of,
    require_rendering,
    weights_bytes,
)
from steps.ladder.rungs import REFERENCE_DTYPE, SKIPPED, Rung, facts_of, finished_rung, rung_run
from steps.logged_models.process import apart
from steps.onnx_build.export import build_onnx
from steps.records import artifacts
from steps.records.errors import StepError, one_line
from steps.records.onnx_recipes import LADDER, Recipe, unusable
from steps.records.tags import RECIPE
from steps.report.ladder import draw, measured, progress, table
from steps.report.style import save


def recipes_of(options: BuildOnnxWrapper) -> list[Recipe]:
    """Return the recipes of the ladder of *options* in order, each with the values that *options* sets for all."""
    assert options.ladder is not None
    by_name = {recipe.name: recipe for recipe in LADDER}
    given = {key: getattr(options, key) for key in ("block_size", "accuracy_level")}
    same = {key: value for key, value in given.items() if value is not None}
    return [replace(by_name[name], **same) for name in options.ladder.recipes]


class Climb:
    """A checkpoint and its ladder. The folder `onnx` below *work* holds one build at a time."""

    def __init__(self, snapshot: Path, digest: str, options: BuildOnnxWrapper, work: Path, log: Path) -> None:
        assert options.ladder is not None
        self.snapshot, self.digest, self.options, self.work, self.log = snapshot, digest, options, work, log
        self.ladder: Ladder = options.ladder
        self.gates = read_gates(self.ladder.gates)
        self.architecture: dict[str, Any] = json.loads((snapshot / "config.json").read_text(encoding="utf-8"))
        self.material = material_of(self.ladder)
        self.onnx = work / "onnx"

    @cached_property
    def reference(self) -> Reference:
        """The checkpoint's own logits: computed when the first recipe needs them."""
        require_rendering(self.snapshot, self.material.chats, self.ladder.task)
        folder = self.work / "reference"
        folder.mkdir()
        print(f"  onnx=auto: the checkpoint's own probabilities on {len(self.material.chats)} questions", flush=True)
        return apart(reference_of, self.snapshot, self.material, folder)

    def build(self, recipe: Recipe) -> None:
        """Build *recipe*, in place of the previous build. Raises StepError."""
        shutil.rmtree(self.onnx, ignore_errors=True)
        build_onnx(self.snapshot, self.onnx, recipe, self.options.execution_provider, self.log)

    def rung(self, recipe: Recipe, *, reuse: bool) -> Rung:
        """Return the result of *recipe*: measured now or, with *reuse*, by an earlier run."""
        if reason := unusable(recipe, self.architecture):
            return Rung(recipe, SKIPPED, reason)
        facts = facts_of(recipe, self.digest, self.material)
        if reuse and (found := finished_rung(facts)):
            return self._judged(recipe, found, reused=True)
        reference = self.reference  # outside `try`: if the reference fails, no recipe is at fault
        try:
            with rung_run(recipe, facts) as run:
                mlflow.set_tag(REFERENCE_DTYPE, reference.dtype)
                mlflow.log_metrics(self._measure(recipe, reference))
        except StepError as error:
            return Rung(recipe, FAILED, one_line(error))
        return self._judged(recipe, mlflow.get_run(run.info.run_id), reused=False)

    def _measure(self, recipe: Recipe, reference: Reference) -> dict[str, float]:
        started = time.monotonic()
        try:
            self.build(recipe)
        finally:
            if self.log.is_file():
                mlflow.log_artifact(str(self.log))
        built = time.monotonic()
        try:
            tokens, rate = apart(measure_build, self.onnx, reference)
        except Exception as error:
            # Any failure of a build is a finding: the next recipe may do better.
            msg = f"the build by recipe {recipe.name} cannot be measured: {one_line(error)}"
            raise StepError(msg) from error
        size = weights_bytes(self.onnx)
        return fidelity_metrics(tokens, self.ladder.seed) | {
            "cost.size_bytes": float(size),
            "cost.size_ratio": size / weights_bytes(self.snapshot),
            "cost.decode_tokens_per_second": rate,
            "cost.build_seconds": built - started,
            "cost.measure_seconds": time.monotonic() - built,
        }

    def _judged(self, recipe: Recipe, run: Run, *, reused: bool) -> Rung:
        figures = dict(run.data.metrics)
        verdicts = judge({f"{BUILD}.{name}": value for name, value in figures.items()}, self.gates)
        unkept = [verdict.reason for verdict in verdicts if verdict.verdict != PASSED]
        return Rung(
            recipe,
            overall(verdicts),
            "; ".join(unkept) or "keeps all",
            run.info.run_id,
            reused,
            run.data.tags.get(REFERENCE_DTYPE),
            figures,
        )


def climb(snapshot: Path, digest: str, options: BuildOnnxWrapper, work: Path, log: Path, *, reuse: bool) -> Path:
    """Return the folder of the first build of *snapshot*, whose digest is *digest*, that keeps the fidelity gates.

    Logs the ladder on the active run, with the recipe that won as parameters. With *reuse*, a recipe that
    an earlier run measured is not measured again. Raises StepError when no recipe keeps the gates, and what
    `build_onnx` raises.
    """
    here = Climb(snapshot, digest, options, work, log)
    rungs: list[Rung] = []
    for recipe in recipes_of(options):
        rungs.append(here.rung(recipe, reuse=reuse))
        print(f"  {progress(as_dict(rungs[-1]))}", flush=True)
        if rungs[-1].verdict == PASSED:
            break
    log_ladder(rungs, here)
    chosen = rungs[-1]
    if chosen.verdict != PASSED:
        raise StepError(none_holds(rungs))
    log_recipe(chosen.recipe, options)
    if chosen.reused:
        here.build(chosen.recipe)
    return here.onnx


def as_dict(rung: Rung) -> dict[str, Any]:
    """Return *rung* as `ladder.json` holds it: a figure that is not finite is None."""
    figures = {name: value if math.isfinite(value) else None for name, value in rung.figures.items()}
    return asdict(rung) | {"figures": figures}


def log_ladder(rungs: Sequence[Rung], here: Climb) -> None:
    """Log *rungs* on the active run as JSON, as a table and as a plot."""
    reached = rungs[-1].verdict == PASSED
    ladder = {
        "chosen": rungs[-1].recipe.name if reached else None,
        "questions": len(here.material.chats),
        "text": here.ladder.text,
        "gates": here.ladder.gates,
        "rungs": [as_dict(rung) for rung in rungs],
    }
    mlflow.log_dict(ladder, artifacts.LADDER)
    mlflow.log_text(table(ladder), "ladder.md")
    if measured(ladder):
        (here.work / "plots").mkdir()
        save({"ladder": draw(ladder)}, here.work / "plots")
        mlflow.log_artifacts(str(here.work / "plots"), "plots")


def log_recipe(recipe: Recipe, options: BuildOnnxWrapper) -> None:
    """Log the chosen *recipe* as if *options* had named it: later steps read there how a build was made."""
    values = {key: value for key, value in asdict(recipe).items() if key != "name" and getattr(options, key) is None}
    mlflow.log_params({f"build_onnx_wrapper.{key}": value for key, value in values.items()})
    mlflow.set_tag(RECIPE, recipe.name)


def none_holds(rungs: Sequence[Rung]) -> str:
    """Return in one line that none of *rungs* keeps the gates, how near the nearest comes, and what to try."""
    finite = [rung for rung in rungs if math.isfinite(rung.figures.get("fidelity.kl_mean", math.nan))]
    if not finite:
        return f"onnx=auto: no recipe could be built and measured: {rungs[-1].recipe.name}: {rungs[-1].reason}"
    best = min(finite, key=lambda rung: rung.figures["fidelity.kl_mean"])
    ratio, kl, top = (best.figures[f"fidelity.{name}"] for name in ("perplexity_ratio", "kl_mean", "same_top"))
    return (
        f"onnx=auto: no recipe keeps the fidelity gates; {best.recipe.name} comes nearest with a perplexity ratio of "
        f"{ratio:.4g}, KL {kl:.3g}, same top token {top:.1%}: {best.reason}; widen these gates, or take another model"
    )
