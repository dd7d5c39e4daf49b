"""Versions of a registered model: each content is one version, whose tags say where it comes from."""

import json
import re
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from steps.checkpoint.manifest import MANIFEST, Manifest
from steps.config.onnx import RECIPE_KEYS
from steps.config.schema import BUILD
from steps.evaluation.gates import PASSED
from steps.logged_models.logged_model import checked_model
from steps.records.artifacts import GATES, missing_artifact
from steps.records.errors import StepError
from steps.records.files import hash_text
from steps.records.tags import CALIBRATED, CONTENT, GATES_DIGEST, RECIPE, outputs

ABOUT = """\
`@champion` is the version to use, `@challenger` the newest build that passed its gates, and `@previous` the champion
before. The tag `wrapper` of a version says which of two models it is: `pipeline` is the checkpoint in PyTorch, and
`onnx` the build that was measured against it. The tags `champion.<time>` are the history of champions.
"""
"""What the page of a registered model says above its versions."""


def passed_gates(evaluate: Run) -> str:
    """Return the text of gates.json of the run *evaluate*.

    Raises StepError unless its verdict is `passed` and all artifacts are as evaluate wrote them.
    """
    run_id = evaluate.info.run_id
    if damage := missing_artifact(evaluate):
        msg = f"evaluate run {run_id} is not what it was when it finished: {damage}: run evaluate again"
        raise StepError(msg)
    text: str = mlflow.artifacts.load_text(f"{evaluate.info.artifact_uri}/{GATES}")
    # The list of artifacts is an artifact itself, and can be changed with them. The tag is in the database.
    if hash_text(text) != evaluate.data.tags.get(GATES_DIGEST):
        msg = f"{GATES} of evaluate run {run_id} has changed since it was written: run evaluate again"
        raise StepError(msg)
    verdict = json.loads(text)["verdict"]
    if verdict != PASSED:
        msg = f"evaluate run {run_id} has the verdict {verdict}, not {PASSED}: nothing is registered"
        raise StepError(msg)
    return text


def version_tags(candidate: str, built: Run, evaluate: Run, gates: str) -> dict[str, str]:
    """Return the tags that say where a version comes from: checkpoint, build, code, evaluation."""
    fetch = MlflowClient().get_run(built.data.tags["fetch_run_id"])
    manifest = _manifest(fetch)
    tags = {
        "wrapper": candidate,
        CONTENT: built.data.tags[CONTENT],
        "model.source": manifest.source,
        "model.location": manifest.location,
        "model.revision": manifest.revision,
        "model.licence": manifest.licence or "not stated",
        "manifest.sha256": hash_text(manifest.to_json()),
        GATES_DIGEST: hash_text(gates),
        "evaluate.run_id": evaluate.info.run_id,
        "fetch.run_id": fetch.info.run_id,
        "build.run_id": built.info.run_id,
        **{name: built.data.tags[name] for name in ("code.commit", "code.dirty", "lock.sha256")},
    }
    return tags | _onnx_tags(built) if candidate == BUILD else tags


def _onnx_tags(built: Run) -> dict[str, str]:
    """Return how the ONNX weights were built, or where prebuilt ones come from."""
    options = {
        key.removeprefix("build_onnx_wrapper."): value
        for key, value in built.data.params.items()
        if key.startswith("build_onnx_wrapper.")
    }
    named = ["execution_provider", "interface"]
    if options.get("repo_id"):
        prebuilt = _manifest(built)
        origin = {
            "onnx.location": prebuilt.location,
            "onnx.revision": prebuilt.revision,
            "onnx.folder": options["folder"],
        }
    else:
        origin = {tag: built.data.tags[tag] for tag in (RECIPE, CALIBRATED) if tag in built.data.tags}
        named = [*RECIPE_KEYS, *named]
    return origin | {f"onnx.{name}": options.get(name, "") for name in named}


def _manifest(run: Run) -> Manifest:
    return Manifest.from_json(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{MANIFEST}"))


def refuse_new_signature(name: str, champion: ModelVersion | None, folder: Path) -> None:
    """Raise StepError if the signature of the model in *folder* is not the *champion*'s: its users would break."""
    if champion is None:
        return
    current = mlflow.models.get_model_info(f"models:/{name}/{champion.version}").signature
    if current != Model.load(str(folder)).signature:
        fact = f"the signature is not that of the champion, {name} version {champion.version}"
        msg = f"{fact}: register it under another name, with -P register.name=..."
        raise StepError(msg)


def version_of(name: str, built: Run, tags: dict[str, str]) -> ModelVersion:
    """Return the version of *name* with the content that *built* logged: an existing one, or a new one.

    An existing version counts only if it is READY and its files are unchanged. A new one is created with *tags*
    in one call. Raises StepError for a name that MLflow uses for prompts.
    """
    client = MlflowClient()
    try:
        client.create_registered_model(name, description=ABOUT)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Without a filter over tags, because Unity Catalog has none.
    for found in sorted(client.search_model_versions(f"name='{name}'"), key=lambda version: int(version.version)):
        version = client.get_model_version(name, str(found.version))
        same = version.status == "READY" and version.tags.get(CONTENT) == tags[CONTENT]
        if same and (version.run_id == built.info.run_id or damage_of_version(version) is None):
            return version
    uri = outputs(built)["model_uri"]
    model_id = uri.removeprefix("models:/")
    return client.create_model_version(name, uri, built.info.run_id, tags, model_id=model_id)


def version_at(uri: str, key: str) -> ModelVersion:
    """Return the version that *uri* names now: models:/<name>@<alias> or models:/<name>/<version>.

    Raises StepError if there is none. *key*: where the configuration has the URI.
    """
    name, mark, which = re.split(r"([@/])", uri.removeprefix("models:/"), maxsplit=1)
    client = MlflowClient()
    try:
        number = client.get_model_version_by_alias(name, which).version if mark == "@" else which
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        msg = f"{key}={uri} is not there: {error.message}; register a model, or name another version"
        raise StepError(msg) from error


def run_of(version: ModelVersion) -> Run:
    """Return the build step's run that logged the model of *version*. Raises StepError if there is none."""
    if not version.run_id:
        msg = f"version {version.version} of {version.name} was not registered by this project: it has no list of files"
        raise StepError(msg)
    return MlflowClient().get_run(version.run_id)


def damage_of_version(version: ModelVersion) -> str | None:
    """Return why *version* cannot be used, or None if it is READY and every file is as it was logged."""
    try:
        with checked_model(run_of(version)):
            return None if version.status == "READY" else f"it is {version.status}, not READY"
    except (StepError, MlflowException, OSError) as error:
        return str(error)
