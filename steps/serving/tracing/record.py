"""What is kept of a request, as the server hands it to the process that writes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """What is kept of a request that has ended; JSON can hold it. Times are in nanoseconds since 1970.

    `attributes`: everything without text. `sample`: the prompt's beginning, to find its script. If texts are kept:
    `messages` (role, text), `answers`, and `tools` as JSON.
    """

    chat: bool
    model: str
    version: str
    started: int
    ended: int
    attributes: dict[str, Any]
    error: str | None = None
    sample: str = ""
    messages: Sequence[Sequence[str]] = ()
    answers: Sequence[str] = ()
    tools: str = ""
