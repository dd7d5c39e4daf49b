"""Of a repository those weights are fetched that transformers reads; where there are none, it is said what to do."""

from pathlib import Path

import pytest

from steps.checkpoint.hub import fetch_checkpoint
from steps.checkpoint.manifest import needed_files
from steps.records.errors import StepError
from tests.hub_server import serving_hub

INDEX = "model.safetensors.index.json"
BOTH = {
    "model.safetensors": b"1",
    "model-1.safetensors": b"2",
    INDEX: b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}',
}


def test_of_weights_in_both_layouts_on_a_hub_only_those_are_fetched_that_transformers_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving_hub(tmp_path / "huggingface") as hub:
        hub.repository("some/both").commit(BOTH | {"config.json": b"{}"})
        manifest, folder = fetch_checkpoint("some/both", "main", offline=False)
        assert "other weights: only model.safetensors is fetched" in capsys.readouterr().out
        assert [file.path for file in manifest.files] == ["config.json", "model.safetensors"]
        assert not hub.asked("model-1")
        # As another program leaves the cache that fetches everything.
        for name in set(BOTH) - {"model.safetensors"}:
            (folder / name).write_bytes(BOTH[name])
        assert fetch_checkpoint("some/both", "main", offline=True) == (manifest, folder)
    assert [path.name for path in needed_files(folder)] == ["config.json", "model.safetensors"]


def test_a_checkpoint_below_the_top_of_a_repository_is_to_be_downloaded_for_model_local(tmp_path: Path) -> None:
    with serving_hub(tmp_path / "huggingface") as hub:
        hub.repository("some/nested").commit({"hf/config.json": b"{}", "hf/model.safetensors": b"1"})
        with pytest.raises(StepError, match=r"in hf: download it and use -P model=local with that folder"):
            fetch_checkpoint("some/nested", "main", offline=False)
