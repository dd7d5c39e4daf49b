"""Secrets: never in a parameter, a tag, an artifact or a log line. Tokens are read from the environment alone."""

import os
import re
from collections.abc import Iterable

from mlflow import MlflowClient
from mlflow.tracking import _get_store

from steps.flow.errors import ConfigError

TOKENS = re.compile(
    r"""hf_[A-Za-z0-9]{16,}            # Hugging Face
    | gh[pousr]_[A-Za-z0-9]{20,}      # GitHub
    | github_pat_[A-Za-z0-9_]{20,}
    | glpat-[A-Za-z0-9_-]{20,}        # GitLab
    | sk-[A-Za-z0-9_-]{20,}           # OpenAI and others
    | AKIA[0-9A-Z]{16}                # AWS
    | dapi[0-9a-f]{32}                # Databricks
    """,
    re.VERBOSE,
)
"""What tokens look like, by their makers' prefixes."""

NAMES = re.compile(r"(^|[._-])(token|password|passwd|secret|api_?key)$", re.IGNORECASE)
"""What a key is called that holds a secret."""

CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
"""The user and password of a URL."""


def refuse_secrets(overrides: Iterable[str]) -> None:
    """Raise ConfigError, without its value, for the first override that looks like a secret.

    MLflow has stored it by then, as a parameter of the run that it made for this process, and a parameter cannot be
    deleted: the run is, for good where the store is a database of ours, otherwise until `mlflow gc`.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        named = bool(NAMES.search(key)) and value not in ("", "null", "''")
        if not named and not TOKENS.search(value) and not CREDENTIALS.search(value):
            continue
        gone = _forget_own_run()
        msg = f"{key}=*** looks like a secret, which would be stored: put tokens into the environment (HF_TOKEN){gone}"
        raise ConfigError(msg)


def _forget_own_run() -> str:
    """Delete the run that MLflow made for this process, if there is one; return what is to be said about it."""
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if run_id is None:
        return ""
    # Needed here alone, and slow to load.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    MlflowClient().delete_run(run_id)
    store = _get_store()
    if isinstance(store, SqlAlchemyStore):
        store._hard_delete_run(run_id)
        return f"; run {run_id}, which held it, is deleted"
    return f"; run {run_id}, which holds it, is marked deleted: remove it for good with mlflow gc --run-ids {run_id}"


def remove_credentials(run_id: str) -> None:
    """Remove user and password from every URL among the tags of *run_id*: MLflow stores that of the git repository."""
    client = MlflowClient()
    for key, value in client.get_run(run_id).data.tags.items():
        if CREDENTIALS.search(value):
            client.set_tag(run_id, key, CREDENTIALS.sub("", value))
