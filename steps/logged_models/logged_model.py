"""Logged models: what one holds, and whether it is still that.

MLflow's status READY does not prove it: a process killed while it logs can leave truncated weights that a later call
makes READY. So a build step records the size and hash of every file it logged. Later steps compare the files with them.
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
from steps.records.tags import CONTENT, FINGERPRINT, STEP, outputs

MODEL_MANIFEST = "model_manifest.json"

RENEWED = ("MLmodel", "registered_model_meta")
"""Files that differ each time the same model is logged or registered, because they hold ids and times."""


@contextmanager
def without_bytecode() -> Iterator[None]:
    """Keep Python from writing `__pycache__` beside the modules that it imports in this context.

    MLflow imports a model's code from the model's own folder. Bytecode there would be logged with the model, would
    differ each time, and would run when somebody loads the model.
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

    Raises StepError, naming the first file that is missing or has changed, or the status if it is not READY. If
    `model_damage` does not see the damage, the run loses its fingerprint, so that it is not reused again.
    """
    model, stated = _stated_model(run)
    with logged_folder(model.model_uri) as folder:
        if damage := _damage(model, stated, {file.path: [file.size, file.sha256] for file in _files(folder)}):
            if model_damage(run) is None:  # it sees no damage, so the run would be reused for ever
                with suppress(MlflowException):  # the run has no fingerprint
                    MlflowClient().delete_tag(run.info.run_id, FINGERPRINT)
            msg = f"{damage}: run {run.data.tags.get('step')} again"
            raise StepError(msg)
        yield model.model_uri, folder


def model_damage(run: Run) -> str | None:
    """Return how the model that the build step's *run* logged is damaged, such as a missing file, or None.

    If the store is a service, only sizes are compared.
    """
    try:
        model, stated = _stated_model(run)
        found = list_files(model.artifact_location, partial(MlflowClient().list_logged_model_artifacts, model.model_id))
    except (StepError, MlflowException, OSError, ValueError) as error:
        return str(error).partition(": run ")[0]
    return _damage(model, stated, found)


def _stated_model(run: Run) -> tuple[LoggedModel, list[File]]:
    """Return the model that *run* logged, and its files as it logged them. Raises StepError when it is not READY."""
    uri, step = outputs(run).get("model_uri"), run.data.tags.get(STEP)
    if uri is None:
        msg = f"run {run.info.run_id} handed over no model: run {step} again"
        raise StepError(msg)
    model = MlflowClient().get_logged_model(uri.removeprefix("models:/"))
    if str(model.status) != "READY":
        msg = f"{uri} is {model.status}, not READY: run {step} again"
        raise StepError(msg)
    return model, stated_files(run)


def stated_files(run: Run) -> list[File]:
    """Return the files of the model that the build step's *run* logged, as it logged them."""
    stated = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{MODEL_MANIFEST}"))
    return [File(**values) for values in stated["files"]]


def _damage(model: LoggedModel, stated: list[File], found: dict[str, list[object]]) -> str | None:
    """Return the damage to the first *stated* file of *model* that is missing or differs in *found*, or None.

    *found*: [size, sha256 or None] by path.
    """
    for file in stated:
        if file.path not in found:
            return f"{file.path} of {model.model_uri} is missing"
        if found[file.path] not in ([file.size, file.sha256], [file.size, None]):
            return f"{file.path} of {model.model_uri} has changed since it was logged"
    return None


def _files(folder: Path) -> tuple[File, ...]:
    return describe((path for path in files_below(folder) if path.name not in RENEWED), folder)


def content_digest(files: Iterable[File], folder: Path) -> str:
    """Return one sha256 over *files*, and over the parts of MLmodel that change answers: signature, configuration.

    *files* are those of the model in *folder*, as `stated_files` returns them.
    """
    model = Model.load(str(folder))
    signature = model.signature.to_dict() if model.signature else None
    interface = {"signature": signature, "config": model.flavors["python_function"].get("config")}
    # LICENSE.txt names the folder that the model was logged from.
    content = digest(file for file in files if file.path != "LICENSE.txt")
    return hashlib.sha256(f"{content}{json.dumps(interface, sort_keys=True)}".encode()).hexdigest()
