"""Draw the candidates side by side.

Tokens and answers are binned, so that the plot of a hundred thousand is no larger than that of a hundred.
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from steps.evaluation.cost import Timing
from steps.evaluation.fidelity import TokenFidelity
from steps.evaluation.metrics import Metrics, estimate, show
from steps.report.results import Results
from steps.report.style import (
    COLOURS,
    INK,
    MARKERS,
    MUTED,
    PERCENT,
    SECONDS,
    WIDTH,
    add_legend,
    empty_figure,
    name_rows,
    short,
    style,
)

BINS = 40
LEAST_KL, LEAST_NLL = 1e-8, 1e-6
"""In nats. Smaller values come from rounding of the logits, and are drawn at these limits."""

PLAIN = FuncFormatter(lambda value, _: f"{value:g}")

Series = dict[str, dict[int, list[float]]]
"""By candidate: the values measured at each prompt length or batch size."""


def draw(results: Results) -> dict[str, Figure]:
    """Return the plots by name; one whose measurements are missing is left out."""
    candidates, metrics, timings = results.candidates, results.metrics, results.timings
    colours = {name: COLOURS[position % len(COLOURS)] for position, name in enumerate(candidates)}
    tokens = {name: found for name, found in results.fidelity.items() if len(found.kl)}
    builds = {name: colours[name] for name in candidates if "task.lost" in metrics[name]}
    seconds = _timed_answers(results)
    with style():
        figures = {"accuracy": _accuracy(metrics, colours)}
        if builds:
            figures["flips"] = _flips(metrics, builds)
        if tokens:
            figures["kl"] = _kl(tokens, colours)
            figures["likelihood"] = _likelihood(tokens, colours)
        if seconds:
            figures["latency"] = _latency(seconds, colours)
        if timings:
            figures["first_token"] = _first_token(timings, colours)
            figures["throughput"] = _throughput(timings, colours)
    return figures


def _timed_answers(results: Results) -> dict[str, list[float]]:
    """Return by candidate the seconds of the answers that were timed and ended without an error."""
    found = {}
    for name in results.candidates:
        answers = [prediction.answers[name] for prediction in results.predictions]
        if timed := [answer.seconds for answer in answers if answer.error is None and answer.seconds is not None]:
            found[name] = timed
    return found


def _accuracy(metrics: Metrics, colours: Mapping[str, str]) -> Figure:
    """Return every candidate's share of right answers as a point with its 95 % interval."""
    figure, axes = empty_figure(1.1 + 0.55 * len(colours))
    lowest, told = 1.0, []
    for row, (name, colour) in enumerate(colours.items()):
        right = estimate(metrics[name], "task.accuracy")
        lowest = min(lowest, right.low)
        axes.plot([right.low, right.high], [row, row], color=colour, linewidth=5, alpha=0.35, solid_capstyle="round")
        axes.plot([right.value], [row], "o", color=colour, markersize=9)
        text = show(right.value, "share")
        axes.text(right.value, row - 0.28, text, ha="center", va="bottom", fontweight="bold")
        told.append(f"{name} {text}, interval {show(right.low, 'share')} to {show(right.high, 'share')}")
    # A zoom that starts a little left of the widest interval, and always shows the goal of 100 %.
    left = max(0.0, lowest - max(0.02, (1 - lowest) * 0.3))
    axes.set_xlim(left, 1 + (1 - left) * 0.06)
    name_rows(axes, list(colours))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("Right answers, with 95 % interval")
    axes.grid(axis="x")
    figure.set_label(f"Right answers: {'; '.join(told)}.")
    return figure


def _flips(metrics: Metrics, colours: Mapping[str, str]) -> Figure:
    """Return bars of how many examples every build lost against its reference (left) and gained (right)."""
    figure, axes = empty_figure(1.1 + 0.55 * len(colours))
    told, most = [], 1.0
    for row, (name, colour) in enumerate(colours.items()):
        for side, sign, alpha in (("lost", -1, 1.0), ("gained", 1, 0.5)):
            count = metrics[name][f"task.{side}"]
            most = max(most, count)
            text = f"{count:,.0f} {side}"
            axes.barh(row, sign * count, color=colour, alpha=alpha, height=0.45)
            # A hard space keeps the words off the bar.
            axes.text(sign * count, row, f"\u00a0{text}\u00a0", va="center", ha="right" if sign < 0 else "left")
            told.append(f"{name} {text}")
    axes.set_xlim(-most * 1.8, most * 1.8)
    axes.axvline(0, color=MUTED, linewidth=1)
    name_rows(axes, list(colours))
    axes.set_xticks([])
    axes.set_xlabel("Flipped examples")
    figure.set_label(f"Flips: {'; '.join(told)}.")
    return figure


