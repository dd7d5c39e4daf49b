"""The ladder of onnx=auto for people: a line each, a table, and a plot of closeness against size and speed."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from steps.evaluation.metrics import show
from steps.report.style import COLOURS, INK, MUTED, WIDTH, style

HEAD = ("Recipe", "Size", "Of checkpoint", "Perplexity ratio", "KL", "Same top token", "Tokens/s", "Seconds", "Verdict")
LEAST_KL = 1e-4
"""The plot's smallest KL; smaller ones are drawn here. An fp32 build's, some 1e-9, would squeeze all others."""

Ladder = Mapping[str, Any]
"""What `ladder.json` holds."""


def rows(ladder: Ladder) -> list[list[str]]:
    """Return the cells under HEAD of every rung of *ladder*; what was not measured is empty."""
    return [[rung["recipe"]["name"], *_cells(rung["figures"]), _verdict(rung)] for rung in ladder["rungs"]]


def table(ladder: Ladder) -> str:
    """Return *ladder* as Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *rows(ladder)]
    below = [f"- {rung['recipe']['name']}: {rung['reason']}" for rung in ladder["rungs"]]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", *below, ""])


def progress(rung: Mapping[str, Any]) -> str:
    """Return *rung* in one line for the terminal."""
    name, figures = rung["recipe"]["name"], _cells(rung["figures"])
    if not rung["figures"]:
        return f"{name:<12} {_verdict(rung)}: {rung['reason']}"
    size, of_checkpoint, ratio, kl, top, rate, seconds = figures
    share = f"{size} ({of_checkpoint} of the checkpoint)"
    close = f"perplexity ratio {ratio}, KL {kl}, same top token {top}"
    return f"{name:<12} {share}, {close}, {rate} tokens/s, {seconds} s: {_verdict(rung)}"


def measured(ladder: Ladder) -> list[Mapping[str, Any]]:
    """Return the rungs of *ladder* that have a KL divergence; one that computes NaN has none."""
    return [rung for rung in ladder["rungs"] if rung["figures"].get("fidelity.kl_mean") is not None]


def draw(ladder: Ladder) -> Figure:
    """Return the plot of the measured rungs of *ladder*, which has some."""
    rungs = measured(ladder)
    limits = [gate["max"] for gate in ladder["gates"].values() if gate["metric"] == "onnx.fidelity.kl_mean"]
    with style():
        figure = Figure(figsize=(WIDTH, 5.2))
        FigureCanvasAgg(figure)
        by_size, by_speed = figure.subplots(2, 1)
        _panel(by_size, rungs, limits, "cost.size_ratio", "Size, relative to the checkpoint", ladder["chosen"])
        _panel(by_speed, rungs, limits, "cost.decode_tokens_per_second", "Tokens a second", ladder["chosen"])
    words = "; ".join(progress(rung) for rung in rungs)
    figure.set_label(f"KL divergence of each recipe from the checkpoint, against its size and its speed: {words}")
    return figure


def _panel(
    axes: Axes, rungs: Sequence[Mapping[str, Any]], limits: list[float], figure: str, label: str, chosen: str | None
) -> None:
    axes.tick_params(which="both", length=0)
    axes.set_axisbelow(True)
    axes.grid(visible=True)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("KL, nats")
    axes.set_xlabel(label)
    most = max(rung["figures"][figure] for rung in rungs)
    axes.set_xlim(0, most * 1.1)
    for limit in limits:
        axes.axhline(limit, color=MUTED, linestyle="--", linewidth=1)
        end = (1, limit), (-2, 3), axes.get_yaxis_transform(), "offset points"
        axes.annotate(f"limit {limit:g}", *end, ha="right", color=MUTED)
    for rung in rungs:
        name, figures = rung["recipe"]["name"], rung["figures"]
        place = figures[figure], max(figures["fidelity.kl_mean"], LEAST_KL)
        axes.plot(*place, "o", markersize=8, color=COLOURS[0], markerfacecolor=COLOURS[0] if name == chosen else "none")
        words = f"{name}, closer" if figures["fidelity.kl_mean"] < LEAST_KL else name
        side, away = ("left", 8) if place[0] < most / 2 else ("right", -8)
        axes.annotate(words, place, (away, 0), textcoords="offset points", ha=side, va="center", color=INK)
    axes.margins(y=0.15)


def _cells(figures: Mapping[str, float | None]) -> list[str]:
    def cell(name: str, form: str) -> str:
        value = figures.get(name)
        return "" if value is None else format(value, form)

    size = figures.get("cost.size_bytes")
    spent = [figures.get(f"cost.{part}_seconds") or 0.0 for part in ("build", "measure")]
    return [
        "" if size is None else show(size, "bytes"),
        cell("cost.size_ratio", ".2f"),
        cell("fidelity.perplexity_ratio", ".4f"),
        cell("fidelity.kl_mean", ".4f"),
        cell("fidelity.same_top", ".1%"),
        cell("cost.decode_tokens_per_second", ".0f"),
        f"{sum(spent):.0f}" if figures else "",
    ]


def _verdict(rung: Mapping[str, Any]) -> str:
    return f"{rung['verdict']} (measured before)" if rung["reused"] else str(rung["verdict"])
