"""Files with size and sha256, and one digest for many."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class File:
    """One file: its path below a folder, its size in bytes, and its sha256 in hex."""

    path: str
    size: int
    sha256: str


def hash_file(path: Path) -> str:
    """Return the sha256 of the file at *path*, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(text: str) -> str:
    """Return the sha256 of *text* in UTF-8, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def files_below(folder: Path) -> list[Path]:
    """Return every file below *folder*, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def describe(paths: Iterable[Path], folder: Path) -> tuple[File, ...]:
    """Return a File for each of *paths*, which lie below *folder*."""
    return tuple(File(path.relative_to(folder).as_posix(), path.stat().st_size, hash_file(path)) for path in paths)


def digest(files: Iterable[File]) -> str:
    """Return one sha256, in hex, over the names and contents of *files*."""
    return hash_text("".join(f"{file.sha256}  {file.path}\n" for file in files))
