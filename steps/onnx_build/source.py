"""What the builder reads in place of the checkpoint: the same weights, with settings from which it exports right."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.checkpoint.policy import generation_config, link_files, replace_json

SLIDING_WINDOW = {"mistral": 4096, "phi3": None}
"""Model types of which every layer has the sliding window, and its size in transformers where config.json has none."""


def completed_checkpoint(snapshot: Path, folder: Path) -> Path:
    """Return *folder*, made with links to the files of *snapshot*, and settings from which the builder exports right.

    These say which layers have a sliding window, which tokens end an answer, and that tokenizer.json is followed.
    """
    link_files(snapshot, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if lacking := layer_types(config) | equal_position_limits(config) | norm_epsilon(config):
        replace_json(folder / "config.json", config | lacking)
    replace_json(folder / "generation_config.json", generation_config(snapshot))
    return folder


def layer_types(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys by which the builder reads that every layer has a sliding window; none where *config* says it.

    The builder learns from `layer_types` which layers have a sliding window. Where every layer has it, config.json does
    not say so, and the export would attend to everything, without a word.
    """
    family = config.get("model_type")
    window = config.get("sliding_window", SLIDING_WINDOW.get(str(family)))
    if family not in SLIDING_WINDOW or window is None or "layer_types" in config:
        return {}
    return {"sliding_window": window, "layer_types": ["sliding_attention"] * config["num_hidden_layers"]}


def norm_epsilon(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the key by which the builder reads the epsilon of norms, where *config* states it by another name.

    *config* is a config.json's (Phi 2, Nemotron). The builder takes 1e-6 where its own key is missing.
    """
    stated = [config[key] for key in ("layer_norm_eps", "norm_eps") if key in config]
    return {"rms_norm_eps": stated[0]} if stated and "rms_norm_eps" not in config else {}


def equal_position_limits(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the second limit of positions, equal to the first, for a Phi-3's *config* without LongRoPE.

    The builder takes two limits that differ for LongRoPE, and transformers has a default for the second.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    limit = config.get("max_position_embeddings")
    if config.get("model_type") != "phi3" or limit is None or "long_factor" in scaling:
        return {}
    return (
        {} if config.get("original_max_position_embeddings") == limit else {"original_max_position_embeddings": limit}
    )
