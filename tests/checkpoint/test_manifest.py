"""A repository whose weights are laid out otherwise than transformers reads them is refused with what to do."""

from pathlib import Path

import pytest

from steps.checkpoint.hub import fetch_checkpoint
from steps.records.errors import StepError
from tests.hub_server import serving_hub


def test_weights_in_both_layouts_on_a_hub_are_refused_before_they_are_downloaded(tmp_path: Path) -> None:
    index = b'{"weight_map": {"a": "model-1.safetensors"}}'
    files = {"model.safetensors": b"1", "model-1.safetensors": b"1", "model.safetensors.index.json": index}
    with serving_hub(tmp_path / "huggingface") as hub:
        hub.repository("some/both").commit(files)
        with pytest.raises(StepError, match=r"with model=local"):
            fetch_checkpoint("some/both", "main", offline=False)
        assert not list(tmp_path.rglob("*.safetensors"))


def test_a_checkpoint_below_the_top_of_a_repository_is_to_be_downloaded_for_model_local(tmp_path: Path) -> None:
    with serving_hub(tmp_path / "huggingface") as hub:
        hub.repository("some/nested").commit({"hf/config.json": b"{}", "hf/model.safetensors": b"1"})
        with pytest.raises(StepError, match=r"in hf: download it and use -P model=local with that folder"):
            fetch_checkpoint("some/nested", "main", offline=False)
