"""Finds the registered version to export, and checks that its files have not changed since it was built."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from steps.config.schema import BUILD
from steps.logged_models.logged_model import checked_model, content_digest, stated_files
from steps.records.errors import StepError
from steps.records.files import File
from steps.records.tags import CONTENT
from steps.registry.versions import run_of, version_at


def uri_of(version: ModelVersion) -> str:
    """Return the URI of *version* by its number. Unlike an alias, it never names another version."""
    return f"models:/{version.name}/{version.version}"


def build_at(uri: str) -> ModelVersion:
    """Return the version of an ONNX build that *uri* names now. Raises StepError if there is none."""
    version = version_at(uri, "export.model")
    wrapper = version.tags.get("wrapper")
    if wrapper is None:
        msg = f"{uri_of(version)} was not registered by this project: export.model takes versions that register made"
        raise StepError(msg)
    if wrapper != BUILD:
        fact = f"{uri_of(version)} is the {wrapper} version, which needs PyTorch"
        msg = f"{fact}: export the ONNX version{_build_beside(version)}"
        raise StepError(msg)
    if version.status != "READY":
        msg = f"{uri_of(version)} is {version.status}, not READY: register it again"
        raise StepError(msg)
    return version


def _build_beside(version: ModelVersion) -> str:
    """Return the key that names the ONNX build that was registered with *version*, or nothing if it is not there."""
    for other in MlflowClient().search_model_versions(f"name='{version.name}'"):
        full = MlflowClient().get_model_version(version.name, str(other.version))
        same = full.tags.get("evaluate.run_id") == version.tags.get("evaluate.run_id")
        if same and full.tags.get("wrapper") == BUILD:
            return f", -P export.model={uri_of(full)}"
    return ""


@contextmanager
def checked_version(version: ModelVersion) -> Iterator[tuple[Path, list[File]]]:
    """Yield the folder of the logged model of *version*, and its files as they were when it was built.

    Raises StepError if a file has changed since, or if the list of files is not the one of the version's tag. The list
    is an artifact, and could be changed with the files; the tag is in the registry.
    """
    built = run_of(version)
    with checked_model(built) as (_uri, folder):
        files = stated_files(built)
        if (found := content_digest(files, folder)) != version.tags.get(CONTENT):
            fact = f"the files of {uri_of(version)} have the digest {found[:12]}…, its tag {CONTENT} says"
            msg = f"{fact} {str(version.tags.get(CONTENT))[:12]}…: they are not what was registered; register it again"
            raise StepError(msg)
        yield folder, files
