import io
from collections.abc import Mapping
from typing import Any

import pytest

from steps.evaluation.asking import ask, ask_one, progress
from steps.evaluation.tasks import Example


def reply(text: Any, tokens: int | None = 3) -> dict[str, Any]:
    """Return a Chat Completions response."""
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return {"choices": [{"message": {"role": "assistant", "content": text}}], **usage}


def test_every_example_is_asked_with_the_options_in_its_request(examples: list[Example]) -> None:
    requests = []

    def predict(request: dict[str, Any]) -> Mapping[str, Any]:
        requests.append(request)
        return reply(request["messages"][-1]["content"])

    asked = ask(predict, examples, {"max_tokens": 8}, warmup=0)

    assert [answer.example_id for answer in asked.answers] == [example.id for example in examples]
    assert asked.answers[3].text == "Question 3?"
    assert asked.answers[3].completion_tokens == 3
    assert requests[3] == {"messages": [{"role": "user", "content": "Question 3?"}], "max_tokens": 8}


def test_the_slow_first_answer_is_told_apart_from_the_timed_ones(
    examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, delays = [0.0], iter([8.0, *[0.5] * 10])
    monkeypatch.setattr("steps.evaluation.asking.time.perf_counter", lambda: now[0])

    def predict(request: dict[str, Any]) -> Mapping[str, Any]:
        now[0] += next(delays)
        return reply("x")

    asked = ask(predict, examples, {}, warmup=1)

    assert asked.first_answer_seconds == 8
    assert [answer.seconds for answer in asked.answers] == [0.5] * 10


def test_an_answer_tells_how_many_tokens_it_and_its_prompt_have(examples: list[Example]) -> None:
    response = {**reply("x"), "usage": {"prompt_tokens": 9, "completion_tokens": 3}}

    answer = ask_one(lambda _: response, examples[0], {})

    assert (answer.prompt_tokens, answer.completion_tokens) == (9, 3)


def test_a_crash_is_one_answers_error_and_the_rest_go_on(examples: list[Example]) -> None:
    def predict(request: dict[str, Any]) -> Mapping[str, Any]:
        if request["messages"][-1]["content"] == "Question 4?":
            raise RuntimeError("out of\nmemory")
        return reply("x")

    answers = ask(predict, examples, {}).answers

    assert answers[4].error == "RuntimeError: out of memory"
    assert [answer.error for answer in answers].count(None) == 9


def test_ctrl_c_stops_the_asking(examples: list[Example]) -> None:
    def predict(request: dict[str, Any]) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(predict, examples, {})


@pytest.mark.parametrize(
    ("response", "fact"),
    [
        ({}, "no choices[0].message.content"),
        ({"choices": []}, "no choices[0].message.content"),
        (reply(None), "is None, not a string"),
    ],
)
def test_a_malformed_response_is_an_error(examples: list[Example], response: dict[str, Any], fact: str) -> None:
    error = ask_one(lambda _: response, examples[0], {}).error

    assert error is not None
    assert fact in error


def test_a_blank_answer_is_no_error_and_no_answer(examples: list[Example]) -> None:
    answer = ask_one(lambda _: reply(" \n", tokens=None), examples[0], {})

    assert answer.error is None
    assert not answer.answered


def test_a_candidate_cannot_change_what_the_next_one_is_asked(examples: list[Example]) -> None:
    def predict(request: dict[str, Any]) -> Mapping[str, Any]:
        request["messages"][0]["content"] = "changed"
        return reply("x")

    ask_one(predict, examples[0], {})

    assert examples[0].messages == [{"role": "user", "content": "Question 0?"}]


def test_progress_in_a_log_is_a_few_lines() -> None:
    log = io.StringIO()
    on_answer = progress("onnx", log, lines=5)

    for done in range(1, 233):
        on_answer(done, 232)

    lines = log.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("onnx: 232/232 answers")
