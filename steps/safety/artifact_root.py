"""Asks at the start whether the folder or bucket of a run's artifacts can be written here and read by others."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import requests
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.rest_utils import http_request

from steps.records.errors import StepError, in_one_line
from steps.safety.secrets import without_credentials, without_secrets

PROBE = "store_check.txt"
"""The artifact that is written, read and removed."""

TEXT = "Written at the start to see whether this place can be written and read.\n"

ROOM_BYTES = 100_000_000
"""What must be free for any flow: the embedded model's takes half of it."""

TRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"

REFUSALS = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "403")
EXPIRED = ("ExpiredToken", "expired", "RequestTimeTooSkewed")
NO_CREDENTIALS = ("NoCredentials", "Unable to locate credentials", "Partial credentials")


def require_usable_artifacts(run: Run) -> None:
    """Raise StepError, with the remedy, if artifacts of *run* cannot be written from here, or not be read by others."""
    uri = run.info.artifact_uri
    scheme = uri.partition(":")[0] if "://" in uri or uri.startswith("mlflow-artifacts:") else ""
    require_room(Path(tempfile.gettempdir()), ROOM_BYTES, "set TMPDIR to a folder on a larger disk")
    if scheme in ("", "file"):
        folder = Path(local_file_uri_to_path(uri))
        _require_writable(folder)
        require_room(folder, ROOM_BYTES, "free some space, or use a store on a larger disk")
        if mlflow.get_tracking_uri().startswith("http"):
            _require_seen_by_server(run, folder)
        return
    _require_round_trip(uri)


def require_room(folder: Path, needed: float, remedy: str) -> None:
    """Raise StepError, with *remedy*, if the disk of *folder*, which may not exist yet, has not *needed* bytes free."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        msg = f"{free / 1e9:.2f} GB are free in {there}, and {needed / 1e9:.2f} GB are needed: {remedy}"
        raise StepError(msg)


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        server = mlflow.get_tracking_uri().startswith("http")
        remedy = "let that user write there, or set MLFLOW_TRACKING_URI to another store"
        if server:
            remedy = "start the server with --serve-artifacts, or mount its folder here, writable"
        msg = f"artifacts cannot be written to {folder} by user {os.geteuid()} ({error.strerror}): {remedy}"
        raise StepError(msg) from None


def _require_seen_by_server(run: Run, folder: Path) -> None:
    """Raise StepError if the server does not find what is written to *folder*: it has another one of that name."""
    probe = folder / PROBE
    probe.write_text(TEXT, encoding="utf-8")
    host = get_default_host_creds(mlflow.get_tracking_uri())
    query = {"run_uuid": run.info.run_id, "path": PROBE}
    try:
        answer: requests.Response = http_request(host, "/get-artifact", "GET", raise_on_status=False, params=query)
    finally:
        probe.unlink()
    if answer.status_code != 200 or answer.text != TEXT:
        store = without_credentials(mlflow.get_tracking_uri())
        fact = (
            f"{folder} is written here, and the tracking server {store} does not find it there ({answer.status_code})"
        )
        remedy = "start the server with --serve-artifacts, or mount the same folder on both"
        msg = f"{fact}, so others could not read it: {remedy}"
        raise StepError(msg)


def _require_round_trip(uri: str) -> None:
    """Write, read and remove a small file at *uri*, in a bucket or through the server."""
    try:
        with tempfile.TemporaryDirectory() as work, _few_tries():
            written = Path(work, PROBE)
            written.write_text(TEXT, encoding="utf-8")
            repository = get_artifact_repository(uri)
            repository.log_artifact(str(written))
            read = Path(repository.download_artifacts(PROBE, work)).read_text(encoding="utf-8")
            with contextlib.suppress(Exception):  # a bucket may forbid deleting: it then keeps 70 bytes
                repository.delete_artifacts(PROBE)
    except Exception as error:  # noqa: BLE001  each kind of store has errors of its own
        raise StepError(_explained(uri, error)) from None  # or outages.py would explain the cause
    if read != TEXT:
        msg = f"what is written to {without_credentials(uri)} reads differently: let no cache stand before that store"
        raise StepError(msg)


def _explained(uri: str, error: Exception) -> str:
    """Return one line for *error*, which an artifact store gave at *uri*."""
    root, fact = without_credentials(uri), without_secrets(in_one_line(error))[:200]
    chain = f"{error} {error.__cause__!r} {error.__context__!r}"
    if isinstance(error, ImportError):
        package = (error.name or "boto3").partition(".")[0]
        return f"artifacts go to {root}, which needs the package {package}: pip install {package}"
    if uri.startswith("mlflow-artifacts:"):
        if "503" in chain or "no-serve-artifacts" in chain:
            return f"the server stores no artifacts for {root} ({fact}): start it with --serve-artifacts"
        return f"artifacts cannot be written through the server to {root} ({fact}): its log says why"
    if any(word in chain for word in NO_CREDENTIALS):
        return f"artifacts go to {root}, and there are no credentials for it here: set AWS_ACCESS_KEY_ID and its secret"
    if any(word in chain for word in EXPIRED):
        return f"the credentials for {root} have expired ({fact}): log in again"
    if any(word in chain for word in REFUSALS):
        return f"the credentials for {root} are refused ({fact}): give some that may read and write there"
    if "NoSuchBucket" in chain:
        return f"the bucket of {root} does not exist ({fact}): make it, or give the experiment another artifact root"
    return f"artifacts cannot be written to {root} ({fact}): check its address, and that it is up"


@contextlib.contextmanager
def _few_tries() -> Iterator[None]:
    """Let MLflow try once more only: the server has just answered, so an error of it is no outage."""
    usual = os.environ.get(TRIES)
    os.environ[TRIES] = "1"
    try:
        yield
    finally:
        if usual is None:
            del os.environ[TRIES]
        else:
            os.environ[TRIES] = usual
