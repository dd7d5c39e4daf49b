"""The figures of an evaluation: their names, their labels and units, and how they are put together.

A metric is called `<candidate>.<area>.<name>`, and each area has one module that computes all of its figures:

task       predictions   is it right?
fidelity   fidelity      are its probabilities the reference's?
contract   contract      does it do what its signature says?
integrity  integrity     was everything answered, with the right token ids?
cost       cost          how fast, how large?

`measure` puts them together. A figure with an interval has two neighbours, `<name>_low` and `<name>_high`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from steps.evaluation.cost import Footprint, Timing, cost_metrics, cost_ratios
from steps.evaluation.fidelity import TokenFidelity, fidelity_metrics, perplexity
from steps.evaluation.integrity import TokenIds, integrity_metrics
from steps.evaluation.predictions import Prediction, accuracy_metrics, comparison_metrics
from steps.evaluation.statistics import Estimate

Metrics = dict[str, dict[str, float]]
"""The figures by candidate, then by `<area>.<name>`."""


@dataclass(frozen=True)
class Meaning:
    """What people call a metric, and its unit: share, points, count, seconds, rate, bytes, ratio or nats."""

    label: str
    unit: str


MEANINGS = {
    "task.accuracy": Meaning("Right answers", "share"),
    "task.accuracy_stderr": Meaning("Standard error of right answers", "share"),
    "task.difference": Meaning("Difference in right answers", "points"),
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
    "fidelity.probability_change_rms": Meaning("Change of the true token's probability (RMS)", "points"),
    "fidelity.tokens": Meaning("Tokens compared", "count"),
    "fidelity.texts": Meaning("Texts compared", "count"),
    "contract.signature": Meaning("Requests and responses fit the signature", "share"),
    "contract.max_tokens": Meaning("max_tokens kept", "share"),
    "contract.stop": Meaning("stop kept", "share"),
    "contract.repeatable": Meaning("Same answer when asked again", "share"),
    "integrity.same_tokens": Meaning("Texts with the reference's token ids", "share"),
    "integrity.checkpoint_tokens": Meaning("Texts with the checkpoint's own token ids", "share"),
    "integrity.answered": Meaning("Examples answered", "share"),
    "integrity.errors": Meaning("Answers that ended in an error", "count"),
    "cost.seconds_p50": Meaning("Time for an answer, median", "seconds"),
    "cost.seconds_p50_ratio": Meaning("Median time, relative to the reference", "ratio"),
    "cost.seconds_p90": Meaning("Time for an answer, 90th percentile", "seconds"),
    "cost.seconds_p99": Meaning("Time for an answer, 99th percentile", "seconds"),
    "cost.timed_answers": Meaning("Answers timed one at a time", "count"),
    "cost.answers_per_second": Meaning("Answers a second, one at a time", "rate"),
    "cost.tokens_per_second": Meaning("New tokens a second, one answer at a time", "rate"),
    "cost.first_answer_seconds": Meaning("First answer after loading", "seconds"),
    "cost.first_token_seconds_p50": Meaning("Time to the first token, median", "seconds"),
    "cost.first_token_seconds_p90": Meaning("Time to the first token, 90th percentile", "seconds"),
    "cost.first_token_seconds_p99": Meaning("Time to the first token, 99th percentile", "seconds"),
    "cost.token_seconds_p50": Meaning("Time per later token, median", "seconds"),
    "cost.token_seconds_p90": Meaning("Time per later token, 90th percentile", "seconds"),
    "cost.token_seconds_p99": Meaning("Time per later token, 99th percentile", "seconds"),
    "cost.call_seconds_per_token_p50": Meaning("Time of a call per new token, median", "seconds"),
    "cost.call_seconds_per_token_p50_ratio": Meaning("The same, relative to the reference", "ratio"),
    "cost.call_seconds_per_token_p90": Meaning("Time of a call per new token, 90th percentile", "seconds"),
    "cost.call_seconds_per_token_p99": Meaning("Time of a call per new token, 99th percentile", "seconds"),
    "cost.timed_calls": Meaning("Calls timed", "count"),
    "cost.load_seconds": Meaning("Loading, beside the other candidates", "seconds"),
    "cost.peak_memory_bytes": Meaning("Peak memory of its processes", "bytes"),
    "cost.peak_memory_bytes_ratio": Meaning("Peak memory, relative to the reference", "ratio"),
    "cost.size_bytes": Meaning("Size on disk", "bytes"),
    "cost.size_bytes_ratio": Meaning("Size on disk, relative to the reference", "ratio"),
}


@dataclass
class Measured:
    """What was measured of one candidate, beside its answers. What could not be measured is None or empty."""

    footprint: Footprint = field(default_factory=Footprint)
    timings: list[Timing] = field(default_factory=list)
    contract: dict[str, float] = field(default_factory=dict)
    token_ids: TokenIds = field(default_factory=TokenIds)
    fidelity: TokenFidelity | None = None


def measure(predictions: Sequence[Prediction], measured: Mapping[str, Measured], reference: str, seed: int) -> Metrics:
    """Return the figures of every candidate in *predictions*, compared with the candidate *reference*.

    A figure that cannot be computed is left out, such as the time of a candidate that answered nothing. *seed* is the
    bootstrap's.
    """
    metrics = {}
    for name in predictions[0].answers:
        own = measured.get(name) or Measured()
        answers = [prediction.answers[name] for prediction in predictions]
        metrics[name] = {
            **accuracy_metrics(predictions, name),
            **(comparison_metrics(predictions, name, reference, seed) if name != reference else {}),
            **(fidelity_metrics(own.fidelity, seed) if own.fidelity else {}),
            **own.contract,
            **integrity_metrics(answers, own.token_ids),
            **cost_metrics(own.footprint, answers, own.timings),
        }
    for name, figures in metrics.items():
        if name != reference:
            figures |= cost_ratios(figures, metrics[reference])
    if compared := [own.fidelity for own in measured.values() if own.fidelity]:
        metrics[reference]["fidelity.perplexity"] = perplexity(compared[0].reference_nll)
    return metrics


def flatten(metrics: Metrics) -> dict[str, float]:
    """Return *metrics* by full name, `<candidate>.<area>.<name>`: as MLflow logs them and gates name them."""
    return {f"{candidate}.{name}": value for candidate, figures in metrics.items() for name, value in figures.items()}


def split_name(metric: str) -> tuple[str, str]:
    """Return candidate and `<area>.<name>` of the full name *metric*."""
    candidate, _, name = metric.partition(".")
    return candidate, name


def meaning(name: str, meanings: Mapping[str, Meaning] = MEANINGS) -> Meaning:
    """Return what the metric `<area>.<name>` means; one that is not in *meanings* is called by its name."""
    return meanings.get(name, Meaning(name, ""))


def estimate(figures: Mapping[str, float], name: str) -> Estimate:
    """Return the figure *name* with its interval. Raises KeyError where one of the three is missing."""
    return Estimate(figures[name], figures[f"{name}_low"], figures[f"{name}_high"])


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
