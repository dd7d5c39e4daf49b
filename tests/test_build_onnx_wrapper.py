"""The ONNX build computes what the checkpoint computes, across its sliding window, and says so when it cannot."""

import json
from pathlib import Path

import mlflow
import numpy as np
import numpy.typing as npt
import pytest
import torch
from mlflow.exceptions import MlflowException
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from steps.build_onnx_wrapper import fetch_prebuilt
from steps.checkpoint.checks import known_architectures
from steps.config.command_line import compose_config
from steps.config.onnx import BuildOnnxWrapper
from steps.logged_models.logged_model import logged_folder
from steps.logged_models.process import candidate
from steps.onnx_build.source import (
    SLIDING_WINDOW,
    completed_checkpoint,
    equal_position_limits,
    layer_types,
    norm_epsilon,
)
from steps.records.errors import StepError
from steps.records.tags import outputs
from steps.wrappers.onnx.tokenizer import ChatTokenizer
from tests.conftest import TINY, do_step
from tests.families import export_as_it_is, logits_of
from tests.hub_server import Hub, serving_hub

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


@pytest.mark.slow
@pytest.mark.parametrize("length", [WINDOW // 2, WINDOW, WINDOW + 1, 2 * WINDOW + 3, 300])
def test_logits_are_those_of_transformers_below_across_and_far_beyond_the_window(
    fp32: Path, tokens: list[int], reference: Logits, length: int
) -> None:
    difference = np.abs(logits_of(fp32, tokens[:length]) - reference[:length])
    assert difference.max() <= 1e-3


@pytest.mark.slow
def test_the_naive_export_forgets_the_window(tmp_path: Path, tokens: list[int], reference: Logits) -> None:
    difference = np.abs(logits_of(export_as_it_is(TINY, tmp_path), tokens) - reference).max(axis=1)
    assert difference[:WINDOW].max() <= 1e-3
    assert difference[WINDOW + 1 :].max() > 0.1


@pytest.mark.slow
def test_a_build_holds_what_the_wrapper_needs(fp32: Path) -> None:
    names = {path.name for path in fp32.iterdir()}
    assert {"genai_config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"} <= names


def test_a_checkpoint_is_linked_and_left_as_it_is(tmp_path: Path) -> None:
    before = (TINY / "config.json").read_bytes()
    folder = completed_checkpoint(TINY, tmp_path / "source")
    layers = json.loads(before)["num_hidden_layers"]
    assert json.loads((folder / "config.json").read_text())["layer_types"] == ["sliding_attention"] * layers
    assert (folder / "model.safetensors").is_symlink()
    assert (TINY / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "phi3"},
        {"model_type": "phi3", "sliding_window": None},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "phi3", "sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]},
        # In transformers no layer has it, each second one, and those from max_window_layers on.
        {"model_type": "llama", "sliding_window": 64},
        {"model_type": "gemma2", "sliding_window": 64},
        {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1},
    ],
)
def test_a_config_that_needs_no_mending_is_used_as_it_is(config: dict[str, object]) -> None:
    assert layer_types({"num_hidden_layers": 2, **config}) == {}


def test_the_epsilon_of_the_norms_is_stated_by_the_name_that_the_builder_knows() -> None:
    assert norm_epsilon({"layer_norm_eps": 1e-5}) == norm_epsilon({"norm_eps": 1e-5}) == {"rms_norm_eps": 1e-5}
    assert norm_epsilon({"rms_norm_eps": 1e-6, "norm_eps": 1e-5}) == norm_epsilon({}) == {}


def test_a_phi_3_with_equal_position_limits_of_positions_is_not_taken_for_longrope() -> None:
    config = {"model_type": "phi3", "max_position_embeddings": 2048}
    assert equal_position_limits(config) == {"original_max_position_embeddings": 2048}
    assert equal_position_limits(config | {"original_max_position_embeddings": 2048}) == {}
    assert equal_position_limits(config | {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}) == {}
    assert equal_position_limits(config | {"model_type": "llama"}) == {}


def test_a_mistral_that_states_no_window_has_that_of_transformers() -> None:
    added = layer_types({"model_type": "mistral", "num_hidden_layers": 1})
    assert added == {"sliding_window": 4096, "layer_types": ["sliding_attention"]}


@pytest.mark.parametrize("architecture", sorted(known_architectures()))
def test_a_family_with_windows_states_their_layers_or_has_one_in_every_layer(architecture: str) -> None:
    kinds = [kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == architecture]
    for kind in kinds:  # none for those that only run code of their repository
        has_window = "sliding_window" in AutoConfig.for_model(kind).to_dict()
        states_layers = getattr(AutoConfig.for_model(kind, sliding_window=64), "layer_types", None) is not None
        assert (has_window and not states_layers) == (kind in SLIDING_WINDOW)
        if kind in SLIDING_WINDOW:
            assert AutoConfig.for_model(kind).sliding_window == SLIDING_WINDOW[kind]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["int4_cuda", "fp16_cuda"])
def test_a_build_for_cuda_is_made_without_a_gpu_and_says_what_it_needs(store: str, preset: str) -> None:
    fetched = do_step("fetch_model", compose_config([]))
    built = do_step("build_onnx_wrapper", compose_config([f"onnx={preset}", f"fetch_run_id={fetched.info.run_id}"]))
    uri = outputs(built)["model_uri"]
    needs = "this ONNX model was built for CUDA: it needs onnxruntime-genai-cuda and an NVIDIA GPU"
    with logged_folder(uri) as folder:
        asked = (folder / "requirements.txt").read_text().splitlines()
        assert [line for line in asked if line.startswith("onnxruntime")] == ["onnxruntime-genai-cuda==0.18.0"]
        with pytest.raises(MlflowException, match=f"^{needs}$"):
            mlflow.pyfunc.load_model(str(folder))
        # evaluate's way to load it: exit 1, and one line.
        with (
            pytest.raises(StepError, match=f"^candidate onnx cannot be loaded here: {needs}$"),
            candidate("onnx", folder) as loaded,
        ):
            _ = loaded.load_seconds


