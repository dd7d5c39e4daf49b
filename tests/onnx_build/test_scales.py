"""Scales in 16 bits: the same model in fewer bytes."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from steps.onnx_build.external_data import MODEL, mapped
from steps.onnx_build.scales import QUANTISED, halve_scales
from steps.onnx_build.shared_embedding import share_embedding
from steps.records.onnx_recipes import Recipe
from tests.families import logits_of

from .conftest import build

pytestmark = pytest.mark.slow

TOKENS = list(range(3, 300, 7))
# In fp32 arithmetic: 8-bit activations would round once more or less.
RECIPES = (
    Recipe("int4", "int4", accuracy_level=0),
    Recipe("int4_mixed", "int4", algorithm="k_quant_mixed", accuracy_level=0),
    Recipe("int8_shared", "int8", accuracy_level=0, shared_embedding=True),
)


@pytest.fixture(scope="module", params=RECIPES, ids=lambda recipe: recipe.name)
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """Return a build as the builder writes it, the same with its scales in 16 bits, and the bytes that this saved."""
    folder = build(request.param, tmp_path_factory.mktemp("scales"), tied=True)
    if request.param.shares_after_the_build:
        share_embedding(folder)
    halved = shutil.copytree(folder, folder.parent / "halved")
    return folder, halved, halve_scales(halved)


def scales_in(folder: Path) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Return the scales in the data file of the model in *folder*, by name."""
    graph = onnx.load(folder / MODEL, load_external_data=False).graph
    names = {node.input[2] for node in graph.node if node.op_type in QUANTISED}
    return {each.name: mapped(folder, each) for each in graph.initializer if each.name in names and each.external_data}


def test_the_logits_stay_the_same(builds: tuple[Path, Path, int]) -> None:
    whole, halved = (logits_of(folder, TOKENS) for folder in builds[:2])
    assert (halved - whole).std() < 0.005 * whole.std()


def test_each_scale_takes_two_bytes_less(builds: tuple[Path, Path, int]) -> None:
    whole, halved, saved = builds
    assert saved == 2 * sum(scales.size for scales in scales_in(whole).values()) > 0
    assert saved == (whole / "model.onnx.data").stat().st_size - (halved / "model.onnx.data").stat().st_size
    assert not scales_in(halved)


def test_scales_in_16_bits_already_stay_as_they_are(builds: tuple[Path, Path, int]) -> None:
    before = {path.name: path.read_bytes() for path in builds[1].iterdir()}
    assert halve_scales(builds[1]) == 0
    assert {path.name: path.read_bytes() for path in builds[1].iterdir()} == before


def test_scales_that_16_bits_cannot_hold_stay_as_they_are(builds: tuple[Path, Path, int], tmp_path: Path) -> None:
    folder = shutil.copytree(builds[0], tmp_path / "onnx")
    name, scales = next(iter(scales_in(folder).items()))
    graph = onnx.load(folder / MODEL, load_external_data=False).graph
    (tensor,) = (each for each in graph.initializer if each.name == name)
    offset = int(next(entry.value for entry in tensor.external_data if entry.key == "offset"))
    tiny = np.full(scales.shape, 1e-7, dtype=np.float32)
    with (folder / "model.onnx.data").open("r+b") as data:
        data.seek(offset)
        data.write(tiny.tobytes())
    halve_scales(folder)
    assert list(scales_in(folder)) == [name]
    assert (scales_in(folder)[name] == tiny).all()
