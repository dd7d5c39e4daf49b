"""Keeps an MLflow trace of each request. It neither slows nor fails one: what cannot be written is lost, and counted.

A request is put into a queue. A thread takes batches from it, and passes them to the process of trace_writer.py.
MLflow's own asynchronous export has a bounded queue too. But it cannot say how many traces it lost, and on its way out
it waits for a store that is away.
"""

import asyncio
import hashlib
import json
import os
import queue
import random
import re
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from steps.config.entry_points import Serve
from steps.config.schema import ROOT
from steps.records import traces as names
from steps.records.errors import in_one_line
from steps.serving.errors import ApiError
from steps.serving.generation import Generation
from steps.serving.metrics import Metrics
from steps.serving.models import Models, Target
from steps.serving.trace_writer import Record
from steps.wrappers.onnx.fields import CHAT_FIELDS, COMPLETION_FIELDS
from steps.wrappers.onnx.output import RequestOutput

QUEUE, BATCH = 1_000, 100
"""The most traces that wait, and that are written in one transaction."""

MOST_TEXT = 32_000
"""The most characters of a request whose text is kept: bounds the memory of the queue."""

GATHER, CLOSING = 0.5, 5
"""Seconds for a batch to gather; seconds for the last ones, when the server ends."""

WRITER = [sys.executable, "-m", "steps.serving.trace_writer"]


@dataclass
class Exchange:
    """One request, from its first byte to its end; filled in as it is read. `status` is 200 if it is answered."""

    chat: bool
    target: Target | None
    started: int = field(default_factory=time.time_ns)
    row: dict[str, Any] = field(default_factory=dict)
    generation: Generation | None = None
    status: int = 200
    error: str | None = None
    param: str | None = None

    def fail(self, error: ApiError) -> None:
        """Note that it ended with *error*."""
        self.status, self.error, self.param = error.status, error.code or str(error.status), error.param


class Traces(threading.Thread):
    """Passes on traces from a queue: one thread, which ends with this process."""

    def __init__(self, options: Serve, models: Models, metrics: Metrics) -> None:
        super().__init__(daemon=True)
        self._options, self._models, self._metrics = options, models, metrics
        self._queue: queue.Queue[Record | None] = queue.Queue(QUEUE)
        self._key = os.urandom(16)
        self._writer: subprocess.Popen[str] | None = None
        self._closed = threading.Event()
        self._said = ""

    @contextmanager
    def following(self, *, chat: bool) -> Iterator[Exchange]:
        """Yield the record of a request, to be filled in; at the end it is queued for writing."""
        exchange = Exchange(chat, self._models.current.target if self._models.current else None)
        try:
            yield exchange
        except ApiError as error:
            exchange.fail(error)
            raise
        except asyncio.CancelledError:
            exchange.status, exchange.error = names.CANCELLED, "cancelled"
            raise
        except Exception:
            exchange.status, exchange.error = 500, "internal_error"
            raise
        finally:
            self._put(exchange)

    def close(self) -> None:
        """Write what waits, for some seconds at most; one line says that some are lost."""
        if not self.is_alive():
            return
        with suppress(queue.Full):
            self._queue.put_nowait(None)
            self.join(CLOSING)
        if self.is_alive():
            print("serve: the last traces were not written: the store is slow, or away", file=sys.stderr, flush=True)
        self._closed.set()
        if self._writer:
            self._writer.kill()

    def run(self) -> None:
        """Pass on traces, until `close` is called."""
        ended, self._writer = False, start_writer()
        while not ended and not self._closed.is_set():
            batch, ended = self._gather()
            try:
                lost = self._pass_on(batch)
            except OSError as error:  # the process has died; the next batch gets another
                self._writer, lost = None, in_one_line(error)
            self._metrics.count_traces("lost" if lost else "written", len(batch))
            line = f"serve: traces are lost: {lost}" if lost else ""
            if line and line != self._said:  # once, not for every batch
                print(line, file=sys.stderr, flush=True)
            self._said = line

    def _pass_on(self, batch: Sequence[Record]) -> str:
        """Have *batch* written; return why it is lost, or nothing. Raises OSError if the writer has died."""
        self._writer = self._writer or start_writer()
        assert self._writer.stdin
        assert self._writer.stdout
        self._writer.stdin.write(json.dumps([asdict(each) for each in batch]) + "\n")
        self._writer.stdin.flush()
        reply = self._writer.stdout.readline()
        if not reply:
            msg = "the process that writes them has ended"
            raise BrokenPipeError(msg)
        return reply.strip()

    def _gather(self) -> tuple[list[Record], bool]:
        """Return what waits, at most BATCH, and whether it is the last; waits for the first."""
        batch = [self._queue.get()]
        deadline = time.monotonic() + GATHER
        while batch[-1] is not None and len(batch) < BATCH:
            try:
                batch.append(self._queue.get(timeout=max(0, deadline - time.monotonic())))
            except queue.Empty:
                break
        return [each for each in batch if each is not None], batch[-1] is None

    def _put(self, exchange: Exchange) -> None:
        if exchange.target is None or random.random() >= self._options.trace_share:  # noqa: S311  # a sample
            return
        try:
            self._queue.put_nowait(record_of(exchange, self._key, keep_text=self._options.trace_text))
        except Exception:  # noqa: BLE001  # a full queue, or a request of a form that nobody thought of
            self._metrics.count_traces("lost", 1)


