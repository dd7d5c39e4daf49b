"""Incremental detokenizer: token ids to text, one at a time.

`tokenizers.decoders.DecodeStream` does not serve here: it raises "Invalid prefix" on some sequences of tokens, and
holds back a final incomplete character.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import ChatTokenizer


class Detokenizer:
    """The text of token ids that arrive one by one; text in `settled` never changes."""

    def __init__(self, tokenizer: "ChatTokenizer") -> None:
        self.settled = ""
        self._tokenizer = tokenizer
        # Decoding all ids for every new one would take quadratic time. The text of an id depends on the id before
        # it (a word's space, half a character), so this decodes the ids from _start, whose text is known up to _read.
        self._ids: list[int] = []
        self._start = self._read = 0

    def push(self, token: int) -> None:
        """Add *token*, and settle the text up to the last complete character."""
        if not self._tokenizer.has_text(token):
            return
        self._ids.append(token)
        # One wrong byte makes a whole run of byte tokens wrong: wait for the end of the run.
        if token not in self._tokenizer.byte_ids and not (text := self._unsettled()).endswith("\ufffd"):
            self._settle(text)

    def finish(self) -> None:
        """Settle the rest, including an incomplete character."""
        self._settle(self._unsettled())

    def _unsettled(self) -> str:
        known = self._tokenizer.decode(self._ids[self._start : self._read])
        return self._tokenizer.decode(self._ids[self._start :])[len(known) :]

    def _settle(self, text: str) -> None:
        self.settled += text
        self._start, self._read = self._read, len(self._ids)
