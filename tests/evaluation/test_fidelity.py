"""Fidelity, against values worked out by hand and against a plain reading of the definitions."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from steps.config.command_line import compose_config
from steps.evaluation.fidelity import (
    Text,
    TokenFidelity,
    chunks,
    compare,
    fidelity_metrics,
    joined,
    measured_rows,
    shortened,
)
from steps.evaluation.gates import judge, read_gates

Array = npt.NDArray[np.float32]


def logits(*probabilities: list[float]) -> Array:
    """Return logits that give these *probabilities*, shifted by a constant, which changes nothing."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, dtype=np.float32)) + np.float32(3)


@pytest.fixture
def by_hand() -> TokenFidelity:
    """Return two tokens of one text; true are ids 0 and 1.

    Reference (1/2, 1/2) then (1/4, 3/4); build (1/4, 3/4) then (1/4, 3/4).
    """
    return compare(0, Text([7, 0, 1], 1), logits([0.5, 0.5], [0.25, 0.75]), logits([0.25, 0.75], [0.25, 0.75]))


def test_each_token_has_what_one_computes_by_hand(by_hand: TokenFidelity) -> None:
    assert by_hand.reference_nll == pytest.approx([math.log(2), math.log(4 / 3)])
    assert by_hand.build_nll == pytest.approx([math.log(4), math.log(4 / 3)])
    assert by_hand.kl == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0])
    assert by_hand.same_top.tolist() == [False, True]  # the first of two equal ones leads


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("perplexity", math.sqrt(4 * 4 / 3)),
        ("perplexity_ratio", math.sqrt(2)),
        ("kl_mean", math.log(4 / 3) / 4),
        ("kl_median", math.log(4 / 3) / 4),
        ("kl_p99", 0.99 * math.log(4 / 3) / 2),
        ("kl_max", math.log(4 / 3) / 2),
        ("same_top", 0.5),
        ("probability_change_rms", math.sqrt((0.25**2 + 0) / 2)),
        ("tokens", 2),
        ("texts", 1),
    ],
)
def test_each_figure_is_what_one_computes_by_hand(by_hand: TokenFidelity, name: str, value: float) -> None:
    assert fidelity_metrics(by_hand, 0)[f"fidelity.{name}"] == pytest.approx(value)


def test_a_model_against_itself_gives_0_1_and_1() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(12, 50), scale=20).astype(np.float32)
    text = Text(list(range(13)), 1)
    metrics = fidelity_metrics(joined(compare(number, text, one, one.copy()) for number in range(10)), 0)
    assert [metrics[f"fidelity.{name}"] for name in ("kl_mean", "kl_max", "same_top", "perplexity_ratio")] == [
        0.0,
        0.0,
        1.0,
        1.0,
    ]
    assert metrics["fidelity.kl_mean_high"] == 0.0
    # 120 equal tokens are not proof that no token of any text differs: 120 / (120 + 1.96²)
    assert metrics["fidelity.same_top_low"] == pytest.approx(0.969, abs=1e-3)


def test_the_figures_are_those_of_a_plain_reading_of_the_definitions() -> None:
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(30, 200), scale=4).astype(np.float32)
    build = reference + rng.normal(size=(30, 200)).astype(np.float32)
    true = rng.integers(0, 200, 30)
    text = Text([0, *map(int, true)], 1)

    found = compare(5, text, reference, build)

    for at in range(30):
        p, q = (np.exp(x[at].astype(float)) / np.exp(x[at].astype(float)).sum() for x in (reference, build))
        assert found.kl[at] == pytest.approx(sum(p[i] * math.log(p[i] / q[i]) for i in range(200)))
        assert found.reference_nll[at] == pytest.approx(-math.log(p[true[at]]))
        assert found.build_nll[at] == pytest.approx(-math.log(q[true[at]]))
        assert found.same_top[at] == (p.argmax() == q.argmax())
    assert set(found.text) == {5}


def test_a_large_vocabulary_is_compared_in_blocks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    reference, build = rng.normal(size=(2, 7, 30)).astype(np.float32)
    text = Text(list(range(8)), 1)
    whole = compare(0, text, reference, build)
    monkeypatch.setattr("steps.evaluation.fidelity.BLOCK", 60)
    assert np.array_equal(compare(0, text, reference, build).kl, whole.kl)


