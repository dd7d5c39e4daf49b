"""Write the evaluation as one HTML file for people: the verdict first, then what it rests on.

The file needs no network and runs no script, so it also opens in MLflow's artifact view, which forbids both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from steps.evaluation.fidelity import TokenFidelity
from steps.evaluation.gates import FAILED, INCONCLUSIVE, PASSED, Verdict, overall
from steps.evaluation.metrics import MEANINGS, Meaning, show
from steps.evaluation.predictions import Prediction
from steps.report.ladder import HEAD, Ladder
from steps.report.ladder import draw as draw_ladder
from steps.report.ladder import rows as rungs
from steps.report.style import COLOURS, inline_svg

SHOWN = 25
"""So many examples are shown; all of them are in predictions.jsonl."""
FURTHEST = 3
"""Of those on which all candidates are right and agree, so many by likelihood, and so many by time."""
LONGEST = 4_000
"""So many characters of a text are shown."""

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


@dataclass(frozen=True)
class Cell:
    """A figure as text, and its interval, which may be empty."""

    text: str
    interval: str


@dataclass(frozen=True)
class Row:
    """A metric by name, with every candidate's cell; None where it was not measured."""

    name: str
    meaning: Meaning
    cells: list[Cell | None]


def write_report(
    path: Path,
    *,
    title: str,
    predictions: Sequence[Prediction],
    metrics: Mapping[str, float],
    verdicts: Sequence[Verdict],
    figures: Mapping[str, Figure],
    reference: str,
    measured: Mapping[str, Any],
    provenance: Mapping[str, Any],
    fidelity: Mapping[str, TokenFidelity] | None = None,
    ladder: Ladder | None = None,
) -> None:
    """Write the report to *path*.

    *measured* says how it was measured (threads, options) and *provenance* what (commits, URIs), as labels
    and values. Of *fidelity*, by candidate, text n is example n; texts beyond the last are of no example. *ladder* is
    what onnx=auto tried. Any text, theirs or a candidate's, is shown as it is and never read as HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    candidates = list(predictions[0].answers)
    rows = metric_rows(metrics, candidates)
    notable = notable_examples(predictions, reference)
    remote = furthest_examples(predictions, reference, fidelity or {})
    page = environment.get_template("report.html.jinja").render(
        title=title,
        reference=reference,
        candidates=candidates,
        colours={name: COLOURS[position % len(COLOURS)] for position, name in enumerate(candidates)},
        examples=len(predictions),
        overall=overall(verdicts),
        headline=VERDICTS[overall(verdicts)],
        verdicts=verdicts,
        unkept=[verdict for verdict in verdicts if verdict.verdict != PASSED],
        gate_cell=gate_cell,
        in_words=in_words,
        limits=limits,
        headlines=[row for row in rows if row.name in HEADLINES],
        areas=_by_area(rows),
        fidelity=any(row.name.startswith("fidelity.") for row in rows),
        figures=[(name, _inline(figure), CAPTIONS.get(name, name)) for name, figure in figures.items()],
        ladder=ladder and {"head": HEAD, "rows": rungs(ladder), "plot": _inline(draw_ladder(ladder))},
        notable=notable[:SHOWN],
        notable_total=len(notable),
        remote=remote,
        shortened=shortened,
        outcomes=OUTCOMES,
        show=show,
        measured=measured,
        provenance=provenance,
    )
    # A lone surrogate, which JSON may hold, is no UTF-8: it is shown by its number.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


def metric_rows(metrics: Mapping[str, float], candidates: Sequence[str]) -> list[Row]:
    """Return a row for each metric of *candidates*: those of `MEANINGS` in its order, then the others."""
    found = {name.partition(".")[2] for name in metrics if name.partition(".")[0] in candidates}
    bounds = {name + end for name in found for end in ("_low", "_high")}
    names = [name for name in MEANINGS if name in found] + sorted(found - bounds - MEANINGS.keys())
    return [
        Row(name, _meaning(name), [_cell(metrics, f"{candidate}.{name}") for candidate in candidates]) for name in names
    ]


def notable_examples(predictions: Sequence[Prediction], reference: str) -> list[tuple[str, Prediction]]:
    """Return the predictions with wrong or different answers, with their outcome, most telling first."""
    found = [(_outcome(prediction, reference), prediction) for prediction in predictions]
    order = list(OUTCOMES)
    return sorted(((why, p) for why, p in found if why), key=lambda pair: order.index(pair[0]))


def furthest_examples(
    predictions: Sequence[Prediction], reference: str, fidelity: Mapping[str, TokenFidelity]
) -> list[tuple[str, Prediction]]:
    """Return examples on which all are right and agree, by the largest difference in likelihood, then in time."""
    alike = [place for place, prediction in enumerate(predictions) if _outcome(prediction, reference) is None]
    gaps = np.zeros(len(predictions))
    for tokens in fidelity.values():
        gap = np.bincount(tokens.text, np.nan_to_num(tokens.build_nll - tokens.reference_nll), len(predictions))
        gaps = np.maximum(gaps, np.abs(gap[: len(predictions)]))
    unlikely = [place for place in sorted(alike, key=lambda place: -gaps[place])[:FURTHEST] if gaps[place] > 0]

    def slowness(place: int) -> float:
        answers = predictions[place].answers
        others = [answer.seconds for name, answer in answers.items() if name != reference]
        return max(others, default=0.0) / max(answers[reference].seconds, 1e-9)

    slow = sorted(set(alike) - set(unlikely), key=lambda place: (-slowness(place), place))[:FURTHEST]
    found = {"unlikely": unlikely, "slow": slow if len(predictions[0].answers) > 1 else []}
    return [(why, predictions[place]) for why, places in found.items() for place in places]


def shortened(text: str) -> str:
    """Return *text*, cut to `LONGEST` characters with a word on the rest."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… ({len(text) - LONGEST:,} more characters in predictions.jsonl)"