def start_writer() -> "subprocess.Popen[str]":
    """Start the process that writes; answers come first wherever the processor is short."""
    pipe = subprocess.PIPE
    writer = subprocess.Popen(WRITER, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, encoding="utf-8")
    os.setpriority(os.PRIO_PROCESS, writer.pid, 19)
    return writer


def record_of(exchange: Exchange, key: bytes, *, keep_text: bool) -> Record:
    """Return what is kept of *exchange*, which has ended; quick, because other requests wait meanwhile."""
    generation = exchange.generation
    outputs = generation.outputs if generation else []
    if generation and generation.error:
        exchange.fail(generation.error)
    elif exchange.error is None and any(each.finish_reason not in ("stop", "length") for each in outputs):
        exchange.status, exchange.error = names.CANCELLED, "cancelled"
    messages = messages_of(exchange.row, chat=exchange.chat) if generation else []
    tools = tools_of(outputs)
    kept = keep_text and len(tools) + sum(len(text) for _role, text in messages) <= MOST_TEXT
    target = generation.served.target if generation else exchange.target
    assert target is not None
    return Record(
        exchange.chat,
        target.name,
        target.version or "none",
        exchange.started,
        time.time_ns(),
        attributes_of(exchange, key),
        exchange.error,
        messages[-1][1][: names.SAMPLE] if messages else "",
        messages if kept else [],
        [each.text for each in outputs] if kept else [],
        tools if kept else "",
    )


def attributes_of(exchange: Exchange, key: bytes) -> dict[str, Any]:
    """Return what a trace says of *exchange* without its texts; *key* is that of the hashes."""
    found: dict[str, Any] = {}
    if generation := exchange.generation:
        outputs = generation.outputs
        prompts = {id(each.request): array("q", each.request.prompt).tobytes() for each in outputs}
        found |= {
            names.INPUT_TOKENS: generation.prompt_tokens,
            names.OUTPUT_TOKENS: generation.completion_tokens,
            names.FINISH_REASONS: [each.stated_reason for each in outputs],
            names.MAX_TOKENS: outputs[0].request.max_tokens,
            names.TEMPERATURE: float(outputs[0].request.temperature),
            names.PROMPT_HASH: hashed(b"|".join(prompts.values()), key),
            names.ANSWER_HASHES: [hashed(each.text.encode(errors="surrogatepass"), key) for each in outputs],
        }
        if generation.first_token is not None:
            found[names.FIRST_TOKEN] = generation.first_token - generation.started
    if exchange.error is not None:
        found |= {names.ERROR: exchange.error, names.STATUS: exchange.status}
        if exchange.param:
            found[names.FIELD] = known_field(exchange.param)
    return found


def hashed(content: bytes, key: bytes) -> str:
    """Return the hash of *content* under *key*."""
    return hashlib.blake2b(content, digest_size=8, key=key).hexdigest()


def known_field(param: str) -> str:
    """Return the field of the API that *param* begins with; `unknown` for one of the client's own making."""
    field = re.split(r"[.\[]", param)[0]
    return field if field in CHAT_FIELDS or field in COMPLETION_FIELDS else "unknown"


def messages_of(row: Mapping[str, Any], *, chat: bool) -> list[tuple[str, str]]:
    """Return role and text of each message of *row*, a request that the model took; a prompt is the user's."""
    if not chat:
        prompts = row["prompt"] if isinstance(row["prompt"], list) else [row["prompt"]]
        return [("user", prompt) for prompt in prompts]
    return [(message["role"], text_of(message)) for message in row["messages"]]


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of *message*, and the calls that it makes, as JSON."""
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return text + json.dumps(calls, ensure_ascii=False) if calls else text


def tools_of(outputs: Sequence[RequestOutput]) -> str:
    """Return the tools that the model was told of, as JSON; nothing if there are none."""
    use = outputs[0].request.tools if outputs else None
    return json.dumps(use.tools, ensure_ascii=False) if use else ""
