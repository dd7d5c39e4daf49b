"""Secrets never reach a parameter, a tag, an artifact or a log line. Tokens are read from the environment only."""

import os
import re
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any, NoReturn

from mlflow import MlflowClient
from mlflow.tracking import _get_store

from steps.records.errors import ConfigError

TOKENS = re.compile(
    r"""hf_[A-Za-z0-9]{16,}            # Hugging Face
    | gh[pousr]_[A-Za-z0-9]{20,}      # GitHub
    | github_pat_[A-Za-z0-9_]{20,}
    | glpat-[A-Za-z0-9_-]{20,}        # GitLab
    | sk-[A-Za-z0-9_-]{20,}           # OpenAI and others
    | AKIA[0-9A-Z]{16}                # AWS
    | dapi[0-9a-f]{32}                # Databricks
    | -----BEGIN[A-Z ]*\ PRIVATE\ KEY  # PEM
    """,
    re.VERBOSE,
)
"""Tokens, by their issuers' prefixes."""

NAMES = re.compile(r"(^|[._-]|pg)(token|password|passwd|secret|(api|access)_?key)$", re.IGNORECASE)
"""Names of keys that hold a secret."""

ASSIGNED = re.compile(
    r"""((?:token|password|passwd|secret|(?:api|access)_?key)["']?\s*[=:]\s*)(["'])[^"'\n]{8,}\2""", re.IGNORECASE
)
"""A quoted text assigned to such a key in code or YAML."""

CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
"""The user and password of a URL."""


def refuse_tokens(arguments: Sequence[str]) -> None:
    """Raise ConfigError, without the value, for the first word of a command line that holds a token."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        if TOKENS.search(word) or CREDENTIALS.search(word):
            key = before.removeprefix("--") if before.startswith("--") else word.partition("=")[0]
            _refuse("a parameter" if TOKENS.search(key) or CREDENTIALS.search(key) else key)


def refuse_secrets(overrides: Iterable[str]) -> None:
    """Raise ConfigError, without the value, for the first override whose key is named like a secret.

    MLflow has stored the value by then, as a parameter of the run that it made for this process. A parameter cannot be
    deleted, so the run is: permanently if the store is a database of ours, otherwise until `mlflow gc`.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if NAMES.search(key.lstrip("+~")) and value not in ("", "null", "''"):
            _refuse(key)


def _refuse(key: str) -> NoReturn:
    gone = _forget_own_run()
    msg = f"{key}=*** looks like a secret, which would be stored: put tokens into the environment (HF_TOKEN){gone}"
    raise ConfigError(msg)


def _forget_own_run() -> str:
    """Delete the run that MLflow made for this process, if there is one; return what the error says about it."""
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if run_id is None:
        return ""
    # Slow to import, and needed here only.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    remove_credentials(run_id)
    MlflowClient().delete_run(run_id)
    store = _get_store()
    if isinstance(store, SqlAlchemyStore):
        store._hard_delete_run(run_id)
        _wipe(store)
        return f"; run {run_id}, which held it, is deleted"
    # The server's API can delete neither a parameter nor a run permanently.
    return f"; run {run_id}, which holds it, is marked deleted: on the server, mlflow gc --run-ids {run_id} removes it"


def _wipe(store: object) -> None:
    """Overwrite deleted bytes of *store* if it is an SQLite file; until then they are still in it."""
    engine: Any = getattr(store, "engine", None)
    if engine is not None and engine.dialect.name == "sqlite":
        with closing(sqlite3.connect(engine.url.database, isolation_level=None, timeout=20)) as database:
            database.execute("VACUUM")


def without_credentials(line: str) -> str:
    """Return *line* without the user and password of any URL in it."""
    return CREDENTIALS.sub("", line)


def without_secrets(lines: str) -> str:
    """Return *lines* with `***` in place of anything like a secret, and of the environment's secrets."""
    own = [value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= 8]
    for value in sorted(own, key=len, reverse=True):
        lines = lines.replace(value, "***")
    return ASSIGNED.sub(r"\1\2***\2", TOKENS.sub("***", CREDENTIALS.sub("***@", lines)))


def remove_credentials(run_id: str) -> None:
    """Remove user and password from URLs in the tags of *run_id*: MLflow stores the URL of the git repository there."""
    client = MlflowClient()
    held = {key: value for key, value in client.get_run(run_id).data.tags.items() if CREDENTIALS.search(value)}
    for key, value in held.items():
        client.set_tag(run_id, key, without_credentials(value))
    if held:
        _wipe(_get_store())
