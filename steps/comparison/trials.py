"""Quality against speed against size: the trials that no other beats in all three, and the page that shows them."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from steps.evaluation.metrics import MEANINGS, show
from steps.evaluation.plots import PERCENT, inline_svg

QUALITY, SPEED, SIZE = "onnx.task.accuracy", "onnx.cost.answers_per_second", "onnx.cost.size_bytes"
"""The three figures; more of the first two and less of the third is better."""

ON_FRONT, BEATEN = "#2a9d6f", "#8a97a6"


def pareto_front(table: pd.DataFrame) -> pd.Series:
    """Return for each trial whether no other finished trial is as good in all three figures and better in one.

    A trial that did not finish, or lacks a figure, is not on the front.
    """
    figures = table.reindex(columns=[QUALITY, SPEED, SIZE]).astype(float)
    figures[SIZE] = -figures[SIZE]
    complete = (table["status"] == "FINISHED") & figures.notna().all(axis=1)
    candidates = figures[complete]

    def is_beaten(own: pd.Series) -> bool:
        return bool(((candidates >= own).all(axis=1) & (candidates > own).any(axis=1)).any())

    return pd.Series([bool(complete[row]) and not is_beaten(figures.loc[row]) for row in table.index], table.index)


def draw(table: pd.DataFrame) -> Figure:
    """Return the trials by speed and quality, a larger point for a larger model, those on the front named."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figures = table.reindex(columns=[QUALITY, SPEED, SIZE]).astype(float)
    largest = figures[SIZE].max()
    columns = (figures[QUALITY], figures[SPEED], figures[SIZE], pareto_front(table))
    for number, (quality, speed, size, on_front) in enumerate(zip(*columns, strict=True), start=1):
        if pd.notna(quality) and pd.notna(speed) and pd.notna(size):
            colour = ON_FRONT if on_front else BEATEN
            axes.scatter([speed], [quality], s=60 + 340 * size / largest, color=colour, alpha=0.75, linewidths=0)
            axes.annotate(str(number), (speed, quality), ha="center", va="center")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel(MEANINGS["cost.answers_per_second"].label)
    axes.set_ylabel(MEANINGS["task.accuracy"].label)
    axes.margins(0.15)
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.002))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def write_page(path: Path, table: pd.DataFrame, keys: Sequence[str], best: int | None, command: str) -> None:
    """Write the comparison to *path*: *keys* are the columns that vary, *best* the position of the best trial."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    front = list(pareto_front(table))
    rows = [
        {
            "number": number,
            "values": [str(trial[key]) for key in keys],
            "status": trial["status"],
            "figures": [_shown(trial.get(name), name) for name in (QUALITY, SPEED, SIZE)],
            "seconds": show(float(trial["seconds"]), "seconds"),
            "front": front[number - 1],
            "best": best == number - 1,
        }
        for number, trial in enumerate(table.to_dict(orient="records"), start=1)
    ]
    heads = [MEANINGS[name.partition(".")[2]].label for name in (QUALITY, SPEED, SIZE)]
    drawn = Markup(inline_svg(draw(table)))  # noqa: S704  our own figure, its texts escaped by matplotlib
    page = environment.get_template("sweep.html.jinja").render(
        keys=keys, rows=rows, heads=heads, command=command, figure=drawn
    )
    path.write_text(page, encoding="utf-8")


def _shown(value: float | None, name: str) -> str:
    return "-" if value is None or pd.isna(value) else show(float(value), MEANINGS[name.partition(".")[2]].unit)
