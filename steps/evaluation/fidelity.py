"""How close a build's probabilities are to its reference's, token by token on the same text.

The figures are those that llama.cpp's `perplexity --kl-divergence` reports of a quantised model.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from steps.evaluation.statistics import Estimate, bootstrap, share

Logits = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

BLOCK = 4_000_000
"""Logits that are compared at a time: bounds the memory of their probabilities to some hundred MB."""

FEWEST_TEXTS = 10
"""Texts that an interval is drawn from at least.

Of fewer, the percentile bootstrap gives far too narrow ones: where texts' means are normally distributed, what it calls
95 % holds the true mean with 50 % at 2 texts, 75 % at 3, 90 % at 10.
"""


@dataclass(frozen=True)
class Text:
    """Token ids of one sequence; those from `begins` on are measured, those before are what a model has read."""

    ids: list[int]
    begins: int


@dataclass(frozen=True)
class TokenFidelity:
    """One entry for each token that both candidates gave a probability: arrays of equal length, in nats.

    `text` numbers the text that a token stands in, `reference_nll` and `build_nll` are -log p of the true token,
    `kl` is the divergence KL(reference || build) over the vocabulary, `same_top` whether the same token leads in both.
    """

    text: npt.NDArray[np.int64]
    reference_nll: npt.NDArray[np.float64]
    build_nll: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    same_top: npt.NDArray[np.bool_]


def chunks(before: Sequence[int], ids: Sequence[int], context: int) -> list[Text]:
    """Return a long text's *ids* in pieces of *context* tokens, each with *before* (BOS) at its head.

    As in llama.cpp, the second half of a piece is measured and the first is read, so that no token lacks context.
    """
    size = context - len(before)
    pieces = [[*before, *ids[at : at + size]] for at in range(0, len(ids), size)]
    return [Text(piece, len(piece) // 2) for piece in pieces if len(piece) >= 2]


def shortened(text: Text, context: int) -> Text:
    """Return the last *context* tokens of *text*; it begins at the second of them at the earliest."""
    ids = text.ids[-context:]
    return Text(ids, max(1, text.begins - (len(text.ids) - len(ids))))


def measured_rows(logits: Logits, text: Text) -> Logits:
    """Return, of the *logits* after each token of *text*, those that foretell the measured ones."""
    return logits[text.begins - 1 : -1]


def compare(number: int, text: Text, reference: Logits, build: Logits) -> TokenFidelity:
    """Return the fidelity of each measured token of *text*, the one with that *number*.

    *reference* and *build* are the logits that foretell them, [measured tokens, vocabulary]. Raises ValueError when
    their shapes differ: then the candidates have different vocabularies.
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
    """Return the figures of the build, by name; perplexities, and the ratio of the build's to the reference's.

    Intervals are percentile bootstraps that draw whole texts, since the tokens of one go together; fewer than
    FEWEST_TEXTS have none. That of the share of equal top tokens is at least Wilson's over the tokens, which has a
    width when all are equal. What is not a number (NaN logits) stays so.
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
    log_p, log_q = _log_softmax(reference), _log_softmax(build)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        # Where the reference says never (p = 0), the build may say so too: 0, not 0 · (∞ - ∞).
        kl = np.where(p == 0, 0, p * (log_p - log_q)).sum(axis=1)
    rows = np.arange(len(true))
    return TokenFidelity(
        np.full(len(true), number),
        -log_p[rows, true],
        -log_q[rows, true],
        np.maximum(kl, 0),  # of equal distributions, rounding leaves ±1e-16
        (reference.argmax(axis=1) == build.argmax(axis=1)) & np.isfinite(kl),
    )


def _log_softmax(logits: Logits) -> Array:
    shifted = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN and ∞ give NaN, which a gate stops
        shifted -= shifted.max(axis=1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _bootstrap(
    text: npt.NDArray[np.int64],
    values: npt.NDArray[np.generic],
    seed: int,
    then: Callable[[Array], Array] = np.asarray,
) -> Estimate | None:
    """Return the interval of *then*(mean of *values*) over drawn texts, or None for few texts or what is not finite."""
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
