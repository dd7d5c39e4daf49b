"""Multiple choice by likelihood, on a model of four letters whose probabilities are multiplied by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, log
from typing import Any

import numpy as np
import pytest

from steps.evaluation.asking import ask_one
from steps.evaluation.choices import likeliest, log_likelihoods, log_probability
from steps.evaluation.predictions import score, write_predictions
from steps.evaluation.tasks import Example

LETTERS = "?abc"
AFTER = {
    "?": (0.1, 0.4, 0.3, 0.2),
    "a": (0.25, 0.25, 0.25, 0.25),
    "b": (0.05, 0.03, 0.02, 0.9),
    "c": (0.7, 0.1, 0.1, 0.1),
}
"""The probability of each letter after a letter."""

QUESTION = Example("q", [{"role": "user", "content": "?"}], "bc", "choice", ("a", "bc"))


class Letters:
    """A model that looks one letter back; a chat is its last message."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def logits(self, tokens: Sequence[int]) -> Any:
        self.asked.append("".join(LETTERS[token] for token in tokens))
        # Logits are log-probabilities up to a constant, which differs from position to position.
        rows = [np.log(AFTER[letter]) + 7 * position for position, letter in enumerate(self.asked[-1])]
        return np.array(rows, dtype=np.float32)

    def chat(self, messages: Sequence[Mapping[str, str]], continuation: str) -> tuple[list[int], int]:
        asked = messages[-1]["content"]
        return [LETTERS.index(letter) for letter in asked + continuation.strip()], len(asked)


def test_a_choice_is_as_likely_as_its_letters_one_after_the_other() -> None:
    found = log_likelihoods(Letters(), QUESTION)

    assert {choice: exp(value) for choice, value in found.items()} == pytest.approx({"a": 0.4, "bc": 0.3 * 0.9})


def test_the_sum_takes_the_short_choice_and_the_mean_the_long_one() -> None:
    found = log_likelihoods(Letters(), QUESTION)

    assert likeliest(found, "choice") == "a"  # 0.4 against 0.27
    assert likeliest(found, "choice_norm") == "bc"  # log 0.4 = -0.92 against log 0.27 / 2 = -0.65


def test_length_is_counted_in_bytes() -> None:
    assert likeliest({"e": -1.0, "é": -1.5}, "choice_norm") == "é"  # -1 against -1.5 / 2


def test_of_equals_the_first_is_taken() -> None:
    assert likeliest({"b": -1.0, "a": -1.0}, "choice") == "b"


def test_choices_of_one_token_ask_the_model_once() -> None:
    model = Letters()

    log_likelihoods(model, replace(QUESTION, choices=("a", "b", "c")))

    assert model.asked == ["?"]


def test_a_continuation_that_greedy_search_would_write_is_told() -> None:
    model = Letters()
    tokens = [LETTERS.index(letter) for letter in "?abc"]

    assert log_probability(model.logits(tokens), tokens, 2) == (pytest.approx(log(0.25 * 0.9)), False)
    assert log_probability(model.logits(tokens), tokens, 3) == (pytest.approx(log(0.9)), True)


@pytest.mark.parametrize("choice", [" ", "\n"])
def test_a_choice_that_the_tokenizer_swallows_is_an_error(choice: str) -> None:
    with pytest.raises(ValueError, match="no tokens of its own"):
        log_likelihoods(Letters(), replace(QUESTION, choices=("a", choice)))


def test_logits_that_are_not_finite_are_an_error() -> None:
    class Broken(Letters):
        def logits(self, tokens: Sequence[int]) -> Any:
            return np.full((len(tokens), 4), np.nan, dtype=np.float32)

    with pytest.raises(ValueError, match="log-probability nan"):
        log_likelihoods(Broken(), QUESTION)


def test_answers_by_likelihood_stand_among_the_others_and_are_compared_like_them(tmp_path: Any) -> None:
    spoken = Example("s", [{"role": "user", "content": "Say b."}], "B")
    examples = [QUESTION, spoken, replace(QUESTION, id="n", scorer="choice_norm")]

    def say_b(_request: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{"message": {"content": "b"}}]}

    def likelihoods(example: Example) -> dict[str, float]:
        return log_likelihoods(Letters(), example)

    answers = [ask_one(say_b, example, {}, likelihoods) for example in examples]
    other = [replace(answers[0], text="A"), replace(answers[1], text="B"), answers[2]]
    predictions = score(examples, {"pipeline": answers, "onnx": other})
    write_predictions(tmp_path / "predictions.jsonl", predictions)

    assert [answer.text for answer in answers] == ["a", "b", "bc"]
    assert [prediction.right["pipeline"] for prediction in predictions] == [False, True, True]
    # A choice is compared to the letter, an answer in the model's own words after normalising.
    assert [prediction.agree("pipeline", "onnx") for prediction in predictions] == [False, True, True]
    assert '"likelihoods": {"a": -0.916' in (tmp_path / "predictions.jsonl").read_text()
