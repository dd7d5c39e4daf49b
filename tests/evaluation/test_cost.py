"""Times of calls, summed up by hand."""

import pytest

from steps.evaluation.cost import Footprint, Timing, by_prompt_length, cost_metrics, cost_ratios

TIMINGS = [
    Timing("onnx", 32, 1, 5, 1.0, 3.0),  # 4 tokens after the first in 2 s
    Timing("onnx", 32, 1, 5, 2.0, 6.0),
    Timing("onnx", 128, 1, 1, 4.0, 4.0),  # nothing after the first
    Timing("onnx", 32, 4, 5, 2.0, 10.0),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cost.timed_calls", 3),  # one prompt at a time
        ("cost.first_token_seconds_p50", 2.0),
        ("cost.first_token_seconds_p90", 3.6),
        ("cost.token_seconds_p50", 0.75),
        ("cost.token_seconds_p99", 0.995),
        ("cost.call_seconds_per_token_p50", 1.2),  # 3/5, 6/5, 4/1
        ("cost.load_seconds", 7.0),
    ],
)
def test_each_figure_is_what_one_computes_by_hand(name: str, value: float) -> None:
    assert cost_metrics(Footprint(load_seconds=7.0), [], TIMINGS)[name] == pytest.approx(value)


def test_a_series_has_a_point_for_every_prompt_length() -> None:
    series = by_prompt_length(TIMINGS)
    assert series[32]["latency.batch_1.first_token_seconds"] == 1.5
    assert series[32]["latency.batch_4.tokens_per_second"] == 2.0  # 4 prompts, 5 tokens each, 10 s
    assert series[128] == {"latency.batch_1.first_token_seconds": 4.0, "latency.batch_1.tokens_per_second": 0.25}


def test_a_candidate_that_never_makes_a_second_token_has_no_time_for_it() -> None:
    assert "cost.token_seconds_p50" not in cost_metrics(Footprint(), [], [TIMINGS[2]])
    assert cost_metrics(Footprint(), [], []) == {}


def test_a_ratio_needs_both_figures() -> None:
    assert cost_ratios({"cost.size_bytes": 2.0}, {"cost.size_bytes": 8.0}) == {"cost.size_bytes_ratio": 0.25}
    assert cost_ratios({"cost.size_bytes": 2.0}, {}) == cost_ratios({}, {"cost.size_bytes": 8.0}) == {}


def test_a_call_for_one_token_that_took_longer_than_one_for_more_tells_nothing_of_the_rest() -> None:
    assert Timing("onnx", 32, 1, 5, 2.0, 1.0).token_seconds is None
