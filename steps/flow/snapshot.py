"""Snapshots: the files of a checkpoint at one revision, and the manifest by which they travel.

Weights are not copied from step to step. fetch_model logs a manifest; a later step calls `present`, which finds the
files again where the manifest says they may be, and hashes every one before anybody uses it.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from mlflow.entities import Run

from steps.flow.artifacts import as_folder
from steps.flow.errors import StepError

MANIFEST = "snapshot/manifest.json"
FILES = "snapshot/files"
"""Where a run keeps the manifest, and the files of a small snapshot."""

NEEDED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE*",
    "NOTICE*",
)
"""The files of a checkpoint that are used. Never pickled weights, never code."""


@dataclass(frozen=True)
class File:
    """One file: its path inside the snapshot, its size in bytes, and its sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a snapshot holds and where it is from.

    `source`: `local` or `hub`. `location`: the folder, or the repository. `revision`: the 40-digit commit, or for a
    local folder the sha256 over its files. `licence`: as the model card states it, or None.
    """

    source: str
    location: str
    revision: str
    licence: str | None
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)

    def to_json(self) -> str:
        """Return the manifest as JSON text; equal manifests give equal text."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Return the manifest that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "files": tuple(File(**file) for file in values["files"])})


def needed_files(folder: Path) -> list[Path]:
    """Return the files of *folder* that belong to a snapshot, sorted by path."""
    return sorted(
        {path for pattern in NEEDED for path in folder.glob(pattern) if path.is_file() and path.suffix != ".py"}
    )


def hash_file(path: Path) -> str:
    """Return the sha256 of the file at *path*, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(text: str) -> str:
    """Return the sha256 of *text* in UTF-8, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def describe(paths: list[Path], folder: Path) -> tuple[File, ...]:
    """Return a File for each of *paths*, which lie below *folder*."""
    return tuple(File(path.relative_to(folder).as_posix(), path.stat().st_size, hash_file(path)) for path in paths)


def digest(files: tuple[File, ...]) -> str:
    """Return one sha256, in hex, over the names and contents of *files*."""
    return hashlib.sha256("".join(f"{file.sha256}  {file.path}\n" for file in files).encode()).hexdigest()


@contextmanager
def present(fetch: Run) -> Iterator[tuple[Manifest, Path]]:
    """Yield the manifest that the fetch_model run *fetch* logged, and a folder that holds what it states.

    Tried in turn: the run's own artifacts, the folder it was fetched from, the hub's cache and then the hub, at the
    commit of the manifest. Raises StepError when the files are nowhere to be had, or are not those of the manifest.
    """
    manifest = Manifest.from_json(mlflow.artifacts.load_text(f"{fetch.info.artifact_uri}/{MANIFEST}"))
    with _folder_of(manifest, fetch) as folder:
        verify(manifest, folder)
        yield manifest, folder


def _folder_of(manifest: Manifest, fetch: Run) -> AbstractContextManager[Path]:
    logged = mlflow.artifacts.list_artifacts(run_id=fetch.info.run_id, artifact_path="snapshot")
    if any(item.path == FILES for item in logged):
        return as_folder(f"{fetch.info.artifact_uri}/{FILES}")
    if manifest.source == "hub":
        return nullcontext(download(manifest.location, manifest.revision, [file.path for file in manifest.files]))
    return nullcontext(Path(manifest.location))


def download(repository: str, commit: str, paths: list[str], *, offline: bool = False) -> Path:
    """Return a folder with *paths* of *repository* at *commit*, from the hub's cache or the hub. Raises StepError."""
    try:
        return Path(snapshot_download(repository, revision=commit, allow_patterns=paths, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        where = (
            "the hub's cache (fetch_model.offline=true)" if offline else "the hub's cache, and the hub does not answer"
        )
        msg = f"{repository}@{commit} is not in {where}: fetch it while online"
        raise StepError(msg) from error
    except HfHubHTTPError as error:
        msg = f"the hub refused {repository}@{commit}: {str(error).splitlines()[0]}"
        raise StepError(msg) from error


def verify(manifest: Manifest, folder: Path) -> None:
    """Raise StepError unless every file of *manifest* lies in *folder* with its size and sha256."""
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file():
            msg = f"{path} is missing: run fetch_model again"
            raise StepError(msg)
        if path.stat().st_size != file.size or (found := hash_file(path)) != file.sha256:
            found = f"{path.stat().st_size} bytes" if path.stat().st_size != file.size else f"sha256 {found}"
            msg = f"{path} has {found}, not {file.size} bytes with sha256 {file.sha256}: run fetch_model again"
            raise StepError(msg)
