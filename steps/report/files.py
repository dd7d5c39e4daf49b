"""The files that evaluate leaves behind: predictions, gates, plots, the report, and two tables for later steps."""

from pathlib import Path

from steps.config.schema import CANDIDATES
from steps.evaluation.gates import write_gates
from steps.evaluation.predictions import write_predictions
from steps.records.artifacts import GATES, PREDICTIONS, REPORT, SCORES, SUMMARY
from steps.report.page import write_report
from steps.report.plots import draw
from steps.report.results import Results
from steps.report.style import save
from steps.report.tables import scores, summary


def write_results(folder: Path, results: Results) -> None:
    """Write predictions, gates, plots, report and tables to *folder*."""
    plots = draw(results)
    write_predictions(folder / PREDICTIONS, results.predictions)
    write_gates(folder / GATES, results.verdicts)
    (folder / "plots").mkdir()
    save(plots, folder / "plots")
    write_report(folder / REPORT, results, plots)
    (folder / SUMMARY).write_text(summary(results.metrics, results.candidates), encoding="utf-8")
    (folder / SCORES).write_text(scores(results.metrics, list(CANDIDATES)), encoding="utf-8")
