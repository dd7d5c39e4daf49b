"""A candidate's promises, tried on candidates that keep and break them."""

from collections.abc import Mapping
from typing import Any

import pytest

from steps.evaluation.asking import Predict
from steps.evaluation.contract import contract_metrics
from steps.evaluation.tasks import Example

FIELDS = ["messages", "max_tokens", "stop"]
WHOLE = "one two three four five six"
EXAMPLES = [Example("q", [{"role": "user", "content": "Count!"}], WHOLE)]


def response(text: str) -> Mapping[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def good(request: dict[str, Any]) -> Mapping[str, Any]:
    words = WHOLE.partition((request.get("stop") or ["never"])[0])[0].split()
    return response(" ".join(words[: request["max_tokens"]]))


def kept(predict: Predict, fields: list[str] = FIELDS) -> dict[str, float]:
    return contract_metrics(predict, EXAMPLES, 32, fields, lambda text: len(text.split()))


def test_a_candidate_that_keeps_all_has_1_of_each() -> None:
    assert kept(good) == {"contract.repeatable": 1, "contract.max_tokens": 1, "contract.stop": 1}


@pytest.mark.parametrize("field", ["max_tokens", "stop"])
def test_a_field_that_is_ignored_is_not_kept(field: str) -> None:
    asked = kept(lambda request: good({"max_tokens": 32} | {key: request[key] for key in request if key != field}))
    assert asked == {"contract.repeatable": 1, "contract.max_tokens": 1, "contract.stop": 1} | {f"contract.{field}": 0}


def test_an_answer_that_ends_with_the_stop_string_keeps_it_too() -> None:
    def including(request: dict[str, Any]) -> Mapping[str, Any]:
        return response("one two three" if "stop" in request else good(request)["choices"][0]["message"]["content"])

    assert kept(including)["contract.stop"] == 1


def test_a_candidate_that_answers_anew_each_time_is_not_repeatable() -> None:
    answers = iter(range(9))
    assert kept(lambda request: response(f"{next(answers)}"))["contract.repeatable"] == 0


def test_a_field_that_the_signature_does_not_have_is_not_asked_for() -> None:
    assert kept(good, ["messages"]) == {"contract.repeatable": 1}


def test_a_candidate_that_fails_keeps_nothing() -> None:
    def fail(request: dict[str, Any]) -> Mapping[str, Any]:
        raise RuntimeError("out of memory")

    assert kept(fail) == {"contract.repeatable": 0}


def test_usage_says_how_long_an_answer_is() -> None:
    def counted(request: dict[str, Any]) -> Mapping[str, Any]:
        return {**good(request), "usage": {"completion_tokens": 4}}

    assert kept(counted)["contract.max_tokens"] == 0