def test_logits_far_apart_stay_finite() -> None:
    found = compare(
        0, Text([0, 1], 1), np.array([[900.0, -900.0]], np.float32), np.array([[-900.0, 900.0]], np.float32)
    )
    assert found.kl.tolist() == [1800.0]
    assert found.build_nll.tolist() == [0.0]


def test_a_token_that_both_rule_out_costs_nothing_one_that_the_build_alone_does_all() -> None:
    both = compare(0, Text([0, 1], 1), logits([0, 0.5, 0.5]), logits([0, 0.5, 0.5]))
    build = compare(0, Text([0, 1], 1), logits([0.5, 0.5]), logits([0, 1]))
    assert (both.kl.tolist(), build.kl.tolist()) == ([0.0], [math.inf])


@pytest.mark.parametrize("broken", ["reference", "build"])
def test_nan_stays_nan_and_is_never_the_same_top(broken: str) -> None:
    good, bad = logits([0.5, 0.5]), np.array([[np.nan, 1.0]], np.float32)
    pair = {"reference": good, "build": good} | {broken: bad}
    parts = [compare(0, Text([0, 0], 1), good, good), compare(1, Text([0, 0], 1), pair["reference"], pair["build"])]
    metrics = fidelity_metrics(joined(parts), 0)
    assert math.isnan(metrics["fidelity.kl_mean"])
    assert math.isnan(metrics["fidelity.perplexity_ratio"])
    assert metrics["fidelity.same_top"] == 0.5
    assert "fidelity.kl_mean_low" not in metrics


def test_the_interval_draws_texts_not_tokens() -> None:
    """Ten texts of 100 tokens, half of them at KL 0, half at 1: 95 % of ten fair coins show 2 to 8 heads."""
    metrics = fidelity_metrics(halves(10), 0)
    assert [metrics[f"fidelity.kl_mean{end}"] for end in ("_low", "", "_high")] == pytest.approx([0.2, 0.5, 0.8])
    assert metrics["fidelity.perplexity_ratio"] == pytest.approx(math.exp(0.5))
    assert metrics["fidelity.perplexity_ratio_high"] == pytest.approx(math.exp(0.8))


def halves(texts: int) -> TokenFidelity:
    """Return 100 tokens for each of *texts*, of which every other has KL 1 and a build that likes its tokens less."""
    number = np.repeat(np.arange(texts), 100)
    worse = (number % 2).astype(float)
    return TokenFidelity(number, np.ones(len(worse)), np.ones(len(worse)) + worse, worse, np.ones(len(worse), bool))


@pytest.mark.parametrize("texts", [1, 3, 9])
def test_few_texts_have_no_interval_and_gates_that_ask_for_one_cannot_tell(texts: int) -> None:
    metrics = {f"onnx.{name}": value for name, value in fidelity_metrics(halves(texts), 0).items()}
    assert not [name for name in metrics if name.endswith(("_low", "_high"))]
    gates = read_gates(compose_config([]).evaluate.gates)
    verdicts = judge(metrics, {name: gate for name, gate in gates.items() if ".fidelity." in gate.metric})
    assert [verdict.verdict for verdict in verdicts] == ["inconclusive"] * 3
    assert all("the examples are too few" in verdict.reason for verdict in verdicts)


def test_different_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="the vocabularies differ"):
        compare(0, Text([0, 1], 1), logits([0.5, 0.5]), logits([0.2, 0.2, 0.6]))


def test_a_long_text_is_cut_and_the_second_half_of_each_piece_is_measured() -> None:
    assert chunks([1], [10, 11, 12, 13, 14, 15, 16], context=4) == [
        Text([1, 10, 11, 12], 2),
        Text([1, 13, 14, 15], 2),
        Text([1, 16], 1),
    ]
    assert chunks([], [10, 11, 12, 13, 14], context=4) == [Text([10, 11, 12, 13], 2)]


def test_a_chat_longer_than_the_context_keeps_its_end() -> None:
    assert shortened(Text([1, 2, 3, 4, 5], 3), context=4) == Text([2, 3, 4, 5], 2)
    assert shortened(Text([1, 2, 3, 4, 5], 1), context=3) == Text([3, 4, 5], 1)


def test_each_measured_token_is_foretold_by_the_one_before_it() -> None:
    rows = np.arange(4, dtype=np.float32)[:, None]
    assert measured_rows(rows, Text([9, 9, 9, 9], 2)).ravel().tolist() == [1, 2]
