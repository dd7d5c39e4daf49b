"""The hub's cache on this machine: the files of a commit, each hashed and compared with what the hub states of it.

A cached file that is missing or has changed is downloaded again. Fetches at the same time share one download.
The layout is huggingface_hub's: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

import shutil
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from huggingface_hub import constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # it exports it lazily
from huggingface_hub.utils.sha import git_hash

from steps.checkpoint.hub_errors import explaining, token
from steps.checkpoint.manifest import Manifest
from steps.records.errors import StepError
from steps.records.files import File, hash_file

DOWNLOADS = 2
"""How often a file is downloaded that does not arrive as stated."""

SHA256_DIGITS = 64


@dataclass(frozen=True)
class Stated:
    """What is stated of one file: its path in the repository, its size in bytes, and its hash in hex.

    A hash of 64 digits is the content's sha256 (the hub's for large files), one of 40 the sha1 of its git blob.
    """

    path: str
    size: int
    hash: str


def restore(manifest: Manifest) -> Path:
    """Return the folder of the hub's cache with the files of *manifest*, all hashed; what is not there is downloaded.

    The hub is asked for nothing else. Raises StepError when it does not answer, or gives other files than these.
    """
    stated = [Stated(file.path, file.size, file.sha256) for file in manifest.files]
    with explaining(manifest.location, manifest.revision):
        obtain(manifest.location, manifest.revision, stated, offline=False)
    return snapshot_folder(manifest.location, manifest.revision)


def cached_listing(repository: str, revision: str) -> tuple[str, list[Stated]]:
    """Return the commit that *revision* was when the hub last answered, and what the cache knows of its files.

    Raises StepError where the cache holds no listing of that commit.
    """
    ref = storage(repository) / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    try:
        tree = get_cached_repo_tree(repository, revision=commit)
    except CachedRepoTreeNotFoundError as error:
        fact = f"the cache {constants.HF_HUB_CACHE} does not hold {repository}@{revision}, and fetch_model.offline=true"
        msg = f"{fact}: fetch it once while online, or name a folder with -P model=local -P model.path=..."
        raise StepError(msg) from error
    listing = []
    for file in tree:
        path = snapshot_folder(repository, commit) / file.path
        # The cache names a blob by the hash that the hub stated; the listing has it for small files only.
        listing.append(Stated(file.path, file.size, path.readlink().name if path.is_symlink() else file.blob_id))
    return commit, listing


def obtain(repository: str, commit: str, stated: list[Stated], *, offline: bool) -> tuple[File, ...]:
    """Return the files of the cache's snapshot of *commit*, each equal to what is *stated*, in that order.

    Missing and differing files are downloaded; with *offline* they raise StepError, as do files that differ again after
    DOWNLOADS downloads.
    """
    folder = snapshot_folder(repository, commit)
    files, faults = _compare(folder, stated)
    if faults and offline:
        fault = next(iter(faults.values()))
        msg = f"{fault}, and fetch_model.offline=true: fetch it once while online, which mends the cache"
        raise StepError(msg)
    if faults:
        # Alone: what this process finds wrong and removes may otherwise be what another has just made right.
        lock = _cache() / ".locks" / storage(repository).name / "fetch_model.lock"
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
                (storage(repository) / "trees" / f"{commit}.json").unlink(missing_ok=True)
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
    folder = snapshot_folder(repository, commit)
    for file, fault in faults.items():
        if (folder / file.path).is_file():
            print(f"{fault}: removed, downloaded again")
    _discard(folder, faults)
    _sweep(storage(repository))
    require_space(repository, list(faults))
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


def _sweep(home: Path) -> None:
    """Remove what killed downloads left in *home*; downloads that go on hold the lock of their blob."""
    for rest in (home / "blobs").glob("*.incomplete"):
        lock = home.parent / ".locks" / home.name / f"{rest.name.split('.')[0]}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with WeakFileLock(lock, timeout=0.1):
                rest.unlink(missing_ok=True)
        except TimeoutError:
            continue


def require_space(repository: str, needed: list[Stated]) -> None:
    """Raise StepError unless the cache's disk has room for those of *needed* that the cache lacks."""
    home = storage(repository)
    missing = sum(file.size for file in needed if not (home / "blobs" / file.hash).exists())
    disk = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(disk).free
    if missing > free:
        fact = f"{repository} needs {missing / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {_cache()}"
        msg = f"{fact}: make room, or set HF_HOME to a folder on a larger disk"
        raise StepError(msg)


def _cache() -> Path:
    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def storage(repository: str) -> Path:
    """Return the folder of the cache that has all of *repository*; it need not exist."""
    return _cache() / repo_folder_name(repo_id=repository, repo_type="model")


def snapshot_folder(repository: str, commit: str) -> Path:
    """Return the folder of the cache that has the files of *repository* at *commit*; it need not exist."""
    return storage(repository) / "snapshots" / commit
