"""Figures as text: one format for the page, the terminal, the model card and the sweep."""

import pytest

from steps.evaluation.gates import Gate, judge
from steps.report.tables import figure_cell, limits, metric_rows, scores, summary


def test_a_cell_reads_value_low_to_high_with_the_unit_once() -> None:
    cell = figure_cell(0.5, 0.4, 0.6, "share")

    assert str(cell) == "50.0\u00a0% (40.0 to 60.0\u00a0%)"


def test_ends_in_different_units_keep_both() -> None:
    cell = figure_cell(1.0, 0.5, 2.0, "seconds")

    assert str(cell) == "1\u00a0s (500\u00a0ms to 2\u00a0s)"


def test_a_figure_without_an_interval_is_its_value_and_one_that_is_missing_is_none() -> None:
    assert str(figure_cell(0.5, None, None, "share")) == "50.0\u00a0%"
    assert figure_cell(None, None, None, "share") is None


@pytest.mark.parametrize(
    ("limit", "unit", "text"),
    [
        (0.9, "share", "at most 90\u00a0%"),
        (10, "ratio", "at most 10\u00a0\u00d7"),
        (1.05, "ratio", "at most 1.05\u00a0\u00d7"),
        (-0.05, "points", "at most \u22125\u00a0pp"),
        (2e6, "bytes", "at most 2\u00a0MB"),
        (1000, "count", "at most 1,000"),
        (1.5e-10, "nats", "at most 1.5e-10\u00a0nats"),
    ],
)
def test_a_limit_has_no_more_digits_than_somebody_chose(limit: float, unit: str, text: str) -> None:
    (verdict,) = judge({}, {"any": Gate("onnx.task.accuracy", max=limit)})
    assert limits(verdict, unit) == text


def test_bounds_of_known_metrics_are_no_rows_of_their_own_and_unknown_metrics_come_last() -> None:
    figures = {"other.x": 1.0, "task.accuracy": 0.5, "task.accuracy_low": 0.4, "task.accuracy_high": 0.6}

    assert [row.name for row in metric_rows({"onnx": figures}, ["onnx"])] == ["task.accuracy", "other.x"]


def test_the_summary_puts_the_candidates_side_by_side() -> None:
    shares = {"pipeline": 1.0, "onnx": 0.5, "old": 0.25}

    lines = summary({name: {"task.accuracy": share} for name, share in shares.items()}, list(shares)).splitlines()

    assert lines[0].split() == ["pipeline", "onnx", "old"]
    assert lines[1].split() == ["Right", "answers", "100.0", "%", "50.0", "%", "25.0", "%"]


def test_the_scores_are_a_table_in_markdown_with_intervals() -> None:
    figures = {"task.accuracy": 0.5, "task.accuracy_low": 0.4, "task.accuracy_high": 0.6}

    assert scores({"onnx": figures}, ["pipeline", "onnx"]).splitlines() == [
        "| | pipeline | onnx |",
        "|---|---|---|",
        "| Right answers |  | 50.0\u00a0% (40.0 to 60.0\u00a0%) |",
    ]