def in_words(verdict: Verdict) -> str:
    """Return in one sentence why a gate is not kept."""
    candidate, _, name = verdict.metric.partition(".")
    cell = gate_cell(verdict)
    what = f"{_meaning(name).label} ({candidate})"
    if verdict.figure is None:
        return f"{what}: there is no figure to hold against the limit, {limits(verdict)}."
    shown = f"{what}: {cell.text}" + (f" ({cell.interval})" if cell.interval else "")
    if verdict.use == "interval" and not cell.interval:
        return f"{shown}, without the interval that the gate asks for."
    if verdict.verdict == INCONCLUSIVE:
        return f"{shown}. The limit, {limits(verdict)}, lies within this interval: too few examples to tell."
    return f"{shown}. The limit is {limits(verdict)}."


def gate_cell(verdict: Verdict) -> Cell:
    """Return the figure that a gate judged, with its interval if the gate uses it."""
    figures = {"": verdict.figure}
    if verdict.use == "interval":
        figures |= {"_low": verdict.low, "_high": verdict.high}
    metrics = {verdict.metric + end: value for end, value in figures.items() if value is not None}
    return _cell(metrics, verdict.metric) or Cell("none", "")


def limits(verdict: Verdict) -> str:
    """Return a gate's limits in words."""
    unit = _meaning(verdict.metric.partition(".")[2]).unit
    pairs = (("at least", verdict.min), ("at most", verdict.max))
    return ", ".join(f"{words} {show(limit, unit)}" for words, limit in pairs if limit is not None)


def _cell(metrics: Mapping[str, float], metric: str) -> Cell | None:
    """Return *metric* (a full name) with its interval if it has one, or None when it was not measured."""
    if metric not in metrics:
        return None
    unit = _meaning(metric.partition(".")[2]).unit
    low, high = metrics.get(f"{metric}_low"), metrics.get(f"{metric}_high")
    interval = ""
    if low is not None and high is not None:
        (first, _, first_unit), (_, _, last_unit) = (show(end, unit).partition("\u00a0") for end in (low, high))
        first = first if first_unit == last_unit else show(low, unit)
        interval = f"{first} to {show(high, unit)}"
    return Cell(show(metrics[metric], unit), interval)


def _inline(figure: Figure) -> Markup:
    """Return *figure* as SVG that the page takes as it is."""
    return Markup(inline_svg(figure))  # noqa: S704  matplotlib escapes every text that it draws


def _meaning(name: str) -> Meaning:
    """Return what the metric `<area>.<name>` means; an unknown one is called by its name."""
    return MEANINGS.get(name, Meaning(name, ""))


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
