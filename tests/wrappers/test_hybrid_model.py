"""A model whose layers keep another state than a KV cache: it can neither be padded nor rewound."""

from itertools import count
from typing import Any

import pytest

from steps.config.onnx import ExecutionProvider
from steps.onnx_build.export import build_onnx
from steps.records.onnx_recipes import Recipe
from steps.wrappers.onnx.engine.og_model import OgModel
from steps.wrappers.onnx.engine.runner import measured_cost
from steps.wrappers.onnx.engine.scheduler import Scheduler
from steps.wrappers.onnx.engine.sequence import Sequence

from .conftest import llama_tokenizer, save_tokenizer

IDS = count()


@pytest.fixture(scope="module")
def lfm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[OgModel, Any]:
    """Return LFM2 with a layer of convolution and one of attention, as og and as transformers have it."""
    import torch
    from transformers import AutoModelForCausalLM, Lfm2Config

    folder = tmp_path_factory.mktemp("lfm2")
    tokenizer = save_tokenizer(llama_tokenizer(), folder)
    config = Lfm2Config(
        vocab_size=-(-len(tokenizer) // 32) * 32,
        hidden_size=64,
        intermediate_size=128,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        layer_types=["conv", "full_attention"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config)
    theirs.save_pretrained(folder)
    build_onnx(folder, folder / "onnx", Recipe("fp32", "fp32"), ExecutionProvider.cpu, folder / "builder.log")
    return OgModel(folder / "onnx", 1), theirs


def test_answers_are_those_of_transformers_alone_together_one_after_the_other_and_again(lfm2: Any) -> None:
    import torch

    model, theirs = lfm2
    scheduler = Scheduler(model, measured_cost(model), 8, 4096, 2048)
    prompts = [[20 + 7 * at % 300 for at in range(length)] for length in (30, 40, 40, 300)]
    with torch.no_grad():
        expected = [
            theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0][len(prompt) :].tolist()
            for prompt in prompts
        ]
    for together in ([0], [0], [0, 1], [1, 2], [0, 1, 2, 3], [3]):
        sequences = [Sequence(next(IDS), prompts[at], 8, 0, 1, 0, [0, 0], None, stream=True) for at in together]
        for each in sequences:
            scheduler.add(each)
        while not scheduler.idle:
            assert not scheduler.step()[1]
        assert [each.tokens for each in sequences] == [expected[at] for at in together]
    assert scheduler.stats.prefix_cache == 0
