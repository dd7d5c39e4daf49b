"""The hub: resolves a revision to its commit, and fetches the files of that commit as the hub states them.

huggingface_hub talks to the hub. This module checks what huggingface_hub trusts: that a body of the right length is
right, that a cached file is unchanged, that a cache may stand in for the hub. docs/reference/hub.md has every case.
"""

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError
from huggingface_hub.file_download import _cache_commit_hash_for_specific_revision, repo_folder_name
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it exports them lazily
    WeakFileLock,
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
    validate_repo_id,
)
from huggingface_hub.utils.sha import git_hash

from steps.checkpoint.hub_errors import explaining, token
from steps.checkpoint.manifest import (
    NEEDED,
    PAPERS,
    TEMPLATES,
    Manifest,
    instead_of_weights,
    licence_of,
    require_one_layout,
    require_weights,
)
from steps.records.errors import StepError
from steps.records.files import File, hash_file

ONNX_FILES = ("*.onnx", "*.onnx.data", "*.json", "*.jinja", TEMPLATES, "tokenizer.model", "merges.txt", *PAPERS)
"""The files of a ready ONNX folder that are used. Never code."""

NAMES = {".safetensors": "model*.safetensors", ".onnx": ".onnx"}
"""How the files are named that hold weights, by their suffix."""

RETRIES = 2
"""How often the question which commit a revision is gets repeated: after 1 s, then 2 s, or when the hub says."""

DOWNLOADS = 2
"""How often a file is downloaded that does not arrive as stated."""

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256_DIGITS = 64


@dataclass(frozen=True)
class Stated:
    """What is stated of one file: its path in the repository, its size in bytes, and its hash in hex.

    A hash of 64 digits is the content's sha256 (the hub's for large files), one of 40 the sha1 of its git blob.
    """

    path: str
    size: int
    hash: str


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
    """Return the manifest of the ready ONNX model in *folder* of *repository* at *revision*, and where it lies.

    The paths in the manifest are those in the repository: the model is in *folder* below the path that is returned,
    the repository's card and licence beside it. Raises StepError as `fetch_checkpoint` does.
    """
    section = "build_onnx_wrapper"
    return _fetch(repository, revision, PurePosixPath(folder), ONNX_FILES, section, ".onnx", offline=offline)


