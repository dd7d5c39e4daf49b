"""Judge metrics by gates: limits that a candidate must keep to be registered.

A gate names a metric and a `min`, a `max` or both. Its `use` says what is compared with them:

- `point`: the figure. It passes at the limit or on its good side, and fails otherwise.
- `interval`: the whole 95 % interval. It passes if all of it keeps the limits, fails if all of it breaks one, and is
  inconclusive otherwise: too few examples to tell.

Gates fail closed: a missing figure fails, and so does a figure or bound that is not finite. A figure without an
interval (too few examples) is inconclusive, and so is an evaluation without gates.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

PASSED, FAILED, INCONCLUSIVE = "passed", "failed", "inconclusive"
USES = ("point", "interval")


@dataclass(frozen=True)
class Gate:
    """The limits of one metric. Raises ValueError unless min and max are finite and in order, and the use is known."""

    metric: str
    min: float | None = None
    max: float | None = None
    use: str = "point"

    def __post_init__(self) -> None:
        """Check the limits, so that every Gate can be judged."""
        limits = [limit for limit in (self.min, self.max) if limit is not None]
        if not limits:
            msg = "has neither min nor max; give at least one"
            raise ValueError(msg)
        for limit in limits:
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit):
                msg = f"has the limit {limit!r}; give a finite number"
                raise ValueError(msg)
        if len(limits) == 2 and limits[0] > limits[1]:
            msg = f"has min={limits[0]:g} above max={limits[1]:g}; exchange them"
            raise ValueError(msg)
        if self.use not in USES:
            msg = f"has use={self.use!r}; choose {' or '.join(USES)}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Verdict:
    """What a gate decided, and why. A figure that is missing or not finite is None."""

    gate: str
    metric: str
    figure: float | None
    low: float | None
    high: float | None
    min: float | None
    max: float | None
    use: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Section:
    """A section of the configuration that has gates: its `key`, and what to do where the figures cannot decide."""

    key: str = "evaluate.gates"
    remedy: str = "ask more examples"


EVALUATE = Section()


def read_gates(section: Mapping[str, Mapping[str, Any]], where: Section = EVALUATE) -> dict[str, Gate]:
    """Return the gates of the configuration's *section*, a mapping of name to fields.

    Raises ValueError naming the key, the fact and the remedy.
    """
    gates = {}
    known = [field.name for field in fields(Gate)]
    for name, given in section.items():
        key = f"{where.key}.{name}"
        if not isinstance(given, Mapping):
            msg = f"{key}={given} is no gate; give its fields, such as {{metric: onnx.task.accuracy, min: 0.9}}"
            raise ValueError(msg)
        if unknown := [field for field in given if field not in known]:
            msg = f"{key}.{unknown[0]} is not a field of a gate; use {', '.join(known)}"
            raise ValueError(msg)
        if not isinstance(given.get("metric"), str):
            msg = f"{key}.metric is missing; name one such as onnx.task.accuracy"
            raise ValueError(msg)
        try:
            gates[name] = Gate(**given)
        except ValueError as error:
            msg = f"{key} {error}"
            raise ValueError(msg) from error
    return gates


def judge(metrics: Mapping[str, float], gates: Mapping[str, Gate], where: Section = EVALUATE) -> list[Verdict]:
    """Return a verdict for every gate, in their order."""
    return [_judge_one(metrics, name, gate, where) for name, gate in gates.items()]


def overall(verdicts: Sequence[Verdict]) -> str:
    """Return `failed` if a gate failed; else `inconclusive` if a gate is, or if there is no gate; else `passed`."""
    found = {verdict.verdict for verdict in verdicts} or {INCONCLUSIVE}
    return next(verdict for verdict in (FAILED, INCONCLUSIVE, PASSED) if verdict in found)


def write_gates(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write the overall verdict and every gate's to *path* as JSON."""
    content = {"verdict": overall(verdicts), "gates": [asdict(verdict) for verdict in verdicts]}
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _judge_one(metrics: Mapping[str, float], name: str, gate: Gate, where: Section) -> Verdict:
    """Return the verdict of the gate called *name*."""
    figure, low, high = (_finite(metrics.get(gate.metric + end)) for end in ("", "_low", "_high"))
    key = f"{where.key}.{name}"
    remedy = f"{where.remedy}, or set {key}.use=point"
    if gate.metric not in metrics:
        nearest = difflib.get_close_matches(gate.metric, metrics, n=1, cutoff=0)
        hint = f"; the nearest is {nearest[0]}" if nearest else ""
        verdict, reason = FAILED, f"{gate.metric} was not measured{hint}; {key} cannot be judged"
    elif figure is None:
        fact = f"{gate.metric} is {metrics[gate.metric]}, not a finite number"
        verdict, reason = FAILED, f"{fact}; {key} cannot be judged"
    elif gate.use == "point":
        verdict, reason = _compare(f"{gate.metric} {figure:.6g}", figure, figure, gate, key, remedy)
    elif not {f"{gate.metric}_low", f"{gate.metric}_high"} & metrics.keys():
        fact = f"{gate.metric} {figure:.6g} has no interval: the examples are too few"
        verdict, reason = INCONCLUSIVE, f"{fact}; {remedy}"
    elif low is None or high is None or not low <= figure <= high:
        other = f"set {key}.use=point or give {gate.metric}_low and _high"
        verdict, reason = FAILED, f"{gate.metric} {figure:.6g} has no interval around it; {other}"
    else:
        shown = f"{gate.metric} {figure:.6g} (interval {low:.4g} to {high:.4g})"
        verdict, reason = _compare(shown, low, high, gate, key, remedy)
    return Verdict(name, gate.metric, figure, low, high, gate.min, gate.max, gate.use, verdict, reason)


def _compare(shown: str, low: float, high: float, gate: Gate, key: str, remedy: str) -> tuple[str, str]:
    """Return verdict and reason for the figure *shown*, known to lie between *low* and *high*."""
    least = -math.inf if gate.min is None else gate.min
    most = math.inf if gate.max is None else gate.max
    if high < least:
        return FAILED, f"{shown} is below {key}.min={least:.6g}"
    if low > most:
        return FAILED, f"{shown} is above {key}.max={most:.6g}"
    if low < least:
        return INCONCLUSIVE, f"{shown} reaches below {key}.min={least:.6g}; {remedy}"
    if high > most:
        return INCONCLUSIVE, f"{shown} reaches above {key}.max={most:.6g}; {remedy}"
    pairs = (("min", gate.min), ("max", gate.max))
    limits = " and ".join(f"{key}.{end}={limit:.6g}" for end, limit in pairs if limit is not None)
    return PASSED, f"{shown} keeps {limits}"


def _finite(value: float | None) -> float | None:
    """Return *value*, or None when it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None
