"""Logged models: what one holds, and whether it is still that.

MLflow's status READY does not tell: a process killed while it logs can leave truncated weights that a later call makes
READY. So a build step writes down every file of what it logged, and whoever uses the model compares.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from steps.records.artifacts import as_folder, list_files
from steps.records.errors import StepError
from steps.records.files import File, describe, digest, files_below
from steps.records.tags import FINGERPRINT, outputs

MODEL_MANIFEST = "model_manifest.json"
CONTENT = "model.sha256"
"""The tag of a build step's run, and of a registered version, that says what the model holds."""

REGISTERED_AS = "registered."
"""The prefix of the tags of a run of register that say, by version, what the model held."""

RENEWED = ("MLmodel", "registered_model_meta")
"""Files that differ each time the same model is logged or registered: ids and times stand in them."""


@contextmanager
def without_bytecode() -> Iterator[None]:
    """Let Python write no `__pycache__` beside what it imports meanwhile.

    MLflow imports a model's code from the model's own folder: compiled, it would be logged with the model, be another
    file each time, and be run by whoever loads the model.
    """
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


@contextmanager
def logged_folder(model_uri: str) -> Iterator[Path]:
    """Yield the folder of the logged model `models:/m-<id>` at *model_uri*; loading it leaves nothing there."""
    location = MlflowClient().get_logged_model(model_uri.removeprefix("models:/")).artifact_location
    with as_folder(location) as folder, without_bytecode():
        yield folder


def record_model(model_uri: str, folder: Path) -> str:
    """Log, on the active run, every file of the model at *model_uri*, which lies in *folder*; return its digest."""
    files = _files(folder)
    mlflow.log_dict({"model_uri": model_uri, "files": [asdict(file) for file in files]}, MODEL_MANIFEST)
    content = content_digest(files, folder)
    mlflow.set_tag(CONTENT, content)
    mlflow.log_metric("model.bytes", sum(file.size for file in files))
    return content


@contextmanager
def checked_model(run: Run) -> Iterator[tuple[str, Path]]:
    """Yield the URI and the folder of the model that the build step's *run* logged, every file as it was logged.

    Raises StepError, naming the first file that is missing or has changed, or the status if it is not READY. A run
    whose damage `model_damage` cannot see is not reused again.
    """
    model, stated = _stated_model(run)
    with logged_folder(model.model_uri) as folder:
        if damage := _damage(model, stated, {file.path: [file.size, file.sha256] for file in _files(folder)}):
            if model_damage(run) is None:  # which would let it be reused for ever
                with suppress(MlflowException):  # it has none
                    MlflowClient().delete_tag(run.info.run_id, FINGERPRINT)
            msg = f"{damage}: run {run.data.tags.get('step')} again"
            raise StepError(msg)
        yield model.model_uri, folder


def model_damage(run: Run) -> str | None:
    """Return what of the model that the build step's *run* logged is missing or has changed, or None.

    Where the store is a service, sizes alone are compared.
    """
    try:
        model, stated = _stated_model(run)
        found = list_files(model.artifact_location, partial(MlflowClient().list_logged_model_artifacts, model.model_id))
    except (StepError, MlflowException, OSError, ValueError) as error:
        return str(error).partition(": run ")[0]
    return _damage(model, stated, found)


def _stated_model(run: Run) -> tuple[LoggedModel, list[File]]:
    """Return the model that *run* logged, and its files as they were then. Raises StepError when it is not READY."""
    uri, step = outputs(run).get("model_uri"), run.data.tags.get("step")
    if uri is None:
        msg = f"run {run.info.run_id} handed over no model: run {step} again"
        raise StepError(msg)
    model = MlflowClient().get_logged_model(uri.removeprefix("models:/"))
    if str(model.status) != "READY":
        msg = f"{uri} is {model.status}, not READY: run {step} again"
        raise StepError(msg)
    return model, stated_files(run)


def stated_files(run: Run) -> list[File]:
    """Return the files of the model that the build step's *run* logged, as they were then."""
    stated = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{MODEL_MANIFEST}"))
    return [File(**values) for values in stated["files"]]


def _damage(model: LoggedModel, stated: list[File], found: dict[str, list[object]]) -> str | None:
    """Return which of the *stated* files of *model* is not *found* as [size, sha256 or None], or None when all are."""
    for file in stated:
        if file.path not in found:
            return f"{file.path} of {model.model_uri} is missing"
        if found[file.path] not in ([file.size, file.sha256], [file.size, None]):
            return f"{file.path} of {model.model_uri} has changed since it was logged"
    return None


def _files(folder: Path) -> tuple[File, ...]:
    return describe((path for path in files_below(folder) if path.name not in RENEWED), folder)


def content_digest(files: Iterable[File], folder: Path) -> str:
    """Return one sha256 over *files* and what in MLmodel changes how the model answers: signature, configuration.

    *files* are those of the model in *folder*, as `stated_files` returns them.
    """
    model = Model.load(str(folder))
    signature = model.signature.to_dict() if model.signature else None
    interface = {"signature": signature, "config": model.flavors["python_function"].get("config")}
    # LICENSE.txt names the folder that the model was logged from.
    content = digest(file for file in files if file.path != "LICENSE.txt")
    return hashlib.sha256(f"{content}{json.dumps(interface, sort_keys=True)}".encode()).hexdigest()
