"""Sequences, and the batches in which they are generated."""

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from .logprobs import TokenLogprobs


@dataclasses.dataclass(eq=False)
class Sequence:
    """One prompt to continue, its sampling options, and the tokens generated so far."""

    id: int
    prompt: list[int]
    max_tokens: int
    temperature: float  # 0: greedy
    top_p: float
    top_k: int
    seed: list[int]
    json_schema: str | None
    stream: bool  # send tokens while they are generated, not all at the end
    schema_field: str = ""  # the field of the request that has it
    ignore_eos: bool = False  # choose no end token
    logprobs: int | None = None  # send each token's log probability, and those of this many alternatives
    tokens: list[int] = dataclasses.field(default_factory=list)
    stated: list[TokenLogprobs] = dataclasses.field(default_factory=list)  # log probabilities of `tokens`, if asked for
    sent: int = 0  # how many of `tokens` were sent
    finished: bool = False

    @cached_property
    def random(self) -> np.random.Generator:
        """Random numbers of its own: the text depends on the seed, not on the other sequences of the batch."""
        return np.random.default_rng(self.seed)

    @property
    def token_ids(self) -> list[int]:
        """The prompt and the generated tokens: what a batch that begins anew has to compute."""
        return self.prompt + self.tokens

    @property
    def length(self) -> int:
        """The number of `token_ids`."""
        return len(self.prompt) + len(self.tokens)

    @property
    def remaining(self) -> int:
        """How many tokens may still be generated."""
        return self.max_tokens - len(self.tokens)


@dataclasses.dataclass(eq=False)
class Batch:
    """Sequences that one og generator continues.

    The generator of a single sequence can be rewound, and computes its prompt in chunks.
    """

    generator: Any
    sequences: list[Sequence]
    length: int  # of each sequence's KV cache, in tokens
    prompt: list[int]  # of a single sequence: the tokens that are or will be computed
    computed: int = 0  # how many of `prompt` are computed

    @property
    def live(self) -> list[Sequence]:
        """The sequences that have not finished."""
        return [sequence for sequence in self.sequences if not sequence.finished]

    @property
    def is_decoding(self) -> bool:
        """Whether its prompts are computed."""
        return self.computed == len(self.prompt)

    @property
    def cache_size(self) -> int:
        """The size of its KV cache in tokens."""
        return self.length * len(self.sequences)


def longest(sequences: Iterable[Sequence]) -> int:
    """Return the length of the longest of *sequences*, 0 for none."""
    return max((sequence.length for sequence in sequences), default=0)


def reserved_length(sequences: Iterable[Sequence]) -> int:
    """Return the length of the KV cache that og reserves for each sequence of a batch of *sequences*."""
    sequences = list(sequences)
    return longest(sequences) + max(sequence.remaining for sequence in sequences)
