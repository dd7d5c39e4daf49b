"""A manifest states what a snapshot holds, and nothing that differs from it is used."""

from pathlib import Path

import pytest

from steps.fetch_model import fetch_local
from steps.flow.errors import StepError
from steps.flow.snapshot import Manifest, needed_files, verify


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a folder with the files of a small checkpoint, and some that do not belong."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin", "modeling.py", "train.log"):
        (folder / name).write_text(f"content of {name}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA card.\n")
    return folder


def test_only_what_is_needed_belongs_to_a_snapshot_never_pickles_or_code(checkpoint: Path) -> None:
    names = [path.name for path in needed_files(checkpoint)]
    assert names == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]


def test_a_manifest_reads_back_as_it_was_written(checkpoint: Path) -> None:
    manifest = fetch_local(checkpoint)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.licence == "mit"


def test_the_revision_of_a_folder_follows_its_content_and_not_its_place(checkpoint: Path, tmp_path: Path) -> None:
    before = fetch_local(checkpoint).revision
    moved = checkpoint.rename(tmp_path / "moved")
    assert fetch_local(moved).revision == before
    (moved / "config.json").write_text("other")
    assert fetch_local(moved).revision != before


def test_a_folder_without_safetensors_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(StepError, match=r"holds no \*\.safetensors"):
        fetch_local(checkpoint)


def test_a_whole_snapshot_is_accepted(checkpoint: Path) -> None:
    verify(fetch_local(checkpoint), checkpoint)


def test_a_bit_that_changed_is_found_though_the_size_is_the_same(checkpoint: Path) -> None:
    manifest = fetch_local(checkpoint)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    with pytest.raises(StepError, match=r"model\.safetensors has sha256"):
        verify(manifest, checkpoint)


def test_a_truncated_file_is_found_and_named_with_its_size(checkpoint: Path) -> None:
    manifest = fetch_local(checkpoint)
    (checkpoint / "tokenizer.json").write_text("short")
    with pytest.raises(StepError, match=r"tokenizer\.json has 5 bytes, not 25"):
        verify(manifest, checkpoint)


def test_a_missing_file_is_found(checkpoint: Path) -> None:
    manifest = fetch_local(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(StepError, match=r"config\.json is missing"):
        verify(manifest, checkpoint)
