"""Failures around a step: a full disk, a tracking server that is away. Each becomes one line instead of a trace."""

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
from sqlalchemy.exc import OperationalError
from urllib3.util import Retry

from steps.records.errors import StepError, first_line
from steps.safety.processes import closing
from steps.safety.secrets import without_credentials, without_secrets

# By the message, not the type: libraries in other languages and other processes pass on the message only. SQLite
# reports "disk I/O error" if a file cannot grow.
FULL = re.compile(
    "|".join([*map(os.strerror, (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)), "disk is full", "disk I/O error"])
)


FAILING = re.compile(r"too many (\d{3}) error responses")
"""What urllib3 says of a server that is up, and whose answers all say that it failed."""

DENIED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
"""MLflow's codes for a user who may not do something."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn an exception that a full disk or a missing server caused into a StepError with one line.

    While MLflow retries to reach its server (MLFLOW_HTTP_REQUEST_MAX_RETRIES times), one line says so.
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
    """Return one line for *error* if a full disk or a missing server caused it, otherwise None.

    After this process has waited for a server in vain, it does not wait for it again.
    """
    causes = list(_causes(error))
    if full := next((found for cause in causes if (found := FULL.search(str(cause)))), None):
        line = first_line(error)
        fact = line if full.group() in line else f"{line}: {full.group()}"
        return f"{fact}: free some space, and give the same command again"
    store = without_credentials(mlflow.get_tracking_uri())
    denied = next(
        (cause for cause in causes if isinstance(cause, MlflowException) and cause.error_code in DENIED), None
    )
    if denied is not None:
        answer = without_secrets(first_line(denied))[:200]
        return f"the tracking server {store} does not let this user do that ({answer}): give credentials that may write"
    refused = next((cause for cause in causes if isinstance(cause, requests.HTTPError)), None)
    if refused is not None:
        answer = without_credentials(first_line(refused))
        return f"the tracking server {store} refuses: {answer}: fix that, and give the same command again"
    if any(isinstance(cause, requests.RequestException) for cause in causes):
        closing()
        if failing := next((found for cause in causes if (found := FAILING.search(str(cause)))), None):
            fact = f"the tracking server {store} answers with error {failing.group(1)} each time"
            return f"{fact}: its log says why, often a full disk or a lost database; then give the same command again"
        return f"the tracking server {store} does not answer: start it, and give the same command again"
    if any(_unavailable(cause) for cause in causes):
        fact = f"the tracking store {store} cannot be used ({first_line(error)})"
        return f"{fact}: fix that, and give the same command again"
    return None


class _ExplainedError(StepError):
    """An error that is explained already."""


class _Announcer(logging.Filter):
    """Says once per outage that this process waits, and drops urllib3's own line about each try."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to keep *record*: whether it is not about a retry."""
        if not str(record.msg).startswith("Retrying ("):
            return True
        retry = record.args[0] if isinstance(record.args, tuple) and record.args else None
        # The first retry follows at once, and repairs a connection that was merely stale.
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
    if isinstance(error, OperationalError):  # while a store is opened, MLflow passes it on as it is
        return True
    return isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(TEMPORARILY_UNAVAILABLE)
