"""Prefix cache: og generators of finished sequences, whose KV cache serves a prompt that begins alike."""

from collections.abc import Sequence as Tokens

from .sequence import Batch, Sequence, reserved_length

BLOCK_SIZE = 16
"""A prefix is reused in multiples of this many tokens.

Matrix kernels take tokens in groups, so a prompt that continues from a multiple of this many tokens gets the same
logits, to the last bit, as one computed whole.
"""


def common_prefix(one: Tokens[int], other: Tokens[int]) -> int:
    """Return how many tokens *one* and *other* have in common at their beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class PrefixCache:
    """Finished batches of a single sequence, of at most *max_tokens* tokens of KV cache in all.

    Sequences of more than *longest* tokens are not cached, and find nothing: their prefix is computed otherwise.
    """

    def __init__(self, max_tokens: int, longest: int) -> None:
        self.max_tokens = max_tokens
        self._longest = longest
        self._batches: list[Batch] = []  # the latest last

    @property
    def size(self) -> int:
        """The size of its KV caches in tokens."""
        return sum(batch.cache_size for batch in self._batches)

    def lookup(self, sequence: Sequence, reserved: int) -> tuple[Batch | None, int]:
        """Return the cached batch with the longest usable prefix of *sequence*'s prompt, and the prefix's length.

        No batch whose prompt would lose more tokens than it saves. If none matches, and a new batch of the length
        *reserved* would exceed the cache, return the oldest one, whose memory can be reused.
        """
        # og: a grammar stays with its generator.
        if sequence.json_schema is not None or len(sequence.prompt) > self._longest:
            return None, 0
        best, most, needed = None, 0, reserved_length([sequence])
        for batch in self._batches:
            shared = min(common_prefix(batch.prompt, sequence.prompt), len(sequence.prompt) - 1)
            reused = shared // BLOCK_SIZE * BLOCK_SIZE
            if reused > most and len(batch.prompt) <= 2 * reused + BLOCK_SIZE and needed <= batch.length:
                best, most = batch, reused
        full = self.size + reserved > self.max_tokens
        if not best and full and self._batches and needed <= self._batches[0].length:
            best = self._batches[0]
        return best, most

    def add(self, batch: Batch) -> None:
        """Keep *batch*, which has finished, if its sequence may be cached."""
        if batch.sequences[0].length <= self._longest:
            self._batches.append(batch)

    def take(self, batch: Batch) -> None:
        """Give up *batch*, to be used by another sequence."""
        self._batches.remove(batch)

    def evict(self, free: int) -> None:
        """Give up the oldest batches until the rest fits into *free* tokens."""
        while self._batches and self.size > min(self.max_tokens, free):
            self._batches.pop(0)

    def disable(self) -> None:
        """Keep nothing any more."""
        self.max_tokens = 0
        self._batches.clear()
