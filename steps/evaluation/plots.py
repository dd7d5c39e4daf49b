"""Draw the candidates side by side; every figure reads on light and on dark ground.

Files get light ground. In the report a figure is inline SVG whose ink takes the colours of the page.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.typing import RcKeyType

from steps.evaluation.metrics import estimate, show
from steps.evaluation.predictions import Prediction

INK, MUTED, LINE = "#1c2430", "#5d6876", "#d9dee5"
COLOURS = ("#3b7dd8", "#e07b1f", "#2a9d6f", "#a45fc4", "#c44d58", "#6b8e23")
"""The candidates' colours, in their order: of middle lightness, to stand out on white and on black."""

PERCENT = FuncFormatter(lambda value, _: f"{value * 100:.3g}\u00a0%")

STYLE: dict[RcKeyType, Any] = {
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": LINE,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched and takes the page's font
    "svg.hashsalt": "evaluation",  # the same figure is the same file
    "text.color": INK,
    "text.parse_math": False,  # a `$` in a candidate's name is a `$`
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def draw(predictions: Sequence[Prediction], metrics: Mapping[str, float]) -> dict[str, Figure]:
    """Return the figures by name; one whose measurements are missing is left out."""
    candidates = list(predictions[0].answers)
    colours = {name: COLOURS[position % len(COLOURS)] for position, name in enumerate(candidates)}
    seconds = {}
    for name in candidates:
        answers = [prediction.answers[name] for prediction in predictions]
        if timed := [answer.seconds for answer in answers if answer.error is None]:
            seconds[name] = timed
    with _style():
        figures = {"accuracy": _accuracy(metrics, colours)}
        if seconds:
            figures["latency"] = _latency(seconds, colours)
    return figures


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write every figure to *folder* as PNG and SVG, named after it; return the files."""
    files = [folder / f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    with _style():
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else None
            figures[file.stem].savefig(file, dpi=160, metadata=metadata)
    return files


def inline_svg(figure: Figure) -> str:
    """Return *figure* as an SVG element for a page whose CSS defines --ink, --muted and --line."""
    text = io.StringIO()
    with _style():
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, name in ((INK, "ink"), (MUTED, "muted"), (LINE, "line")):
        svg = svg.replace(colour, f"var(--{name})")
    return svg


@contextmanager
def _style() -> Iterator[None]:
    """Draw in `STYLE`, whatever the user's matplotlibrc says, and leave their settings alone."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _figure(height: float) -> Figure:
    """Return an empty figure, *height* inches high, that needs no display."""
    figure = Figure(figsize=(5.2, height))
    FigureCanvasAgg(figure)
    return figure


def _accuracy(metrics: Mapping[str, float], colours: Mapping[str, str]) -> Figure:
    """Return every candidate's share of right answers as a point with its 95 % interval."""
    figure = _figure(1.1 + 0.55 * len(colours))
    axes = figure.add_subplot()
    lowest = 1.0
    for row, (name, colour) in enumerate(colours.items()):
        right = estimate(metrics, f"{name}.task.accuracy")
        lowest = min(lowest, right.low)
        axes.plot([right.low, right.high], [row, row], color=colour, linewidth=5, alpha=0.35, solid_capstyle="round")
        axes.plot([right.value], [row], "o", color=colour, markersize=9)
        axes.annotate(
            show(right.value, "share"),
            (right.value, row),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
        )
    # A zoom that starts a little left of the widest interval, and always shows the goal of 100 %.
    left = max(0.0, lowest - max(0.02, (1 - lowest) * 0.3))
    axes.set_xlim(left, 1 + (1 - left) * 0.06)
    axes.set_ylim(len(colours) - 0.4, -0.75)
    axes.set_yticks(range(len(colours)), list(colours), color=INK, fontsize=11)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("Right answers, with 95 % interval")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    return figure


def _latency(seconds: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> Figure:
    """Return the distribution of every candidate's answer times: at x, the share of answers no slower."""
    figure = _figure(2.9)
    axes = figure.add_subplot()
    for name, values in seconds.items():
        median = float(np.median(values))
        label = f"{name}, median {show(median, 'seconds')}"
        axes.ecdf(values, color=colours[name], linewidth=2.2, label=label)
        axes.plot([median], [0.5], "o", color=colours[name], markersize=6)
    axes.set_xscale("log")
    # 1, 2 and 5 of every decade: a plain log axis shows one label when all times are within a decade.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value, "seconds")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("Time for an answer (log scale)")
    axes.set_ylabel("Answers this fast or faster")
    axes.grid()
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=1 if len(seconds) > 2 else 2, labelcolor=INK, handlelength=1.2)
    return figure
