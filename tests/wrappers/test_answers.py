"""What the model answers: transformers' text, by the options of each row."""

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from .asking import HARD_TEXT, ask, text_of
from .conftest import CONTROL_TOKENS


def transformers_answer(checkpoint: Path, messages: list[dict[str, str]], max_tokens: int) -> tuple[str, int]:
    """Return transformers' greedy answer and its number of tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=max_tokens, do_sample=False)[0][ids.shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True), len(answer)


def test_greedy_answers_are_those_of_transformers(chat: Any, checkpoint: Path) -> None:
    rows = [ask(text, max_tokens=100) for text in (*HARD_TEXT[:6], "long enough for the window " * 12)]
    # One batch, so that rows of different length are padded.
    for row, answer in zip(rows, chat.predict(rows), strict=True):
        expected, tokens = transformers_answer(checkpoint, row["messages"], 100)
        assert text_of(answer) == expected
        assert answer["usage"]["completion_tokens"] == tokens


def test_an_answer_is_a_chat_completion(chat: Any, checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    row = ask("hello", max_tokens=5)
    (answer,) = chat.predict(row)
    prompt = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(row["messages"], add_generation_prompt=True)[
        "input_ids"
    ]
    assert answer.pop("id").startswith("chatcmpl-")
    assert abs(answer.pop("created") - time.time()) < 60
    message = {"role": "assistant", "content": text_of(answer)}
    assert answer == {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": 5, "total_tokens": len(prompt) + 5},
    }


def test_an_answer_that_ignores_end_tokens_has_as_many_tokens_as_were_asked_for(chat: Any) -> None:
    rows = [ask(f"word {n}", max_tokens=100) for n in range(30)]
    ended = [
        row
        for row, answer in zip(rows, chat.predict(rows), strict=True)
        if answer["choices"][0]["finish_reason"] == "stop"
    ]
    assert ended
    for options in ({}, {"temperature": 1.0, "seed": 1}, {"logprobs": True}):
        for answer in chat.predict([{**row, "ignore_eos": True, **options} for row in ended]):
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["completion_tokens"] == 100


def test_an_end_token_ends_the_answer_and_is_not_shown(chat: Any) -> None:
    # Random weights end now and then; find a prompt for which they do.
    answers = chat.predict([ask(f"word {n}", max_tokens=100) for n in range(30)])
    ended = [answer for answer in answers if answer["choices"][0]["finish_reason"] == "stop"]
    assert ended
    assert all(answer["usage"]["completion_tokens"] < 100 for answer in ended)
    assert not any(token in text_of(answer) for answer in answers for token in CONTROL_TOKENS)


def test_the_default_length_is_the_model_configs(chat: Any) -> None:
    lengths = [answer["usage"]["completion_tokens"] for answer in chat.predict([ask("a b"), ask("c d")])]
    assert max(lengths) == 40


def test_a_stop_string_ends_the_answer_and_is_not_shown(chat: Any) -> None:
    whole = text_of(chat.predict(ask("hello", max_tokens=60))[0])
    for start in range(3, len(whole) - 4, 5):
        stop = whole[start : start + 4]  # begins and ends within tokens as well as between them
        before = whole[: whole.index(stop)]
        for given in (stop, [stop], ["never seen", stop, stop + "?"]):
            (answer,) = chat.predict(ask("hello", max_tokens=60, stop=given))
            assert text_of(answer) == before
            assert answer["choices"][0]["finish_reason"] == "stop"
        chunks = list(chat.predict_stream(ask("hello", max_tokens=60, stop=stop)))
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == before


def test_the_same_seed_gives_the_same_text(chat: Any) -> None:
    row = ask("hello", temperature=1.2, seed=2**62, max_tokens=30)
    alone = text_of(chat.predict(row)[0])
    others = [ask("other words", temperature=1, seed=n, max_tokens=30) for n in range(3)]
    assert text_of(chat.predict([*others, row])[3]) == alone
    assert text_of(chat.predict({**row, "seed": -1})[0]) != alone
    unseeded = {text_of(chat.predict(ask("hello", temperature=1.2))[0]) for _ in range(3)}
    assert len(unseeded) > 1


def test_n_gives_n_choices(chat: Any) -> None:
    (answer,) = chat.predict(ask("hello", n=3, temperature=1, seed=1, max_tokens=20))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({text_of(answer, n) for n in range(3)}) == 3
    assert answer["usage"]["completion_tokens"] > 40
    assert text_of(chat.predict(ask("hello", temperature=1, seed=1, max_tokens=20))[0]) == text_of(answer)


@pytest.mark.parametrize("option", [{"top_k": 1}, {"top_p": 0}, {"temperature": 1e-5}, {"temperature": 0}])
def test_the_narrowest_options_are_greedy(chat: Any, option: dict[str, float]) -> None:
    greedy = chat.predict(ask("hello"))[0]
    answer = chat.predict(ask("hello", **{"temperature": 2, "seed": 3, **option}))[0]
    assert text_of(answer) == text_of(greedy)


def test_every_row_has_options_of_its_own(chat: Any) -> None:
    rows = [
        ask("hello", max_tokens=3),
        ask("hello there, what is the capital of Spain?" * 3, temperature=1.5, seed=4),
        ask("hello", n=2, stop="e", max_tokens=200),
        ask("hello", response_format={"type": "json_object"}, max_tokens=12),
    ]
    alone = [[text_of(chat.predict(row)[0], n) for n in range(row.get("n", 1))] for row in rows]
    for together in (rows, pd.DataFrame(rows)):  # a table shows what a row leaves out as NaN
        answers = chat.predict(together)
        assert [[text_of(answer, n) for n in range(len(answer["choices"]))] for answer in answers] == alone


def test_an_answer_in_json_follows_its_schema(chat: Any) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"enum": ["Ana", "Bo"]},
            "ages": {"type": "array", "items": {"enum": [1, 22]}, "maxItems": 3},
        },
        "required": ["name", "ages"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    seen = set()
    for seed in range(8):
        (answer,) = chat.predict(ask("hello", response_format=form, temperature=2, seed=seed, top_k=3, max_tokens=100))
        value = json.loads(text_of(answer))
        assert text_of(answer) == json.dumps(value)  # no white space to get lost in
        assert value["name"] in ("Ana", "Bo")
        assert set(value["ages"]) <= {1, 22}
        assert answer["choices"][0]["finish_reason"] == "stop"
        seen.add(text_of(answer))
    assert len(seen) > 1
