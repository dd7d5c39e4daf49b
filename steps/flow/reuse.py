"""Does a step have to run? Not if a finished run has the same fingerprint and all its artifacts are intact."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from steps.config.schema import STEPS, Config
from steps.flow.fingerprint import FACTS, Fingerprint, differences, movable
from steps.logged_models.logged_model import model_damage
from steps.records.artifacts import missing_artifact
from steps.records.step import Inputs
from steps.records.tags import CONTENT, FINGERPRINT, REGISTERED_AS, STEP, outputs
from steps.safety.search import runs_in_store

LOGGED_MODEL = re.compile(r"models:/m-\w+")
MOST_REASONS = 4
"""How many differences are named, in one line, when a step has to run; the others are only counted."""

VERSION = re.compile(r"models:/([^/]+)/(\d+)")


@dataclass(frozen=True)
class Decision:
    """`reused`: the run to use, or None if the step has to run. `reason`: why, in a few words."""

    reused: Run | None
    reason: str


def decide(facts: Fingerprint, config: Config, inputs: Inputs, *, always_look: bool = False) -> Decision:
    """Return whether the step of *facts* has to run on *inputs*, which are complete.

    Any finished and complete run in the store with the same fingerprint can be reused. With `reuse=false`, or
    if an input may have moved (a branch), none is. *always_look* ignores both.
    """
    if not config.reuse and not always_look:
        return Decision(None, "reuse=false")
    if not always_look and (why := movable(facts.step, config)):
        return Decision(None, why)
    damage = None
    for run in _finished_runs(f"tags.`{FINGERPRINT}` = '{facts.value}'"):
        found = damage_of(run) or _damage_below(run, inputs)
        if found is None:
            return Decision(run, f"same fingerprint as run {run.info.run_id}")
        damage = damage or f"run {run.info.run_id} cannot be reused: {found}"
    return Decision(None, damage or _what_changed(facts))


def damage_of(run: Run) -> str | None:
    """Return which output of the finished *run* is missing or has changed, or None if all are intact."""
    if damage := missing_artifact(run):
        return damage
    for uri in outputs(run).values():
        if LOGGED_MODEL.fullmatch(uri):
            if damage := model_damage(run):
                return damage
        elif version := VERSION.fullmatch(uri):
            try:
                found = MlflowClient().get_model_version(*version.groups())
            except MlflowException:
                return f"{uri} is no longer registered"
            if found.tags.get(CONTENT) != run.data.tags.get(f"{REGISTERED_AS}{found.version}"):
                return f"{uri} is another model by now"
    return None


def _damage_below(run: Run, inputs: Inputs) -> str | None:
    """Return the damage to the builds that the finished *run* judged or registered, or None.

    Only to those that are not *inputs*: their content is the same, and their files may have been deleted since.
    """
    for made_by in STEPS[run.data.tags[STEP]].builds_on:
        key = str(STEPS[made_by].run_key)
        run_id = run.data.tags.get(key)
        # A build needs its checkpoint no longer.
        if run_id is None or made_by == "fetch_model" or (made_by in inputs and inputs[made_by].info.run_id == run_id):
            continue
        try:
            below = MlflowClient().get_run(run_id)
        except MlflowException:
            return f"its {key}, {run_id}, is gone"
        if damage := damage_of(below) or _damage_below(below, {}):
            return f"of its {key}, {damage}"
    return None


def _what_changed(facts: Fingerprint) -> str:
    """Return how *facts* differ from the newest finished run of the same step."""
    for run in _finished_runs(f"tags.step = '{facts.step}'"):
        try:
            old = Fingerprint.from_json(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{FACTS}"))
        except (OSError, MlflowException, ValueError, TypeError):
            continue
        changes = differences(old, facts)
        more = [f"and {len(changes) - MOST_REASONS} more"] if len(changes) > MOST_REASONS else []
        return (
            ", ".join(changes[:MOST_REASONS] + more)
            or f"run {run.info.run_id} has the same facts, but is no longer marked as reusable"
        )
    return "no earlier run"


def _finished_runs(condition: str) -> Iterator[Run]:
    """Yield the finished runs in the whole store that match *condition*, newest first."""
    yield from runs_in_store(f"{condition} and attributes.status = 'FINISHED'", most=20)
