"""Drift has a size, a margin that few requests make wide, and a p-value that many make small."""

import pytest

from steps.monitoring.drift import of_kinds, of_numbers


def test_samples_of_one_kind_do_not_differ() -> None:
    lengths = list(range(100))
    assert of_numbers(lengths, lengths).size == 0
    assert of_kinds(["latin", "cjk"] * 50, ["latin", "cjk"] * 20).size == pytest.approx(0)


def test_samples_that_do_not_overlap_differ_by_one() -> None:
    lengths = of_numbers(range(100), range(100, 200))
    assert (lengths.size, lengths.p < 1e-20) == (1, True)
    scripts = of_kinds(["latin"] * 100, ["cyrillic"] * 100)
    assert (scripts.size, scripts.p < 1e-20) == (pytest.approx(1), True)


def test_the_size_is_the_largest_difference_in_share() -> None:
    # Of the live prompts 3 of 4 have at most 3 tokens, of the task's 1 of 4.
    assert of_numbers([1, 2, 3, 60], [2, 51, 52, 53]).size == 0.5


def test_one_script_everywhere_is_no_drift_and_few_requests_leave_room_for_chance() -> None:
    figures = of_kinds(["latin"] * 5, ["latin"] * 5).figures("drift.scripts")
    assert (figures["drift.scripts"], figures["drift.scripts_p"]) == (0, 1)
    assert figures["drift.scripts_high"] == pytest.approx((3.841 / 10) ** 0.5, abs=1e-3)


def test_the_size_of_a_drift_in_scripts_stays_the_same_with_more_live_requests() -> None:
    task = ["latin"] * 60
    few, many = (of_kinds(["latin"] * n + ["cyrillic"] * n, task) for n in (30, 500))
    assert few.size == pytest.approx(many.size) == pytest.approx(3**-0.5)
    assert many.margin < few.margin


def test_many_requests_make_p_small_and_leave_the_size_as_it_is() -> None:
    few, many = (of_kinds(["latin"] * (9 * n) + ["cjk"] * n, ["latin"] * (10 * n)) for n in (2, 2000))
    assert few.size == pytest.approx(many.size)
    assert few.p > 0.05 > 1e-9 > many.p
    assert many.margin < few.margin / 30
