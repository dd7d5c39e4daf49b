"""From a checkpoint to a folder that onnxruntime-genai runs: built in a process of its own, or prebuilt."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.checkpoint.policy import generation_config, link_files, replace_json
from steps.config.onnx import BuildOnnxWrapper, ExecutionProvider
from steps.config.schema import ROOT
from steps.onnx_build import builder
from steps.onnx_build.scales import halve_scales
from steps.onnx_build.shared_embedding import share_embedding
from steps.records.errors import StepError
from steps.records.onnx_recipes import Recipe, builder_arguments, unusable

SLIDING_WINDOW = {"mistral": 4096, "phi3": None}
"""Model types of which every layer has the sliding window, and its size in transformers where config.json has none."""


def recipe_of(options: BuildOnnxWrapper) -> Recipe:
    """Return the recipe that the single values of *options* make; *options* has no ladder."""
    values = {key: getattr(options, key) for key in ("block_size", "algorithm", "accuracy_level", "symmetric")}
    assert options.precision is not None
    precision = options.precision.value
    return Recipe(precision, precision, **values, shared_embedding=bool(options.shared_embedding))


def build_onnx(snapshot: Path, output: Path, recipe: Recipe, provider: ExecutionProvider, log: Path) -> None:
    """Write the ONNX model of the checkpoint in *snapshot* to *output*, with genai_config.json and tokenizer.

    All that the builder says goes to the file *log*. Raises StepError before the build for a *recipe* that the
    checkpoint cannot have, and with the builder's last line when it fails.
    """
    if reason := unusable(recipe, json.loads((snapshot / "config.json").read_text(encoding="utf-8"))):
        msg = f"recipe {recipe.name} cannot be built of this checkpoint: {reason}"
        raise StepError(msg)
    with tempfile.TemporaryDirectory() as work:
        source = completed_checkpoint(snapshot, Path(work) / "source")
        command = builder_command(source, output, Path(work) / "cache", recipe, provider)
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    log.write_text(f"{' '.join(command)}\n\n{done.stdout}\n{done.stderr}", encoding="utf-8")
    if done.returncode != 0 or not (output / "model.onnx").is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        msg = f"onnxruntime-genai's builder failed: {lines[-1]} (all it said is in the run's {log.name})"
        raise StepError(msg)
    if recipe.shares_after_the_build:
        share_embedding(output)
    halve_scales(output)


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


def builder_command(source: Path, output: Path, cache: Path, recipe: Recipe, provider: ExecutionProvider) -> list[str]:
    """Return the command by which the builder writes the ONNX model of *source* to *output*."""
    command = [sys.executable, "-m", builder.__name__, "-i", str(source), "-o", str(output.resolve())]
    return [*command, "-e", provider.value, "-c", str(cache), *builder_arguments(recipe)]


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


def require_runnable(folder: Path) -> None:
    """Raise StepError unless *folder* holds genai_config.json, the model that this names, and a tokenizer."""
    settings = folder / "genai_config.json"
    needed = [settings.name, "tokenizer.json", "tokenizer_config.json"]
    if settings.is_file():
        try:
            needed.append(str(json.loads(settings.read_text())["model"]["decoder"]["filename"]))
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{settings} names no model ({error!r}): choose a folder that onnxruntime-genai's builder wrote"
            raise StepError(msg) from error
    for name in needed:
        if not (folder / name).is_file():
            msg = f"{folder} lacks {name}: choose a folder that onnxruntime-genai's builder wrote"
            raise StepError(msg)
