"""fetch_model: reads a folder, or a repository of the hub; writes `snapshot/manifest.json`.

The manifest states the source, the commit, the licence, and every file's size and sha256. A small snapshot is logged
whole beside it; a large one stays where it is, and later steps find it again by the manifest.
"""

from pathlib import Path

import mlflow

from steps.flow.architecture import require_known_architecture
from steps.flow.command_line import execute
from steps.flow.files import describe, digest, hash_text
from steps.flow.fingerprint import DIGEST
from steps.flow.hub import fetch_checkpoint
from steps.flow.manifest import FILES, MANIFEST, Manifest, licence_of, needed_files, require_weights
from steps.flow.schema import Config, Source, project_path
from steps.flow.tracking import set_output, step_run


def fetch_local(path: str | Path) -> Manifest:
    """Return the manifest of the checkpoint at *path*. Raises StepError when it lacks weights."""
    folder = project_path(path)
    require_weights(folder)
    files = describe(needed_files(folder), folder)
    return Manifest("local", str(path), digest(files), licence_of(folder), files)


def main(config: Config, _overrides: list[str]) -> None:
    """Fetch the model of *config* and log its manifest."""
    with step_run("fetch_model", config) as step:
        model = config.model
        # What is ONNX already needs no builder that knows it.
        check = require_known_architecture if config.build_onnx_wrapper.repo_id is None else None
        if model.source is Source.local:
            folder = project_path(str(model.path))
            if check is not None:
                check(folder)
            manifest = fetch_local(str(model.path))
        else:
            repository, offline = str(model.repo_id), config.fetch_model.offline
            manifest, folder = fetch_checkpoint(repository, str(model.revision), offline=offline, check=check)
        mlflow.log_text(manifest.to_json(), MANIFEST)
        if (folder / "README.md").is_file():
            mlflow.log_artifact(str(folder / "README.md"), "snapshot")
        if manifest.size <= config.fetch_model.log_files_mb * 1e6:
            for file in manifest.files:
                mlflow.log_artifact(str(folder / file.path), FILES)
        mlflow.log_metric("fetch_model.snapshot.bytes", manifest.size)
        mlflow.set_tags({"model.location": manifest.location, "model.revision": manifest.revision})
        mlflow.set_tag(DIGEST, hash_text(manifest.to_json()))
        set_output("snapshot", f"runs:/{step.run.info.run_id}/snapshot")


if __name__ == "__main__":
    execute("fetch_model", main)
