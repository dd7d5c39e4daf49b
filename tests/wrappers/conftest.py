"""Tiny models for the wrappers' tests: random weights, but tokenizers, templates and exports of the real kinds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from steps.build_onnx_wrapper import copied_wrapper
from steps.wrappers.onnx.signatures import chat_signature, prompt_signature
from steps.wrappers.onnx.tokenizer import ChatTokenizer
from tests.families import CORPUS, sentencepiece_like

WRAPPERS = Path(__file__).resolve().parents[2] / "steps/wrappers"
CONTROL_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
TEMPLATE = """{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""


def llama_tokenizer() -> Tokenizer:
    """A space before every text, and bytes for what the vocabulary lacks: Llama 2, Phi-3."""
    return sentencepiece_like(CONTROL_TOKENS, every_text=True, rstrip=True)


def metaspace_tokenizer() -> Tokenizer:
    """A space before the first word only, put there by the pre-tokenizer: Llama 2 and Mistral, newer files."""
    return sentencepiece_like(CONTROL_TOKENS, every_text=False, rstrip=True)


def byte_level_tokenizer() -> Tokenizer:
    """Every byte a character of the vocabulary: GPT-2, Llama 3, Qwen.

    With NFC, as Qwen has it, and control tokens that are looked for after normalising, as GPT-2 has them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=True) for text in ("<s>", *CONTROL_TOKENS)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, template: str | None = TEMPLATE) -> Any:
    """Write the tokenizer's files to *folder* and return transformers' view of it."""
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
    )
    theirs.save_pretrained(folder)
    return theirs


TOKENIZERS = {"llama": llama_tokenizer, "metaspace": metaspace_tokenizer, "byte-level": byte_level_tokenizer}


@pytest.fixture(params=TOKENIZERS)
def tokenizers(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ChatTokenizer, Any]:
    """Return a tokenizer as the wrapper has it, and as transformers has it."""
    theirs = save_tokenizer(TOKENIZERS[request.param](), tmp_path)
    return ChatTokenizer(tmp_path), theirs


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Phi-3 checkpoint: 2 layers, context 512, sliding window 64, weights that make varied text."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = save_tokenizer(llama_tokenizer(), folder)
    config = Phi3Config(
        vocab_size=-(-len(tokenizer) // 32) * 32,  # filled up, as real ones are
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        original_max_position_embeddings=512,
        sliding_window=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    Phi3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def onnx_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint's fp32 export, with the sliding window that the builder would miss."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(checkpoint, source, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    config["layer_types"] = ["sliding_attention"] * config["num_hidden_layers"]
    (source / "config.json").write_text(json.dumps(config))
    target = tmp_path_factory.mktemp("onnx")
    subprocess.run(
        [
            *(sys.executable, "-m", "onnxruntime_genai.models.builder"),
            *("-i", source, "-o", target, "-p", "fp32", "-e", "cpu", "-c", source / "cache"),
            *("--extra_options", "hf_token=false", "windowed_kv_cache=false"),
        ],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"},
        check=True,
        capture_output=True,
    )
    return target


@pytest.fixture(scope="session")
def logged(onnx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the URIs of the model logged with either interface, in a store of its own."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        # Not mlflow.set_tracking_uri: other files' tests, and the processes they start, would inherit it.
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/store.db")
        experiment = mlflow.create_experiment("wrappers", artifact_location=str(folder / "artifacts"))
        folders = {}
        for interface, signature in (("chat", chat_signature()), ("prompt", prompt_signature())):
            with mlflow.start_run(experiment_id=experiment), copied_wrapper() as package:
                info = mlflow.pyfunc.log_model(
                    name="onnx",
                    python_model=str(WRAPPERS / "onnx_chat.py"),
                    artifacts={"onnx": str(onnx_folder), "wrapper": str(package)},
                    model_config={"interface": interface, "model_name": "tiny", "max_tokens": 40},
                    signature=signature,
                    pip_requirements=["mlflow"],
                )
            folders[interface] = mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(folder / interface))
    return folders


@pytest.fixture(scope="session")
def chat(logged: dict[str, str]) -> Any:
    """Return the chat model as MLflow loads it."""
    return mlflow.pyfunc.load_model(logged["chat"])


@pytest.fixture(scope="session")
def prompt(logged: dict[str, str]) -> Any:
    """Return the prompt model as MLflow loads it."""
    return mlflow.pyfunc.load_model(logged["prompt"])
