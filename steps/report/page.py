"""Write the evaluation as one HTML file for people: the verdict first, then the figures behind it.

The file needs no network and no script, so it also opens in MLflow's artifact view, which forbids both.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from steps.evaluation.asking import Answer
from steps.evaluation.fidelity import TokenFidelity
from steps.evaluation.gates import FAILED, INCONCLUSIVE, PASSED, Verdict, overall
from steps.evaluation.metrics import meaning, show, split_name
from steps.evaluation.predictions import Prediction
from steps.records.templates import render
from steps.report.ladder import HEAD, Ladder
from steps.report.ladder import draw as draw_ladder
from steps.report.ladder import rows as rungs
from steps.report.results import Results
from steps.report.style import COLOURS, inline_svg
from steps.report.tables import Cell, Row, figure_cell, limits, metric_rows

TEMPLATE = Path(__file__).with_name("report.html.jinja")

SHOWN = 25
"""How many examples are shown; predictions.jsonl has all."""
FURTHEST = 3
"""Of the examples on which all agree: how many are shown for their likelihood, and how many for their time."""
LONGEST = 4_000
"""How many characters of a text are shown."""

HEADLINES = ("task.accuracy", "fidelity.same_top", "cost.seconds_p50", "cost.size_bytes")

CAPTIONS = {
    "accuracy": "Right answers. The bar is where the true share lies with 95 % confidence.",
    "flips": "Examples that only the reference has right (lost), or only the build (gained).",
    "kl": "How far a build's next-token probabilities are from the reference's. Further left is closer.",
    "likelihood": "Surprise at every true token in nats, on log scales. Above the line the build is more surprised.",
    "first_token": "Time until the first token, by length of the prompt: median, and range of all calls.",
    "throughput": "New tokens a second, of all prompts of a call together: median, and range of all calls.",
    "latency": "Time for an answer. A curve further left is faster; a flat end means a few slow answers.",
}

VERDICTS = {
    PASSED: ("Passed", "Every gate is kept."),
    FAILED: ("Failed", "At least one gate is broken, so nothing is registered."),
    INCONCLUSIVE: ("Inconclusive", "The figures cannot decide, so nothing is registered."),
}

OUTCOMES = {
    "lost": "The reference is right, another is wrong",
    "gained": "The reference is wrong, another is right",
    "wrong": "No candidate is right",
    "differ": "All right, in different words",
    "unlikely": "All right; here the likelihood differs most from the reference's",
    "slow": "All right; here a build is slowest against its reference",
}
"""Why an example is shown, the most telling first."""

AREAS = {
    "task": "Task",
    "fidelity": "Fidelity to the reference",
    "contract": "Contract",
    "integrity": "Integrity",
    "cost": "Cost",
}
"""The groups of figures, in the order in which they are shown; an area that is not named comes last."""


def write_report(path: Path, results: Results, plots: Mapping[str, Figure]) -> None:
    """Write the report on *results* to *path*, with *plots* by name.

    Any text, ours or a candidate's, is shown as it is and never read as HTML.
    """
    candidates, verdict = results.candidates, overall(results.verdicts)
    rows = metric_rows(results.metrics, candidates)
    notable = notable_examples(results.predictions, results.reference)
    page = render(
        TEMPLATE,
        escape=True,
        title=results.title,
        reference=results.reference,
        candidates=candidates,
        colours={name: COLOURS[position % len(COLOURS)] for position, name in enumerate(candidates)},
        examples=len(results.predictions),
        overall=verdict,
        headline=VERDICTS[verdict],
        verdicts=results.verdicts,
        unkept=[each for each in results.verdicts if each.verdict != PASSED],
        gate_cell=gate_cell,
        in_words=in_words,
        gate_limits=gate_limits,
        headlines=[row for row in rows if row.name in HEADLINES],
        areas=_by_area(rows),
        fidelity=any(row.name.startswith("fidelity.") for row in rows),
        plots=[(name, _inline(plot), CAPTIONS.get(name, name)) for name, plot in plots.items()],
        ladder=results.ladder and ladder_section(results.ladder),
        notable=notable[:SHOWN],
        notable_total=len(notable),
        remote=furthest_examples(results.predictions, results.reference, results.fidelity),
        shortened=shortened,
        outcomes=OUTCOMES,
        show=show,
        method=results.method,
        provenance=results.provenance,
    )
    # A lone surrogate, which JSON may hold, is no UTF-8: it is shown by its number.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


def ladder_section(ladder: Ladder) -> dict[str, object]:
    """Return what the page shows of the recipes that onnx=auto tried: a table and a plot."""
    return {"head": HEAD, "rows": rungs(ladder), "plot": _inline(draw_ladder(ladder))}


def notable_examples(predictions: Sequence[Prediction], reference: str) -> list[tuple[str, Prediction]]:
    """Return the predictions with wrong or different answers, with their outcome, most telling first."""
    found = [(_outcome(prediction, reference), prediction) for prediction in predictions]
    order = list(OUTCOMES)
    return sorted(((why, p) for why, p in found if why), key=lambda pair: order.index(pair[0]))


def furthest_examples(
    predictions: Sequence[Prediction], reference: str, fidelity: Mapping[str, TokenFidelity]
) -> list[tuple[str, Prediction]]:
    """Return examples on which all are right and agree: first those furthest apart in likelihood, then in time."""
    alike = [place for place, prediction in enumerate(predictions) if _outcome(prediction, reference) is None]
    gaps = np.zeros(len(predictions))
    for tokens in fidelity.values():
        gap = np.bincount(tokens.text, np.nan_to_num(tokens.build_nll - tokens.reference_nll), len(predictions))
        gaps = np.maximum(gaps, np.abs(gap[: len(predictions)]))
    unlikely = [place for place in sorted(alike, key=lambda place: -gaps[place])[:FURTHEST] if gaps[place] > 0]

    slowness = {place: _slowness(predictions[place].answers, reference) for place in set(alike) - set(unlikely)}
    slow = sorted((place for place in slowness if slowness[place] > 0), key=lambda place: (-slowness[place], place))
    found = {"unlikely": unlikely, "slow": slow[:FURTHEST]}
    return [(why, predictions[place]) for why, places in found.items() for place in places]


def _slowness(answers: Mapping[str, Answer], reference: str) -> float:
    """Return the time of the slowest build divided by the reference's; 0 where they were not timed."""
    builds = [answer.seconds for name, answer in answers.items() if name != reference and answer.seconds is not None]
    base = answers[reference].seconds
    return max(builds) / max(base, 1e-9) if builds and base is not None else 0


