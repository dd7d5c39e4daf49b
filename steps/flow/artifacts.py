"""Artifacts as folders: in place where the store is on this machine, otherwise a copy that is gone afterwards."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

import mlflow


@contextmanager
def as_folder(artifact_uri: str) -> Iterator[Path]:
    """Yield the folder of artifacts at *artifact_uri*, as a run or a logged model states its own; read, never write."""
    parsed = urlparse(artifact_uri)
    if parsed.scheme in ("", "file"):
        yield Path(unquote(parsed.path))
        return
    with tempfile.TemporaryDirectory() as copy:
        yield Path(mlflow.artifacts.download_artifacts(artifact_uri=artifact_uri, dst_path=copy))
