"""The checkpoint's licence and card, which have to go wherever its weights go."""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from steps.checkpoint.manifest import CARD_AND_LICENCES, FILES, MANIFEST, Manifest
from steps.exporting.version import uri_of
from steps.records.errors import StepError
from steps.records.files import hash_text
from steps.records.tags import outputs

CARD = "CHECKPOINT.md"
"""What the checkpoint's README.md is called in an export, which has a README.md of its own."""


def papers_of(version: ModelVersion) -> dict[str, bytes]:
    """Return the licence files and the card of the checkpoint of *version*, by their names in an export.

    They come from the run of fetch_model, or from the reference's logged model, and are compared with the manifest,
    which is compared with the version's tag. Raises StepError if one is not there, or not what it was.
    """
    client = MlflowClient()
    fetch = client.get_run(version.tags["fetch.run_id"])
    manifest = Manifest.from_json(mlflow.artifacts.load_text(f"{fetch.info.artifact_uri}/{MANIFEST}"))
    if hash_text(manifest.to_json()) != version.tags["manifest.sha256"]:
        fact = f"{MANIFEST} of run {fetch.info.run_id} is not the one that {uri_of(version)} was registered with"
        msg = f"{fact}: fetch the model and register it again"
        raise StepError(msg)
    places = [f"{fetch.info.artifact_uri}/{FILES}", *_reference(client.get_run(version.tags["evaluate.run_id"]))]
    papers = {}
    for file in manifest.files:
        if file.path in CARD_AND_LICENCES:
            found = next((data for data in _read(places, file.path) if _sha256(data) == file.sha256), None)
            if found is None:
                fact = f"{file.path} of the checkpoint of {uri_of(version)} is in none of {', '.join(places)}"
                msg = f"{fact}: fetch the model and register it again"
                raise StepError(msg)
            papers[CARD if file.path == "README.md" else file.path] = found
    return papers


def _reference(evaluate: Run) -> Iterator[str]:
    """Yield where the reference's logged model keeps the checkpoint's files, if it is still there."""
    try:
        built = MlflowClient().get_run(evaluate.data.tags["pipeline_run_id"])
        model = MlflowClient().get_logged_model(outputs(built)["model_uri"].removeprefix("models:/"))
    except (MlflowException, KeyError):
        return
    yield f"{model.artifact_location}/model"


def _read(places: list[str], name: str) -> Iterator[bytes]:
    for place in places:
        with tempfile.TemporaryDirectory() as work:
            try:
                yield Path(mlflow.artifacts.download_artifacts(f"{place}/{name}", dst_path=work)).read_bytes()
            except (MlflowException, OSError):
                continue


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