def shortened(text: str) -> str:
    """Return *text*; a long one is cut to `LONGEST` characters and says so."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… ({len(text) - LONGEST:,} more characters in predictions.jsonl)"


def in_words(verdict: Verdict) -> str:
    """Return in one sentence why a gate is not kept."""
    candidate, name = split_name(verdict.metric)
    cell = gate_cell(verdict)
    what = f"{meaning(name).label} ({candidate})"
    if verdict.figure is None:
        return f"{what}: there is no figure to hold against the limit, {gate_limits(verdict)}."
    shown = f"{what}: {cell}"
    if verdict.use == "interval" and not cell.interval:
        return f"{shown}, without the interval that the gate asks for."
    if verdict.verdict == INCONCLUSIVE:
        return f"{shown}. The limit, {gate_limits(verdict)}, lies within this interval: too few examples to tell."
    return f"{shown}. The limit is {gate_limits(verdict)}."


def gate_cell(verdict: Verdict) -> Cell:
    """Return the figure that a gate judged, with its interval if the gate uses it."""
    low, high = (verdict.low, verdict.high) if verdict.use == "interval" else (None, None)
    return figure_cell(verdict.figure, low, high, _unit(verdict)) or Cell("none", "")


def gate_limits(verdict: Verdict) -> str:
    """Return the limits of a gate in words."""
    return limits(verdict, _unit(verdict))


def _unit(verdict: Verdict) -> str:
    """Return the unit of the figure that a gate judged."""
    return meaning(split_name(verdict.metric)[1]).unit


def _inline(figure: Figure) -> Markup:
    """Return *figure* as SVG that the template does not escape."""
    return Markup(inline_svg(figure))  # noqa: S704  matplotlib escapes every text that it draws


def _by_area(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return *rows* by the title of their area, in the order of `AREAS`."""
    areas = dict.fromkeys([*AREAS, *(row.name.partition(".")[0] for row in rows)])
    found = {area: [row for row in rows if row.name.partition(".")[0] == area] for area in areas}
    return {AREAS.get(area, area): members for area, members in found.items() if members}


def _outcome(prediction: Prediction, reference: str) -> str | None:
    """Return the key of `OUTCOMES` that says why *prediction* is worth a look, or None."""
    others = [right for name, right in prediction.right.items() if name != reference]
    if prediction.right[reference]:
        if not all(others):
            return "lost"
        return None if all(prediction.agree(reference, name) for name in prediction.answers) else "differ"
    return "gained" if any(others) else "wrong"
