"""Figures as tables, for the page, the terminal, the model card and the sweep: the one place that formats a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steps.evaluation.gates import Verdict
from steps.evaluation.metrics import MEANINGS, Meaning, Metrics, meaning, show

IN_SUMMARY = (
    "task.accuracy",
    "task.agreement",
    "fidelity.perplexity_ratio",
    "cost.answers_per_second",
    "cost.first_answer_seconds",
    "cost.size_bytes",
    "cost.peak_memory_bytes",
)
"""The metrics that the terminal shows; the report has all."""


@dataclass(frozen=True)
class Cell:
    """A figure as text, and its interval, which may be empty."""

    text: str
    interval: str

    def __str__(self) -> str:
        """Return "value (low to high)", or "value" where there is no interval."""
        return f"{self.text} ({self.interval})" if self.interval else self.text


@dataclass(frozen=True)
class Row:
    """A metric by name, with every candidate's cell; None where it was not measured."""

    name: str
    meaning: Meaning
    cells: list[Cell | None]


def figure_cell(value: float | None, low: float | None, high: float | None, unit: str) -> Cell | None:
    """Return *value* with its interval where both ends are known; None when there is no value."""
    if value is None:
        return None
    return Cell(show(value, unit), "" if low is None or high is None else _interval(low, high, unit))


def metric_cell(figures: Mapping[str, float], name: str, meanings: Mapping[str, Meaning] = MEANINGS) -> Cell | None:
    """Return the figure *name* of *figures* with its interval if it has one; None when it was not measured."""
    value, low, high = (figures.get(f"{name}{end}") for end in ("", "_low", "_high"))
    return figure_cell(value, low, high, meaning(name, meanings).unit)


def limits(verdict: Verdict, unit: str) -> str:
    """Return the limits of a gate in words, for a metric in *unit*."""
    pairs = (("at least", verdict.min), ("at most", verdict.max))
    return ", ".join(f"{words} {_exactly(limit, unit)}" for words, limit in pairs if limit is not None)


def _exactly(limit: float, unit: str) -> str:
    """Return *limit* without the zeros after the point: it was chosen, not measured."""
    number, space, name = show(limit, unit).partition("\u00a0")
    return (number if "e" in number or "." not in number else number.rstrip("0").rstrip(".")) + space + name


def metric_rows(metrics: Metrics, candidates: Sequence[str]) -> list[Row]:
    """Return a row for each metric of *candidates*: those of `MEANINGS` in its order, then the others."""
    measured = [metrics.get(candidate, {}) for candidate in candidates]
    found = {name for figures in measured for name in figures}
    bounds = {name + end for name in found for end in ("_low", "_high")}
    names = [name for name in MEANINGS if name in found] + sorted(found - bounds - MEANINGS.keys())
    return [Row(name, meaning(name), [metric_cell(figures, name) for figures in measured]) for name in names]


def summary(metrics: Metrics, candidates: Sequence[str]) -> str:
    """Return the metrics that matter most as a table of plain text, *candidates* side by side."""
    lines = [f"{'':<40}" + "".join(f"{name:>14}" for name in candidates)]
    for row in metric_rows(metrics, candidates):
        if row.name in IN_SUMMARY:
            lines.append(f"{row.meaning.label:<40}" + "".join(f"{cell.text if cell else '':>14}" for cell in row.cells))
    return "\n".join(lines) + "\n"


def scores(metrics: Metrics, candidates: Sequence[str]) -> str:
    """Return all metrics of *candidates* as a table in Markdown, for model cards."""
    lines = [f"| | {' | '.join(candidates)} |", "|---|" + "---|" * len(candidates)]
    for row in metric_rows(metrics, candidates):
        lines.append(f"| {row.meaning.label} | {' | '.join(str(cell or '') for cell in row.cells)} |")
    return "\n".join(lines) + "\n"


def _interval(low: float, high: float, unit: str) -> str:
    """Return "low to high", the unit once where both have the same."""
    (first, _, first_unit), (_, _, last_unit) = (show(end, unit).partition("\u00a0") for end in (low, high))
    return f"{first if first_unit == last_unit else show(low, unit)} to {show(high, unit)}"
