"""Weights that are cut off, missing, or of another model are refused in one line, from their headers alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from steps.checkpoint.weights_check import require_fitting_weights

from .broken import change, refusal, rename

WEIGHT = "model.layers.1.mlp.down_proj.weight"


def test_a_file_that_is_cut_off_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-1000], whole[:100], whole + b"more", b"\xff" * 8 + whole[8:]):
        path.write_bytes(damaged)
        assert f"{path} of {len(damaged)} bytes is cut off or damaged" in refusal(checkpoint)


def test_an_index_that_names_a_missing_shard_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(checkpoint)
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(shards))
    assert "index.json names model-00002-of-00002.safetensors, which is not among" in refusal(checkpoint)


def test_weights_in_one_file_and_by_an_index_too_are_refused(checkpoint: Path) -> None:
    shutil.copy(checkpoint / "model.safetensors", checkpoint / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    (checkpoint / "model.safetensors").write_bytes(b"cut off")
    said = refusal(checkpoint)
    assert "holds model.safetensors and model.safetensors.index.json: transformers reads the first" in said
    assert "remove model.safetensors, or the index with its files" in said


@pytest.mark.parametrize(
    ("to", "line"),
    [
        (lambda name: f"module.{name}", "and holds module."),
        (lambda name: f"base_model.model.{name}", "and holds base_model.model."),
        (lambda name: None if name == WEIGHT else name, f"lacks {WEIGHT}, of the 27 weights"),
        (lambda name: None if name == "lm_head.weight" else name, "lacks lm_head.weight"),
        (lambda name: name.replace("layers.3", "layers.9"), "lacks model.layers.3."),
    ],
)
def test_weights_of_other_names_are_refused(checkpoint: Path, to: Callable[[str], str | None], line: str) -> None:
    rename(checkpoint, to)
    assert line in refusal(checkpoint)


def test_layers_that_config_json_does_not_count_are_refused(checkpoint: Path) -> None:
    change(checkpoint, "config.json", num_hidden_layers=3)
    assert "has no place in the model that config.json asks Phi3ForCausalLM for" in refusal(checkpoint)


def test_shapes_of_another_config_are_refused(checkpoint: Path) -> None:
    change(checkpoint, "config.json", intermediate_size=256)
    assert "has shape [768, 128], and config.json asks Phi3ForCausalLM for [512, 128]: put the" in refusal(checkpoint)


def test_weights_of_whole_numbers_are_refused(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights[WEIGHT] = weights[WEIGHT].astype("int8")
    save_file(weights, checkpoint / "model.safetensors")
    assert f"{WEIGHT} in {checkpoint}/model.safetensors is of type I8: these weights are quantised" in refusal(
        checkpoint
    )


def test_a_tied_head_and_weights_that_transformers_leaves_out_are_nothing_odd(checkpoint: Path) -> None:
    rename(checkpoint, lambda name: None if name == "lm_head.weight" else name)
    change(checkpoint, "config.json", tie_word_embeddings=True)
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = weights["model.norm.weight"][:16]
    save_file(weights, checkpoint / "model.safetensors")
    require_fitting_weights(checkpoint)
