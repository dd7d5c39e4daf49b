"""SHA256SUMS of a folder: `sha256sum -c SHA256SUMS` checks the folder without our code."""

import os
import re
from pathlib import Path

from steps.records.files import File, describe, files_below

SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> tuple[File, ...]:
    """Write SHA256SUMS of all other files in *folder*; return these files, sorted by path."""
    files = described(folder)
    lines = [f"{file.sha256}  {file.path}\n" for file in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    return files


def damage_of(folder: Path) -> str | None:
    """Return the first difference between *folder* and its SHA256SUMS, or None if there is none."""
    if not (folder / SUMS).is_file():
        return f"it has no {SUMS}"
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    stated = {path: sha256 for line in lines for sha256, path in re.findall(r"^([0-9a-f]{64})  (.+)$", line)}
    found = {file.path: file.sha256 for file in described(folder)}
    for path in sorted(stated.keys() | found.keys()):
        if path not in found:
            return f"{path} is missing"
        if path not in stated:
            return f"{path} is not in {SUMS}"
        if found[path] != stated[path]:
            return f"{path} has changed"
    return None


def described(folder: Path) -> tuple[File, ...]:
    """Return every file of *folder* but SHA256SUMS itself, sorted by path."""
    return describe((path for path in files_below(folder) if path != folder / SUMS), folder)


def flush(folder: Path) -> None:
    """Wait until every file in *folder* is on the disk."""
    for path in files_below(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
