"""The hub: resolves a revision to its commit, and fetches the files of that commit as the hub states them.

huggingface_hub talks to the hub. This module checks what huggingface_hub trusts: that a body of the right length is
right, that a cached file is unchanged, that a cache may stand in for the hub. docs/reference/hub.md has every case.
The protocol: https://huggingface.co/docs/hub/api; `blobs` there asks for sizes and hashes.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import _cache_commit_hash_for_specific_revision
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it exports them lazily
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
    validate_repo_id,
)

from steps.checkpoint.hub_cache import Stated, cached_listing, obtain, require_space, snapshot_folder, storage
from steps.checkpoint.hub_errors import explaining, token
from steps.checkpoint.manifest import (
    CARD_AND_LICENCES,
    NEEDED,
    SINGLE,
    TEMPLATES,
    Manifest,
    instead_of_weights,
    licence_of,
    require_weights,
    without_second_layout,
)
from steps.records.errors import StepError

ONNX_FILES = (
    "*.onnx",
    "*.onnx.data",
    "*.json",
    "*.jinja",
    TEMPLATES,
    "tokenizer.model",
    "merges.txt",
    *CARD_AND_LICENCES,
)
"""The files of a prebuilt ONNX folder that are used. Never code."""

NAMES = {".safetensors": "model*.safetensors", ".onnx": ".onnx"}
"""How the files are named that hold weights, by their suffix."""

RETRIES = 2
"""How often the question which commit a revision is gets repeated: after 1 s, then 2 s, or when the hub says."""

COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_checkpoint(
    repository: str, revision: str, *, offline: bool, check: Callable[[Path], None] | None = None
) -> tuple[Manifest, Path]:
    """Return the manifest of the checkpoint that *repository* holds at *revision*, and the folder with its files.

    *check* gets that folder when it holds all but the weights; what it raises saves their download. Raises StepError
    when the hub does not answer, refuses, or gives other files than it states; with *offline* it is not asked, and its
    cache must hold them all.
    """
    wanted = (PurePosixPath(), NEEDED, "model", ".safetensors")
    manifest, folder = _fetch(repository, revision, *wanted, offline=offline, check=check)
    require_weights(folder)
    return manifest, folder


def fetch_onnx(repository: str, revision: str, folder: str, *, offline: bool) -> tuple[Manifest, Path]:
    """Return the manifest of the prebuilt ONNX model in *folder* of *repository* at *revision*, and where it lies.

    The paths in the manifest are those in the repository: the model is in *folder* below the path that is returned,
    the repository's card and licence beside it. Raises StepError as `fetch_checkpoint` does.
    """
    section = "build_onnx_wrapper"
    return _fetch(repository, revision, PurePosixPath(folder), ONNX_FILES, section, ".onnx", offline=offline)


def _fetch(
    repository: str,
    revision: str,
    folder: PurePosixPath,
    patterns: tuple[str, ...],
    section: str,
    weights: str,
    *,
    offline: bool,
    check: Callable[[Path], None] | None = None,
) -> tuple[Manifest, Path]:
    """Fetch what matches *patterns* in *folder*, and the repository's card and licence.

    *section* of the configuration asks for it; *weights* is the suffix of the files that hold weights.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        msg = f"{section}.repo_id={repository} is not the name of a repository: give it as owner/name"
        raise StepError(msg) from error
    with explaining(repository, revision):
        commit, listing = cached_listing(repository, revision) if offline else _resolve(repository, revision)
        if commit != revision:
            found = "was commit" if offline else "is commit"
            print(f"{repository}@{revision} {found} {commit}; to pin it: -P {section}.revision={commit}")
        needed = _needed(f"{repository}@{commit}", listing, folder, patterns, weights)
        snapshot = snapshot_folder(repository, commit)
        if check is not None:
            if not offline:
                require_space(repository, needed)  # of everything, before the first byte
            obtain(repository, commit, [file for file in needed if not file.path.endswith(weights)], offline=offline)
            check(snapshot)
        files = obtain(repository, commit, needed, offline=offline)
    return Manifest("hub", repository, commit, licence_of(snapshot), files), snapshot


def _needed(
    place: str, listing: list[Stated], folder: PurePosixPath, patterns: tuple[str, ...], weights: str
) -> list[Stated]:
    """Return the files of *listing* to fetch, sorted by path. Raises StepError where none of them holds weights."""
    found = {file.path: file for file in listing if _belongs(PurePosixPath(file.path), folder, patterns)}
    if not any(path.endswith(weights) for path in found):
        where = "" if folder == PurePosixPath() else f" in its folder {folder}"
        remedy = "choose a repository or revision that does"
        if weights == ".safetensors":
            below = "download it and use -P model=local with that folder"
            remedy = instead_of_weights([file.path for file in listing], below)
        msg = f"{place} holds no {NAMES[weights]} file{where}: {remedy}"
        raise StepError(msg)
    needed = without_second_layout(found)
    if len(needed) < len(found):
        print(f"{place} holds {SINGLE} and other weights: only {SINGLE} is fetched, as transformers reads no other")
    return [found[path] for path in sorted(needed)]


def _belongs(path: PurePosixPath, folder: PurePosixPath, patterns: tuple[str, ...]) -> bool:
    if not path.is_relative_to(folder):
        return str(path) in CARD_AND_LICENCES
    inside = path.relative_to(folder)
    # fnmatch's * stands for a slash too.
    alike = [pattern for pattern in patterns if pattern.count("/") == len(inside.parts) - 1]
    return any(fnmatchcase(str(inside), pattern) for pattern in alike) or str(path) in CARD_AND_LICENCES


def _resolve(repository: str, revision: str) -> tuple[str, list[Stated]]:
    """Return the commit that *revision* is now, and what the hub states of its files."""
    # Not HfApi.model_info: it neither waits when told to (429, 503) nor gives up on a hub that never answers.
    answer = http_backoff(
        "GET",
        f"{constants.ENDPOINT}/api/models/{repository}/revision/{quote(revision, safe='')}",
        params={"blobs": True},
        headers=build_hf_headers(token=token()),
        max_retries=RETRIES,
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    hf_raise_for_status(answer)
    try:
        info = answer.json()
        commit = str(info["sha"])
        listing = [_stated(file) for file in info["siblings"]]
    except (ValueError, KeyError, TypeError) as error:
        fact = f"{constants.ENDPOINT} does not state commit, sizes and hashes for {repository}@{revision} ({error!r})"
        msg = f"{fact}: set HF_ENDPOINT to a hub that does"
        raise StepError(msg) from error
    if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
        msg = f"{constants.ENDPOINT} says that {repository}@{revision} is commit {commit!r}: check HF_ENDPOINT"
        raise StepError(msg)
    for file in listing:
        name = PureWindowsPath(file.path)  # knows both separators, and drives
        if name.anchor or ".." in name.parts:
            fact = f"{repository}@{commit} lists {file.path!r}, which lies outside the snapshot"
            msg = f"{fact}: nothing was downloaded, do not use this repository"
            raise StepError(msg)
    # What snapshot_download does when it resolves a branch: for a later fetch that is offline. A cache that can only
    # be read still serves.
    with suppress(OSError):
        _cache_commit_hash_for_specific_revision(str(storage(repository)), revision, commit)
    return commit, listing


def _stated(file: dict[str, Any]) -> Stated:
    """Return what the hub states of *file*, an entry of its listing."""
    return Stated(file["rfilename"], int(file["size"]), (file.get("lfs") or {"sha256": file["blobId"]})["sha256"])
