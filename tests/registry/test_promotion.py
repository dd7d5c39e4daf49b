"""A build becomes champion when it answers no fewer questions right, and enough were asked to tell."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.evaluation.statistics import Estimate
from steps.records.errors import StepError
from steps.registry.aliases import changing, history, make_champion, number_with
from steps.registry.promotion import decide, examples_of, promote
from steps.registry.versions import version_of
from tests.registry.models import artifact, built, evaluated

POINTS = 0.01


@pytest.mark.parametrize(
    ("difference", "promoted", "why"),
    [
        (Estimate(0.0, -0.01, 0.01), True, "not fewer"),
        (Estimate(0.02, -0.05, 0.09), True, "not fewer"),
        (Estimate(-0.001, -0.01, 0.01), False, "fewer"),
        (Estimate(0.0, -0.051, 0.05), False, "too few for register.promote_margin=0.05"),
        (Estimate(0.5, -0.3, 1.0), False, "too few"),
    ],
)
def test_both_conditions_count(difference: Estimate, promoted: bool, why: str) -> None:
    decided, reason = decide(difference, 5 * POINTS)
    assert decided is promoted
    assert why in reason


def test_the_reason_holds_the_figures() -> None:
    _, reason = decide(Estimate(-0.02, -0.05, 0.01), 5 * POINTS)
    assert reason == "fewer (difference \u22122.0\u00a0pp, 95 % interval \u22125.0\u00a0pp to 1.0\u00a0pp)"


def register(run: Run, name: str = "echo") -> str:
    """Return the number of the version that *run*'s model has, or gets."""
    content = run.data.tags["model.sha256"]
    return str(version_of(name, run, {"model.sha256": content}).version)


REFERENCES = ["yes"] * 60 + ["no"] * 2


@pytest.mark.slow
def test_a_build_that_is_as_good_takes_the_champions_place_and_the_history_says_why(store: str, tmp_path: Path) -> None:
    old, new = built(tmp_path, "Yes."), built(tmp_path, "yes")
    with changing("echo"):
        make_champion("echo", register(old), "the first")
    version = MlflowClient().get_model_version("echo", register(new))
    result = promote("echo", version, evaluated(tmp_path, old, new, REFERENCES), 5 * POINTS)
    assert result.promoted
    assert result.against == "1"
    assert result.reason.startswith("right on 60 of 62 examples, champion version 1 on 60: not fewer")
    assert (number_with("echo", "champion"), number_with("echo", "previous")) == ("2", "1")
    assert history("echo")[-1].reason == result.reason


@pytest.mark.slow
def test_a_worse_build_stays_out_and_the_champion_stays(store: str, tmp_path: Path) -> None:
    good, bad = built(tmp_path, "yes"), built(tmp_path, "no")
    with changing("echo"):
        make_champion("echo", register(good), "the first")
    version = MlflowClient().get_model_version("echo", register(bad))
    result = promote("echo", version, evaluated(tmp_path, good, bad, REFERENCES), 5 * POINTS)
    assert not result.promoted
    assert result.reason.startswith("right on 2 of 62 examples, champion version 1 on 60: fewer")
    assert (number_with("echo", "champion"), number_with("echo", "previous")) == ("1", None)
    assert len(history("echo")) == 1


def test_the_champion_itself_is_asked_nothing(store: str, tmp_path: Path) -> None:
    run = built(tmp_path, "yes")
    with changing("echo"):
        make_champion("echo", register(run), "the first")
    version = MlflowClient().get_model_version("echo", "1")
    assert promote("echo", version, run, 0).reason == "it is champion already"
    assert len(history("echo")) == 1


def test_a_champion_whose_files_have_changed_is_no_measure(store: str, tmp_path: Path) -> None:
    old, new = built(tmp_path, "Yes."), built(tmp_path, "yes")
    with changing("echo"):
        make_champion("echo", register(old), "the first")
    version = MlflowClient().get_model_version("echo", register(new))
    model = MlflowClient().get_logged_model(old.data.tags["output.model_uri"].removeprefix("models:/"))
    next(Path(model.artifact_location).rglob("echo.py")).write_text("")
    with pytest.raises(StepError, match=r"echo\.py of models:/m-.* has changed since it was logged"):
        promote("echo", version, evaluated(tmp_path, old, new, REFERENCES), 5 * POINTS)
    assert number_with("echo", "champion") == "1"


def test_the_examples_are_those_that_evaluate_asked_with_the_scorers_it_used(store: str, tmp_path: Path) -> None:
    run = built(tmp_path, "yes")
    evaluate = evaluated(tmp_path, run, run, ["a\u2028b", "no"])
    lines = artifact(evaluate, "predictions.jsonl")
    lines.write_text(lines.read_text().replace('"exact"', '"contains"', 1))
    first, second = examples_of(evaluate)
    assert (first.id, first.reference, first.scorer) == ("q0", "a\u2028b", "contains")
    assert (second.id, second.scorer) == ("q1", "exact")
