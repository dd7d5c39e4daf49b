"""Finds a snapshot's files again by their manifest, because weights are not copied from step to step."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import Run

from steps.checkpoint.hub_cache import restore
from steps.checkpoint.manifest import FILES, MANIFEST, Manifest, needed_files, verify
from steps.config.schema import project_path
from steps.records.artifacts import as_folder
from steps.records.errors import StepError


@contextmanager
def present(fetch: Run) -> Iterator[Path]:
    """Yield a folder that holds the files of the manifest that the fetch_model run *fetch* logged.

    If the run logged the files, they are its artifacts. Otherwise they are in the folder that it read, or in the hub's
    cache. A cached file that is missing or has changed is downloaded again, at the commit of the manifest. Raises
    StepError when the files cannot be found, or are not those of the manifest.
    """
    manifest = Manifest.from_json(mlflow.artifacts.load_text(f"{fetch.info.artifact_uri}/{MANIFEST}"))
    logged = mlflow.artifacts.list_artifacts(run_id=fetch.info.run_id, artifact_path="snapshot")
    if any(item.path == FILES for item in logged):
        with as_folder(f"{fetch.info.artifact_uri}/{FILES}") as folder:
            verify(manifest, folder)
            yield folder
    elif manifest.source == "hub":
        yield restore(manifest)
    else:
        folder = project_path(manifest.location)
        if not folder.is_dir():
            fact = f"{folder}, which fetch_model read in run {fetch.info.run_id}, is not on this machine"
            msg = f"{fact}: put it back, or run fetch_model here with -P model.path=<where the checkpoint is>"
            raise StepError(msg)
        verify(manifest, folder)
        known = {file.path for file in manifest.files}
        if new := [path for path in needed_files(folder) if path.relative_to(folder).as_posix() not in known]:
            msg = f"{new[0]} came after fetch_model read the folder in run {fetch.info.run_id}: run fetch_model again"
            raise StepError(msg)
        yield folder
