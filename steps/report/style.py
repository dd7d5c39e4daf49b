"""What all plots share: a style that reads on light and dark backgrounds, and the way into a file or a page.

Files get a light background. A page gets inline SVG in the page's own colours. The label of a figure says in words what
the plot shows, for people who do not see it.
"""

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.typing import RcKeyType

from steps.evaluation.metrics import show

INK, MUTED, LINE = "#1c2430", "#5d6876", "#d9dee5"
COLOURS = ("#3b7dd8", "#d06a00", "#a6657c", "#7c40ff", "#9c8656", "#798ac1")
"""One for each candidate: a contrast of 3 on light and dark backgrounds, and distinct for the colour-blind."""
MARKERS = "osD^vP"
"""One for each candidate."""

WIDTH = 4.6
"""Of every plot, in inches: narrow, so that its text can be read on a phone."""
PERCENT = FuncFormatter(lambda value, _: f"{value * 100:.3g}\u00a0%")
SECONDS = FuncFormatter(lambda value, _: show(value, "seconds"))

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


def save(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write every figure to *folder* as PNG and SVG, named after it."""
    files = [folder / f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    with style():
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else None
            figures[file.stem].savefig(file, dpi=160, metadata=metadata)


def inline_svg(figure: Figure) -> str:
    """Return *figure* as an SVG element for a page whose CSS defines --ink, --muted and --line."""
    text = io.StringIO()
    with style():
        mpl.rcParams["svg.hashsalt"] = f"evaluation {figure.get_label()}"  # ids of its own: figures share a page
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, name in ((INK, "ink"), (MUTED, "muted"), (LINE, "line")):
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # groups are counted, so those of two figures have the same ids
    words = f' role="img" aria-label="{html.escape(str(figure.get_label()))}"' if figure.get_label() else ""
    return svg.replace("<svg", f"<svg{words}", 1)


@contextmanager
def style() -> Iterator[None]:
    """Draw in `STYLE`, whatever the user's matplotlibrc says, and leave their settings alone."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def empty_figure(height: float) -> tuple[Figure, Axes]:
    """Return a figure, *height* inches high, that needs no display, and its empty axes."""
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(which="both", length=0)
    axes.set_axisbelow(True)
    return figure, axes


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Give *axes* a row for each of *names*, the first on top."""
    axes.set_ylim(len(names) - 0.4, -0.75)
    axes.set_yticks(range(len(names)), [short(name) for name in names], color=INK, fontsize=11)


def short(name: str) -> str:
    """Return *name* cut to what fits beside a plot; the page has it whole."""
    return name if len(name) <= 24 else f"{name[:14]}…{name[-9:]}"


def add_legend(figure: Figure, axes: Axes) -> None:
    """Put the legend of *axes* above it, two entries side by side where they fit, and make room for it."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if len(labels) == 2 and sum(map(len, labels)) < 42 else 1
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, labelcolor=INK, handlelength=1.4)
    figure.set_figheight(figure.get_figheight() + 0.2 * (len(labels) // columns - 1))
