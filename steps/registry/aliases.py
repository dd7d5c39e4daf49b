"""The aliases `champion`, `previous` and `challenger`, and the history of champions.

In MLflow the last write to an alias wins. So aliases are moved under a lock and read back. Every change of champion
adds a tag `champion.<time>` to the registered model, which no later change overwrites. The order is always champion,
previous, history, so that the next change can complete one that was killed.
"""

import getpass
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from steps.records.errors import StepError
from steps.records.files import hash_text
from steps.registry.versions import damage_of_version
from steps.safety.lock import one_at_a_time

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"

HISTORY = f"{CHAMPION}."
"""The prefix of the registered model's tags that hold the history: `champion.<time>`, one per change."""


@dataclass(frozen=True)
class Change:
    """`version` became champion at `time` (UTC) in place of `replaced`, by `user` in run `run_id`, for `reason`."""

    time: str
    version: str
    replaced: str | None
    user: str
    run_id: str | None
    reason: str


@contextmanager
def changing(name: str) -> Iterator[None]:
    """Hold the lock on this machine for changes of the registered model *name*; wait if another process holds it."""
    key = hash_text(f"{mlflow.get_registry_uri()}\n{name}")
    with one_at_a_time(f"registry-{key}", waiting=lambda: print(f"waits: {name} is being changed", flush=True)):
        yield


def with_alias(name: str, alias: str) -> ModelVersion | None:
    """Return the version of *name* that has *alias*, or None."""
    try:
        return MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        # Any other error, such as a server that does not answer, does not mean that there is no champion.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def number_with(name: str, alias: str) -> str | None:
    """Return the number of the version of *name* that has *alias*, or None."""
    version = with_alias(name, alias)
    # MLflow returns a version's number sometimes as int, sometimes as str.
    return None if version is None else str(version.version)


def history(name: str) -> list[Change]:
    """Return every change of champion of the registered model *name*, oldest first."""
    tags = MlflowClient().get_registered_model(name).tags
    return [Change(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(HISTORY)]


def settle(name: str) -> Change | None:
    """Complete and return a change of champion that was interrupted, or made by hand; None if there is none.

    Call it under `changing`.
    """
    champion, changes = number_with(name, CHAMPION), history(name)
    if champion is None or (changes and changes[-1].version == champion):
        return None
    replaced = changes[-1].version if changes else None
    return _finish(name, champion, replaced, "made by hand, or by a run that was interrupted")


def make_champion(name: str, version: str, reason: str) -> Change:
    """Make *version* of *name* champion, the present champion previous, and add to the history; under `changing`.

    Raises StepError if another machine changed the champion at the same time.
    """
    settle(name)
    replaced = number_with(name, CHAMPION)
    MlflowClient().set_registered_model_alias(name, CHAMPION, version)
    return _finish(name, version, replaced, reason)


def challenge(name: str, version: str) -> None:
    """Make *version* of *name* challenger."""
    MlflowClient().set_registered_model_alias(name, CHALLENGER, version)


def roll_back(name: str, reason: str, only: str | None = None) -> Change:
    """Make the previous champion of *name* champion, and the present one previous.

    If *only* is given, that version must be champion. Raises StepError if it is not, if there is no previous champion,
    or if the files of the previous champion have changed.
    """
    with changing(name):
        if only is not None and (found := number_with(name, CHAMPION)) != only:
            msg = f"version {found} of {name} is {CHAMPION}, not version {only}: nothing is rolled back"
            raise StepError(msg)
        before = history(name)
        completed = settle(name)
        if completed and before and completed.version == before[-1].replaced:
            return completed  # this same rollback, which was interrupted
        champion, previous = with_alias(name, CHAMPION), with_alias(name, PREVIOUS)
        if champion is None or previous is None:
            missing = CHAMPION if champion is None else PREVIOUS
            msg = f"{name} has no version with the alias {missing}: nothing can be rolled back"
            raise StepError(msg)
        if previous.version == champion.version:
            msg = f"{CHAMPION} and {PREVIOUS} of {name} are both version {champion.version}: nothing can be rolled back"
            raise StepError(msg)
        if damage := damage_of_version(previous):
            msg = f"version {previous.version} of {name} cannot be {CHAMPION} again: {damage}"
            raise StepError(msg)
        return make_champion(name, str(previous.version), reason)


def _finish(name: str, version: str, replaced: str | None, reason: str) -> Change:
    """Make *replaced* the previous champion of *name*, and record in the history that *version* replaced it."""
    client, run = MlflowClient(), mlflow.active_run()
    if replaced is not None:
        _make_previous(name, replaced)
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    change = Change(time, version, replaced, getpass.getuser(), run.info.run_id if run else None, reason)
    client.set_registered_model_tag(name, f"{HISTORY}{time}", json.dumps(asdict(change)))
    if (found := number_with(name, CHAMPION)) != version:
        msg = f"version {found} of {name} became {CHAMPION} while version {version} did: see the tags of {name}"
        raise StepError(msg)
    return change


def _make_previous(name: str, version: str) -> None:
    """Give *version* of *name* the alias previous; if it was deleted, no version has it."""
    client = MlflowClient()
    try:
        client.set_registered_model_alias(name, PREVIOUS, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.delete_registered_model_alias(name, PREVIOUS)
