"""A small model in a repository of a hub on loopback, how it is fetched, and a copy of the embedded one."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from steps.checkpoint.hub import fetch_checkpoint
from steps.checkpoint.manifest import Manifest, verify
from tests.conftest import TINY
from tests.hub_server import Hub, Repository, serving_hub, sha256

from .broken import NAMES

NAME = "someone/small-model"
WEIGHTS = bytes(range(256)) * 40
FILES = {
    "README.md": b"---\nlicense: mit\n---\nA card.\n",
    "config.json": b'{"model_type": "phi3"}',
    "tokenizer.json": b"{}" * 900,
    "model.safetensors": WEIGHTS,
    # What nobody needs, or nobody should run.
    "pytorch_model.bin": b"a pickle" * 200,
    "modeling_phi3.py": b"import os",
    "LICENSE.py": b"import os",
    "consolidated.safetensors": b"the weights again" * 100,
    "original/model.safetensors": b"the weights again" * 101,
}
NEEDED = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
CDN = "GET /cdn/"
WEIGHTS_BODY = f"GET /cdn/{sha256(WEIGHTS)}"
RESOLVE = "GET /api/models/.*/revision/"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds that huggingface_hub waits in this process, which it does not really."""
    waits: list[float] = []
    for module in ("file_download", "utils._http"):
        # All that these two use of `time`.
        monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "huggingface"


@pytest.fixture
def hub(home: Path) -> Iterator[Hub]:
    with serving_hub(home) as hub:
        yield hub


@pytest.fixture
def repository(hub: Hub) -> Repository:
    repository = hub.repository(NAME)
    repository.commit(FILES)
    return repository


def fetch(revision: str = "main", *, offline: bool = False) -> tuple[Manifest, Path]:
    return fetch_checkpoint(NAME, revision, offline=offline)


def blob_of(home: Path, content: bytes) -> Path:
    return home / "hub" / f"models--{NAME.replace('/', '--')}" / "blobs" / sha256(content)


def assert_whole(fetched: tuple[Manifest, Path], files: dict[str, bytes] = FILES) -> None:
    """Assert that *fetched* states, and has, exactly the needed ones of *files*."""
    manifest, folder = fetched
    assert [file.path for file in manifest.files] == NEEDED
    assert {file.path: file.sha256 for file in manifest.files} == {path: sha256(files[path]) for path in NEEDED}
    verify(manifest, folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a copy of the embedded model, to be broken."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(TINY / name, folder / name)
    return folder
