"""fetch_model: reads a folder, or a repository of the hub; writes `snapshot/manifest.json`.

The manifest states the source, the commit, the licence, and every file's size and sha256. A small snapshot is logged
whole beside it; a large one stays where it is, and later steps find it again by the manifest.
"""

from pathlib import Path

import mlflow
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._paths import filter_repo_objects

from steps.flow.command_line import execute
from steps.flow.errors import StepError
from steps.flow.schema import Config, Source, project_path
from steps.flow.snapshot import FILES, MANIFEST, NEEDED, Manifest, describe, digest, download, needed_files
from steps.flow.tracking import set_output, step_run


def fetch_local(folder: Path) -> Manifest:
    """Return the manifest of the checkpoint in *folder*. Raises StepError when there are no safetensors."""
    files = describe(needed_files(folder), folder)
    if not any(file.path.endswith(".safetensors") for file in files):
        msg = f"{folder} holds no *.safetensors: save the checkpoint with save_pretrained(safe_serialization=True)"
        raise StepError(msg)
    return Manifest("local", str(folder), digest(files), _licence(folder), files)


def fetch_from_hub(repository: str, revision: str, *, offline: bool) -> tuple[Manifest, Path]:
    """Download what is needed of *repository* at *revision*; return its manifest and its folder.

    A branch or tag is resolved to a commit first, and what arrives is compared with the sha256 that the hub states.
    Raises StepError when the hub does not answer, unless *offline*: then its cache must hold the commit.
    """
    if offline:
        folder = download(repository, revision, list(NEEDED), offline=True)
        files = describe(needed_files(folder), folder)
        return Manifest("hub", repository, folder.name, _licence(folder), files), folder
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except (HfHubHTTPError, OSError) as error:
        msg = f"cannot resolve {repository}@{revision}: {str(error).splitlines()[0]}"
        raise StepError(msg) from error
    commit, siblings = str(info.sha), info.siblings or []
    if commit != revision:
        print(f"{repository}@{revision} is commit {commit}; to pin it: -P model.revision={commit}")
    names = list(filter_repo_objects([sibling.rfilename for sibling in siblings], allow_patterns=list(NEEDED)))
    if not any(name.endswith(".safetensors") for name in names):
        msg = f"{repository}@{commit} holds no *.safetensors: choose a revision that does"
        raise StepError(msg)
    folder = download(repository, commit, names)
    files = describe([folder / name for name in sorted(names)], folder)
    stated = {sibling.rfilename: sibling.lfs.sha256 for sibling in siblings if sibling.lfs}
    for file in files:
        if file.sha256 != stated.get(file.path, file.sha256):
            fact = f"has sha256 {file.sha256}, the hub states {stated[file.path]}"
            msg = f"{folder / file.path} {fact}: delete it and run again"
            raise StepError(msg)
    return Manifest("hub", repository, commit, _licence(folder), files), folder


def _licence(folder: Path) -> str | None:
    """Return the licence that the model card in *folder* states."""
    card = folder / "README.md"
    licence = ModelCard.load(card).data.license if card.is_file() else None
    return licence if isinstance(licence, str) else None


def main(config: Config, _overrides: list[str]) -> None:
    """Fetch the model of *config* and log its manifest."""
    with step_run("fetch_model", config) as run:
        model = config.model
        if model.source is Source.local:
            folder = project_path(str(model.path))
            manifest = fetch_local(folder)
        else:
            manifest, folder = fetch_from_hub(
                str(model.repo_id), str(model.revision), offline=config.fetch_model.offline
            )
        mlflow.log_text(manifest.to_json(), MANIFEST)
        if (folder / "README.md").is_file():
            mlflow.log_artifact(str(folder / "README.md"), "snapshot")
        if manifest.size <= config.fetch_model.log_files_mb * 1e6:
            for file in manifest.files:
                mlflow.log_artifact(str(folder / file.path), FILES)
        mlflow.log_metric("fetch_model.snapshot.bytes", manifest.size)
        mlflow.set_tags({"model.location": manifest.location, "model.revision": manifest.revision})
        set_output("snapshot", f"runs:/{run.info.run_id}/snapshot")


if __name__ == "__main__":
    execute("fetch_model", main)