def _kl(tokens: Mapping[str, TokenFidelity], colours: Mapping[str, str]) -> Figure:
    """Return the distribution of every build's divergence from its reference, over tokens."""
    figure, axes = empty_figure(2.9)
    finite = {name: found.kl[np.isfinite(found.kl)] for name, found in tokens.items()}
    everything = np.concatenate([*finite.values(), [LEAST_KL, LEAST_KL * 10]])
    edges = np.geomspace(LEAST_KL, everything.max(), BINS + 1)
    told = []
    for name, values in finite.items():
        figures = []
        if len(values):
            median, p99 = np.quantile(values, [0.5, 0.99])
            figures.append(f"median {median:.2g}, p99 {p99:.2g}")
        if missing := len(tokens[name].kl) - len(values):
            figures.append(f"{missing:,} not finite")
        label = ", ".join([short(name), *figures])
        counts, _ = np.histogram(np.clip(values, *edges[[0, -1]]), edges)
        axes.stairs(counts / max(1, len(values)), edges, color=colours[name], linewidth=2, label=label)
        told.append(", ".join([name, *figures]))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("KL divergence from the reference in nats (log scale)")
    axes.set_ylabel("Tokens")
    axes.grid()
    add_legend(figure, axes)
    figure.set_label(f"KL divergence of each token: {'; '.join(told)}.")
    return figure


def _likelihood(tokens: Mapping[str, TokenFidelity], colours: Mapping[str, str]) -> Figure:
    """Return the true tokens' negative log likelihood, build against reference, a panel for each build."""
    columns = min(2, len(tokens))
    rows = -(-len(tokens) // columns)
    figure, axes = empty_figure(rows * WIDTH * 0.85 / columns)
    axes.remove()
    found = {name: _finite_pairs(fidelity) for name, fidelity in tokens.items()}
    ends = LEAST_NLL, max(1.0, *(float(pair.max(initial=0)) for pair in found.values())) * 1.5
    told = []
    for place, (name, (reference, build)) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(rows, columns, place, aspect="equal", xlim=ends, ylim=ends)
        colour = mpl.colors.to_rgb(colours[name])
        shades = LinearSegmentedColormap.from_list(name, [(*colour, 0.35), (*colour, 1.0)])
        axes.set(xscale="log", yscale="log")
        axes.hexbin(
            *np.maximum([reference, build], LEAST_NLL),
            xscale="log",
            yscale="log",
            extent=(*np.log10(ends), *np.log10(ends)),
            gridsize=BINS if columns == 1 else BINS // 2,
            bins="log",  # the shade tells how many tokens, on a log scale too: most are where both are sure
            mincnt=1,
            cmap=shades,
            linewidths=0,
        )
        axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks((1e-5, 1e-3, 0.1, 10) if columns == 1 else (1e-3, 1))
            axis.set_major_formatter(PLAIN)
            axis.set_minor_locator(NullLocator())
        axes.set(xlim=ends, ylim=ends, xlabel="\u2212log p in the reference", ylabel="in the build")
        axes.set_title(short(name), fontsize=10 if columns == 1 else 9, color=INK)
        axes.tick_params(length=0)
        axes.grid()
        axes.set_axisbelow(True)
        more = int(np.sum(build > reference))
        told.append(f"{name} gives {more:,} of {len(build):,} true tokens a lower probability than the reference does")
    figure.set_label(f"Negative log likelihood, build against reference: {'; '.join(told)}.")
    return figure


def _finite_pairs(fidelity: TokenFidelity) -> npt.NDArray[np.float64]:
    """Return the tokens' negative log likelihood in the reference and in the build where both are finite, [2, n]."""
    pairs = np.stack([fidelity.reference_nll, fidelity.build_nll])
    return pairs[:, np.isfinite(pairs).all(axis=0)]


def _latency(seconds: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> Figure:
    """Return the distribution of every candidate's answer times: at x, the share of answers no slower."""
    figure, axes = empty_figure(2.9)
    told = []
    for name, values in seconds.items():
        median = float(np.median(values))
        text = f"median {show(median, 'seconds')}"
        axes.plot(
            *_ecdf(values), color=colours[name], linewidth=2.2, drawstyle="steps-post", label=f"{short(name)}, {text}"
        )
        axes.plot([median], [0.5], MARKERS[list(colours).index(name) % len(MARKERS)], color=colours[name])
        told.append(f"{name}, {text}")
    axes.set_xscale("log")
    # 1, 2 and 5 of every decade, where they fit: a plain log axis shows one label for all times of one decade.
    least, most = min(map(min, seconds.values())), max(map(max, seconds.values()))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 30 * least else (1, 3)))
    axes.xaxis.set_major_formatter(SECONDS)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("Time for an answer (log scale)")
    axes.set_ylabel("Answers this fast or faster")
    axes.grid()
    add_legend(figure, axes)
    figure.set_label(f"Time for an answer: {'; '.join(told)}.")
    return figure


