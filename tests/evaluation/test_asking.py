import io
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from steps.evaluation.asking import ask_one, ask_together, batches, progress
from steps.evaluation.tasks import Example


def reply(text: Any, tokens: int | None = 3) -> dict[str, Any]:
    """Return a Chat Completions response."""
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return {"choices": [{"message": {"role": "assistant", "content": text}}], **usage}


def test_a_question_is_asked_with_the_options_in_its_request(examples: list[Example]) -> None:
    requests = []

    def predict(request: dict[str, Any]) -> Mapping[str, Any]:
        requests.append(request)
        return reply(request["messages"][-1]["content"])

    answer = ask_one(predict, examples[3], {"max_tokens": 8})

    assert (answer.example_id, answer.text, answer.completion_tokens) == ("q3", "Question 3?", 3)
    assert answer.seconds is not None
    assert requests == [{"messages": [{"role": "user", "content": "Question 3?"}], "max_tokens": 8}]


def echo(chats: Sequence[list[dict[str, str]]], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Answer each of *chats* with its question, unless it is question 4."""
    if any(chat[-1]["content"] == "Question 4?" for chat in chats):
        raise RuntimeError("out of\nmemory")
    return [reply(chat[-1]["content"]) for chat in chats]


def test_questions_asked_together_are_answered_in_their_order_and_not_timed(examples: list[Example]) -> None:
    answers = ask_together(echo, examples[:4], {})

    assert [(answer.example_id, answer.text) for answer in answers] == [(f"q{n}", f"Question {n}?") for n in range(4)]
    assert {answer.seconds for answer in answers} == {None}


def test_one_question_that_fails_costs_the_others_of_its_batch_nothing(examples: list[Example]) -> None:
    answers = ask_together(echo, examples, {})

    assert answers[4].error == "RuntimeError: out of memory"
    assert [answer.error for answer in answers].count(None) == 9


def test_a_batch_holds_as_many_questions_as_its_memory_allows(examples: list[Example]) -> None:
    long = Example("long", [{"role": "user", "content": "x" * 3_000}], "y")

    sizes = [len(batch) for batch in batches([*examples * 7, long, long, *examples], 64)]

    assert sizes == [32, 32, 16, 1, 1], "long ones do not make the batches of short ones smaller"


def test_an_answer_tells_how_many_tokens_it_and_its_prompt_have(examples: list[Example]) -> None:
    response = {**reply("x"), "usage": {"prompt_tokens": 9, "completion_tokens": 3}}

    answer = ask_one(lambda _: response, examples[0], {})

    assert (answer.prompt_tokens, answer.completion_tokens) == (9, 3)


def test_ctrl_c_stops_the_asking(examples: list[Example]) -> None:
    def interrupt(*_: object) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask_one(interrupt, examples[0], {})
    with pytest.raises(KeyboardInterrupt):
        ask_together(interrupt, examples, {})


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
