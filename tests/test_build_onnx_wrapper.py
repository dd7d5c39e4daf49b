"""The ONNX build computes what the checkpoint computes, across its sliding window, and says so when it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM

from steps.build_onnx_wrapper import build_onnx, mend_window
from steps.flow.command_line import compose_config
from steps.flow.errors import StepError
from steps.flow.files import describe, digest, files_below
from steps.flow.schema import BuildOnnxWrapper
from tests.conftest import ROOT

TINY = ROOT / "models" / "tiny_phi3"
WINDOW = json.loads((TINY / "config.json").read_text())["sliding_window"]
Logits = npt.NDArray[np.float32]


def options(*overrides: str) -> BuildOnnxWrapper:
    return compose_config(list(overrides)).build_onnx_wrapper


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    """Return 300 token ids: almost five windows."""
    return torch.randint(10, 1000, (300,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def reference(tokens: list[int]) -> Logits:
    """Return the logits of transformers, [position, vocabulary]."""
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(TINY)(torch.tensor([tokens])).logits
    array: Logits = logits[0].numpy()
    return array


def logits_of(folder: Path, tokens: list[int]) -> Logits:
    """Return the logits of the ONNX model in *folder*, [position, vocabulary]."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    feeds: dict[str, npt.NDArray[np.generic]] = {
        "input_ids": np.array([tokens], dtype=np.int64),
        "attention_mask": np.ones((1, len(tokens)), dtype=np.int64),
    }
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), dtype=np.float32)
    feeds |= {each.name: empty for each in session.get_inputs() if each.name.startswith("past_key_values")}
    logits: Logits = session.run(["logits"], feeds)[0][0]
    return logits


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an fp32 build."""
    folder = tmp_path_factory.mktemp("fp32")
    build_onnx(TINY, folder / "onnx", options("onnx=fp32_cpu"), folder / "builder.log")
    return folder / "onnx"


@pytest.mark.parametrize("length", [WINDOW // 2, WINDOW, WINDOW + 1, 2 * WINDOW + 3, 300])
def test_logits_are_those_of_transformers_below_across_and_far_beyond_the_window(
    fp32: Path, tokens: list[int], reference: Logits, length: int
) -> None:
    difference = np.abs(logits_of(fp32, tokens[:length]) - reference[:length])
    assert difference.max() <= 1e-3


def test_the_naive_export_forgets_the_window(tmp_path: Path, tokens: list[int], reference: Logits) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(TINY), "-o", str(tmp_path / "onnx")]
    command += ["-p", "fp32", "-e", "cpu", "-c", str(tmp_path / "cache")]
    command += ["--extra_options", "hf_token=false", "windowed_kv_cache=false"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    difference = np.abs(logits_of(tmp_path / "onnx", tokens) - reference).max(axis=1)
    assert difference[:WINDOW].max() <= 1e-3
    assert difference[WINDOW + 1 :].max() > 0.1


def test_a_build_holds_what_the_wrapper_needs(fp32: Path) -> None:
    names = {path.name for path in fp32.iterdir()}
    assert {"genai_config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"} <= names


def test_a_checkpoint_is_linked_and_left_as_it_is(tmp_path: Path) -> None:
    before = (TINY / "config.json").read_bytes()
    folder = mend_window(TINY, tmp_path / "source")
    layers = json.loads(before)["num_hidden_layers"]
    assert json.loads((folder / "config.json").read_text())["layer_types"] == ["sliding_attention"] * layers
    assert (folder / "model.safetensors").is_symlink()
    assert (TINY / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "architecture",
    [
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 2, "sliding_window": None},
        {"num_hidden_layers": 2, "sliding_window": 64, "use_sliding_window": False},
        {"num_hidden_layers": 2, "sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]},
    ],
)
def test_a_config_that_needs_no_mending_is_used_as_it_is(tmp_path: Path, architecture: dict[str, object]) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(architecture))
    assert (mend_window(checkpoint, tmp_path / "source") / "config.json").is_symlink()


def test_an_architecture_that_the_builder_lacks_is_an_error_of_one_line(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for path in TINY.iterdir():
        if path.suffix in (".json", ".safetensors"):
            (checkpoint / path.name).symlink_to(path)
    (checkpoint / "config.json").unlink()
    architecture = json.loads((TINY / "config.json").read_text()) | {"architectures": ["NovelForCausalLM"]}
    (checkpoint / "config.json").write_text(json.dumps(architecture))
    with pytest.raises(StepError, match="does not know the architecture NovelForCausalLM") as caught:
        build_onnx(checkpoint, tmp_path / "onnx", options(), tmp_path / "builder.log")
    assert "\n" not in str(caught.value)
    assert "Traceback" in (tmp_path / "builder.log").read_text()


def test_two_builds_of_one_checkpoint_are_the_same_to_the_last_byte(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "another"):
        folder = tmp_path / name / "onnx"
        build_onnx(TINY, folder, options(), tmp_path / f"{name}.log")
        digests.add(digest(describe(files_below(folder), folder)))
    assert len(digests) == 1
