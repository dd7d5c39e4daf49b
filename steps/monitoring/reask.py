"""Asks live prompts again: whether the version agrees with the reference on what people really ask."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from steps.config.schema import CANDIDATES, REFERENCE, STEPS, Evaluate
from steps.evaluation.fidelity import fidelity_metrics
from steps.evaluation.predictions import score
from steps.evaluation.statistics import difference, share, with_interval
from steps.evaluation.tasks import ROLES, Example
from steps.logged_models.logged_model import checked_model
from steps.logged_models.process import candidate
from steps.measurement.measure import Measurements, ask_in_turns, measure_fidelity
from steps.monitoring.watched import Baseline, agreement
from steps.monitoring.window import Request
from steps.registry.versions import run_of

REPORTED = ("kl_mean", "same_top", "perplexity_ratio")
"""The figures of fidelity that are reported."""


def examples_of(requests: Sequence[Request], number: int, max_tokens: int) -> list[Example]:
    """Return the newest *number* answered chats of *requests* whose texts were kept, and that asked for *max_tokens*.

    One that asked for fewer may leave no room for so many: it would be refused now.
    """
    kept = [
        each
        for each in requests
        if each.answered and _is_chat(each) and (each.max_tokens is None or each.max_tokens >= max_tokens)
    ]
    # A pattern that fits any answer: nobody knows the right one. So fidelity is measured on the reference's answer.
    return [
        Example(str(at), [dict(message) for message in each.messages], ".*", "regex")
        for at, each in enumerate(kept[-number:])
    ]


def reask(
    examples: Sequence[Example], version: ModelVersion, evaluate: Run, baseline: Baseline, options: Evaluate, seed: int
) -> dict[str, float]:
    """Return how far *version* agrees with the reference of the run *evaluate* on *examples*, both asked now."""
    name = version.tags["wrapper"]
    reference = MlflowClient().get_run(evaluate.data.tags[str(STEPS[CANDIDATES[REFERENCE]].run_key)])
    found = Measurements()
    with ExitStack() as stack:
        loaded = {}
        for each, built in ((REFERENCE, reference), (name, run_of(version))):
            _uri, folder = stack.enter_context(checked_model(built))
            loaded[each] = stack.enter_context(candidate(each, folder))
        ask_in_turns(found, loaded, examples, baseline.max_tokens)
        no_text = replace(options, fidelity=replace(options.fidelity, text=None))
        measure_fidelity(found, loaded, REFERENCE, examples, no_text)
    agrees = agreement(score(examples, found.answers), name)
    figures = {"live.prompts": float(len(examples)), **with_interval("live.agreement", share(agrees))}
    if baseline.agrees:
        figures |= with_interval("live.agreement_difference", difference(agrees, baseline.agrees))
    if tokens := found.of(name).fidelity:
        for metric, value in fidelity_metrics(tokens, seed).items():
            if metric.removeprefix("fidelity.").startswith(REPORTED):
                figures[metric.replace("fidelity.", "live.")] = value
    return figures


def _is_chat(request: Request) -> bool:
    roles = [message["role"] for message in request.messages]
    return bool(roles) and roles[-1] == "user" and set(roles) <= set(ROLES)
