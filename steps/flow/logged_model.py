"""Logged models: what one holds, and whether it is still that.

MLflow's status READY does not tell: a process killed while it logs can leave truncated weights that a later call makes
READY. So a build step writes down every file of what it logged, and whoever uses the model compares.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.models import Model

from steps.flow.artifacts import as_folder
from steps.flow.errors import StepError
from steps.flow.files import File, describe, digest, files_below
from steps.flow.fingerprint import DIGEST
from steps.flow.tracking import outputs

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


def record_model(model_uri: str, folder: Path) -> None:
    """Log, on the active run, every file of the model at *model_uri*, which lies in *folder*."""
    files = _files(folder)
    mlflow.log_dict({"model_uri": model_uri, "files": [asdict(file) for file in files]}, MODEL_MANIFEST)
    # LICENSE.txt names the folder that the model was logged from.
    content = _content_digest(tuple(file for file in files if file.path != "LICENSE.txt"), folder)
    mlflow.set_tags({CONTENT: content, DIGEST: content})
    mlflow.log_metric("model.bytes", sum(file.size for file in files))


@contextmanager
def checked_model(run: Run) -> Iterator[tuple[str, Path]]:
    """Yield the URI and the folder of the model that the build step's *run* logged, every file as it was logged.

    Raises StepError, naming the first file that is missing or has changed, or the status if it is not READY.
    """
    uri, step = outputs(run).get("model_uri"), run.data.tags.get("step")
    if uri is None:
        msg = f"run {run.info.run_id} handed over no model: run {step} again"
        raise StepError(msg)
    status = MlflowClient().get_logged_model(uri.removeprefix("models:/")).status
    if str(status) != "READY":
        msg = f"{uri} is {status}, not READY: run {step} again"
        raise StepError(msg)
    stated = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{MODEL_MANIFEST}"))
    with logged_folder(uri) as folder:
        found = {file.path: file for file in _files(folder)}
        for file in (File(**values) for values in stated["files"]):
            if found.get(file.path) != file:
                fact = "is missing" if file.path not in found else "has changed since it was logged"
                msg = f"{file.path} of {uri} {fact}: run {step} again"
                raise StepError(msg)
        yield uri, folder


def _files(folder: Path) -> tuple[File, ...]:
    return describe((path for path in files_below(folder) if path.name not in RENEWED), folder)


def _content_digest(files: tuple[File, ...], folder: Path) -> str:
    """Return one sha256 over *files* and what in MLmodel changes how the model answers: signature, configuration."""
    model = Model.load(str(folder))
    signature = model.signature.to_dict() if model.signature else None
    interface = {"signature": signature, "config": model.flavors["python_function"].get("config")}
    return hashlib.sha256(f"{digest(files)}{json.dumps(interface, sort_keys=True)}".encode()).hexdigest()
