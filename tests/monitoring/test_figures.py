"""What requests show of a version, worked out by hand."""

import pytest

from steps.monitoring.figures import FEWEST_PROMPTS, by_prompt_length, figures_of, refusals, repeated

from .requests import BASELINE, answer, refusal


def test_requests_like_the_evaluations_show_no_difference() -> None:
    figures = figures_of([answer(number) for number in range(200)], BASELINE)
    assert figures["traffic.requests"] == 200
    assert figures["errors.share"] == figures["refused.share"] == figures["cut.difference"] == 0
    assert figures["latency.per_token_ratio"] == pytest.approx(1)
    assert figures["drift.prompt_tokens"] == figures["drift.scripts"] == 0
    assert not [name for name in figures if name.startswith(("first_token", "live"))]


def test_errors_refusals_and_clients_that_go_away_are_kept_apart() -> None:
    requests = [
        *(answer(number) for number in range(6)),
        refusal(6),
        refusal(7, 429, "too_many_requests", None),
        refusal(8, 503, "engine_ended", None),
        refusal(9, 499, "cancelled", None),
    ]
    figures = figures_of(requests, BASELINE)
    assert [figures[f"{name}.share"] for name in ("refused", "errors", "cancelled")] == [0.2, 0.1, 0.1]
    assert figures["refused.invalid_value"] == figures["refused.too_many_requests"] == 1
    assert refusals(requests) == {"invalid_value: messages": 1, "too_many_requests": 1}


def test_answers_cut_off_are_counted_by_choice_and_compared_with_the_evaluations() -> None:
    requests = [answer(0, finish_reasons=("length", "stop")), answer(1, finish_reasons=("length", "length"))]
    figures = figures_of(requests, BASELINE)
    assert figures["cut.share"] == figures["cut.difference"] == 0.75
    assert figures["cut.difference_low"] < 0.75 < figures["cut.difference_high"]


def test_an_answer_is_repeated_if_different_prompts_get_the_commonest_one() -> None:
    assert repeated([("a", 1), ("a", 1), ("b", 2), ("c", 2)]) == [False, True, True]
    same = figures_of([answer(number, answers=("yes",)) for number in range(50)], BASELINE)
    assert (same["repeated.share"], same["repeated.difference"]) == (1, pytest.approx(0.99))


@pytest.mark.parametrize("prompts", [1, 2, FEWEST_PROMPTS - 1])
def test_a_few_prompts_do_not_show_that_a_model_says_the_same_to_everybody(prompts: int) -> None:
    asked = [answer(number, prompt=f"p{number % prompts}", answers=("Madrid",)) for number in range(100)]
    assert not [name for name in figures_of(asked, BASELINE) if name.startswith("repeated")]


def test_answers_of_several_servers_whose_hashes_differ_are_found_repeated_all_the_same() -> None:
    requests = [answer(number, server=f"s{number % 10}", answers=(f"yes on s{number % 10}",)) for number in range(200)]
    figures = figures_of(requests, BASELINE)
    assert (figures["repeated.share"], figures["repeated.difference"]) == (1, pytest.approx(0.99))


def test_clients_that_ask_for_less_than_the_evaluation_did_neither_cut_off_nor_repeat() -> None:
    probes = [answer(number, max_tokens=1, finish_reasons=("length",), answers=("The",)) for number in range(150)]
    asked = [answer(number, max_tokens=BASELINE.max_tokens) for number in range(150, 200)]
    figures = figures_of([*probes, *asked], BASELINE)
    assert (figures["cut.share"], figures["repeated.share"]) == (0, pytest.approx(1 / 50))
    assert not [name for name in figures_of(probes, BASELINE) if name.startswith(("cut", "repeated"))]


def test_requests_out_of_time_are_no_errors_but_late() -> None:
    requests = [refusal(0, 503, "timeout", None), refusal(1, 503, "engine_ended", None), answer(2), answer(3)]
    figures = figures_of(requests, BASELINE)
    assert (figures["errors.share"], figures["late.share"]) == (0.25, 0.25)


def test_the_first_token_is_compared_with_the_evaluations_for_as_long_a_prompt() -> None:
    streams = [answer(number, prompt_tokens=12, first_token=0.3) for number in range(3)]
    figures = figures_of(streams, BASELINE)
    assert figures["first_token.p50"] == pytest.approx(0.3)
    assert figures["first_token.ratio"] == pytest.approx(2)  # 0.15 s lies between 0.1 s at 8 tokens and 0.2 s at 16


def test_times_are_grouped_by_powers_of_two_of_the_prompt() -> None:
    requests = [answer(number, prompt_tokens=tokens) for tokens in (16, 17) for number in range(5)]
    assert by_prompt_length(requests) == {16: {"by_length.latency_p50": 0.08}, 32: {"by_length.latency_p50": 0.08}}
    assert by_prompt_length(requests[:4]) == {}


def test_a_window_of_refusals_alone_has_no_figures_of_answers() -> None:
    figures = figures_of([refusal(0)], BASELINE)
    assert figures["refused.share"] == 1
    assert not [name for name in figures if name.startswith(("cut", "repeated", "latency", "drift"))]
