"""The page of a sweep: quality against speed against size, and the trials on the Pareto front."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from steps.evaluation.metrics import MEANINGS, Meaning, show, split_name
from steps.records.templates import render
from steps.report.style import MUTED, inline_svg
from steps.report.tables import Cell, figure_cell

TEMPLATE = Path(__file__).with_name("sweep.html.jinja")

ON_FRONT, BEATEN = "#2a9d6f", "#8a97a6"


@dataclass(frozen=True)
class Measure:
    """A metric `<candidate>.<area>.<name>` by which trials are compared, and whether more of it is better."""

    metric: str
    more_is_better: bool

    @property
    def meaning(self) -> Meaning:
        """What people call it, and its unit."""
        return MEANINGS.get(split_name(self.metric)[1], Meaning(self.metric, ""))

    def cell(self, trial: Mapping[Hashable, object]) -> Cell:
        """Return the figure of *trial* with its interval; "-" where it was not measured."""
        value, low, high = (_number(trial.get(f"{self.metric}{end}")) for end in ("", "_low", "_high"))
        return figure_cell(value, low, high, self.meaning.unit) or Cell("-", "")


QUALITY = Measure("onnx.task.accuracy", more_is_better=True)
SPEED = Measure("onnx.cost.answers_per_second", more_is_better=True)
SIZE = Measure("onnx.cost.size_bytes", more_is_better=False)
FIDELITY = (
    Measure("onnx.fidelity.kl_mean", more_is_better=False),
    Measure("onnx.fidelity.perplexity_ratio", more_is_better=False),
    Measure("onnx.fidelity.same_top", more_is_better=True),
)
"""Further columns of the page, where trials have them."""

Axes = tuple[Measure, Measure, Measure]
"""Quality, speed and size."""


def axes_for(objective: str, *, maximize: bool) -> Axes:
    """Return what to compare trials by: the *objective* takes the place of quality or of speed, by its area."""
    own = Measure(objective, maximize)
    if objective == SIZE.metric:
        return QUALITY, SPEED, SIZE
    return (QUALITY, own, SIZE) if ".cost." in objective else (own, SPEED, SIZE)


def pareto_front(table: pd.DataFrame, axes: Axes) -> pd.Series:
    """Return for each trial whether no other finished trial is as good in all three figures and better in one.

    A trial that did not finish, or lacks a figure, is not on the front.
    """
    figures = _figures(table, axes)
    for axis in axes:
        if not axis.more_is_better:
            figures[axis.metric] = -figures[axis.metric]
    complete = (table["status"] == "FINISHED") & figures.notna().all(axis=1)
    candidates = figures[complete]

    def is_beaten(own: pd.Series) -> bool:
        return bool(((candidates >= own).all(axis=1) & (candidates > own).any(axis=1)).any())

    return pd.Series([bool(complete[row]) and not is_beaten(figures.loc[row]) for row in table.index], table.index)


def draw(table: pd.DataFrame, axes: Axes) -> Figure:
    """Return the trials by speed and quality, numbered. Larger models have larger points; failed trials hollow ones."""
    quality, speed, size = axes
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    figures = _figures(table, axes)
    areas = 110 + 340 * figures[size.metric] / figures[size.metric].max()
    columns = (figures[speed.metric], figures[quality.metric], areas, table["status"], pareto_front(table, axes))
    for number, (x, y, area, status, on_front) in enumerate(zip(*columns, strict=True), start=1):
        if pd.isna(x) or pd.isna(y) or pd.isna(area):
            continue
        if status == "FINISHED":
            plot.scatter([x], [y], s=area, color=ON_FRONT if on_front else BEATEN, alpha=0.75, linewidths=0)
        else:
            plot.scatter([x], [y], s=area, facecolors="none", edgecolors=BEATEN, linestyles="dashed")
        plot.annotate(str(number), (x, y), ha="center", va="center", size=10)
    plot.xaxis.set_major_formatter(_formatter(speed))
    plot.yaxis.set_major_formatter(_formatter(quality))
    plot.set_xlabel(speed.meaning.label, color=MUTED)
    plot.set_ylabel(quality.meaning.label, color=MUTED)
    plot.margins(0.15)
    if quality.meaning.unit == "share":
        plot.set_ylim(top=min(plot.get_ylim()[1], 1.03))
    plot.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    plot.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    plot.spines[:].set_visible(False)
    plot.tick_params(length=0)
    plot.grid(alpha=0.3)
    plot.set_axisbelow(True)
    return figure


def write_page(
    path: Path,
    table: pd.DataFrame,
    keys: Sequence[str],
    best: int | None,
    command: str,
    *,
    objective: str,
    maximize: bool,
) -> None:
    """Write the comparison to *path*: *keys* are the columns that vary, *best* the position of the best trial.

    *command* runs the best again; *objective* is the metric that made it the best.
    """
    axes = axes_for(objective, maximize=maximize)
    columns = [*axes, *(each for each in FIDELITY if each.metric in table and each not in axes)]
    rows = _rows(table, keys, best, columns, list(pareto_front(table, axes)))
    complete = not _figures(table, axes).dropna().empty
    page = render(
        TEMPLATE,
        escape=True,
        trim=False,
        keys=keys,
        rows=rows,
        failed=[row for row in rows if row["status"] != "FINISHED"],
        heads=[figures.meaning.label for figures in columns],
        objective=Measure(objective, maximize).meaning.label,
        axes=axes,
        command=command,
        # Our own figure: its texts are escaped by matplotlib.
        figure=Markup(inline_svg(draw(table, axes))) if complete else None,  # noqa: S704
    )
    path.write_text(page, encoding="utf-8")


def _rows(
    table: pd.DataFrame, keys: Sequence[str], best: int | None, columns: Sequence[Measure], front: Sequence[bool]
) -> list[dict[str, object]]:
    """Return what the page shows of each trial, those on the *front* marked."""
    return [
        {
            "number": number,
            "values": [str(trial[key]) for key in keys],
            "status": trial["status"],
            "figures": [figures.cell(trial) for figures in columns],
            "seconds": show(float(trial["seconds"]), "seconds"),
            "reason": trial.get("reason") or "no reason was stored",
            "front": front[number - 1],
            "best": best == number - 1,
        }
        for number, trial in enumerate(table.to_dict(orient="records"), start=1)
    ]


def _figures(table: pd.DataFrame, axes: Axes) -> pd.DataFrame:
    return table.reindex(columns=[axis.metric for axis in axes]).astype(float)


def _formatter(figures: Measure) -> FuncFormatter:
    unit = figures.meaning.unit
    if unit == "share":
        return FuncFormatter(lambda value, _: f"{value * 100:.3g}\u00a0%")
    return FuncFormatter(lambda value, _: show(value, unit))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not pd.isna(value) else None
