import math

import pytest

from steps.evaluation.statistics import Estimate, difference, flips, paired_difference, share, standard_error


def test_a_share_has_the_interval_of_wilson() -> None:
    # By hand for 8 of 10 and z = 1.95996: centre (0.8 + z²/20) / (1 + z²/10) = 0.716740,
    # half width z √(0.8 · 0.2 / 10 + z²/400) / (1 + z²/10) = 0.226577.
    figure = share([True] * 8 + [False] * 2)

    assert figure.value == 0.8
    assert figure.low == pytest.approx(0.490162, abs=1e-6)
    assert figure.high == pytest.approx(0.943318, abs=1e-6)


def test_a_perfect_share_of_200_is_surely_above_98_percent() -> None:
    # By hand: for k = n the lower bound is n / (n + z²) = 200 / 203.8415 = 0.981155.
    figure = share([True] * 200)

    assert (figure.value, figure.high) == (1.0, 1.0)
    assert figure.low == pytest.approx(0.981155, abs=1e-6)


def test_the_standard_error_of_80_in_100_is_4_percent() -> None:
    assert standard_error([True] * 80 + [False] * 20) == pytest.approx(0.04)


def test_flips_count_what_was_lost_and_what_was_gained() -> None:
    build = [True, False, False, False, True]
    reference = [True, True, True, False, False]

    assert flips(build, reference) == (2, 1)


def test_a_paired_difference_is_close_to_bonett_and_price() -> None:
    # 200 pairs, 20 lost, 8 gained. By hand, with one of each added: p = 21/202 and 9/202,
    # difference -12/202 = -0.059406, standard error √((30/202 - 0.059406²) / 202) = 0.026790.
    build = [True] * 100 + [False] * 20 + [True] * 8 + [False] * 72
    reference = [True] * 100 + [True] * 20 + [False] * 8 + [False] * 72

    figure = paired_difference(build, reference, seed=0)

    assert figure.value == pytest.approx(-0.06)
    assert figure.low == pytest.approx(-0.059406 - 1.95996 * 0.026790, abs=0.004)
    assert figure.high == pytest.approx(-0.059406 + 1.95996 * 0.026790, abs=0.004)


def test_a_difference_of_two_samples_has_the_interval_of_newcombe() -> None:
    # The first example of Newcombe (1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I).
    found = difference([True] * 56 + [False] * 14, [True] * 48 + [False] * 32)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_pairing_makes_two_equally_wrong_candidates_surely_equal() -> None:
    half = [True, False] * 100

    figure = paired_difference(half, half, seed=0)

    # Unpaired, two shares of one half on 200 examples would differ by up to 10 points.
    assert figure.value == 0
    assert -0.02 < figure.low < 0 < figure.high < 0.02


def test_five_examples_without_a_flip_are_no_certainty() -> None:
    figure = paired_difference([True] * 5, [True] * 5, seed=0)

    assert figure.value == 0
    assert figure.low < -0.2


def test_the_bootstrap_depends_on_its_seed_alone() -> None:
    build, reference = [True, False, True, True] * 300, [True, True, False, True] * 300

    again = [paired_difference(build, reference, seed) for seed in (3, 3, 4)]

    assert again[0] == again[1]
    assert again[0] != again[2]


def test_an_estimate_keeps_its_value_within_its_interval() -> None:
    figures = [share([False]), share([True]), paired_difference([False] * 3, [True] * 3, seed=0)]

    assert [figure.value for figure in figures] == [0, 1, -1]
    assert all(figure.low <= figure.value <= figure.high for figure in figures)
    assert all(isinstance(figure, Estimate) and math.isfinite(figure.low + figure.high) for figure in figures)


def test_nothing_cannot_be_estimated() -> None:
    with pytest.raises(ValueError, match="no example"):
        share([])
