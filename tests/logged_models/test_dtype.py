"""A model computes in a dtype that this machine's CPU knows, and keeps its weights."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from steps.logged_models.dtype import NATIVE, describe_dtype, use_fast_dtype


@pytest.fixture
def model() -> LlamaForCausalLM:
    """Return a model of a few thousand random weights in bf16."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        dtype="bfloat16",
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def cpu_with(monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    """Let torch report a CPU with these *capabilities*."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(capabilities, True))


def test_bf16_that_the_cpu_would_emulate_becomes_fp32_with_the_same_weights(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_with(monkeypatch, "avx2")
    before = model.lm_head.weight.clone()

    use_fast_dtype(model)

    assert model.dtype == torch.float32
    assert torch.equal(model.lm_head.weight, before.float())
    assert describe_dtype(model) == "float32 (checkpoint: bfloat16)"


@pytest.mark.parametrize("capability", NATIVE["bfloat16"])
def test_bf16_that_the_cpu_knows_stays(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    cpu_with(monkeypatch, capability)

    use_fast_dtype(model)

    assert model.dtype == torch.bfloat16
    assert describe_dtype(model) == "bfloat16"


def test_a_model_that_would_not_fit_into_memory_stays(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, "avx2")
    monkeypatch.setattr("steps.logged_models.dtype.available_memory", lambda: 100.0)  # a container's limit counts

    use_fast_dtype(model)

    assert model.dtype == torch.bfloat16
