"""Multiple choice by likelihood: a model chooses the answer to which it gives the highest probability.

The assistant's next message is one of the choices. Its score is the probability of its tokens given the chat, without
the token that ends the turn, as in EleutherAI's lm-evaluation-harness.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from steps.evaluation.tasks import Example


class Model(Protocol):
    """A language model that shows its logits."""

    def logits(self, tokens: Sequence[int], /) -> npt.NDArray[np.float32]:
        """Return the logits after each of *tokens*: [positions, vocabulary]."""

    def chat(self, messages: Sequence[Mapping[str, str]], continuation: str, /) -> tuple[list[int], int]:
        """Return the ids of *messages* and the answer *continuation*, and the position where the answer begins."""


def log_likelihoods(model: Model, example: Example) -> dict[str, float]:
    """Return the log-probability, in nats, of each choice of *example* as the answer to its chat.

    Raises ValueError for a choice that has no tokens, or no finite log-probability.
    """
    # Choices of one token, such as A to D, all need the logits of the same chat.
    logits = functools.lru_cache(maxsize=1)(model.logits)
    found = {}
    for choice in example.choices:
        tokens, start = model.chat(example.messages, choice)
        if not 0 < start < len(tokens):
            msg = f"choice {choice!r} has no tokens of its own after the chat: write another text"
            raise ValueError(msg)
        found[choice] = log_probability(logits(tuple(tokens[:-1])), tokens, start)[0]
        if not math.isfinite(found[choice]):
            msg = f"choice {choice!r} has the log-probability {found[choice]}: the model's logits are not finite"
            raise ValueError(msg)
    return found


def log_probability(logits: npt.NDArray[np.float32], tokens: Sequence[int], start: int) -> tuple[float, bool]:
    """Return log p(tokens[start:] | tokens[:start]) in nats, and whether each of these tokens is the likeliest there.

    *logits*: after each of tokens[:-1] at least, [positions, vocabulary].
    """
    rows = logits[start - 1 : len(tokens) - 1].astype(np.float64)
    said = np.asarray(tokens[start:])
    total = log_softmax(rows, axis=-1)[np.arange(len(said)), said].sum()
    return float(total), bool((rows.argmax(axis=-1) == said).all())


def likeliest(likelihoods: Mapping[str, float], scorer: str) -> str:
    """Return the choice with the highest log-probability; with `choice_norm`, the highest per byte of UTF-8.

    The sum favours short choices, the mean does not. If choices tie, the first is taken, as numpy.argmax does.
    """

    def score(choice: str) -> float:
        return likelihoods[choice] / (len(choice.encode("utf-8")) if scorer == "choice_norm" else 1)

    return max(likelihoods, key=score)
