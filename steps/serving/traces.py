"""Keeps an MLflow trace of each request. It neither slows nor fails one: what cannot be written is lost, and counted.

MLflow's own asynchronous export has a bounded queue too. But it only logs what it loses, and on its way out waits for a
store that is away.
"""

import asyncio
import hashlib
import json
import os
import queue
import random
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Span
from mlflow.tracing.client import TracingClient
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from steps.config.schema import Serve
from steps.records import traces as names
from steps.records.errors import in_one_line
from steps.serving.errors import ApiError
from steps.serving.generation import Generation
from steps.serving.metrics import Metrics
from steps.serving.models import Models, Target
from steps.wrappers.onnx.request import CHAT_FIELDS, COMPLETION_FIELDS

QUEUE, BATCH = 1_000, 100
"""The most traces that wait, and that are written in one transaction."""

MOST_TEXT = 32_000
"""The most characters of a request whose text is kept: bounds the memory of the queue."""

GATHER, REST, CLOSING = 0.5, 3, 5
"""Seconds for a batch to gather; rest after one, as a multiple of the processor time that it took: the writer takes at
most a quarter of a core from the answers; seconds for the last ones at the end."""

CANCELLED = 499
"""The status that a request has which its client, or the end of the server, cancelled."""


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


@dataclass(frozen=True)
class Ended:
    """What is kept of a request that has ended: no reference to a model. Times in nanoseconds since 1970.

    `prompts`: token ids. `answers`: texts of the choices. `sample`: of the prompt's text. `messages`: role and text of
    each, if they are to be kept.
    """

    chat: bool
    target: Target
    started: int
    ended: int
    attributes: dict[str, Any]
    error: str | None
    prompts: Sequence[Sequence[int]]
    answers: Sequence[str]
    sample: str
    messages: Sequence[tuple[str, str]]


class Traces(threading.Thread):
    """Writes traces to MLflow from a queue: one thread, which ends with the process."""

    def __init__(self, options: Serve, models: Models, metrics: Metrics) -> None:
        super().__init__(daemon=True)
        self._options, self._models, self._metrics = options, models, metrics
        self._queue: queue.Queue[Ended | None] = queue.Queue(QUEUE)
        self._key = os.urandom(16)
        self._experiments: dict[str, str] = {}
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
            exchange.status, exchange.error = CANCELLED, "cancelled"
            raise
        except Exception:
            exchange.status, exchange.error = 500, "internal_error"
            raise
        finally:
            self._put(exchange)

    def close(self) -> None:
        """Write what waits, for some seconds at most; one line says how much is lost."""
        if not self.is_alive():
            return
        with suppress(queue.Full):
            self._queue.put_nowait(None)
            self.join(CLOSING)
        if self.is_alive():
            print("serve: the last traces were not written: the store is slow, or away", file=sys.stderr, flush=True)

    def run(self) -> None:
        """Write, until `close` is called."""
        ended = False
        while not ended:
            batch, ended = self._gather()
            busy = time.thread_time()
            try:
                self._write(batch)
                self._metrics.count_traces("written", len(batch))
                self._said = ""
            except Exception as error:  # noqa: BLE001  # whatever it is, the answers do not depend on it
                self._metrics.count_traces("lost", len(batch))
                self._say(f"serve: traces are lost: {in_one_line(error)}")
            if not ended:
                time.sleep(REST * (time.thread_time() - busy))

    def _put(self, exchange: Exchange) -> None:
        if exchange.target is None or random.random() >= self._options.trace_share:  # noqa: S311  # a sample
            return
        try:
            self._queue.put_nowait(ended(exchange, keep_text=self._options.trace_text))
        except Exception:  # noqa: BLE001  # a full queue, or a request of a form that nobody thought of
            self._metrics.count_traces("lost", 1)

    def _gather(self) -> tuple[list[Ended], bool]:
        """Return what waits, at most BATCH, and whether it is the last; waits for the first."""
        batch = [self._queue.get()]
        deadline = time.monotonic() + GATHER
        while batch[-1] is not None and len(batch) < BATCH:
            try:
                batch.append(self._queue.get(timeout=max(0, deadline - time.monotonic())))
            except queue.Empty:
                break
        return [each for each in batch if each is not None], batch[-1] is None

    def _write(self, batch: Sequence[Ended]) -> None:
        """Write *batch*; MLflow makes a trace of each span."""
        by_model: dict[str, list[Span]] = {}
        for each in batch:
            by_model.setdefault(each.target.name, []).append(span_of(each, self._key))
        for model, spans in by_model.items():
            TracingClient().log_spans(self._experiment(model), spans)

    def _experiment(self, model: str) -> str:
        if model not in self._experiments:
            name, client = names.experiment_name(model), MlflowClient()
            found = client.get_experiment_by_name(name)
            self._experiments[model] = found.experiment_id if found else client.create_experiment(name)
        return self._experiments[model]

    def _say(self, line: str) -> None:
        if line != self._said:  # once, not for every batch
            print(line, file=sys.stderr, flush=True)
        self._said = line


