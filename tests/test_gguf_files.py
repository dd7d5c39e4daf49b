"""What the benchmarks write for llama.cpp is the checkpoint: transformers reads the GGUF and computes the same."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.gguf_files import weight_bytes, weight_types, write_gguf

IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 89, 79]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def test_a_llama_in_gguf_computes_what_its_checkpoint_does(checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(checkpoint, tmp_path / "llama.gguf")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="llama.gguf", dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        assert torch.allclose(read(IDS).logits, original(IDS).logits, atol=1e-3)


def test_matrices_are_fp16_and_norms_fp32_and_a_tied_embedding_is_there_once(checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(checkpoint, tmp_path / "llama.gguf")
    norms = 5 * 64
    matrices = 96 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
    assert weight_types(tmp_path / "llama.gguf") == {"F16": matrices, "F32": norms}
    assert weight_bytes(tmp_path / "llama.gguf") == 2 * matrices + 4 * norms
