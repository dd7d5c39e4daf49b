"""How long generation takes, by length of the prompt and number of prompts in a call."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
        """The time of each new token after the first; None when there was one only, or the first alone took longer.

        The latter happens on a busy machine: the two are measured in two calls.
        """
        after, rest = self.new_tokens - 1, self.seconds - self.first_token_seconds
        return rest / after if after > 0 and rest > 0 else None

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second, of all prompts together, from the call to the last token."""
        return self.batch * self.new_tokens / self.seconds


def latency_metrics(timings: Sequence[Timing]) -> dict[str, float]:
    """Return, by full name, the figures of every candidate over all its *timings*, with the number of calls."""
    metrics = {}
    for candidate in dict.fromkeys(timing.candidate for timing in timings):
        own = [timing for timing in timings if timing.candidate == candidate]
        single = [timing for timing in own if timing.batch == 1] or own
        measured = {
            "first_token_seconds": [timing.first_token_seconds for timing in single],
            "token_seconds": [seconds for timing in single if (seconds := timing.token_seconds) is not None],
            "call_seconds_per_token": [timing.seconds / timing.new_tokens for timing in single],
        }
        metrics[f"{candidate}.cost.timed_calls"] = float(len(single))
        for name, values in measured.items():
            for percent in (50, 90, 99) if values else ():
                metrics[f"{candidate}.cost.{name}_p{percent}"] = float(np.quantile(values, percent / 100))
    return metrics


def by_prompt_length(timings: Sequence[Timing]) -> dict[int, dict[str, float]]:
    """Return, by number of prompt tokens, the medians of every candidate and batch size, by full name.

    `<candidate>.latency.batch_<n>.first_token_seconds`, `.token_seconds` (after the first), `.tokens_per_second`.
    """
    series: dict[int, dict[str, float]] = {}
    for candidate, batch, length in dict.fromkeys((each.candidate, each.batch, each.prompt_tokens) for each in timings):
        own = [
            each for each in timings if (each.candidate, each.batch, each.prompt_tokens) == (candidate, batch, length)
        ]
        taken = {
            "first_token_seconds": [each.first_token_seconds for each in own],
            "token_seconds": [seconds for each in own if (seconds := each.token_seconds) is not None],
            "tokens_per_second": [each.tokens_per_second for each in own],
        }
        figures = {name: float(np.median(values)) for name, values in taken.items() if values}
        prefix = f"{candidate}.latency.batch_{batch}"
        series.setdefault(length, {}).update({f"{prefix}.{name}": value for name, value in figures.items()})
    return series
