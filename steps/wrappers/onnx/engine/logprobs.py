"""Log probabilities of generated tokens under the model itself: before temperature, top_k, top_p and JSON schema."""

import numpy as np
import numpy.typing as npt

TokenLogprobs = tuple[float, list[tuple[int, float]]]
"""The log probability of a token, and the likeliest tokens with theirs, the likeliest first."""

LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot say; OpenAI's own value."""


def token_logprobs(logits: npt.NDArray[np.float32], token: int, alternatives: int) -> TokenLogprobs:
    """Return the log probability of *token* under *logits*, one for each token, and of the likeliest *alternatives*."""
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = np.maximum(shifted - np.log(np.exp(shifted).sum()), LEAST)
    likeliest = np.argsort(-logprobs, kind="stable")[:alternatives]
    return float(logprobs[token]), [(int(each), float(logprobs[each])) for each in likeliest]
