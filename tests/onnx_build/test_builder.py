"""The builder that holds one matrix in fp32 at a time writes what onnxruntime-genai's own writes, in less memory."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from benchmarks.random_phi3 import Size, make_checkpoint
from steps.checkpoint.policy import link_files
from steps.config.onnx import ExecutionProvider
from steps.onnx_build.export import build_onnx, builder_command
from steps.onnx_build.source import completed_checkpoint
from steps.records.errors import StepError
from steps.records.onnx_recipes import Recipe
from tests.conftest import TINY

THEIRS = "onnxruntime_genai.models.builder"


def build(checkpoint: Path, folder: Path, recipe: Recipe, module: str | None = None) -> float:
    """Build *checkpoint* in *folder* by our command, or by *module*; return the builder's peak memory in bytes."""
    folder.mkdir()
    if module is not None:
        checkpoint = completed_checkpoint(checkpoint, folder / "source")
    command = builder_command(checkpoint, folder, folder / "cache", recipe, ExecutionProvider.cpu)
    command[2] = module or command[2]
    program = f"import resource, subprocess; subprocess.run({command!r}, check=True); "
    program += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    # One thread: each has memory of its own.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.split()[-1]) * 1024


def contents(folder: Path) -> list[list[bytes]]:
    """Return the nodes and the weights of the ONNX model in *folder*, without their order."""
    graph = onnx.load(folder / "model.onnx").graph
    for weights in graph.initializer:
        weights.ClearField("external_data")  # where they stand in the file
    parts = (graph.node, graph.initializer)
    return [sorted(each.SerializeToString(deterministic=True) for each in part) for part in parts]


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("int4", "int4", block_size=128),
        Recipe("int4_mixed", "int4", algorithm="k_quant_mixed"),
        Recipe("int8", "int8", symmetric=False),
    ],
    ids=lambda recipe: recipe.name,
)
def test_the_model_is_the_one_that_the_builder_itself_writes(tmp_path: Path, recipe: Recipe) -> None:
    build(TINY, tmp_path / "ours", recipe)
    build(TINY, tmp_path / "theirs", recipe, THEIRS)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


@pytest.mark.slow
def test_a_tokenizer_that_cannot_be_followed_is_refused_in_one_line_of_our_own(tmp_path: Path) -> None:
    link_files(TINY, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer.json").unlink()
    with pytest.raises(StepError, match=r"^\S+/checkpoint holds no tokenizer\.json") as refused:
        build_onnx(
            tmp_path / "checkpoint",
            tmp_path / "onnx",
            Recipe("fp32", "fp32"),
            ExecutionProvider.cpu,
            tmp_path / "builder.log",
        )
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.slow
def test_the_weights_are_never_all_in_memory_as_fp32(tmp_path: Path) -> None:
    size = Size(layers=24, hidden=512, intermediate=2048, heads=8)
    make_checkpoint(tmp_path / "checkpoint", size)
    recipe = Recipe("int4", "int4")
    theirs = build(tmp_path / "checkpoint", tmp_path / "theirs", recipe, THEIRS)
    ours = build(tmp_path / "checkpoint", tmp_path / "ours", recipe)
    fp32 = 4 * size.parameters
    assert ours < theirs - 0.7 * fp32
