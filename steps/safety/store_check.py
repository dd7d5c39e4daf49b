"""Asks the tracking store at the start whether the flow can work with it, before minutes of work depend on it.

A server is asked for its version, the logged models and the aliases, and for its clock. artifact_root.py asks where the
artifacts go. The flow writes no traces, so they are not asked for.
"""

import os
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import mlflow
import requests
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from steps.records.errors import StepError, first_line
from steps.safety.secrets import without_credentials, without_secrets

CHECKED = "SLM_STORE_CHECKED"
"""The environment variable with which the chain tells its steps on this machine which store it has asked."""

PATIENCE_SECONDS = 20
"""How long one answer may take. MLflow's own two minutes, with all its retries, would be a quarter of an hour."""

CLOCK_SECONDS = 60
"""How far a server's clock may be from this machine's. Runs are ordered by time, and S3 refuses what is too old."""

NEEDED = "3.0"
"""The first version of MLflow whose servers keep logged models."""

LOGGED_MODELS = "/api/2.0/mlflow/logged-models/search"
ALIASES = "/api/2.0/mlflow/registered-models/alias"


def is_checked() -> bool:
    """Return whether the process that started this one has asked the store."""
    return os.environ.get(CHECKED) == _shown()


def mark_checked() -> None:
    """Tell the processes that this one starts that the store is asked."""
    os.environ[CHECKED] = _shown()


def require_usable_server() -> None:
    """Raise StepError, with the remedy, if the store is a server that the flow cannot work with.

    A server that does not answer is waited for, as everywhere. A database is asked when it is opened.
    """
    if not mlflow.get_tracking_uri().startswith("http"):
        return
    answer = _ask("POST", LOGGED_MODELS, json={"experiment_ids": ["0"], "max_results": 1})
    _require_entry(answer)
    version = _version() if answer.status_code != 200 else ""
    _require_api(answer, f"logged models{version}")
    _require_clock(answer)
    aliases = _ask("GET", ALIASES, params={"name": "no-such-model", "alias": "champion"})
    if aliases.status_code != 403:  # basic auth forbids to ask for a model that does not exist: it knows what that is
        _require_api(aliases, "aliases of registered models")


def _ask(method: str, endpoint: str, **query: object) -> requests.Response:
    """Return the answer of the server, whatever its status. Raises MlflowException if there is none."""
    host = get_default_host_creds(mlflow.get_tracking_uri())
    try:
        answer: requests.Response = http_request(
            host, endpoint, method, timeout=PATIENCE_SECONDS, raise_on_status=False, allow_redirects=False, **query
        )
    except requests.exceptions.InvalidURL as error:
        msg = f"the tracking URI {_shown()} is no address: {first_line(error)}"
        raise StepError(msg) from error
    return answer


def _require_entry(answer: requests.Response) -> None:
    """Raise StepError if the server lets this user, this host name or this address not in."""
    store, status, text = _shown(), answer.status_code, _text(answer)
    if status == 401:
        given = answer.request.headers.get("Authorization") is not None
        fact = "refuses these credentials" if given else "asks for credentials"
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        msg = f"the tracking server {store} {fact} (401): {remedy}"
        raise StepError(msg)
    if status == 403 and "host header" in text.lower():
        host = mlflow.get_tracking_uri().partition("://")[2].rpartition("@")[2].partition("/")[0]
        msg = f"the tracking server {store} does not go by the name {host} (403): start it with --allowed-hosts {host}"
        raise StepError(msg)
    if status == 403:
        msg = f"the tracking server {store} forbids this (403 {text}): give credentials that may read and write"
        raise StepError(msg)
    if 300 <= status < 400:
        to = without_credentials(answer.headers.get("Location", "another address"))
        msg = (
            f"the tracking server {store} sends elsewhere ({status}, to {to}): give that address, or log in as it asks"
        )
        raise StepError(msg)
    if status >= 500:
        msg = f"the tracking server {store} has an error of its own ({status} {text}): its log says which"
        raise StepError(msg)


def _require_api(answer: requests.Response, what: str) -> None:
    """Raise StepError if *answer* is not what a server of MLflow 3 says about *what*."""
    if answer.status_code == 200 or "RESOURCE_DOES_NOT_EXIST" in answer.text:
        if answer.status_code == 200 and not answer.text.lstrip().startswith("{"):
            msg = f"{_shown()} is no MLflow server, but answers with a page: check the address and its path"
            raise StepError(msg)
        return
    fact = f"the tracking server {_shown()} does not know {what} ({answer.status_code})"
    msg = f"{fact}: use a server of MLflow {NEEDED} or later; if it is one, check the address and its path"
    raise StepError(msg)


def _version() -> str:
    """Return what the server says of its version, for a message; empty if it says none."""
    text = _text(_ask("GET", "/version"))
    return f" (it is MLflow {text})" if re.fullmatch(r"\d+\.\d+[\w.]*", text) else ""


def _require_clock(answer: requests.Response) -> None:
    """Raise StepError if the server's clock and this machine's are more than a minute apart."""
    try:
        theirs = parsedate_to_datetime(answer.headers.get("Date", ""))
    except ValueError:
        return
    apart = (datetime.now(UTC) - theirs).total_seconds()
    # An answer that took long was dated before it came.
    if not -CLOCK_SECONDS < apart < CLOCK_SECONDS + answer.elapsed.total_seconds():
        which = "ahead of" if apart > 0 else "behind"
        fact = f"this machine's clock is {abs(apart):.0f} s {which} that of the tracking server {_shown()}"
        msg = f"{fact}: set the wrong one (timedatectl set-ntp true)"
        raise StepError(msg)


def _shown() -> str:
    return without_credentials(mlflow.get_tracking_uri())


def _text(answer: requests.Response) -> str:
    return without_secrets(" ".join(answer.text.split()))[:120]
