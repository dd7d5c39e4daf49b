"""How close a build's probabilities are to its reference's, token by token on the same text.

The figures are those that llama.cpp's `perplexity --kl-divergence` reports of a quantised model.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from steps.evaluation.statistics import Estimate, bootstrap, share

Logits = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

BLOCK = 4_000_000
"""How many logits are compared at a time: bounds the memory of their probabilities to some hundred MB."""

FEWEST_TEXTS = 10
"""The fewest texts that get an interval.

With fewer, the percentile bootstrap is far too narrow: if the means of texts are normally distributed, its 95 %
interval covers the true mean in 50 % of cases with 2 texts, 75 % with 3, 90 % with 10.
"""


@dataclass(frozen=True)
class Text:
    """Token ids of one sequence. The ids from `begins` on are measured; the ids before are context."""

    ids: list[int]
    begins: int


@dataclass(frozen=True)
class TokenFidelity:
    """One entry for each token that both candidates gave a probability: arrays of equal length, in nats.

    `text` is the number of the token's text, `reference_nll` and `build_nll` are -log p of the true token,
    `kl` is the divergence KL(reference || build) over the vocabulary, `same_top` whether the same token leads in both.
    """

    text: npt.NDArray[np.int64]
    reference_nll: npt.NDArray[np.float64]
    build_nll: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    same_top: npt.NDArray[np.bool_]


def chunks(before: Sequence[int], ids: Sequence[int], context: int) -> list[Text]:
    """Return a long text's *ids* in pieces of *context* tokens, each with *before* (BOS) at its head.

    As in llama.cpp, only the second half of a piece is measured, so that every measured token has context.
    """
    size = context - len(before)
    pieces = [[*before, *ids[at : at + size]] for at in range(0, len(ids), size)]
    return [Text(piece, len(piece) // 2) for piece in pieces if len(piece) >= 2]


def shortened(text: Text, context: int) -> Text:
    """Return the last *context* tokens of *text*. Measuring begins at their second token at the earliest."""
    ids = text.ids[-context:]
    return Text(ids, max(1, text.begins - (len(text.ids) - len(ids))))


def measured_rows(logits: Logits, text: Text) -> Logits:
    """Return the rows of *logits*, one after each token of *text*, that predict its measured tokens."""
    return logits[text.begins - 1 : -1]


def compare(number: int, text: Text, reference: Logits, build: Logits) -> TokenFidelity:
    """Return the fidelity of each measured token of *text*, which is text *number*.

    *reference* and *build* are the logits that predict them, [measured tokens, vocabulary]. Raises ValueError when
    their shapes differ, because then the vocabularies differ.
    """
    true = np.asarray(text.ids[text.begins :])
    if reference.shape != build.shape or len(true) != len(build):
        msg = f"{len(true)} tokens, logits {build.shape} and the reference's {reference.shape}: the vocabularies differ"
        raise ValueError(msg)
    rows = max(1, BLOCK // reference.shape[1])
    blocks = [slice(at, at + rows) for at in range(0, len(true), rows)]
    return joined(_compare_block(number, true[block], reference[block], build[block]) for block in blocks)


def joined(parts: Iterable[TokenFidelity]) -> TokenFidelity:
    """Return the tokens of all *parts*, in their order."""
    some = list(parts)
    return TokenFidelity(*(np.concatenate([getattr(part, field.name) for part in some]) for field in fields(some[0])))


def fidelity_metrics(tokens: TokenFidelity, seed: int) -> dict[str, float]:
    """Return all figures of a build's fidelity, by name.

    Intervals are percentile bootstraps over whole texts, because the tokens of one text depend on each other. Fewer
    than FEWEST_TEXTS texts have no interval. The interval of `same_top` is never narrower than Wilson's over the
    tokens, which has a width even where all tokens agree. NaN logits give NaN figures.
    """
    difference = tokens.build_nll - tokens.reference_nll
    change = np.exp(-tokens.build_nll) - np.exp(-tokens.reference_nll)
    median, p99 = np.quantile(tokens.kl, [0.5, 0.99])
    top = share([bool(same) for same in tokens.same_top])
    drawn = _bootstrap(tokens.text, tokens.same_top, seed)
    return {
        "fidelity.texts": len(np.unique(tokens.text)),
        "fidelity.tokens": len(tokens.text),
        "fidelity.perplexity": perplexity(tokens.build_nll),
        "fidelity.perplexity_ratio": float(np.exp(difference.mean())),
        **_interval("fidelity.perplexity_ratio", _bootstrap(tokens.text, difference, seed, np.exp)),
        "fidelity.kl_mean": float(tokens.kl.mean()),
        **_interval("fidelity.kl_mean", _bootstrap(tokens.text, tokens.kl, seed)),
        "fidelity.kl_median": float(median),
        "fidelity.kl_p99": float(p99),
        "fidelity.kl_max": float(tokens.kl.max()),
        "fidelity.same_top": top.value,
        **_interval(
            "fidelity.same_top",
            drawn and Estimate(top.value, min(top.low, drawn.low), max(top.high, drawn.high)),
        ),
        "fidelity.probability_change_rms": float(np.sqrt(np.mean(change**2))),
    }


def perplexity(nll: Array) -> float:
    """Return exp of the mean of *nll*, the tokens' -log p."""
    return float(np.exp(nll.mean()))


def _compare_block(number: int, true: npt.NDArray[np.int64], reference: Logits, build: Logits) -> TokenFidelity:
    with np.errstate(invalid="ignore"):  # NaN and ∞ give NaN, which a gate stops
        log_p, log_q = (log_softmax(each.astype(np.float64), axis=1) for each in (reference, build))
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        # Where p is 0, the term is 0. If the build gives 0 too, the formula would be 0 · (∞ - ∞), which is NaN.
        kl = np.where(p == 0, 0, p * (log_p - log_q)).sum(axis=1)
    rows = np.arange(len(true))
    return TokenFidelity(
        np.full(len(true), number),
        -log_p[rows, true],
        -log_q[rows, true],
        np.maximum(kl, 0),  # rounding leaves ±1e-16 for equal distributions
        (reference.argmax(axis=1) == build.argmax(axis=1)) & np.isfinite(kl),
    )


def _bootstrap(
    text: npt.NDArray[np.int64],
    values: npt.NDArray[np.generic],
    seed: int,
    then: Callable[[Array], Array] = np.asarray,
) -> Estimate | None:
    """Return the interval of then(mean of *values*) over resampled texts; None for few texts or values not finite."""
    _, which = np.unique(text, return_inverse=True)
    totals: Array = np.bincount(which, values.astype(np.float64)).astype(np.float64)
    sizes: Array = np.bincount(which).astype(np.float64)
    if len(sizes) < FEWEST_TEXTS or not np.isfinite(totals).all():
        return None

    def statistic(total: Array, size: Array, axis: int) -> Array:
        return then(total.sum(axis=axis) / size.sum(axis=axis))

    value = float(statistic(totals, sizes, 0))
    low, high = bootstrap([totals, sizes], statistic, seed)
    return Estimate(value, min(low, value), max(high, value))


def _interval(name: str, estimate: Estimate | None) -> dict[str, float]:
    return {f"{name}_low": estimate.low, f"{name}_high": estimate.high} if estimate else {}