PREBUILT = "cpu_and_mobile/int4"


def prebuilt(hub: Hub, files: dict[str, bytes]) -> list[str]:
    """Put *files* into the folder PREBUILT of a repository of *hub*, and return what chooses it."""
    card = {"README.md": b"---\nlicense: mit\n---\n"}
    commit = hub.repository("someone/onnx").commit(card | {f"{PREBUILT}/{name}": data for name, data in files.items()})
    where = ["repo_id=someone/onnx", f"revision={commit}", f"folder={PREBUILT}"]
    return ["onnx=prebuilt", *(f"build_onnx_wrapper.{each}" for each in where)]


@pytest.mark.slow
def test_a_prebuilt_onnx_folder_of_a_repository_is_wrapped_as_it_is(fp32: Path, store: str, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in fp32.iterdir()}
    # As Microsoft's are: named after what is in them.
    settings = json.loads(files["genai_config.json"])
    settings["model"]["decoder"]["filename"] = "phi3-int4.onnx"
    files |= {"phi3-int4.onnx": files.pop("model.onnx"), "genai_config.json": json.dumps(settings).encode()}
    with serving_hub(tmp_path / "huggingface") as hub:
        chosen = prebuilt(hub, files)
        fetched = do_step("fetch_model", compose_config(chosen))
        built = do_step("build_onnx_wrapper", compose_config([*chosen, f"fetch_run_id={fetched.info.run_id}"]))
    manifest = json.loads(mlflow.artifacts.load_text(f"{built.info.artifact_uri}/snapshot/manifest.json"))
    assert manifest["location"] == "someone/onnx"
    answer = json.loads(mlflow.artifacts.load_text(f"{built.info.artifact_uri}/answer.json"))["answer"]
    assert answer == "The capital of Spain is Madrid."
    with logged_folder(outputs(built)["model_uri"]) as folder:
        assert {path.name for path in folder.rglob("*")} >= {"phi3-int4.onnx", "tokenizer.json"}


@pytest.mark.parametrize("name", ["genai_config.json", "model.onnx", "tokenizer.json"])
def test_a_prebuilt_onnx_folder_that_lacks_a_file_is_refused(name: str, store: str, tmp_path: Path) -> None:
    settings = {"model": {"decoder": {"filename": "model.onnx"}}}
    files = {
        "genai_config.json": json.dumps(settings).encode(),
        "tokenizer_config.json": b"{}",
        "tokenizer.json": b"{}",
    }
    files |= {"model.onnx": b"onnx" * 500, "another.onnx": b"onnx" * 500}
    del files[name]
    with serving_hub(tmp_path / "huggingface") as hub:
        chosen = compose_config(prebuilt(hub, files)).build_onnx_wrapper
        with pytest.raises(StepError, match=rf"/{PREBUILT} lacks {name}: choose a folder"), mlflow.start_run():
            fetch_prebuilt(tmp_path / "onnx", chosen, offline=False)


def test_tokens_that_only_the_map_of_special_tokens_names_are_known_to_a_prebuilt_model(
    store: str, tmp_path: Path
) -> None:
    settings = {"model": {"decoder": {"filename": "model.onnx"}}}
    files = {
        "genai_config.json": json.dumps(settings).encode(),
        "tokenizer_config.json": b'{"chat_template": "{{ bos_token }}{{ messages[0].content }}"}',
        "special_tokens_map.json": b'{"bos_token": {"content": "<s>", "lstrip": false}}',
        "tokenizer.json": (TINY / "tokenizer.json").read_bytes(),
        "model.onnx": b"onnx" * 500,
    }
    with serving_hub(tmp_path / "huggingface") as hub:
        chosen = compose_config(prebuilt(hub, files)).build_onnx_wrapper
        with mlflow.start_run():
            fetch_prebuilt(tmp_path / "onnx", chosen, offline=False)
    assert ChatTokenizer(tmp_path / "onnx").render([{"role": "user", "content": "hi"}]) == "<s>hi"
    assert json.loads((tmp_path / "onnx" / "special_tokens_map.json").read_text())


def test_what_a_cache_holds_beside_the_files_of_the_manifest_stays_there(store: str, tmp_path: Path) -> None:
    settings = {"model": {"decoder": {"filename": "model.onnx"}}}
    files = {"genai_config.json": json.dumps(settings).encode(), "tokenizer_config.json": b"{}"}
    files |= {"tokenizer.json": b"{}", "model.onnx": b"onnx" * 500}
    with serving_hub(tmp_path / "huggingface") as hub:
        chosen = compose_config(prebuilt(hub, files)).build_onnx_wrapper
        with mlflow.start_run():
            fetch_prebuilt(tmp_path / "first", chosen, offline=False)
            (cached,) = (tmp_path / "huggingface").rglob("genai_config.json")
            (cached.parent / "modeling.py").write_text("import os")
            fetch_prebuilt(tmp_path / "second", chosen, offline=False)
    assert {path.name for path in (tmp_path / "second").iterdir()} == set(files)
