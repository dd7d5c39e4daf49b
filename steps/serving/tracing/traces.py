"""Keeps an MLflow trace of each request. It neither slows nor fails one: what cannot be written is lost, and counted.

A request is put into a queue. A thread takes batches from it, and passes them to the process of writer.py.
MLflow's own asynchronous export has a bounded queue too. But it cannot say how many traces it lost, and on its way out
it waits for a store that is away.
"""

import asyncio
import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict

from steps.config.entry_points import Serve
from steps.config.schema import ROOT
from steps.records import traces as names
from steps.records.errors import in_one_line
from steps.serving.errors import ApiError
from steps.serving.metrics import Metrics
from steps.serving.models import Models
from steps.serving.tracing.exchange import Exchange, record_of
from steps.serving.tracing.record import Record

QUEUE, BATCH = 1_000, 100
"""The most traces that wait, and that are written in one transaction."""

GATHER, CLOSING = 0.5, 5
"""Seconds for a batch to gather; seconds for the last ones, when the server ends."""

WRITER = [sys.executable, "-m", "steps.serving.tracing.writer"]


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
