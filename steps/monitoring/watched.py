"""The version that is watched, and what its evaluation found, as far as live requests can be held against it."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from steps.config.schema import REFERENCE
from steps.evaluation.predictions import Prediction, read_predictions
from steps.records.artifacts import PREDICTIONS
from steps.records.errors import StepError
from steps.records.traces import script_of
from steps.registry import versions


@dataclass(frozen=True)
class Baseline:
    """What the evaluation of a version found; lists have an entry for each answer, and are empty if it is unknown.

    `prompts`, `answers`: texts. `cut`: whether it reached max_tokens. `first_token`: median seconds to
    the first token, by number of prompt tokens. `agrees`: with the reference.
    """

    max_tokens: int
    prompts: Sequence[str]
    answers: Sequence[str]
    scripts: Sequence[str]
    prompt_tokens: Sequence[int]
    cut: Sequence[bool]
    agrees: Sequence[bool]
    seconds_per_token: float | None
    first_token: dict[int, float]


def version_at(uri: str) -> ModelVersion:
    """Return the version that monitor.model=*uri* names now. Raises StepError if there is none."""
    return versions.version_at(uri, "monitor.model")


def evaluation_of(version: ModelVersion) -> Run:
    """Return the run of evaluate that *version* is tagged with. Raises StepError without one."""
    run_id = version.tags.get("evaluate.run_id")
    try:
        return MlflowClient().get_run(run_id or "none")
    except MlflowException as error:
        fact = f"it names run {run_id}, which is not there" if run_id else "it has no tag evaluate.run_id"
        msg = (
            f"version {version.version} of {version.name} has no evaluation to compare with ({fact}): register it anew"
        )
        raise StepError(msg) from error


def baseline_of(evaluate: Run, candidate: str) -> Baseline:
    """Return what the run *evaluate* found of *candidate*."""
    predictions = read_predictions(mlflow.artifacts.load_text(f"{evaluate.info.artifact_uri}/{PREDICTIONS}"))
    answers = [each.answers[candidate] for each in predictions]
    most = int(evaluate.data.params["evaluate.max_tokens"])
    timed = [
        each.seconds / each.completion_tokens
        for each in answers
        if each.seconds is not None and each.completion_tokens and each.error is None
    ]
    asked = [each.example.messages[-1]["content"] for each in predictions]
    return Baseline(
        max_tokens=most,
        prompts=asked,
        answers=[each.text for each in answers],
        scripts=[script_of(text) for text in asked],
        prompt_tokens=[each.prompt_tokens for each in answers if each.prompt_tokens is not None],
        cut=[each.completion_tokens >= most for each in answers if each.completion_tokens is not None],
        agrees=agreement(predictions, candidate),
        seconds_per_token=float(np.median(timed)) if timed else None,
        first_token=first_token_of(evaluate, candidate),
    )


def agreement(predictions: Sequence[Prediction], candidate: str) -> list[bool]:
    """Return for each of *predictions* whether *candidate* gave the reference's answer; nothing for the reference."""
    return [] if candidate == REFERENCE else [each.agree(candidate, REFERENCE) for each in predictions]


def first_token_of(evaluate: Run, candidate: str) -> dict[int, float]:
    """Return the median time to the first token that *evaluate* measured of *candidate* alone, by prompt tokens."""
    key = f"{candidate}.latency.batch_1.first_token_seconds"
    if key not in evaluate.data.metrics:
        return {}
    history = MlflowClient().get_metric_history(evaluate.info.run_id, key)
    return {point.step: point.value for point in sorted(history, key=lambda point: point.step)}
