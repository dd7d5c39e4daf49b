"""What a candidate costs: every figure of the area `cost`.

Time of whole answers (`Answer.seconds`), time by prompt length and batch size (`Timing`), and what it takes of the
machine (`Footprint`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from steps.evaluation.asking import Answer

RATIOS = ("cost.seconds_p50", "cost.call_seconds_per_token_p50", "cost.size_bytes", "cost.peak_memory_bytes")
"""A candidate also gets `<name>_ratio` for each of these: its figure divided by the reference's."""


@dataclass(frozen=True)
class Timing:
    """One call of one candidate: `batch` prompts of `prompt_tokens` each, `new_tokens` generated for each.

    `first_token_seconds` is the wall time until the first new token, `seconds` until the last.
    """

    candidate: str
    prompt_tokens: int
    batch: int
    new_tokens: int
    first_token_seconds: float
    seconds: float

    @property
    def token_seconds(self) -> float | None:
        """The time of each new token after the first; None if there is none, or if the first took as long as all.

        On a busy machine `first_token_seconds` can exceed `seconds`, because two calls measure them.
        """
        after, rest = self.new_tokens - 1, self.seconds - self.first_token_seconds
        return rest / after if after > 0 and rest > 0 else None

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second, of all prompts together, from the call to the last token."""
        return self.batch * self.new_tokens / self.seconds


@dataclass
class Footprint:
    """What a candidate takes of the machine; None where it was not measured."""

    size_bytes: float | None = None
    load_seconds: float | None = None
    first_answer_seconds: float | None = None
    peak_memory_bytes: float | None = None


def cost_metrics(footprint: Footprint, answers: Iterable[Answer], timings: Sequence[Timing]) -> dict[str, float]:
    """Return all figures of one candidate's cost, by name. What was not measured is left out."""
    taken = {f"cost.{name}": value for name, value in asdict(footprint).items() if value is not None}
    return taken | _answer_times(answers) | _call_times(timings)


def cost_ratios(figures: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """Return `<name>_ratio` for each of RATIOS that both a candidate and its reference have."""
    return {
        f"{name}_ratio": figures[name] / reference[name] for name in RATIOS if name in figures and reference.get(name)
    }


def by_prompt_length(timings: Sequence[Timing]) -> dict[int, dict[str, float]]:
    """Return one candidate's medians for every batch size, by number of prompt tokens.

    Names: `latency.batch_<n>.first_token_seconds`, `.token_seconds` (after the first), `.tokens_per_second`.
    """
    groups: dict[tuple[int, int], list[Timing]] = {}
    for timing in timings:
        groups.setdefault((timing.prompt_tokens, timing.batch), []).append(timing)
    series: dict[int, dict[str, float]] = {}
    for (length, batch), group in groups.items():
        taken = {
            "first_token_seconds": [timing.first_token_seconds for timing in group],
            "token_seconds": _token_seconds(group),
            "tokens_per_second": [timing.tokens_per_second for timing in group],
        }
        medians = {f"latency.batch_{batch}.{name}": float(np.median(each)) for name, each in taken.items() if each}
        series.setdefault(length, {}).update(medians)
    return series


def _answer_times(answers: Iterable[Answer]) -> dict[str, float]:
    """Return the speed of answers that were timed and ended without an error; tokens only if all have a count.

    Multiple choice counts only where no answer was generated.
    """
    every = [(answer, answer.seconds) for answer in answers if answer.error is None and answer.seconds is not None]
    if not every:
        return {}
    timed = [each for each in every if each[0].likelihoods is None] or every
    seconds = [each for _answer, each in timed]
    tokens = [answer.completion_tokens for answer, _ in timed if answer.completion_tokens is not None]
    p50, p90, p99 = np.quantile(seconds, [0.5, 0.9, 0.99])
    figures = {
        "cost.seconds_p50": float(p50),
        "cost.seconds_p90": float(p90),
        "cost.seconds_p99": float(p99),
        "cost.answers_per_second": len(timed) / sum(seconds),
        "cost.timed_answers": float(len(timed)),
    }
    if len(tokens) == len(timed):
        figures["cost.tokens_per_second"] = sum(tokens) / sum(seconds)
    return figures


def _call_times(timings: Sequence[Timing]) -> dict[str, float]:
    """Return percentiles over calls with one prompt, or over all calls where no call had one prompt."""
    if not timings:
        return {}
    single = [timing for timing in timings if timing.batch == 1] or timings
    taken = {
        "first_token_seconds": [timing.first_token_seconds for timing in single],
        "token_seconds": _token_seconds(single),
        "call_seconds_per_token": [timing.seconds / timing.new_tokens for timing in single],
    }
    return {"cost.timed_calls": float(len(single))} | {
        f"cost.{name}_p{percent}": float(np.quantile(values, percent / 100))
        for name, values in taken.items()
        for percent in (50, 90, 99)
        if values
    }


def _token_seconds(timings: Iterable[Timing]) -> list[float]:
    return [seconds for timing in timings if (seconds := timing.token_seconds) is not None]
