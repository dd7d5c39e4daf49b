"""Request output: what has been generated of one choice of a request, and how it ended."""

import contextlib
import dataclasses
import itertools
import threading
import uuid
from collections.abc import Callable, Container, Iterable
from typing import Any

from mlflow.exceptions import MlflowException

from .detokenizer import Detokenizer
from .engine.logprobs import TokenLogprobs
from .fields import refuse
from .messages import Message
from .request import Request
from .tokenizer import ChatTokenizer

_ids = itertools.count()


class RequestOutput:
    """One choice of a request: tokens go in, text comes out, until `finish_reason` is set.

    *on_text* is called with every new piece of text, *on_finish* once, when `finish_reason` is set. Both are called
    in a thread of the engine client, or in the one that cancels, and must not block; an asyncio server passes
    functions that use `loop.call_soon_threadsafe`.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: ChatTokenizer,
        choice: int = 0,
        on_text: Callable[[str], None] | None = None,
        on_finish: Callable[[], None] | None = None,
    ) -> None:
        self.id = next(_ids)
        self.request = request
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []  # of `tokens` but for an end token, if the request asks for them
        self.text = ""
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.finished = threading.Event()
        self._choice = choice
        self.tokenizer = tokenizer.showing(request.tools.form.marks) if request.tools else tokenizer
        self._reader = request.tools.reader() if request.tools else None
        self._calls = 0  # that were given
        self._stated = 0
        self._on_text, self._on_finish = on_text, on_finish
        self._detokenizer = Detokenizer(self.tokenizer) if request.stop or on_text else None
        self._ending = threading.Lock()

    def sequence(self) -> dict[str, Any]:
        """Return what the engine has to know: the fields of its Sequence."""
        fields = {field.name: getattr(self.request, field.name) for field in dataclasses.fields(self.request)}
        del fields["n"], fields["stop"], fields["tools"]  # the engine knows tokens, not text
        seed = [self.request.seed % 2**64, self._choice]
        return {"id": self.id, **fields, "seed": seed, "stream": self._detokenizer is not None}

    def push(self, tokens: Iterable[int], ends: Container[int], logprobs: Iterable[TokenLogprobs] = ()) -> None:
        """Take the next *tokens*, and their *logprobs* if asked for; those in *ends* end it, and are never shown."""
        begun = len(self.text)
        reason = None
        for token, stated in itertools.zip_longest(tokens, logprobs):
            if reason or self.finished.is_set():
                break
            reason = self._take(token, stated, is_end=token in ends)
        if self._on_text and (new := self.text[begun:]):
            self._on_text(new)
        if reason:
            self.finish(reason)

    def _take(self, token: int, logprobs: TokenLogprobs | None, *, is_end: bool) -> str | None:
        """Take the next token; return the finish reason if it is the last."""
        self.tokens.append(token)
        if logprobs and not is_end:
            self.logprobs.append(logprobs)
        last = is_end or len(self.tokens) == self.request.max_tokens
        met_stop = False
        if self._detokenizer:
            if not is_end:
                self._detokenizer.push(token)
            if last:
                self._detokenizer.finish()
            met_stop = self._show(self._detokenizer.settled, is_all=last)
        elif last:
            self.text = self.tokenizer.decode(self.tokens[:-1] if is_end else self.tokens)
        if not last and not met_stop:
            return None
        return "stop" if is_end or met_stop else "length"

    @property
    def stated_reason(self) -> str | None:
        """The finish reason as OpenAI states it: "tool_calls" where an answer that ended by itself made calls."""
        return "tool_calls" if self._calls and self.finish_reason == "stop" else self.finish_reason

    def message(self) -> Message:
        """Return the answer, which is complete, as OpenAI's message."""
        deltas = self.deltas(self.text) + self.deltas("")
        calls = [each for delta in deltas for each in delta.get("tool_calls", ())]
        text = "".join(delta.get("content", "") for delta in deltas)
        if not calls:
            return {"role": "assistant", "content": text}
        whole = [
            {"id": begun["id"], "type": "function", "function": {**begun["function"], **rest["function"]}}
            for begun, rest in zip(calls[::2], calls[1::2], strict=True)
        ]
        return {"role": "assistant", "content": text or None, "tool_calls": whole}

    def deltas(self, text: str) -> list[Message]:
        """Return OpenAI's deltas for the next *text* of the answer; none ends it. A call has two: name, arguments."""
        if self._reader is None:
            return [{"content": text}] if text else []
        deltas: list[Message] = []
        for part in self._reader.push(text) if text else self._reader.finish():
            if isinstance(part, str):
                deltas.append({"content": part})
                continue
            call = {"index": self._calls, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
            deltas.append({"tool_calls": [{**call, "function": {"name": part.name, "arguments": ""}}]})
            deltas.append({"tool_calls": [{"index": self._calls, "function": {"arguments": part.arguments}}]})
            self._calls += 1
        return deltas

    def take_logprobs(self) -> range:
        """Return the positions of those `logprobs` that no earlier call has returned: a chunk states only new ones."""
        new = range(self._stated, len(self.logprobs))  # the engine client's thread may append more meanwhile
        self._stated = new.stop
        return new

    def finish(self, reason: str, error: str | None = None) -> None:
        """Finish with "stop", "length" or "cancelled", or with "refused", "failed" or "lost" and the *error*.

        "lost": the engine's process has ended; the next request starts it again.

        Does nothing after the first call.
        """
        with self._ending:
            if self.finished.is_set():
                return
            self.error = error
            self.finish_reason = reason
            self.finished.set()
        if self._on_finish:
            with contextlib.suppress(Exception):  # such as a closed event loop: it must not fail other requests
                self._on_finish()

    def raise_if_failed(self) -> None:
        """Raise the error that the engine gave instead of an answer."""
        if self.finish_reason == "refused":
            refuse(str(self.error))
        if self.error:
            raise MlflowException(self.error)

    def _show(self, settled: str, *, is_all: bool) -> bool:
        """Append to `text` the part of *settled* that may be shown; return whether it has a stop string."""
        stop = self.request.stop
        met = [at for string in stop if (at := settled.find(string, len(self.text))) >= 0]
        shown = min(met, default=len(settled))
        if not met and not is_all:
            # The last characters may be the first of a stop string.
            begun = (n for string in stop for n in range(1, len(string)) if settled.endswith(string[:n]))
            shown -= max(begun, default=0)
        self.text += settled[len(self.text) : shown]
        return bool(met)
