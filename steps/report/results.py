"""What evaluate leaves behind as files: predictions, gates, plots, report, and two tables for other steps to show."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from steps.config.schema import CANDIDATES, REFERENCE, Config
from steps.evaluation.gates import Verdict, write_gates
from steps.evaluation.predictions import Prediction, write_predictions
from steps.measurement.measure import Measurements
from steps.records.artifacts import GATES, PREDICTIONS, REPORT, SCORES, SUMMARY
from steps.report.ladder import Ladder
from steps.report.page import metric_rows, write_report
from steps.report.plots import draw
from steps.report.style import save

IN_SUMMARY = (
    "task.accuracy",
    "task.agreement",
    "fidelity.perplexity_ratio",
    "cost.answers_per_second",
    "cost.first_answer_seconds",
    "cost.size_bytes",
    "cost.peak_memory_bytes",
)
"""The metrics that the terminal shows; the report has all."""


def write_results(
    folder: Path,
    predictions: list[Prediction],
    metrics: dict[str, float],
    verdicts: list[Verdict],
    found: Measurements,
    config: Config,
    provenance: dict[str, str],
    ladder: Ladder | None = None,
) -> None:
    """Write predictions, gates, plots, report and summary to *folder*; *ladder* is what onnx=auto tried."""
    figures = draw(predictions, metrics, found.fidelity, found.timings)
    candidates = list(found.answers)
    fidelity, cost = config.evaluate.fidelity, config.evaluate.cost
    write_predictions(folder / PREDICTIONS, predictions)
    write_gates(folder / GATES, verdicts)
    (folder / "plots").mkdir()
    save(figures, folder / "plots")
    write_report(
        folder / REPORT,
        title=f"{config.model.name}: {' and '.join(candidates[1:])} measured against {REFERENCE}",
        predictions=predictions,
        metrics=metrics,
        verdicts=verdicts,
        figures=figures,
        reference=REFERENCE,
        fidelity=found.fidelity,
        measured={
            "Task": config.evaluate.task,
            "Examples": len(predictions),
            "Scorer": config.evaluate.scorer or "as the task says of each example",
            "Longest answer": f"{config.evaluate.max_tokens} tokens, greedy",
            "Order": "each candidate in a process of its own, in turns, one question at a time, after a warm-up",
            "Probabilities": f"of the task's answers{f' and {fidelity.text}' if fidelity.text else ''}, "
            f"at most {fidelity.context} tokens at a time, on the token ids of {REFERENCE}",
            "Times": f"{cost.repeats} calls for each of {cost.prompt_lengths} prompt tokens by {cost.batches} prompts, "
            f"at most {cost.new_tokens} new tokens; to the first token: a call for one token",
            "Threads": ", ".join(f"{name} {count}" for name, count in found.threads.items()),
            "Failures": "; ".join(found.failures) or "none",
        },
        provenance=provenance,
        ladder=ladder,
    )
    (folder / SUMMARY).write_text(summary(metrics, candidates), encoding="utf-8")
    (folder / SCORES).write_text(scores(metrics), encoding="utf-8")


def summary(metrics: Mapping[str, float], candidates: Sequence[str]) -> str:
    """Return the metrics that matter most as a table of plain text, *candidates* side by side."""
    lines = [f"{'':<40}" + "".join(f"{name:>14}" for name in candidates)]
    for row in metric_rows(metrics, candidates):
        if row.name in IN_SUMMARY:
            lines.append(f"{row.meaning.label:<40}" + "".join(f"{cell.text if cell else '':>14}" for cell in row.cells))
    return "\n".join(lines) + "\n"


def scores(metrics: Mapping[str, float]) -> str:
    """Return all metrics as a table in Markdown, candidates side by side, for the model cards of what is registered."""
    lines = [f"| | {' | '.join(CANDIDATES)} |", "|---|" + "---|" * len(CANDIDATES)]
    for row in metric_rows(metrics, list(CANDIDATES)):
        cells = [
            f"{cell.text} ({cell.interval})" if cell and cell.interval else cell.text if cell else ""
            for cell in row.cells
        ]
        lines.append(f"| {row.meaning.label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
