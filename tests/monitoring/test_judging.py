"""Gates of a window: what fails, what cannot be judged, and when the previous champion comes back."""

import pytest
from mlflow import MlflowClient

from steps.config.command_line import compose_config
from steps.evaluation.gates import Gate, Verdict, read_gates
from steps.monitoring.figures import MEANINGS, figures_of
from steps.monitoring.judging import SECTION, judge_window, roll_back_from, unjudged
from steps.records.errors import ConfigError, StepError
from steps.registry.aliases import changing, history, make_champion, number_with

from .requests import BASELINE, answer, refusal

GATES = read_gates(compose_config([]).monitor.gates, SECTION)


def judged(requests: list, gates: dict[str, Gate] = GATES) -> dict[str, Verdict]:
    return {each.gate: each for each in judge_window(figures_of(requests, BASELINE), gates)}


def names(verdicts: dict[str, Verdict], verdict: str) -> set[str]:
    return {name for name, each in verdicts.items() if each.verdict == verdict}


def test_every_gate_of_the_configuration_names_a_figure_that_there_is() -> None:
    assert {gate.metric for gate in GATES.values()} <= set(MEANINGS)


def test_two_hundred_requests_like_the_evaluations_break_nothing() -> None:
    requests = [answer(number) for number in range(200)]
    verdicts = judged(requests)
    assert names(verdicts, "passed") == set(verdicts)
    left_out = {"first_token", "agreement", "top_token"}  # no streams, no texts
    assert set(unjudged(figures_of(requests, BASELINE), GATES)) == left_out == set(GATES) - set(verdicts)


@pytest.mark.parametrize(
    ("gate", "change"),
    [
        ("cut_off", {"finish_reasons": ("length",)}),
        ("repeated", {"answers": ("I do not know.",)}),
        ("latency", {"seconds": 1.0}),
        ("first_token", {"first_token": 2.0}),
        ("prompt_lengths", {"prompt_tokens": 400}),
        ("scripts", {"script": "cyrillic"}),
    ],
)
def test_each_fault_fails_the_gate_that_protects_from_it_and_no_other(gate: str, change: dict) -> None:
    verdicts = judged([answer(number, **change) for number in range(200)])
    assert names(verdicts, "failed") == {gate}
    assert f"monitor.gates.{gate}.max" in verdicts[gate].reason


@pytest.mark.parametrize(
    ("gate", "status", "code"),
    [("errors", 503, "engine_ended"), ("late", 503, "timeout"), ("refusals", 400, "invalid_value")],
)
def test_requests_without_an_answer_fail_the_gate_of_their_kind(gate: str, status: int, code: str) -> None:
    requests = [refusal(number, status, code) if number % 4 == 0 else answer(number) for number in range(200)]
    assert names(judged(requests), "failed") == {gate}


def test_few_requests_cannot_tell_and_one_that_failed_is_no_verdict() -> None:
    verdicts = judged([refusal(0, 503, "engine_ended"), *(answer(number) for number in range(1, 10))])
    assert verdicts["errors"].verdict == "inconclusive"
    assert "wait for more requests" in verdicts["errors"].reason


def test_a_gate_on_a_figure_that_does_not_exist_fails() -> None:
    verdicts = judged([answer(0)], {"typo": Gate("errors.shares", max=1)})
    assert verdicts["typo"].verdict == "failed"
    assert "the nearest is errors.share" in verdicts["typo"].reason


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("monitor.model=models:/tiny_phi3", "expected models:/<name>@<alias> or models:/<name>/<version>"),
        ("monitor.window_hours=0", "more than 0 hours"),
        ("monitor.gates.errors.max=null", "monitor.gates.errors has neither min nor max"),
        ("serve.trace_share=2", "a share from 0 to 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config([override])


@pytest.fixture
def registered(store: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Return a client of a store in which version 2 of `echo` is champion, and version 1 was before."""
    monkeypatch.setattr("steps.registry.aliases.damage_of_version", lambda _version: None)
    client = MlflowClient()
    client.create_registered_model("echo")
    for number in ("1", "2"):
        client.create_model_version("echo", "file:///nowhere")
        with changing("echo"):
            make_champion("echo", number, "a test")
    return client


def broken(change: dict) -> list[Verdict]:
    return list(judged([answer(number, **change) for number in range(200)]).values())


def test_a_fault_of_the_version_brings_the_previous_one_back_and_the_history_says_why(registered) -> None:
    change = roll_back_from("echo", "2", broken({"finish_reasons": ("length",)}))
    assert change == history("echo")[-1]
    assert (change.version, change.replaced) == ("1", "2")
    assert change.reason.startswith("rolled back by monitor: cut.difference 1 (interval ")


@pytest.mark.parametrize(
    "change",
    [
        {"script": "cyrillic"},
        {"prompt_tokens": 400},
        {"seconds": 1.0},
        {"status": 503, "error": "timeout"},
        {"max_tokens": 1, "finish_reasons": ("length",), "answers": ("The",)},
    ],
)
def test_what_clients_send_and_load_roll_nothing_back(registered, change: dict) -> None:
    assert roll_back_from("echo", "2", broken(change)) is None
    assert number_with("echo", "champion") == "2"


def test_a_version_that_a_rollback_made_champion_is_not_rolled_back_to_the_worse_one(registered) -> None:
    fault = broken({"finish_reasons": ("length",)})
    roll_back_from("echo", "2", fault)
    with pytest.raises(StepError, match="version 1 of echo became champion by a rollback"):
        roll_back_from("echo", "1", fault)
    assert number_with("echo", "champion") == "1"


def test_a_version_that_a_person_brought_back_is_not_rolled_back_to_the_worse_one(registered) -> None:
    registered.set_registered_model_alias("echo", "champion", "1")
    for _ in range(2):
        with pytest.raises(StepError, match="version 1 of echo became champion by a rollback"):
            roll_back_from("echo", "1", broken({"finish_reasons": ("length",)}))
    assert number_with("echo", "champion") == "1"


def test_a_gate_that_could_not_be_judged_rolls_nothing_back(registered) -> None:
    verdicts = judged([answer(0)], {"typo": Gate("errors.shares", max=1)})
    assert names(verdicts, "failed") == {"typo"}
    assert roll_back_from("echo", "2", list(verdicts.values())) is None


def test_another_champion_meanwhile_is_left_alone(registered) -> None:
    with pytest.raises(StepError, match="version 2 of echo is champion, not version 1"):
        roll_back_from("echo", "1", broken({"finish_reasons": ("length",)}))
    assert number_with("echo", "champion") == "2"