def ended(exchange: Exchange, *, keep_text: bool) -> Ended:
    """Return what is kept of *exchange*, which has ended; quick, because other requests wait meanwhile."""
    generation = exchange.generation
    outputs = generation.outputs if generation else []
    if generation and generation.error:
        exchange.fail(generation.error)
    elif exchange.error is None and any(each.finish_reason not in ("stop", "length") for each in outputs):
        exchange.status, exchange.error = CANCELLED, "cancelled"
    messages = messages_of(exchange.row, chat=exchange.chat) if generation else []
    short = sum(len(text) for _role, text in messages) <= MOST_TEXT
    target = generation.served.target if generation else exchange.target
    assert target is not None
    return Ended(
        exchange.chat,
        target,
        exchange.started,
        time.time_ns(),
        attributes_of(exchange),
        exchange.error,
        list({id(each.request): each.request.prompt for each in outputs}.values()),
        [each.text for each in outputs],
        messages[-1][1][: names.SAMPLE] if messages else "",
        messages if keep_text and short else [],
    )


def attributes_of(exchange: Exchange) -> dict[str, Any]:
    """Return what a trace says of *exchange* without its texts."""
    found: dict[str, Any] = {}
    if generation := exchange.generation:
        request = generation.outputs[0].request
        found |= {
            names.INPUT_TOKENS: generation.prompt_tokens,
            names.OUTPUT_TOKENS: generation.completion_tokens,
            names.FINISH_REASONS: [each.finish_reason for each in generation.outputs],
            names.MAX_TOKENS: request.max_tokens,
            names.TEMPERATURE: float(request.temperature),
        }
        if generation.first_token is not None:
            found[names.FIRST_TOKEN] = generation.first_token - generation.started
    if exchange.error is not None:
        found |= {names.ERROR: exchange.error, names.STATUS: exchange.status}
        if exchange.param:
            found[names.FIELD] = known_field(exchange.param)
    return found


def known_field(param: str) -> str:
    """Return the field of the API that *param* begins with; `unknown` for one of the client's own making."""
    field = re.split(r"[.\[]", param)[0]
    return field if field in CHAT_FIELDS or field in COMPLETION_FIELDS else "unknown"


def messages_of(row: Mapping[str, Any], *, chat: bool) -> list[tuple[str, str]]:
    """Return role and text of each message of *row*, a request that the model took; a prompt is the user's."""
    if not chat:
        prompts = row["prompt"] if isinstance(row["prompt"], list) else [row["prompt"]]
        return [("user", prompt) for prompt in prompts]
    contents = [(message["role"], message["content"]) for message in row["messages"]]
    return [
        (role, content if isinstance(content, str) else "".join(part["text"] for part in content))
        for role, content in contents
    ]


def span_of(ended: Ended, key: bytes) -> Span:
    """Return *ended* as a span; *key* is that of the hashes."""
    operation, trace_id = "chat" if ended.chat else "text_completion", random.getrandbits(128)
    attributes = {
        "mlflow.traceRequestId": f"tr-{trace_id:032x}",
        f"mlflow.traceTag.{names.VERSION}": ended.target.version or ended.target.name,
        "mlflow.traceTag.mlflow.traceName": ended.target.label,
        names.OPERATION: operation,
        names.MODEL: ended.target.name,
        **ended.attributes,
    }
    if ended.prompts:
        attributes |= {
            names.SCRIPT: names.script_of(ended.sample),
            names.PROMPT_HASH: hashed(json.dumps(list(map(list, ended.prompts))), key),
            names.ANSWER_HASHES: [hashed(text, key) for text in ended.answers],
        }
    if ended.messages:
        attributes |= {
            names.INPUT: {"messages": [{"role": role, "content": text} for role, text in ended.messages]},
            names.OUTPUT: {"choices": [{"message": {"role": "assistant", "content": text}} for text in ended.answers]},
        }
    status = Status(StatusCode.OK) if ended.error is None else Status(StatusCode.ERROR, ended.error)
    return Span(
        ReadableSpan(
            name=f"{operation} {ended.target.name}",
            context=SpanContext(trace_id, random.getrandbits(64), is_remote=False, trace_flags=TraceFlags(1)),
            resource=Resource.get_empty(),
            start_time=ended.started,
            end_time=ended.ended,
            # As MLflow has them: each in JSON.
            attributes={name: json.dumps(value, ensure_ascii=False) for name, value in attributes.items()},
            status=status,
        )
    )


def hashed(text: str, key: bytes) -> str:
    """Return the hash of *text* under *key*."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8, key=key).hexdigest()
