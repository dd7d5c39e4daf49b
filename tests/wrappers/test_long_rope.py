"""LongRoPE: beyond 4,096 tokens a Phi-3.5 or Phi-4-mini has other positions for the whole sequence."""

from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from steps.config.onnx import ExecutionProvider
from steps.onnx_build.export import build_onnx
from steps.records.onnx_recipes import Recipe
from steps.serving.transformers_model import TorchEngine
from steps.wrappers.onnx.engine.og_model import LONG_ROPE_LIMIT, OgModel
from steps.wrappers.onnx.engine.runner import StepCost
from steps.wrappers.onnx.engine.scheduler import Scheduler
from steps.wrappers.onnx.engine.sequence import Sequence
from steps.wrappers.onnx.output import RequestOutput
from steps.wrappers.onnx.request import read_request
from steps.wrappers.onnx.tokenizer import ChatTokenizer

from .asking import generate
from .conftest import llama_tokenizer, save_tokenizer

IDS = count()
TOKENS = 3


@pytest.fixture(scope="module")
def long_rope(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, OgModel]:
    """Return a Phi-3 with LongRoPE in transformers, and its fp32 build."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    folder = tmp_path_factory.mktemp("long_rope")
    tokenizer = save_tokenizer(llama_tokenizer(), folder / "checkpoint")
    factors = {
        "short_factor": [1.0 + 0.1 * number for number in range(8)],
        "long_factor": [2.0 + 0.5 * number for number in range(8)],
    }
    config = Phi3Config(
        vocab_size=-(-len(tokenizer) // 32) * 32,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4 * LONG_ROPE_LIMIT,
        original_max_position_embeddings=LONG_ROPE_LIMIT,
        rope_parameters={"rope_type": "longrope", "type": "longrope", "rope_theta": 10000.0, **factors},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = Phi3ForCausalLM(config).eval()
    model.save_pretrained(folder / "checkpoint")
    build_onnx(
        folder / "checkpoint", folder / "onnx", Recipe("fp32", "fp32"), ExecutionProvider.cpu, folder / "builder.log"
    )
    return model, OgModel(folder / "onnx", 1)


def prompt_of(length: int) -> list[int]:
    """Return the first *length* tokens of one text."""
    return [10 + number * number % 311 for number in range(length)]


@cache
def expected(model: Any, length: int) -> list[int]:
    """Return the tokens that *model* continues a prompt of that *length* with, each computed without a cache."""
    import torch

    ids = prompt_of(length)
    with torch.inference_mode():
        for _ in range(TOKENS):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[length:]


def answers(engine: Scheduler, *lengths: int) -> list[list[int]]:
    """Return the tokens of sequences of those *lengths*, which begin together."""
    return generate(
        engine, [Sequence(next(IDS), prompt_of(length), TOKENS, 0, 1, 0, [], None, True) for length in lengths]
    )


LENGTHS = {"below": 4000, "across": 4095, "at": 4096, "just above": 4097, "above": 4500}


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_an_answer_is_the_checkpoint_s_below_across_and_above_the_limit(
    long_rope: tuple[Any, OgModel], length: int
) -> None:
    model, loaded = long_rope
    engine = Scheduler(loaded, StepCost(2, 1), 8, 40000, 20000)
    want = expected(model, length)
    others = [length - 40, 20]
    assert answers(engine, length) == [want]
    assert answers(engine, length) == [want], "after a kept prefix"
    assert answers(engine, length, *others) == [want, *(expected(model, other) for other in others)]
    assert answers(engine, length) == [want], "after the others"


def test_an_answer_with_a_schema_does_not_cross_the_limit(long_rope: tuple[Any, OgModel]) -> None:
    engine = Scheduler(long_rope[1], StepCost(2, 1), 8, 40000, 20000)
    for length, most in ((4090, 6), (4090, 7), (4097, 7)):
        engine.add(
            Sequence(length, prompt_of(length), most, 0, 1, 0, [], '{"type": "integer"}', True, "response_format")
        )
    errors = []
    while not engine.idle:
        errors += engine.step()[1]
    why = "is not usable in an answer across 4096 tokens: max_tokens may be 6 at most after this prompt"
    assert errors == [(4090, "refused", f"response_format {why}")]


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_an_answer_of_the_served_pipeline_is_the_checkpoint_s_too(
    long_rope: tuple[Any, OgModel], length: int, tmp_path: Path
) -> None:
    save_tokenizer(llama_tokenizer(), tmp_path)
    model = long_rope[0]
    want = expected(model, length)
    engine = TorchEngine(model, {})
    request = read_request({"max_tokens": TOKENS}, prompt_of(length), engine.context, TOKENS)
    output = RequestOutput(request, ChatTokenizer(tmp_path))
    engine.submit([output])
    assert output.finished.wait(600)
    assert (output.finish_reason, output.tokens) == ("length", want)
    engine.close()
