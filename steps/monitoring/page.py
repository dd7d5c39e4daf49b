"""The report of a window: one HTML file without script, which needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from steps.evaluation.gates import FAILED, INCONCLUSIVE, PASSED, Verdict, overall
from steps.evaluation.metrics import meaning, show
from steps.monitoring.figures import MEANINGS, refusals
from steps.monitoring.watched import Baseline
from steps.monitoring.window import Request
from steps.records.templates import render
from steps.report.style import COLOURS, MUTED, PERCENT, SECONDS, add_legend, empty_figure, inline_svg, style
from steps.report.tables import Cell, limits, metric_cell

TEMPLATE = Path(__file__).with_name("monitor.html.jinja")

BINS = 24
"""Into how many parts plots divide the time of a window."""

HEADLINES = {
    PASSED: "Every gate is kept.",
    FAILED: "At least one gate is broken.",
    INCONCLUSIVE: "No gate is broken; some could not be judged.",
}

CAPTIONS = {
    "outcomes": "How requests ended, over time: a share of those in each part of the window.",
    "latency": "Time for an answer over time: median and 95th percentile.",
    "prompts": "Lengths of prompts: the share that is no longer. Two curves apart are two kinds of requests.",
}


@dataclass(frozen=True)
class Window:
    """What the page shows. `provenance`: labels and values; `outcome`: what followed, such as a rollback."""

    title: str
    requests: Sequence[Request]
    baseline: Baseline
    figures: Mapping[str, float]
    by_length: Mapping[int, Mapping[str, float]]
    verdicts: Sequence[Verdict]
    provenance: Mapping[str, str]
    outcome: str


def write_page(path: Path, window: Window) -> None:
    """Write the report on *window* to *path*."""
    verdict = overall(window.verdicts)
    # Our own figures: matplotlib escapes every text that it draws.
    plots = [(CAPTIONS[name], Markup(inline_svg(plot))) for name, plot in draw(window).items()]  # noqa: S704
    page = render(
        TEMPLATE,
        escape=True,
        window=window,
        overall=verdict,
        headline=HEADLINES[verdict],
        verdicts=[
            (each, cell_of(window.figures, each.metric), limits(each, meaning(each.metric, MEANINGS).unit))
            for each in window.verdicts
        ],
        rows=[(each.label, name, cell_of(window.figures, name)) for name, each in MEANINGS.items()],
        refusals=list(refusals(window.requests).items())[:10],
        by_length=[
            (most, *(show(found[key], "seconds") if key in found else "" for key in BY_LENGTH))
            for most, found in window.by_length.items()
        ],
        plots=plots,
        times=[moment(each.time) for each in (window.requests[0], window.requests[-1])],
    )
    path.write_text(page, encoding="utf-8")


BY_LENGTH = ("by_length.latency_p50", "by_length.first_token_p50")


def cell_of(figures: Mapping[str, float], name: str) -> Cell | None:
    """Return the figure *name* with its interval; None if it was not measured."""
    return metric_cell(figures, name, MEANINGS)


def moment(seconds: float) -> str:
    """Return a time, in *seconds* since 1970, for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def draw(window: Window) -> dict[str, Figure]:
    """Return the plots by name."""
    with style():
        found = {"outcomes": _outcomes(window.requests)}
        if any(each.answered for each in window.requests):
            found["latency"] = _latency(window.requests)
        if window.baseline.prompt_tokens and any(each.prompt_tokens for each in window.requests):
            found["prompts"] = _prompts(window)
    return found


def _outcomes(requests: Sequence[Request]) -> Figure:
    figure, axes = empty_figure(2.6)
    kinds = {
        "refused": [each.refused for each in requests],
        "failed": [each.failed for each in requests],
        "cut off": ["length" in each.finish_reasons for each in requests],
    }
    parts, middles = _parts(requests)
    for (name, hits), colour, marker in zip(kinds.items(), COLOURS, "osD", strict=False):
        shares = [float(np.mean([hits[at] for at in part])) for part in parts]
        axes.plot(middles, shares, marker=marker, color=colour, linewidth=2, markersize=4, label=name)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PERCENT)
    _over_time(axes)
    add_legend(figure, axes)
    told = ", ".join(f"{name} {show(float(np.mean(hits)), 'share')}" for name, hits in kinds.items())
    figure.set_label(f"Share of requests over time. In all: {told}.")
    return figure


def _latency(requests: Sequence[Request]) -> Figure:
    figure, axes = empty_figure(2.6)
    answered = [each for each in requests if each.answered]
    parts, middles = _parts(answered)
    for name, share, colour, marker in (("median", 0.5, COLOURS[0], "o"), ("95th percentile", 0.95, COLOURS[1], "s")):
        values = [float(np.quantile([answered[at].seconds for at in part], share)) for part in parts]
        axes.plot(middles, values, marker=marker, color=colour, linewidth=2, markersize=4, label=name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(SECONDS)
    _over_time(axes)
    add_legend(figure, axes)
    p50 = float(np.median([each.seconds for each in answered]))
    figure.set_label(f"Time for an answer over time; median of all {show(p50, 'seconds')}.")
    return figure


def _prompts(window: Window) -> Figure:
    figure, axes = empty_figure(2.6)
    lengths = {
        "live": [each.prompt_tokens for each in window.requests if each.prompt_tokens],
        "evaluated": list(window.baseline.prompt_tokens),
    }
    told = []
    for (name, values), colour in zip(lengths.items(), COLOURS, strict=False):
        shares = np.linspace(0, 1, min(len(values), 200) + 1)
        found = np.quantile(values, shares, method="inverted_cdf")
        axes.plot(found, shares, color=colour, linewidth=2.2, drawstyle="steps-post", label=name)
        told.append(f"{name} {np.median(values):g}")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("Tokens in the prompt")
    axes.grid()
    add_legend(figure, axes)
    figure.set_label(f"Lengths of prompts in tokens, medians: {', '.join(told)}.")
    return figure


def _parts(requests: Sequence[Request]) -> tuple[list[list[int]], list[float]]:
    """Return the positions of *requests* in each part of their time that has some, and the middle of each part."""
    times = np.array([each.time for each in requests])
    edges = np.linspace(times.min(), times.max() + 1e-3, BINS + 1)
    numbers = np.digitize(times, edges) - 1
    used = sorted(set(numbers.tolist()))
    return (
        [np.flatnonzero(numbers == number).tolist() for number in used],
        [float((edges[number] + edges[number + 1]) / 2) for number in used],
    )


def _over_time(axes: Axes) -> None:
    start, end = axes.get_xlim()
    form = "%m-%d %H:%M" if end - start > 20 * 3600 else "%H:%M" if end - start > 600 else "%H:%M:%S"
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: datetime.fromtimestamp(value, UTC).strftime(form)))
    axes.set_xlabel("UTC", color=MUTED)
    axes.grid()
