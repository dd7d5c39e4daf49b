"""What onnxruntime-genai's builder itself writes of a small checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

from steps.records.onnx_recipes import Recipe, builder_arguments
from tests.families import FAMILIES, save_checkpoint


def build(recipe: Recipe, folder: Path, *, tied: bool) -> Path:
    """Return the ONNX folder that og's builder makes of a tiny Llama of random weights."""
    checkpoint = save_checkpoint(FAMILIES["llama"], folder / "checkpoint", tie_word_embeddings=tied)
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", f"{folder}/onnx"]
    command = [*builder, "-e", "cpu", "-c", f"{folder}/cache", *builder_arguments(recipe)]
    subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, check=True)
    return folder / "onnx"