def restore(manifest: Manifest) -> Path:
    """Return the folder of the hub's cache with the files of *manifest*, all hashed; what is not there is downloaded.

    The hub is asked for nothing else. Raises StepError when it does not answer or has other files by now.
    """
    stated = [Stated(file.path, file.size, file.sha256) for file in manifest.files]
    with explaining(manifest.location, manifest.revision):
        _obtain(manifest.location, manifest.revision, stated, offline=False)
    return _snapshot_folder(manifest.location, manifest.revision)


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
    """Fetch what matches *patterns* in *folder*, and the repository's papers; *section* of the configuration asks."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        msg = f"{section}.repo_id={repository} is not the name of a repository: give it as owner/name"
        raise StepError(msg) from error
    with explaining(repository, revision):
        commit, listing = _cached(repository, revision) if offline else _resolve(repository, revision)
        if commit != revision:
            found = "was commit" if offline else "is commit"
            print(f"{repository}@{revision} {found} {commit}; to pin it: -P {section}.revision={commit}")
        needed = sorted(
            (file for file in listing if _belongs(PurePosixPath(file.path), folder, patterns)), key=lambda f: f.path
        )
        if not any(file.path.endswith(weights) for file in needed):
            where = "" if folder == PurePosixPath() else f" in its folder {folder}"
            remedy = "choose a repository or revision that does"
            if weights == ".safetensors":
                below = "download it and use -P model=local with that folder"
                remedy = instead_of_weights([file.path for file in listing], below)
            msg = f"{repository}@{commit} holds no {NAMES[weights]} file{where}: {remedy}"
            raise StepError(msg)
        require_one_layout(f"{repository}@{commit}", [file.path for file in needed])
        snapshot = _snapshot_folder(repository, commit)
        if check is not None:
            if not offline:
                _require_space(repository, needed)  # of everything, before the first byte
            _obtain(repository, commit, [file for file in needed if not file.path.endswith(weights)], offline=offline)
            check(snapshot)
        files = _obtain(repository, commit, needed, offline=offline)
    return Manifest("hub", repository, commit, licence_of(snapshot), files), snapshot


def _belongs(path: PurePosixPath, folder: PurePosixPath, patterns: tuple[str, ...]) -> bool:
    if not path.is_relative_to(folder):
        return str(path) in PAPERS
    inside = path.relative_to(folder)
    # fnmatch's * stands for a slash too.
    alike = [pattern for pattern in patterns if pattern.count("/") == len(inside.parts) - 1]
    return any(fnmatchcase(str(inside), pattern) for pattern in alike) or str(path) in PAPERS


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
        _cache_commit_hash_for_specific_revision(str(_storage(repository)), revision, commit)
    return commit, listing


def _stated(file: dict[str, Any]) -> Stated:
    """Return what the hub states of *file*, an entry of its listing."""
    return Stated(file["rfilename"], int(file["size"]), (file.get("lfs") or {"sha256": file["blobId"]})["sha256"])


def _cached(repository: str, revision: str) -> tuple[str, list[Stated]]:
    """Return the commit that *revision* was when the hub last answered, and what the cache knows of its files."""
    ref = _storage(repository) / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    try:
        tree = get_cached_repo_tree(repository, revision=commit)
    except CachedRepoTreeNotFoundError as error:
        fact = f"the cache {constants.HF_HUB_CACHE} does not hold {repository}@{revision}, and fetch_model.offline=true"
        msg = f"{fact}: fetch it once while online, or name a folder with -P model=local -P model.path=..."
        raise StepError(msg) from error
    listing = []
    for file in tree:
        path = _snapshot_folder(repository, commit) / file.path
        # The cache names a blob by the hash that the hub stated; the listing has it for small files only.
        listing.append(Stated(file.path, file.size, path.readlink().name if path.is_symlink() else file.blob_id))
    return commit, listing


def _obtain(repository: str, commit: str, stated: list[Stated], *, offline: bool) -> tuple[File, ...]:
    """Return the files of the cache's snapshot of *commit*, each equal to what is *stated*, in that order.

    Missing and differing files are downloaded, unless *offline*.
    """
    folder = _snapshot_folder(repository, commit)
    files, faults = _compare(folder, stated)
    if faults and offline:
        fault = next(iter(faults.values()))
        msg = f"{fault}, and fetch_model.offline=true: fetch it once while online, which mends the cache"
        raise StepError(msg)
    if faults:
        # Alone: what this process finds wrong and removes may otherwise be what another has just made right.
        lock = _cache() / ".locks" / _storage(repository).name / "fetch_model.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            more, faults = _compare(folder, list(faults))
            files |= more
            for _ in range(DOWNLOADS):
                if faults:
                    _download(repository, commit, faults)
                    more, faults = _compare(folder, list(faults))
                    files |= more
            if faults:
                _discard(folder, faults)
                # It may be huggingface_hub's copy of the listing that lacks a file.
                (_storage(repository) / "trees" / f"{commit}.json").unlink(missing_ok=True)
                fault = next(iter(faults.values()))
                msg = f"{fault}, downloaded {DOWNLOADS} times; it was removed: try again later or over another network"
                raise StepError(msg)
    return tuple(files[file.path] for file in stated)


def _compare(folder: Path, stated: list[Stated]) -> tuple[dict[str, File], dict[Stated, str]]:
    """Return the files of *folder* that are as *stated*, by path, and for each other one what is wrong with it."""
    files, faults = {}, {}
    for file in stated:
        path = folder / file.path
        if not path.is_file():
            faults[file] = f"{path} is missing"
            continue
        size, sha256 = path.stat().st_size, hash_file(path)
        found = sha256 if len(file.hash) == SHA256_DIGITS else git_hash(path.read_bytes())
        if (size, found) == (file.size, file.hash):
            files[file.path] = File(file.path, size, sha256)
        else:
            faults[file] = f"{path} has {size} bytes with hash {found}, not {file.size} with {file.hash}"
    return files, faults


def _download(repository: str, commit: str, faults: dict[Stated, str]) -> None:
    """Download the files that have *faults*; what is in their place is removed first."""
    folder = _snapshot_folder(repository, commit)
    for file, fault in faults.items():
        if (folder / file.path).is_file():
            print(f"{fault}: removed, downloaded again")
    _discard(folder, faults)
    _sweep(_storage(repository))
    _require_space(repository, list(faults))
    names = [escape(file.path) for file in faults]
    snapshot_download(repository, revision=commit, allow_patterns=names, token=token())


def _discard(folder: Path, faults: dict[Stated, str]) -> None:
    """Remove the files that have *faults* from *folder*, and their content from the cache."""
    for file in faults:
        path = folder / file.path
        blob = path.resolve()
        # A link that leads out of the cache is not the cache's to remove.
        if blob.is_relative_to(_cache()):
            blob.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _sweep(storage: Path) -> None:
    """Remove what killed downloads left behind; downloads that go on hold the lock of their blob."""
    for rest in (storage / "blobs").glob("*.incomplete"):
        lock = storage.parent / ".locks" / storage.name / f"{rest.name.split('.')[0]}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with WeakFileLock(lock, timeout=0.1):
                rest.unlink(missing_ok=True)
        except TimeoutError:
            continue


def _require_space(repository: str, needed: list[Stated]) -> None:
    storage = _storage(repository)
    missing = sum(file.size for file in needed if not (storage / "blobs" / file.hash).exists())
    disk = next(folder for folder in (storage, *storage.parents) if folder.exists())
    free = shutil.disk_usage(disk).free
    if missing > free:
        fact = f"{repository} needs {missing / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {_cache()}"
        msg = f"{fact}: make room, or set HF_HOME to a folder on a larger disk"
        raise StepError(msg)


def _cache() -> Path:
    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def _storage(repository: str) -> Path:
    return _cache() / repo_folder_name(repo_id=repository, repo_type="model")


def _snapshot_folder(repository: str, commit: str) -> Path:
    return _storage(repository) / "snapshots" / commit
