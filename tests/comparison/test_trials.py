"""The Pareto front of trials, worked out by hand, and the page that shows it."""

import math
from pathlib import Path

import pandas as pd
import pytest

from steps.comparison.trials import QUALITY, SIZE, SPEED, pareto_front, write_page


def table(*rows: tuple[str, float, float, float]) -> pd.DataFrame:
    """Return trials of (status, quality, speed, size)."""
    return pd.DataFrame(
        [
            {"block_size": 16 * number, "status": row[0], "seconds": 9.0, QUALITY: row[1], SPEED: row[2], SIZE: row[3]}
            for number, row in enumerate(rows, start=1)
        ]
    )


def test_a_trial_that_another_beats_in_one_figure_and_equals_in_the_rest_is_not_on_the_front() -> None:
    assert list(pareto_front(table(("FINISHED", 0.9, 10, 5), ("FINISHED", 0.9, 11, 5)))) == [False, True]


def test_better_in_one_and_worse_in_another_are_both_on_the_front() -> None:
    assert list(pareto_front(table(("FINISHED", 0.9, 10, 5), ("FINISHED", 0.8, 11, 5)))) == [True, True]


def test_a_smaller_model_is_better() -> None:
    assert list(pareto_front(table(("FINISHED", 0.9, 10, 5), ("FINISHED", 0.9, 10, 4)))) == [False, True]


def test_equal_trials_are_both_on_the_front() -> None:
    assert list(pareto_front(table(("FINISHED", 0.9, 10, 5), ("FINISHED", 0.9, 10, 5)))) == [True, True]


@pytest.mark.parametrize("row", [("FAILED", 1.0, 99, 1), ("FINISHED", math.nan, 99, 1)])
def test_a_trial_that_failed_or_lacks_a_figure_is_not_on_the_front_and_beats_nobody(
    row: tuple[str, float, float, float],
) -> None:
    assert list(pareto_front(table(("FINISHED", 0.9, 10, 5), row))) == [True, False]


def test_a_sweep_without_any_figure_has_no_front() -> None:
    assert list(pareto_front(pd.DataFrame({"status": ["FAILED", "FAILED"]}))) == [False, False]


def test_the_page_shows_every_trial_and_loads_nothing(tmp_path: Path) -> None:
    trials = table(("FINISHED", 0.9, 10, 5e6), ("FAILED", math.nan, math.nan, math.nan))
    trials["question"] = ["<script>alert(1)</script>", "why"]
    write_page(tmp_path / "sweep.html", trials, ["block_size", "question"], 0, "mlflow run . -P x=1")
    page = (tmp_path / "sweep.html").read_text()
    assert "<h1>2 trials</h1>" in page
    assert "Pareto, best" in page
    assert "mlflow run . -P x=1" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "src=" not in page


def test_a_page_of_failures_alone_can_be_written(tmp_path: Path) -> None:
    trials = pd.DataFrame({"block_size": ["16"], "status": ["FAILED"], "seconds": [3.0]})
    write_page(tmp_path / "sweep.html", trials, ["block_size"], None, "")
    assert "FAILED" in (tmp_path / "sweep.html").read_text()
