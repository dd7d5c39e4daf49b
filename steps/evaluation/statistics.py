"""Figures with their uncertainty; every interval is at 95 %."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9_999


@dataclass(frozen=True)
class Estimate:
    """A figure and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def with_interval(name: str, figure: Estimate) -> dict[str, float]:
    """Return *figure* as three metrics: *name*, `<name>_low` and `<name>_high`."""
    return {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}


def share(hits: Sequence[bool]) -> Estimate:
    """Return the share of true *hits* with Wilson's score interval (1927, without continuity correction).

    Unlike value ± 1.96 standard errors, it stays between 0 and 1, and has a width even if all hits are equal.
    """
    _require_some(hits)
    value = sum(hits) / len(hits)
    interval = stats.binomtest(sum(hits), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(value, min(float(interval.low), value), max(float(interval.high), value))


def difference(hits: Sequence[bool], others: Sequence[bool]) -> Estimate:
    """Return the share of true *hits* minus that of *others*; the two samples are independent.

    The interval is Newcombe's (1998, method 10), from Wilson's intervals of the two shares.
    """
    one, other = share(hits), share(others)
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, low, high)


def standard_error(hits: Sequence[bool]) -> float:
    """Return the standard error of the share p of true *hits*: √(p(1 - p) / n)."""
    _require_some(hits)
    p = sum(hits) / len(hits)
    return math.sqrt(p * (1 - p) / len(hits))


def flips(build: Sequence[bool], reference: Sequence[bool]) -> tuple[int, int]:
    """Return how many examples *build* lost (only *reference* is right) and gained (only *build* is)."""
    pairs = list(zip(build, reference, strict=True))
    return pairs.count((False, True)), pairs.count((True, False))


def paired_difference(build: Sequence[bool], reference: Sequence[bool], seed: int) -> Estimate:
    """Return the share right in *build* minus the share right in *reference*, on the same examples, from -1 to 1.

    The interval is a percentile bootstrap over the examples' differences (-1, 0 or 1), with one lost and one gained
    example added. Without these two, a few examples without a flip would give the interval 0 to 0, as if certain.
    Bonett and Price (2012, doi:10.3102/1076998611411915) add the same two to the closed formula, which this bootstrap
    approaches.
    """
    _require_some(build)
    lost, gained = flips(build, reference)
    value = (gained - lost) / len(build)
    differences = np.subtract(np.asarray(build, dtype=float), np.asarray(reference, dtype=float))
    low, high = bootstrap([np.concatenate([differences, [-1.0, 1.0]])], np.mean, seed)
    return Estimate(value, min(low, value), max(high, value))


def bootstrap(
    samples: Sequence[npt.NDArray[np.float64]], statistic: Callable[..., Any], seed: int
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of statistic(*samples, axis=...).

    Each resample draws the same positions of all *samples*.
    """
    interval = stats.bootstrap(
        tuple(samples),
        statistic,
        paired=len(samples) > 1,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1_000,  # bounds the memory on a task of many thousand examples
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _require_some(hits: Sequence[bool]) -> None:
    """Raise ValueError when there is nothing to estimate from."""
    if not hits:
        msg = "there is no example to estimate from; give at least one"
        raise ValueError(msg)
