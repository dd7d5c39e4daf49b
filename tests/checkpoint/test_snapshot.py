"""A manifest states what a snapshot holds, and nothing that differs from it is used."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from steps.checkpoint.hub import fetch_checkpoint
from steps.checkpoint.manifest import FILES, MANIFEST, Manifest, licence_of, needed_files, verify
from steps.checkpoint.snapshot import present
from steps.fetch_model import fetch_local
from steps.records.errors import StepError
from tests.hub_server import Fault, Hub, serving_hub


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


def test_templates_beside_the_chat_template_belong_to_a_snapshot(checkpoint: Path) -> None:
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (checkpoint / "additional_chat_templates" / "code.py").write_text("import os")
    assert "additional_chat_templates/tool_use.jinja" in [file.path for file in fetch_local(checkpoint).files]
    assert not [file.path for file in fetch_local(checkpoint).files if file.path.endswith(".py")]


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
    with pytest.raises(StepError, match=r"holds no model\*\.safetensors"):
        fetch_local(checkpoint)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ('{"weight_map": {"a": "model-2.safetensors"}}', r"names model-2\.safetensors"),
        ('{"weight_map": {"a": "../model.safetensors"}}', r"names \.\./model\.safetensors"),
        ("[]", "is not an index"),
    ],
)
def test_an_index_that_leads_to_no_weights_is_refused(checkpoint: Path, index: str, says: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-1.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(index)
    with pytest.raises(StepError, match=says):
        fetch_local(checkpoint)


@pytest.mark.parametrize("card", ["no header", "---\nlicense: [mit]\n---\n", "---\na: b: c\n---\n", "---\n- a\n---\n"])
def test_a_card_that_states_no_licence_is_no_error(checkpoint: Path, card: str) -> None:
    (checkpoint / "README.md").write_text(card)
    assert licence_of(checkpoint) is None
    (checkpoint / "README.md").unlink()
    assert licence_of(checkpoint) is None


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


# A later step finds the files again by the manifest.

NAME = "someone/small-model"
CONTENT = {"config.json": b"{}", "tokenizer.json": b"{}" * 10, "model.safetensors": bytes(range(256)) * 40}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Yield a hub with one repository."""
    with serving_hub(tmp_path / "huggingface") as hub:
        hub.repository(NAME).commit(CONTENT)
        yield hub


def logged(manifest: Manifest, files: Path | None = None) -> Run:
    """Return a run that logged *manifest*, and the folder *files* as those of the snapshot."""
    with mlflow.start_run() as run:
        mlflow.log_text(manifest.to_json(), MANIFEST)
        if files:
            mlflow.log_artifacts(str(files), FILES)
    return mlflow.get_run(run.info.run_id)


def assert_present(fetch: Run, folder: Path | None = None) -> None:
    """Assert that the files of *fetch* are found again as its manifest has them, in *folder*."""
    manifest = Manifest.from_json(mlflow.artifacts.load_text(f"{fetch.info.artifact_uri}/{MANIFEST}"))
    with present(fetch) as found:
        verify(manifest, found)
        assert folder in (None, found)


def change(path: Path) -> None:
    """Change one bit of the file at *path*."""
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def test_a_snapshot_that_was_logged_whole_is_found_though_its_source_is_gone(checkpoint: Path, store: str) -> None:
    fetch = logged(fetch_local(checkpoint), checkpoint)
    shutil.rmtree(checkpoint)
    assert_present(fetch)


def test_a_logged_snapshot_that_has_changed_is_found_out(checkpoint: Path, store: str) -> None:
    fetch = logged(fetch_local(checkpoint), checkpoint)
    change(Path(fetch.info.artifact_uri) / FILES / "model.safetensors")
    with pytest.raises(StepError, match=r"model\.safetensors has sha256"), present(fetch):
        pass


def test_a_large_local_snapshot_is_found_in_its_folder_and_must_be_unchanged(checkpoint: Path, store: str) -> None:
    fetch = logged(fetch_local(checkpoint))
    assert_present(fetch, checkpoint)
    change(checkpoint / "model.safetensors")
    with pytest.raises(StepError, match=r"model\.safetensors has sha256"), present(fetch):
        pass


def test_a_file_that_came_into_a_local_folder_after_it_was_fetched_is_named(checkpoint: Path, store: str) -> None:
    fetch = logged(fetch_local(checkpoint))
    (checkpoint / "notes.txt").write_text("no part of a checkpoint")
    assert_present(fetch, checkpoint)
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 5}')
    says = (
        rf"generation_config\.json came after fetch_model read the folder in run {fetch.info.run_id}: run fetch_model"
    )
    with pytest.raises(StepError, match=says), present(fetch):
        pass


def test_a_local_folder_that_is_not_there_is_named_with_the_run_that_read_it(checkpoint: Path, store: str) -> None:
    fetch = logged(fetch_local(checkpoint))
    shutil.rmtree(checkpoint)
    says = f"{checkpoint}, which fetch_model read in run {fetch.info.run_id}, is not on this machine: put it back"
    with pytest.raises(StepError, match=says), present(fetch):
        pass


def test_a_large_snapshot_of_the_hub_is_found_in_its_cache_without_asking_the_hub(hub: Hub, store: str) -> None:
    manifest, folder = fetch_checkpoint(NAME, "main", offline=False)
    hub.faults.append(Fault(".", status=403))
    assert_present(logged(manifest), folder)


def test_without_a_cache_a_large_snapshot_is_downloaded_at_its_manifests_commit(
    hub: Hub, store: str, tmp_path: Path
) -> None:
    fetch = logged(fetch_checkpoint(NAME, "main", offline=False)[0])
    shutil.rmtree(tmp_path / "huggingface")
    hub.repository(NAME).commit({path: content[::-1] for path, content in CONTENT.items()})
    assert_present(fetch)


def test_a_cached_file_that_has_changed_is_downloaded_again_before_it_is_used(hub: Hub, store: str) -> None:
    manifest, folder = fetch_checkpoint(NAME, "main", offline=False)
    change(folder / "model.safetensors")
    assert_present(logged(manifest), folder)


def test_a_cached_file_that_has_changed_is_not_used_when_the_hub_is_of_no_help(hub: Hub, store: str) -> None:
    manifest, folder = fetch_checkpoint(NAME, "main", offline=False)
    change(folder / "model.safetensors")
    hub.faults.append(Fault("GET /cdn/", status=403))
    with pytest.raises(StepError, match=r"the hub refuses http\S+ \(403"), present(logged(manifest)):
        pass


def test_a_hub_that_has_other_files_than_the_manifest_by_now_is_an_error(hub: Hub, store: str, tmp_path: Path) -> None:
    manifest, _ = fetch_checkpoint(NAME, "main", offline=False)
    shutil.rmtree(tmp_path / "huggingface")
    hub.repository(NAME).commits[manifest.revision] = CONTENT | {"config.json": b"[]"}
    with pytest.raises(StepError, match=r"config\.json has 2 bytes with hash"), present(logged(manifest)):
        pass
