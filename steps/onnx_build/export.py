"""From a checkpoint to a folder that onnxruntime-genai runs: built in a process of its own, or prebuilt."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from steps.config.onnx import BuildOnnxWrapper, ExecutionProvider
from steps.config.schema import ROOT
from steps.onnx_build import builder
from steps.onnx_build.scales import halve_scales
from steps.onnx_build.shared_embedding import share_embedding
from steps.records.errors import StepError
from steps.records.onnx_recipes import Recipe, builder_arguments, unusable


def recipe_of(options: BuildOnnxWrapper) -> Recipe:
    """Return the recipe that the single values of *options* make; *options* has no ladder."""
    values = {key: getattr(options, key) for key in ("block_size", "algorithm", "accuracy_level", "symmetric")}
    assert options.precision is not None
    precision = options.precision.value
    return Recipe(precision, precision, **values, shared_embedding=bool(options.shared_embedding))


def build_onnx(snapshot: Path, output: Path, recipe: Recipe, provider: ExecutionProvider, log: Path) -> None:
    """Write the ONNX model of the checkpoint in *snapshot* to *output*, with genai_config.json and tokenizer.

    All that the builder says goes to the file *log*. Raises StepError before the build for a *recipe* that the
    checkpoint cannot have, and for a tokenizer that transformers cannot follow; with the builder's last line when it
    fails.
    """
    if reason := unusable(recipe, json.loads((snapshot / "config.json").read_text(encoding="utf-8"))):
        msg = f"recipe {recipe.name} cannot be built of this checkpoint: {reason}"
        raise StepError(msg)
    with tempfile.TemporaryDirectory() as work:
        command = builder_command(snapshot, output, Path(work) / "cache", recipe, provider)
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    log.write_text(f"{' '.join(command)}\n\n{done.stdout}\n{done.stderr}", encoding="utf-8")
    if done.returncode == builder.REFUSED:
        raise StepError(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0 or not (output / "model.onnx").is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        msg = f"onnxruntime-genai's builder failed: {lines[-1]} (all it said is in the run's {log.name})"
        raise StepError(msg)
    if recipe.shares_after_the_build:
        share_embedding(output)
    halve_scales(output)


def builder_command(
    snapshot: Path, output: Path, cache: Path, recipe: Recipe, provider: ExecutionProvider
) -> list[str]:
    """Return the command that writes the ONNX model of the checkpoint in *snapshot* to *output*."""
    command = [sys.executable, "-m", builder.__name__, "-i", str(snapshot), "-o", str(output.resolve())]
    return [*command, "-e", provider.value, "-c", str(cache), *builder_arguments(recipe)]


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
