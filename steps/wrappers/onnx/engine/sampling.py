"""Sampling: temperature, top_k and top_p."""

import numpy as np
import numpy.typing as npt

from .sequence import Sequence


def sampled(logits: npt.NDArray[np.float32], sequence: Sequence) -> npt.NDArray[np.float32]:
    """Return *logits* changed at random, so that the largest belongs to a token sampled with *sequence*'s options.

    argmax(logits / T - log(E)) with exponentially distributed E is distributed as softmax(logits / T): the Gumbel-max
    trick. It leaves the choice of the token to og, which rules out tokens that a JSON schema forbids. For the same
    reason tokens outside top_k and top_p get far smaller logits than the others, and are not ruled out here.
    """
    scaled = (logits - logits.max()) / np.float32(max(sequence.temperature, 1e-4))
    outside = np.zeros(scaled.shape, dtype=bool)
    if 0 < sequence.top_k < scaled.size:
        outside |= scaled < np.partition(scaled, -sequence.top_k)[-sequence.top_k]
    if sequence.top_p < 1:
        weights = np.where(outside, 0, np.exp(scaled))
        total = weights.sum(dtype=np.float64)
        # A token this light is outside even if all are as light (0.999: rounding), so far fewer remain to sort.
        falling = np.sort(weights[weights >= 0.999 * (1 - sequence.top_p) * total / weights.size])[::-1]
        reached = int(np.searchsorted(falling.cumsum(dtype=np.float64), sequence.top_p * total))
        outside |= weights < falling[min(reached, falling.size - 1)]
    noise = np.log(np.maximum(sequence.random.standard_exponential(scaled.size, dtype=np.float32), 1e-30))
    return np.asarray(scaled - noise - np.float32(1e6) * outside, dtype=np.float32)
