"""The error of a value that cannot be used, and the conditions that several files of checks share."""

import os
from collections.abc import Sequence
from pathlib import Path

from steps.config.schema import project_path
from steps.config.suggestions import nearest
from steps.records.errors import ConfigError


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Raise ConfigError, which says that *key* must be *expected*, unless *condition*."""
    if not condition:
        msg = f"{key}={value} cannot be used: expected {expected}"
        raise ConfigError(msg)


def one_of(known: Sequence[str], key: str, value: str | None) -> None:
    """Raise ConfigError, with the nearest of *known*, unless *value* is None or one of them."""
    if value is not None:
        require(value in known, key, value, f"one of {', '.join(known)}{nearest(value, known)}")


def at_least(least: int, key: str, value: float | None) -> None:
    """Raise ConfigError unless *value* is None or at least *least*."""
    require(value is None or value >= least, key, value, f"at least {least}")


def is_file(path: str | Path) -> bool:
    """Return whether *path*, absolute or relative to the project, is a file that this user may read."""
    whole = project_path(path)
    return os.path.isfile(whole) and os.access(whole, os.R_OK)  # noqa: PTH113  Path raises for a name that is too long


def is_text(path: str | Path) -> bool:
    """Return whether *path*, absolute or relative to the project, is a file of text in UTF-8."""
    if not is_file(path):
        return False
    try:
        project_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True


def is_folder(path: Path) -> bool:
    """Return whether *path*, which is absolute, is a folder."""
    return os.path.isdir(path)  # noqa: PTH112  see above


def is_unicode(text: str) -> bool:
    """Return whether *text* can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
