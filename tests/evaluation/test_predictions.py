import json
from pathlib import Path

import pytest

from steps.evaluation.asking import Answer
from steps.evaluation.predictions import Prediction, read_predictions, score, write_predictions
from steps.evaluation.tasks import Example


def test_an_answer_that_ended_in_an_error_is_wrong_and_agrees_with_nothing(
    predictions: list[Prediction],
) -> None:
    assert predictions[1].right == {"pipeline": True, "onnx": False}
    assert not predictions[1].agree("onnx", "onnx")


def test_a_blank_answer_is_wrong_even_where_the_pattern_takes_anything() -> None:
    example = Example("q", [{"role": "user", "content": "?"}], ".*", "regex")

    (prediction,) = score([example], {"onnx": [Answer("q", " ", 1, 1.0)]})

    assert prediction.right == {"onnx": False}


def test_answers_to_other_examples_are_refused(examples: list[Example]) -> None:
    answers = [Answer(example.id, "x", 1, 1.0) for example in reversed(examples)]

    with pytest.raises(ValueError, match="10 answers of onnx do not belong to the 10 examples"):
        score(examples, {"onnx": answers})


def test_predictions_are_written_one_a_line_with_every_candidate(predictions: list[Prediction], tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.jsonl", predictions)

    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert len(records) == 10
    assert records[1]["reference"] == "city 1"
    assert records[1]["answers"]["pipeline"] == {
        "text": "city 1",
        "right": True,
        "prompt_tokens": None,
        "completion_tokens": 4,
        "seconds": 2.0,
        "error": None,
    }
    assert records[1]["answers"]["onnx"]["error"] == "RuntimeError: out of memory"


def test_predictions_are_read_as_they_were_written(predictions: list[Prediction], tmp_path: Path) -> None:
    chosen = Example("c", [{"role": "user", "content": "Which?"}], "b", "choice", ("a", "b"))
    answer = Answer("c", "b", None, 0.1, likelihoods={"a": -2.0, "b": -1.0}, prompt_tokens=7)
    predictions = [*predictions, *score([chosen], {name: [answer] for name in ("pipeline", "onnx")})]
    write_predictions(tmp_path / "p.jsonl", predictions)
    assert read_predictions((tmp_path / "p.jsonl").read_text()) == predictions


def test_an_answer_is_right_by_what_follows_its_reasoning() -> None:
    example = Example("q", [{"role": "user", "content": "?"}], "Madrid", "contains")
    texts = {"right": "<think>Lisbon?</think>Madrid", "wrong": "<think>Madrid?</think>Lisbon", "cut": "<think>Madrid"}

    (prediction,) = score([example], {name: [Answer("q", text, 1, 1.0)] for name, text in texts.items()})

    assert prediction.right == {"right": True, "wrong": False, "cut": False}
