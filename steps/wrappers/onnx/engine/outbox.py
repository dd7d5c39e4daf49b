"""Outbox: collects generated tokens, and says which of them go to the server now."""

from time import monotonic

from .logprobs import TokenLogprobs
from .sequence import Sequence

INTERVAL = 0.05
"""A stream's tokens are sent together, every so many seconds.

A message costs the server and its clients CPU time that og's threads then lack: sent one by one, the tokens of eight
streams took a fifth of two cores. A person reads slower than this.
"""

Tokens = list[tuple[int, list[int], list[TokenLogprobs]]]
"""By sequence id: the tokens to send, and their log probabilities if asked for."""


class Outbox:
    """Tokens that were generated and not yet sent."""

    def __init__(self) -> None:
        self._sequences: dict[int, Sequence] = {}  # that have such tokens
        self._urgent = False
        self._sent_at = 0.0

    def put(self, sequence: Sequence) -> None:
        """Take the last token of *sequence*: a first or last one is sent at once, without a stream only the last."""
        if sequence.stream or sequence.finished:
            self._sequences[sequence.id] = sequence
            self._urgent = self._urgent or sequence.finished or not sequence.sent

    def take(self, *, wait: bool) -> Tokens:
        """Return what has to be sent now; with *wait*, tokens in the middle of a stream wait for others."""
        now = monotonic()
        if wait and not self._urgent and now < self._sent_at + INTERVAL:
            return []
        sequences, self._sequences, self._urgent, self._sent_at = self._sequences.values(), {}, False, now
        tokens = []
        for sequence in sequences:
            tokens.append((sequence.id, sequence.tokens[sequence.sent :], sequence.stated[sequence.sent :]))
            sequence.sent = len(sequence.tokens)
        return tokens
