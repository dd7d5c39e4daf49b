"""A rung: one recipe, built and measured in a run of its own below the step's run. A later ladder finds that run.

So a changed gate, or a command repeated after a kill, measures no recipe twice.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType

import mlflow
from mlflow.entities import Run

from steps.config.schema import ROOT
from steps.evaluation import fidelity
from steps.ladder import beside_checkpoint
from steps.ladder.beside_checkpoint import Material
from steps.logged_models import language_model
from steps.onnx_build import export, external_data, scales, shared_embedding
from steps.records import onnx_recipes
from steps.records.errors import StepError, one_line
from steps.records.files import hash_file, hash_text
from steps.records.onnx_recipes import Recipe
from steps.records.tags import ERROR, FINGERPRINT, PROCESS, STEP
from steps.safety.processes import process_tag
from steps.safety.search import runs_in_store

RUNG = "rung"
SKIPPED = "skipped"
REFERENCE_DTYPE = "reference.dtype"
"""The tag of a rung's run with the dtype that the checkpoint computed in."""

MADE_BY: tuple[ModuleType, ...] = (
    export,
    external_data,
    scales,
    shared_embedding,
    onnx_recipes,
    fidelity,
    language_model,
    beside_checkpoint,
)
"""The modules on which the figures of a rung depend."""


@dataclass(frozen=True)
class Rung:
    """The result of a recipe: its `verdict`, the `reason`, and `figures` by name, empty if it was not measured.

    `reference_dtype`: the dtype that the checkpoint computed in, when the build was compared with it.
    """

    recipe: Recipe
    verdict: str
    reason: str
    run_id: str | None = None
    reused: bool = False
    reference_dtype: str | None = None
    figures: dict[str, float] = field(default_factory=dict)


def facts_of(recipe: Recipe, snapshot_digest: str, material: Material) -> dict[str, object]:
    """Return what the figures of *recipe* depend on; gates are not included."""
    return {
        "recipe": asdict(recipe),
        "snapshot": snapshot_digest,
        "material": hash_text(json.dumps(asdict(material), sort_keys=True)),
        "sources": {str(module.__name__): hash_file(Path(str(module.__file__))) for module in MADE_BY},
        "lock": hash_file(ROOT / "requirements.txt"),
    }


def fingerprint_of(facts: Mapping[str, object]) -> str:
    """Return *facts* as one hash."""
    return hash_text(json.dumps(facts, sort_keys=True))


def finished_rung(facts: Mapping[str, object]) -> Run | None:
    """Return the newest finished run with these *facts* in the store, or None."""
    condition = f"tags.`{FINGERPRINT}` = '{fingerprint_of(facts)}' and attributes.status = 'FINISHED'"
    found = runs_in_store(condition, most=1)
    return found[0] if found else None


@contextmanager
def rung_run(recipe: Recipe, facts: Mapping[str, object]) -> Iterator[Run]:
    """Open a run for *recipe* below the active one; the body logs on it. `finished_rung` finds it once it has ended."""
    parent = mlflow.active_run()
    assert parent is not None
    with mlflow.start_run(
        run_name=recipe.name,
        experiment_id=parent.info.experiment_id,
        nested=True,
        tags={STEP: RUNG, PROCESS: process_tag()},
        log_system_metrics=False,
    ) as run:
        mlflow.log_params({key: str(value) for key, value in asdict(recipe).items()})
        mlflow.log_dict(dict(facts), "fingerprint.json")
        try:
            yield run
        except StepError as error:
            mlflow.set_tag(ERROR, one_line(error))
            raise
        mlflow.set_tag(FINGERPRINT, fingerprint_of(facts))
