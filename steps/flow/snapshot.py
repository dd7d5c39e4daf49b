"""A snapshot made present again: weights are not copied from step to step, they travel by their manifest."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import Run

from steps.flow.artifacts import as_folder
from steps.flow.errors import StepError
from steps.flow.hub import restore
from steps.flow.manifest import FILES, MANIFEST, Manifest, verify
from steps.flow.schema import project_path


@contextmanager
def present(fetch: Run) -> Iterator[tuple[Manifest, Path]]:
    """Yield the manifest that the fetch_model run *fetch* logged, and a folder that holds what it states.

    The files are the run's own artifacts where it logged them; otherwise they are in the folder it read, or in the
    hub's cache, where what is missing or has changed is downloaded again, at the commit of the manifest. Raises
    StepError when they are nowhere to be had, or are not those of the manifest.
    """
    manifest = Manifest.from_json(mlflow.artifacts.load_text(f"{fetch.info.artifact_uri}/{MANIFEST}"))
    logged = mlflow.artifacts.list_artifacts(run_id=fetch.info.run_id, artifact_path="snapshot")
    if any(item.path == FILES for item in logged):
        with as_folder(f"{fetch.info.artifact_uri}/{FILES}") as folder:
            verify(manifest, folder)
            yield manifest, folder
    elif manifest.source == "hub":
        yield manifest, restore(manifest)
    else:
        folder = project_path(manifest.location)
        if not folder.is_dir():
            fact = f"{folder}, which fetch_model read in run {fetch.info.run_id}, is not on this machine"
            msg = f"{fact}: put it back, or run fetch_model here with -P model.path=<where the checkpoint is>"
            raise StepError(msg)
        verify(manifest, folder)
        yield manifest, folder