def _ecdf(values: Sequence[float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return at most 201 points of the distribution of *values*: each value, and the share that is no larger."""
    shares = np.linspace(0, 1, min(len(values), 200) + 1)
    return np.quantile(values, shares, method="inverted_cdf"), shares


def _first_token(timings: Sequence[Timing], colours: Mapping[str, str]) -> Figure:
    """Return every candidate's time to the first token by length of the prompt, in the smallest batch."""
    batch = min(timing.batch for timing in timings)
    values: Series = {}
    for timing in timings:
        if timing.batch == batch:
            measured = values.setdefault(timing.candidate, {}).setdefault(timing.prompt_tokens, [])
            measured.append(timing.first_token_seconds)
    across = "Tokens in the prompt" if batch == 1 else f"Tokens in each of {batch} prompts"
    figure, axes = _medians(values, colours, across, "Time to the first token", "seconds")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(SECONDS)
    axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


def _throughput(timings: Sequence[Timing], colours: Mapping[str, str]) -> Figure:
    """Return every candidate's new tokens a second by batch size, at the prompt length with the most batch sizes."""
    batches: dict[int, set[int]] = {}
    for timing in timings:
        batches.setdefault(timing.prompt_tokens, set()).add(timing.batch)
    length = max(batches, key=lambda tokens: (len(batches[tokens]), -tokens))
    values: Series = {}
    for timing in timings:
        if timing.prompt_tokens == length:
            measured = values.setdefault(timing.candidate, {}).setdefault(timing.batch, [])
            measured.append(timing.batch * timing.new_tokens / timing.seconds)
    prompts = f"Prompts at a time, of {length:,} tokens each"
    figure, axes = _medians(values, colours, prompts, "New tokens a second", "rate")
    axes.set_ylim(bottom=0)
    return figure


def _medians(series: Series, colours: Mapping[str, str], across: str, upward: str, unit: str) -> tuple[Figure, Axes]:
    """Return a figure of every candidate's medians and ranges, *across* and *upward* naming its axes."""
    figure, axes = empty_figure(2.9)
    told = []
    for name, values in series.items():
        keys = sorted(values)
        ends = np.array([(min(values[key]), max(values[key])) for key in keys])
        medians = [float(np.median(values[key])) for key in keys]
        marker = MARKERS[list(colours).index(name) % len(MARKERS)]
        axes.fill_between(keys, ends[:, 0], ends[:, 1], color=colours[name], alpha=0.2, linewidth=0)
        axes.plot(keys, medians, marker=marker, color=colours[name], linewidth=2.2, label=short(name))
        told.append(f"{name} " + ", ".join(f"{show(m, unit)} at {key}" for key, m in zip(keys, medians, strict=True)))
    ticks = sorted({key for values in series.values() for key in values})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    counts = {len(measured) for values in series.values() for measured in values.values()}
    calls = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(min(counts))
    axes.set_xlabel(f"{across} ({calls} calls each)")
    axes.set_ylabel(upward)
    axes.grid()
    add_legend(figure, axes)
    figure.set_label(f"{upward}, medians: {'; '.join(told)}. {across}.")
    return figure, axes
