"""What fails around a step: a full disk, a tracking server that is away. Each gets one line, and is no bug."""

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator

import mlflow
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE, ErrorCode
from urllib3.util import Retry

from steps.records.errors import StepError
from steps.safety.processes import closing
from steps.safety.secrets import without_credentials

# By its words, and not its type: writers in other languages and processes pass on no more of it. "disk I/O error" is
# what SQLite makes of a file that may not grow.
FULL = re.compile(
    "|".join([*map(os.strerror, (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)), "disk is full", "disk I/O error"])
)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn an exception of the body that a full disk or a missing server caused into a StepError of one line.

    Meanwhile, MLflow's tries to reach its server again are announced: they take up to MLFLOW_HTTP_REQUEST_MAX_RETRIES.
    """
    urllib3 = logging.getLogger("urllib3.connectionpool")
    announcer = _Announcer()
    urllib3.addFilter(announcer)
    try:
        yield
    except _ExplainedError:
        raise
    except Exception as error:
        if line := explanation(error):
            raise _ExplainedError(line) from error
        raise
    finally:
        urllib3.removeFilter(announcer)


def explanation(error: BaseException) -> str | None:
    """Return the line for *error* where a full disk or a missing server caused it, otherwise None.

    A server that was waited for in vain is not waited for again in this process.
    """
    causes = list(_causes(error))
    if full := next((found for cause in causes if (found := FULL.search(str(cause)))), None):
        line = _one_line(error)
        fact = line if full.group() in line else f"{line}: {full.group()}"
        return f"{fact}: free some space, and give the same command again"
    store = without_credentials(mlflow.get_tracking_uri())
    refused = next((cause for cause in causes if isinstance(cause, requests.HTTPError)), None)
    if refused is not None:
        answer = without_credentials(_one_line(refused))
        return f"the tracking server {store} refuses: {answer}: see to it, and give the same command again"
    if any(isinstance(cause, requests.RequestException) for cause in causes):
        closing()
        return f"the tracking server {store} does not answer: start it, and give the same command again"
    if any(_unavailable(cause) for cause in causes):
        return f"the tracking store {store} cannot be used ({_one_line(error)}): see to it, and give the command again"
    return None


class _ExplainedError(StepError):
    """An error that has its line."""


class _Announcer(logging.Filter):
    """Says once in an outage that this process waits, instead of urllib3's own lines about each try."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether *record* is about something else."""
        if not str(record.msg).startswith("Retrying ("):
            return True
        retry = record.args[0] if isinstance(record.args, tuple) and record.args else None
        # The first try again follows at once, and mends a connection that was merely old.
        if isinstance(retry, Retry) and len(retry.history) == 2:
            store = without_credentials(mlflow.get_tracking_uri())
            print(f"WAITING for the tracking server {store}: it does not answer", file=sys.stderr, flush=True)
        return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _unavailable(error: BaseException) -> bool:
    return isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(TEMPORARILY_UNAVAILABLE)


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
