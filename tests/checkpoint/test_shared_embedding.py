import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from steps.checkpoint.onnx_recipes import Recipe, builder_arguments
from steps.checkpoint.shared_embedding import share_embedding
from steps.records.errors import StepError
from tests.families import FAMILIES, logits_of, save_checkpoint

TOKENS = list(range(3, 300, 7))


def build(recipe: Recipe, folder: Path, **config: object) -> Path:
    checkpoint = save_checkpoint(FAMILIES["llama"], folder / "checkpoint", **config)
    command = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        str(checkpoint),
        "-o",
        str(folder / "onnx"),
    ]
    command += ["-e", "cpu", "-c", str(folder / "cache"), *builder_arguments(recipe)]
    subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, check=True)
    return folder / "onnx"


def size(folder: Path) -> int:
    return (folder / "model.onnx.data").stat().st_size


@pytest.fixture(scope="module", params=["default", "k_quant"])
def unshared_and_shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    recipe = Recipe("int8", "int8", algorithm=request.param)
    work = tmp_path_factory.mktemp("tied")
    unshared = build(recipe, work / "unshared", tie_word_embeddings=True)
    shared = build(recipe, work / "shared", tie_word_embeddings=True)
    share_embedding(shared)
    return unshared, shared


def test_a_shared_embedding_gives_the_logits_of_the_unshared_build(unshared_and_shared: tuple[Path, Path]) -> None:
    unshared, shared = map(lambda folder: logits_of(folder, TOKENS), unshared_and_shared)
    assert np.abs(shared - unshared).max() < 0.02 * np.abs(unshared).max()


def test_a_shared_embedding_takes_no_bytes_of_its_own(unshared_and_shared: tuple[Path, Path]) -> None:
    unshared, shared = unshared_and_shared
    config = json.loads((unshared.parent / "checkpoint" / "config.json").read_text())
    assert size(unshared) - size(shared) == config["vocab_size"] * config["hidden_size"] * 4
    onnx.checker.check_model(shared / "model.onnx")


def test_onnxruntime_genai_generates_with_a_shared_embedding(unshared_and_shared: tuple[Path, Path]) -> None:
    import onnxruntime_genai as og

    def generated(folder: Path) -> list[int]:
        model = og.Model(og.Config(str(folder)))
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=60, min_length=60, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array([TOKENS], dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)]

    unshared, shared = map(generated, unshared_and_shared)
    assert len(shared) == 60
    # The first tokens; later, the texts of two builds may part.
    assert shared[: len(TOKENS) + 4] == unshared[: len(TOKENS) + 4]


def test_an_embedding_that_differs_from_the_head_is_left_alone(tmp_path: Path) -> None:
    folder = build(Recipe("int8", "int8"), tmp_path, tie_word_embeddings=False)
    before = {path.name: path.read_bytes() for path in folder.glob("model*")}
    with pytest.raises(StepError, match="embedding differs from its head"):
        share_embedding(folder)
    assert {path.name: path.read_bytes() for path in folder.glob("model*")} == before


def test_a_model_whose_head_has_no_8_bits_is_left_alone(tmp_path: Path) -> None:
    folder = build(Recipe("fp32", "fp32"), tmp_path, tie_word_embeddings=False)
    with pytest.raises(StepError, match="no 8-bit head of 640 x 64"):
        share_embedding(folder)
