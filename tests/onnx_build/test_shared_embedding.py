"""An embedding that is read from the head's 8 bits: the same logits in fewer bytes, or the folder as it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from steps.onnx_build.shared_embedding import share_embedding
from steps.records.errors import StepError
from steps.records.onnx_recipes import Recipe
from tests.families import logits_of

from .conftest import build

pytestmark = pytest.mark.slow

TOKENS = list(range(3, 300, 7))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Both forms of the head's weights: with scales alone, and with zero points.
@pytest.fixture(scope="module", params=["default", "k_quant"])
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the same int8 build with an embedding of its own and with a shared one."""
    work = tmp_path_factory.mktemp("tied")
    # In fp32 arithmetic, so that the embedding's 8 bits are the only difference between the two.
    unshared = build(Recipe("int8", "int8", algorithm=request.param, accuracy_level=0), work, tied=True)
    shared = shutil.copytree(unshared, work / "shared")
    share_embedding(shared)
    return unshared, shared


def test_a_shared_embedding_gives_the_logits_of_the_unshared_build(builds: tuple[Path, Path]) -> None:
    unshared, shared = (logits_of(folder, TOKENS) for folder in builds)
    assert (shared - unshared).std() < 0.05 * unshared.std()


def test_a_shared_embedding_takes_no_bytes_of_its_own(builds: tuple[Path, Path]) -> None:
    unshared, shared = ((folder / "model.onnx.data").stat().st_size for folder in builds)
    config = json.loads((builds[0].parent / "checkpoint" / "config.json").read_text())
    assert unshared - shared == config["vocab_size"] * config["hidden_size"] * 4
    assert sorted(files(builds[0])) == sorted(files(builds[1]))


def test_onnxruntime_genai_generates_with_a_shared_embedding(builds: tuple[Path, Path]) -> None:
    import onnxruntime_genai as og

    def generate(folder: Path) -> list[int]:
        params = og.GeneratorParams(model := og.Model(og.Config(str(folder))))
        params.set_search_options(max_length=len(TOKENS) + 4, min_length=len(TOKENS) + 4, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array([TOKENS], dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)]

    # That its logits are right is another test's: the likeliest tokens of random weights are near ties.
    shared = generate(builds[1])
    assert (shared[: len(TOKENS)], len(shared)) == (TOKENS, len(TOKENS) + 4)


def test_an_embedding_that_differs_from_the_head_is_left_alone(tmp_path: Path) -> None:
    folder = build(Recipe("int8", "int8"), tmp_path, tied=False)
    before = files(folder)
    with pytest.raises(StepError, match="embedding differs from its head"):
        share_embedding(folder)
    assert files(folder) == before


def test_a_model_whose_head_has_no_8_bits_is_left_alone(builds: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(builds[0], tmp_path / "onnx")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    (head,) = (node for node in model.graph.node if node.op_type == "MatMulNBits" and "logits" in node.output)
    head.op_type = "MatMul"
    onnx.save(model, folder / "model.onnx")
    before = files(folder)
    with pytest.raises(StepError, match="no 8-bit head of 384 x 64"):
        share_embedding(folder)
    assert files(folder) == before


def test_what_is_shared_already_is_left_alone(builds: tuple[Path, Path]) -> None:
    before = files(builds[1])
    with pytest.raises(StepError, match="0 unquantised embeddings"):
        share_embedding(builds[1])
    assert files(builds[1]) == before
