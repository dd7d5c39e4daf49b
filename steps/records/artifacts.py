"""Artifacts: as a folder, and as a list that shows later whether all are still there."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlparse

import mlflow
from mlflow import MlflowClient
from mlflow.entities import FileInfo, Run
from mlflow.exceptions import MlflowException

from steps.records.files import describe, files_below

ARTIFACTS = "artifacts.json"
"""The list of a run's artifacts with sizes, and with hashes if the store is on this machine."""

REPORT, GATES, SUMMARY, SCORES = "report.html", "gates.json", "summary.txt", "scores.md"
PREDICTIONS, TABLE = "predictions.jsonl", "predictions_table.json"
"""Artifacts of evaluate. register reads the gates, the scores (for the model card) and the predictions' examples."""

LADDER = "ladder.json"
"""What build_onnx_wrapper logs of the recipes that onnx=auto tried; evaluate's report shows it."""

REGISTERED = "registered.json"
"""Artifact of register: versions, aliases, and the history of champions."""


@contextmanager
def as_folder(artifact_uri: str) -> Iterator[Path]:
    """Yield the folder of the artifacts at *artifact_uri*, of a run or a logged model; read only.

    The folder itself if the store is on this machine, otherwise a copy, which is deleted afterwards.
    """
    folder = _local_folder(artifact_uri)
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        yield Path(mlflow.artifacts.download_artifacts(artifact_uri=artifact_uri, dst_path=copy))


def record_artifacts(run: Run) -> None:
    """Log the list of all artifacts of *run*."""
    mlflow.log_dict(_list(run), ARTIFACTS)


def missing_artifact(run: Run) -> str | None:
    """Return what is wrong with the artifacts of *run*, or None if all are as they were when it finished."""
    try:
        stated = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{ARTIFACTS}"))
    except (OSError, MlflowException, ValueError):
        return f"its {ARTIFACTS} cannot be read"
    found = _list(run)
    for path, facts in stated.items():
        if path not in found:
            return f"its artifact {path} is missing"
        if found[path] != facts:
            return f"its artifact {path} has changed"
    return None


def list_files(artifact_uri: str, listed: Callable[[str | None], list[FileInfo]]) -> dict[str, list[object]]:
    """Return [size in bytes, sha256] of each file at *artifact_uri*, by path; *listed* lists a folder there.

    If the store is a service, the sha256 is None: to hash a file would mean to download it.
    """
    folder = _local_folder(artifact_uri)
    if folder is None:
        return {path: [size, None] for path, size in _walk(listed, None)}
    return {file.path: [file.size, file.sha256] for file in describe(files_below(folder), folder)}


def _list(run: Run) -> dict[str, list[object]]:
    found = list_files(run.info.artifact_uri, partial(MlflowClient().list_artifacts, run.info.run_id))
    return {path: facts for path, facts in found.items() if path != ARTIFACTS}


def _walk(listed: Callable[[str | None], list[FileInfo]], folder: str | None) -> Iterator[tuple[str, int]]:
    for item in listed(folder):
        if item.is_dir:
            yield from _walk(listed, item.path)
        else:
            yield item.path, item.file_size or 0


def _local_folder(artifact_uri: str) -> Path | None:
    parsed = urlparse(artifact_uri)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None
