"""A task of ten questions and the answers of two candidates: enough for every figure to be known by hand."""

import pytest

from steps.evaluation.asking import Answer
from steps.evaluation.predictions import Prediction, score
from steps.evaluation.tasks import Example


@pytest.fixture
def examples() -> list[Example]:
    """Return ten questions whose right answers are `city 0` to `city 9`."""
    return [
        Example(f"q{number}", [{"role": "user", "content": f"Question {number}?"}], f"city {number}")
        for number in range(10)
    ]


@pytest.fixture
def predictions(examples: list[Example]) -> list[Prediction]:
    """Return the answers of `pipeline`, wrong at 8 and 9, and `onnx`, wrong at 0 and 9, an error at 1."""
    wrong = {"pipeline": {8: "city 0", 9: "town"}, "onnx": {0: "<script>alert(1)</script>", 9: "village"}}
    answers = {
        name: [
            Answer(example.id, wrong[name].get(number, example.reference), 4, seconds)
            for number, example in enumerate(examples)
        ]
        for name, seconds in (("pipeline", 2.0), ("onnx", 1.0))
    }
    answers["onnx"][1] = Answer("q1", "", None, 9.0, "RuntimeError: out of memory")
    return score(examples, answers)
