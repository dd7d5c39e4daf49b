"""Log probabilities of the tokens of an answer: those that transformers computes for the same text."""

from pathlib import Path
from typing import Any

import pytest

from .asking import HARD_TEXT, ask, output_for, text_of


def of_transformers(checkpoint: Path, prompt: list[int], answer: list[int]) -> Any:
    """Return the log probabilities of every token of the vocabulary at each position of *answer*."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).numpy()


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_they_are_those_of_the_checkpoint_in_a_batch_whatever_the_temperature(
    chat: Any, checkpoint: Path, temperature: float
) -> None:
    model = chat.unwrap_python_model()
    options = {"logprobs": 3, "max_tokens": 12, "temperature": temperature, "seed": 5}
    outputs = [output_for(model, text, **options) for text in HARD_TEXT[:4]]
    with model.engine.generating(outputs):
        for output in outputs:
            output.finished.wait()
    for output in outputs:
        expected = of_transformers(checkpoint, output.request.prompt, output.tokens)
        assert len(output.logprobs) >= 11  # an end token has none
        for (logprob, alternatives), token, row in zip(output.logprobs, output.tokens, expected, strict=False):
            assert logprob == pytest.approx(row[token], abs=1e-3)
            assert [value for _token, value in alternatives] == pytest.approx(sorted(row)[:-4:-1], abs=1e-3)


def test_an_answer_states_them_only_if_asked(chat: Any) -> None:
    plain, asked = chat.predict([ask("hello", max_tokens=5), ask("hello", max_tokens=5, logprobs=True)])
    assert "logprobs" not in plain["choices"][0]
    content = asked["choices"][0]["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == text_of(asked) == text_of(plain)
    assert [each["top_logprobs"] for each in content] == [[]] * 5


def test_the_chunks_of_a_stream_state_those_of_the_whole_answer(chat: Any) -> None:
    request = ask("hello", max_tokens=8, logprobs=True, top_logprobs=1)
    (whole,) = chat.predict(request)
    chunks = list(chat.predict_stream(request))
    parts = [chunk["choices"][0].get("logprobs", {"content": []})["content"] for chunk in chunks]
    assert [each for part in parts for each in part] == whole["choices"][0]["logprobs"]["content"]


def test_a_token_that_is_part_of_a_character_has_no_bytes(chat: Any) -> None:
    tokenizer = chat.unwrap_python_model().tokenizer
    parts = [token for token in tokenizer.encode_prompt("ᚠ") if "\ufffd" in tokenizer.token_text(token, is_first=False)]
    assert parts
