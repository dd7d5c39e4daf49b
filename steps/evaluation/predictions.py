"""The candidates' answers to each example side by side, scored; every figure of the area `task`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.evaluation.asking import Answer
from steps.evaluation.scoring import SCORERS
from steps.evaluation.statistics import flips, paired_difference, share, standard_error, with_interval
from steps.evaluation.tasks import Example


@dataclass(frozen=True)
class Prediction:
    """One example with the answer of every candidate by name, and whether it is right."""

    example: Example
    answers: dict[str, Answer]
    right: dict[str, bool]

    def agree(self, one: str, other: str) -> bool:
        """Return whether both candidates gave the same answer, as `Example.same` compares."""
        a, b = self.answers[one], self.answers[other]
        scored = self.example.scored
        return a.answered and b.answered and self.example.same(scored(a.text), scored(b.text))


def score(examples: Sequence[Example], answers: Mapping[str, Sequence[Answer]]) -> list[Prediction]:
    """Return a prediction for each example from every candidate's *answers*; an example without an answer is wrong.

    Raises ValueError when a candidate's answers are not those to *examples*, in their order.
    """
    for candidate, given in answers.items():
        if [answer.example_id for answer in given] != [example.id for example in examples]:
            fact = f"the {len(given)} answers of {candidate} do not belong to the {len(examples)} examples"
            msg = f"{fact}; ask again"
            raise ValueError(msg)
    predictions = []
    for position, example in enumerate(examples):
        here = {candidate: given[position] for candidate, given in answers.items()}
        scorer = SCORERS[example.scorer]
        right = {name: a.answered and scorer(example.scored(a.text), example.reference) for name, a in here.items()}
        predictions.append(Prediction(example, here, right))
    return predictions


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write a line of JSON for each example to *path*: the example, and each candidate's answer."""
    with path.open("w", encoding="utf-8") as lines:
        for prediction in predictions:
            example = prediction.example
            record = {
                "id": example.id,
                "messages": example.messages,
                "reference": example.reference,
                "scorer": example.scorer,
                **({"choices": example.choices} if example.choices else {}),
                "answers": {
                    candidate: {
                        "text": answer.text,
                        "right": prediction.right[candidate],
                        "prompt_tokens": answer.prompt_tokens,
                        "completion_tokens": answer.completion_tokens,
                        "seconds": answer.seconds,
                        "error": answer.error,
                        **({"likelihoods": answer.likelihoods} if answer.likelihoods else {}),
                    }
                    for candidate, answer in prediction.answers.items()
                },
            }
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_predictions(text: str) -> list[Prediction]:
    """Return the predictions that `write_predictions` wrote as *text*."""
    return [_prediction(json.loads(line)) for line in text.split("\n") if line]


def _prediction(record: dict[str, Any]) -> Prediction:
    given = record.pop("answers")
    right = {candidate: answer.pop("right") for candidate, answer in given.items()}
    answers = {candidate: Answer(example_id=record["id"], **answer) for candidate, answer in given.items()}
    example = Example(**{**record, "choices": tuple(record.get("choices", ()))})
    return Prediction(example, answers, right)


def accuracy_metrics(predictions: Sequence[Prediction], candidate: str) -> dict[str, float]:
    """Return the share of right answers, its interval and standard error, and the number of examples."""
    right = [prediction.right[candidate] for prediction in predictions]
    return {
        "task.examples": float(len(right)),
        "task.accuracy_stderr": standard_error(right),
        **with_interval("task.accuracy", share(right)),
    }


def comparison_metrics(
    predictions: Sequence[Prediction], candidate: str, reference: str, seed: int
) -> dict[str, float]:
    """Return how *candidate* differs from *reference* on the same examples."""
    ours = [prediction.right[candidate] for prediction in predictions]
    theirs = [prediction.right[reference] for prediction in predictions]
    lost, gained = flips(ours, theirs)
    return {
        "task.lost": float(lost),
        "task.gained": float(gained),
        **with_interval("task.difference", paired_difference(ours, theirs, seed)),
        **with_interval("task.agreement", share([each.agree(candidate, reference) for each in predictions])),
    }
