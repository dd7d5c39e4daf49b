"""Turn predictions into figures named `<candidate>.<area>.<name>`.

Areas: `task` (is it right), `fidelity` (are its probabilities the reference's), `contract` (does it do what its
signature says), `integrity` (was everything answered), `cost` (how fast, how large). A new area gets a module of its
own that computes it, and its lines in `MEANINGS`.
A figure with an interval has two neighbours, `<name>_low` and `<name>_high`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steps.evaluation.asking import Answer
from steps.evaluation.predictions import Prediction
from steps.evaluation.statistics import Estimate, flips, paired_difference, share, standard_error, with_interval


@dataclass(frozen=True)
class Meaning:
    """What people call a metric, and its unit: share, points, count, seconds, rate, bytes, ratio or nats."""

    label: str
    unit: str


MEANINGS = {
    "task.accuracy": Meaning("Right answers", "share"),
    "task.accuracy_stderr": Meaning("Standard error of right answers", "share"),
    "task.difference": Meaning("Right answers, less the reference's", "points"),
    "task.lost": Meaning("Only the reference is right", "count"),
    "task.gained": Meaning("Only this candidate is right", "count"),
    "task.agreement": Meaning("Same answer as the reference", "share"),
    "task.examples": Meaning("Examples asked", "count"),
    "fidelity.perplexity": Meaning("Perplexity of the same text", ""),
    "fidelity.perplexity_ratio": Meaning("Perplexity, relative to the reference", "ratio"),
    "fidelity.kl_mean": Meaning("KL divergence from the reference, mean", "nats"),
    "fidelity.kl_median": Meaning("KL divergence, median", "nats"),
    "fidelity.kl_p99": Meaning("KL divergence, 99th percentile", "nats"),
    "fidelity.kl_max": Meaning("KL divergence, largest", "nats"),
    "fidelity.same_top": Meaning("Same likeliest token as the reference", "share"),
    "fidelity.probability_change_rms": Meaning("Change of the true token's probability, root mean square", "points"),
    "fidelity.tokens": Meaning("Tokens compared", "count"),
    "fidelity.texts": Meaning("Texts compared", "count"),
    "contract.signature": Meaning("Requests and responses fit the signature", "share"),
    "contract.max_tokens": Meaning("max_tokens kept", "share"),
    "contract.stop": Meaning("stop kept", "share"),
    "contract.repeatable": Meaning("Same answer when asked again", "share"),
    "integrity.same_tokens": Meaning("Texts with the reference's token ids", "share"),
    "integrity.answered": Meaning("Examples answered", "share"),
    "integrity.errors": Meaning("Answers that ended in an error", "count"),
    "cost.seconds_p50": Meaning("Time for an answer, median", "seconds"),
    "cost.seconds_p50_ratio": Meaning("Median time, relative to the reference", "ratio"),
    "cost.seconds_p90": Meaning("Time for an answer, 90th percentile", "seconds"),
    "cost.seconds_p99": Meaning("Time for an answer, 99th percentile", "seconds"),
    "cost.answers_per_second": Meaning("Answers a second, one at a time", "rate"),
    "cost.tokens_per_second": Meaning("New tokens a second, one answer at a time", "rate"),
    "cost.first_answer_seconds": Meaning("First answer after loading", "seconds"),
    "cost.first_token_seconds_p50": Meaning("Time to the first token, median", "seconds"),
    "cost.first_token_seconds_p90": Meaning("Time to the first token, 90th percentile", "seconds"),
    "cost.first_token_seconds_p99": Meaning("Time to the first token, 99th percentile", "seconds"),
    "cost.token_seconds_p50": Meaning("Time of each token after it, median", "seconds"),
    "cost.token_seconds_p90": Meaning("Time of each token after it, 90th percentile", "seconds"),
    "cost.token_seconds_p99": Meaning("Time of each token after it, 99th percentile", "seconds"),
    "cost.call_seconds_per_token_p50": Meaning("Time of a call by its new tokens, median", "seconds"),
    "cost.call_seconds_per_token_p50_ratio": Meaning("The same, relative to the reference", "ratio"),
    "cost.call_seconds_per_token_p90": Meaning("Time of a call by its new tokens, 90th percentile", "seconds"),
    "cost.call_seconds_per_token_p99": Meaning("Time of a call by its new tokens, 99th percentile", "seconds"),
    "cost.timed_calls": Meaning("Calls that these times are taken from", "count"),
    "cost.load_seconds": Meaning("Loading, while the other candidates load too", "seconds"),
    "cost.peak_memory_bytes": Meaning("Most memory of its processes", "bytes"),
    "cost.peak_memory_bytes_ratio": Meaning("Most memory, relative to the reference", "ratio"),
    "cost.size_bytes": Meaning("Size on disk", "bytes"),
    "cost.size_bytes_ratio": Meaning("Size on disk, relative to the reference", "ratio"),
}

RATIOS = ("cost.seconds_p50", "cost.call_seconds_per_token_p50", "cost.size_bytes", "cost.peak_memory_bytes")
"""Of these, every candidate also gets `<name>_ratio`: its figure divided by the reference's."""


