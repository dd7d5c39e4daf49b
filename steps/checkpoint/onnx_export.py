"""From a checkpoint to a folder that onnxruntime-genai runs: built in a process of its own, or prebuilt."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from steps.checkpoint.onnx_recipes import Recipe, builder_arguments, unusable
from steps.checkpoint.shared_embedding import share_embedding
from steps.config.schema import BuildOnnxWrapper, ExecutionProvider
from steps.records.errors import StepError

SLIDING_WINDOW = {"mistral": 4096, "phi3": None}
"""Model types of which every layer has the sliding window, and its size in transformers where config.json has none."""


def recipe_of(options: BuildOnnxWrapper) -> Recipe:
    """Return the recipe that *options*, which have no ladder, spell out."""
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
        source = add_layer_types(snapshot, Path(work) / "source")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(output)]
        command += ["-e", provider.value, "-c", f"{work}/cache", *builder_arguments(recipe)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    log.write_text(f"{' '.join(command)}\n\n{done.stdout}\n{done.stderr}", encoding="utf-8")
    if done.returncode != 0 or not (output / "model.onnx").is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        msg = f"onnxruntime-genai's builder failed: {lines[-1]} (all it said is in the run's {log.name})"
        raise StepError(msg)
    if recipe.shares_after_the_build:
        share_embedding(output)


def add_layer_types(snapshot: Path, folder: Path) -> Path:
    """Return *folder*, made with links to *snapshot*'s files and a config.json from which the builder exports right.

    The builder learns from `layer_types` which layers have a sliding window. Where every layer has it, config.json does
    not say so, and the export would attend to everything, without a word; so it is written out.
    """
    folder.mkdir(parents=True)
    for path in snapshot.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    architecture = json.loads((snapshot / "config.json").read_text())
    family = architecture.get("model_type")
    window = architecture.get("sliding_window", SLIDING_WINDOW.get(family))
    if family in SLIDING_WINDOW and window is not None and "layer_types" not in architecture:
        architecture |= {
            "sliding_window": window,
            "layer_types": ["sliding_attention"] * architecture["num_hidden_layers"],
        }
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(architecture, indent=2))
    return folder


def require_runnable(folder: Path) -> None:
    """Raise StepError unless *folder* holds what the wrapper reads: settings, the model they name, tokenizer."""
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
