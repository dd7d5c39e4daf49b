"""The Pareto front of trials, worked out by hand, and the page that shows it."""

import math
from pathlib import Path

import pandas as pd
import pytest

from steps.report.sweep_page import QUALITY, SIZE, SPEED, axes_for, pareto_front, write_page


def table(*rows: tuple[str, float, float, float]) -> pd.DataFrame:
    """Return trials of (status, quality, speed, size)."""
    return pd.DataFrame(
        [
            {"block_size": 16 * number, "status": row[0], "seconds": 9.0, QUALITY.metric: row[1], SPEED.metric: row[2]}
            | {SIZE.metric: row[3]}
            for number, row in enumerate(rows, start=1)
        ]
    )


def front(trials: pd.DataFrame) -> "pd.Series[bool]":
    """Return which of *trials* are on the front of quality, speed and size."""
    return pareto_front(trials, (QUALITY, SPEED, SIZE))


def page_of(folder: Path, trials: pd.DataFrame, keys: list[str], best: int | None, command: str = "") -> str:
    """Return the page of *trials*, of which *best* has the highest accuracy."""
    write_page(folder / "sweep.html", trials, keys, best, command, objective=QUALITY.metric, maximize=True)
    return (folder / "sweep.html").read_text()


def test_a_trial_that_another_beats_in_one_figure_and_equals_in_the_rest_is_not_on_the_front() -> None:
    assert list(front(table(("FINISHED", 0.9, 10, 5), ("FINISHED", 0.9, 11, 5)))) == [False, True]


def test_better_in_one_and_worse_in_another_are_both_on_the_front() -> None:
    assert list(front(table(("FINISHED", 0.9, 10, 5), ("FINISHED", 0.8, 11, 5)))) == [True, True]


def test_a_smaller_model_is_better() -> None:
    assert list(front(table(("FINISHED", 0.9, 10, 5), ("FINISHED", 0.9, 10, 4)))) == [False, True]


def test_equal_trials_are_both_on_the_front() -> None:
    assert list(front(table(("FINISHED", 0.9, 10, 5), ("FINISHED", 0.9, 10, 5)))) == [True, True]


@pytest.mark.parametrize("row", [("FAILED", 1.0, 99, 1), ("FINISHED", math.nan, 99, 1)])
def test_a_trial_that_failed_or_lacks_a_figure_is_not_on_the_front_and_beats_nobody(
    row: tuple[str, float, float, float],
) -> None:
    assert list(front(table(("FINISHED", 0.9, 10, 5), row))) == [True, False]


def test_a_sweep_without_any_figure_has_no_front() -> None:
    assert list(front(pd.DataFrame({"status": ["FAILED", "FAILED"]}))) == [False, False]


@pytest.mark.parametrize(
    ("objective", "names"),
    [
        ("onnx.task.accuracy", [QUALITY.metric, SPEED.metric, SIZE.metric]),
        ("onnx.fidelity.kl_mean", ["onnx.fidelity.kl_mean", SPEED.metric, SIZE.metric]),
        ("onnx.cost.seconds_p90", [QUALITY.metric, "onnx.cost.seconds_p90", SIZE.metric]),
        ("onnx.cost.size_bytes", [QUALITY.metric, SPEED.metric, SIZE.metric]),
    ],
)
def test_the_objective_takes_the_place_of_quality_or_of_speed(objective: str, names: list[str]) -> None:
    assert [axis.metric for axis in axes_for(objective, maximize=False)] == names


def test_a_trial_that_a_gate_stopped_is_listed_with_its_figures_and_its_reason(tmp_path: Path) -> None:
    trials = table(("FINISHED", 0.9, 10, 5e6), ("FAILED", 0.5, 20, 4e6))
    trials["reason"] = ["", "evaluate: onnx.task.accuracy 0.5 is below <gate>"]
    page = page_of(tmp_path, trials, ["block_size"], 0)
    assert "2 trials, 1 did not finish" in page
    assert "50.0\u00a0%" in page
    assert "Trial 2, FAILED: block_size=32" in page
    assert "evaluate: onnx.task.accuracy 0.5 is below &lt;gate&gt;" in page


def test_the_page_shows_every_trial_and_loads_nothing(tmp_path: Path) -> None:
    trials = table(("FINISHED", 0.9, 10, 5e6), ("FAILED", math.nan, math.nan, math.nan))
    trials["question"] = ["<script>alert(1)</script>", "why"]
    page = page_of(tmp_path, trials, ["block_size", "question"], 0, "mlflow run . -P x=1")
    assert "<h1>2 trials, 1 did not finish</h1>" in page
    assert "Pareto, best" in page
    assert "mlflow run . -P x=1" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "src=" not in page


def test_a_page_of_failures_alone_can_be_written(tmp_path: Path) -> None:
    trials = pd.DataFrame({"block_size": ["16"], "status": ["FAILED"], "seconds": [3.0]})
    assert "FAILED" in page_of(tmp_path, trials, ["block_size"], None)