def measure(
    predictions: Sequence[Prediction], reference: str, seed: int, also: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the metrics of every candidate in *predictions*, compared with the candidate *reference*.

    *also* are figures that the caller measured, by full name (`onnx.cost.size_bytes`). What cannot be
    computed, such as the time of a candidate that answered nothing, is left out. *seed* is the bootstrap's.
    """
    metrics = dict(also or {})
    candidates = list(predictions[0].answers)
    for candidate in candidates:
        answers = [prediction.answers[candidate] for prediction in predictions]
        figures = _integrity(answers) | _accuracy([p.right[candidate] for p in predictions]) | _cost(answers)
        if candidate != reference:
            figures |= _comparison(predictions, candidate, reference, seed)
        metrics |= {f"{candidate}.{name}": value for name, value in figures.items()}
    for candidate in candidates:
        for name in RATIOS:
            own, other = metrics.get(f"{candidate}.{name}"), metrics.get(f"{reference}.{name}")
            if candidate != reference and own is not None and other:
                metrics[f"{candidate}.{name}_ratio"] = own / other
    return metrics


def estimate(metrics: Mapping[str, float], name: str) -> Estimate:
    """Return metric *name* with its interval, which must be among *metrics*."""
    return Estimate(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"])


def show(value: float, unit: str) -> str:
    """Return *value* for people, in the *unit* of its `Meaning`; any other unit gives the plain number."""
    if not math.isfinite(value):
        return str(value)
    minus, size = "\u2212" if value < 0 else "", abs(value)
    match unit:
        case "share":
            text = f"{size:.1%}".replace("%", "\u00a0%")
        case "points":  # percentage points, the difference of two shares
            text = f"{size * 100:.1f}\u00a0pp"
        case "count":
            text = f"{size:,.0f}"
        case "seconds":
            text = f"{size:.3g}\u00a0s" if size >= 1 else f"{size * 1e3:.3g}\u00a0ms"
        case "rate":
            text = f"{size:,.3g}\u00a0/\u00a0s" if size < 1000 else f"{size:,.0f}\u00a0/\u00a0s"
        case "bytes":
            text = f"{size / 1e9:.2f}\u00a0GB" if size >= 1e9 else f"{size / 1e6:.2f}\u00a0MB"
        case "ratio":
            text = f"{size:.3f}\u00a0\u00d7"
        case "nats":
            text = f"{size:.3g}\u00a0nats"
        case _:
            text = f"{size:.6g}"
    return minus + text


def _integrity(answers: Sequence[Answer]) -> dict[str, float]:
    """Return which share of *answers* has a text, and how many ended in an error."""
    return {
        "integrity.answered": sum(answer.answered for answer in answers) / len(answers),
        "integrity.errors": sum(answer.error is not None for answer in answers),
    }


def _accuracy(right: Sequence[bool]) -> dict[str, float]:
    """Return the share of right answers, its interval and standard error, and the number of examples."""
    return {
        "task.examples": len(right),
        "task.accuracy_stderr": standard_error(right),
        **with_interval("task.accuracy", share(right)),
    }


def _comparison(predictions: Sequence[Prediction], build: str, reference: str, seed: int) -> dict[str, float]:
    """Return how *build* differs from *reference* on the same examples."""
    ours = [prediction.right[build] for prediction in predictions]
    theirs = [prediction.right[reference] for prediction in predictions]
    lost, gained = flips(ours, theirs)
    return {
        "task.lost": lost,
        "task.gained": gained,
        **with_interval("task.difference", paired_difference(ours, theirs, seed)),
        **with_interval("task.agreement", share([p.agree(build, reference) for p in predictions])),
    }


def _cost(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the speed of those *answers* that ended without an error; tokens only where all are counted."""
    timed = [answer for answer in answers if answer.error is None]
    if not timed:
        return {}
    seconds = [answer.seconds for answer in timed]
    tokens = [answer.completion_tokens for answer in timed if answer.completion_tokens is not None]
    p50, p90, p99 = np.quantile(seconds, [0.5, 0.9, 0.99])
    figures = {
        "cost.seconds_p50": float(p50),
        "cost.seconds_p90": float(p90),
        "cost.seconds_p99": float(p99),
        "cost.answers_per_second": len(timed) / sum(seconds),
    }
    if len(tokens) == len(timed):
        figures["cost.tokens_per_second"] = sum(tokens) / sum(seconds)
    return figures
