"""fetch_model: reads a folder, or a repository of the hub; writes `snapshot/manifest.json`.

The manifest states the source, the commit, the licence, and every file's size and sha256. A small snapshot is logged
whole beside it; a large one stays where it is, and later steps find it again by the manifest.
"""

from functools import partial
from pathlib import Path, PurePosixPath

import mlflow

from steps.checkpoint.checks import require_usable
from steps.checkpoint.hub import fetch_checkpoint
from steps.checkpoint.manifest import (
    FILES,
    MANIFEST,
    Manifest,
    licence_of,
    needed_files,
    require_one_layout,
    require_weights,
)
from steps.checkpoint.weights_check import require_fitting_weights
from steps.config.schema import Config, Source, project_path
from steps.records.files import describe, digest, hash_text
from steps.records.step import Inputs, Outputs
from steps.records.tags import SNAPSHOT_BYTES


def run(config: Config, _inputs: Inputs) -> Outputs:
    """Fetch the model of *config*, and log its manifest."""
    manifest, folder = fetch(config)
    mlflow.log_text(manifest.to_json(), MANIFEST)
    if (folder / "README.md").is_file():
        mlflow.log_artifact(str(folder / "README.md"), "snapshot")
    if manifest.size <= config.fetch_model.log_files_mb * 1e6:
        for file in manifest.files:
            mlflow.log_artifact(str(folder / file.path), PurePosixPath(FILES, file.path).parent.as_posix())
    mlflow.log_metric(SNAPSHOT_BYTES, manifest.size)
    mlflow.set_tags({"model.location": manifest.location, "model.revision": manifest.revision})
    active = mlflow.active_run()
    assert active is not None
    return Outputs({"snapshot": f"runs:/{active.info.run_id}/snapshot"}, hash_text(manifest.to_json()))


def fetch(config: Config) -> tuple[Manifest, Path]:
    """Return the manifest of the configured model, and the folder with its files."""
    model = config.model
    # A prebuilt ONNX model does not go through the builder.
    check = partial(require_usable, built=config.build_onnx_wrapper.repo_id is None)
    if model.source is Source.hub:
        offline = config.fetch_model.offline
        manifest, folder = fetch_checkpoint(str(model.repo_id), str(model.revision), offline=offline, check=check)
        require_fitting_weights(folder)
        return manifest, folder
    folder = project_path(str(model.path))
    require_weights(folder)
    require_one_layout(folder)
    check(folder)
    require_fitting_weights(folder)
    return fetch_local(str(model.path)), folder


def fetch_local(path: str | Path) -> Manifest:
    """Return the manifest of the checkpoint at *path*. Raises StepError when it lacks weights."""
    folder = project_path(path)
    require_weights(folder)
    files = describe(needed_files(folder), folder)
    return Manifest("local", str(path), digest(files), licence_of(folder), files)


if __name__ == "__main__":
    from steps.flow.entry import execute

    execute("fetch_model")
