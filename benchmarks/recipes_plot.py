"""KL divergence against size and against decode speed, of our recipes and of llama.cpp's: one plot.

    python -m benchmarks.recipes_plot PLOT FIGURES [FIGURES ...]

FIGURES are what `benchmarks.recipes --json` wrote, a column for each. What is not quantised is left out.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from steps.report.style import COLOURS, INK, WIDTH, style

THEIRS = "llama.cpp "
"""How the names of llama.cpp's rows begin."""

UNQUANTISED = ("fp32", "llama.cpp F16")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
SIZE = "of the checkpoint"
FIGURES = {SIZE: "Size, relative to the bf16 checkpoint", "of fp32": "Decode speed, relative to fp32"}

Rows = Mapping[str, Mapping[str, float]]


def draw(told: list[dict[str, Any]]) -> Figure:
    """Return the plot of what each run of `benchmarks.recipes` *told*."""
    with style():
        figure = Figure(figsize=(WIDTH * len(told), 8.6))
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(FIGURES), len(told), squeeze=False, sharey=True, sharex="row")
        for column, run in enumerate(told):
            panels[0][column].set_title(run["checkpoint"], color=INK, fontsize=11)
            for row, (name, label) in enumerate(FIGURES.items()):
                _panel(panels[row][column], run["rows"], name, label)
        for row_of_panels in panels:
            row_of_panels[0].set_ylabel("KL, nats")
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper left", ncols=2, labelcolor=INK)
    return figure


def _panel(axes: Axes, rows: Rows, figure: str, label: str) -> None:
    axes.tick_params(which="both", length=0)
    axes.set_axisbelow(True)
    axes.grid(visible=True)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    quantised = {name: row for name, row in rows.items() if name not in UNQUANTISED}
    for ours, words, marker, colour in ((True, "onnxruntime-genai", "o", 0), (False, "llama.cpp", "s", 1)):
        some = {name.removeprefix(THEIRS): row for name, row in quantised.items() if name.startswith(THEIRS) != ours}
        places = [(row[figure], row["KL"]) for row in some.values()]
        axes.plot(*zip(*places, strict=True), marker, markersize=7, color=COLOURS[colour], label=words)
        # Where the two are close, the points of one lie to the left: their labels stand there too. Of two that are as
        # fast, ours stand below.
        side, away = ("left", 7) if ours == (figure == SIZE) else ("right", -7)
        up = 0 if figure == SIZE else -7 if ours else 7
        for name, place in zip(some, places, strict=True):
            axes.annotate(name, place, (away, up), textcoords="offset points", ha=side, va="center", color=INK)
    axes.margins(x=0.25, y=0.1)


def main() -> None:
    """Draw the figures named on the command line."""
    parser = argparse.ArgumentParser(description="Draw what benchmarks.recipes measured.")
    parser.add_argument("plot", type=Path, help="the file that gets the plot: .png or .svg")
    parser.add_argument("figures", type=Path, nargs="+", help="what --json wrote")
    options = parser.parse_args()
    figure = draw([json.loads(file.read_text()) for file in options.figures])
    with style():
        figure.savefig(options.plot, dpi=100)


if __name__ == "__main__":
    main()
