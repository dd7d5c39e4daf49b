"""Engine client: starts the engine's process, sends it requests and receives tokens.

The engine runs in a process of its own, because onnxruntime-genai holds Python's global lock for a whole step: no
other thread of the server would run meanwhile.
"""

import contextlib
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from .engine import __main__ as engine
from .engine.logprobs import TokenLogprobs
from .output import RequestOutput

CLOSED = "this model was closed: load it again"


class EngineClient:
    """Continues prompts in the engine's process, as many at a time as fit there.

    A process that dies fails the requests that it was generating; the next request starts another one. All methods
    may be called from any thread. `submit` and `cancel` never wait for the engine, so an asyncio server can call them
    in its event loop.
    """

    def __init__(
        self, folder: Path, threads: int, limits: Mapping[str, int], program: Path = Path(engine.__file__)
    ) -> None:
        """Start *program*, by default the engine, which loads the model in *folder*; see `wait`."""
        genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self.context = int(genai["context_length"])
        ends = genai["eos_token_id"]
        self._end_ids = frozenset(ends if isinstance(ends, list) else [ends])
        self._arguments = [str(program), str(folder), str(threads), json.dumps(dict(limits))]
        self._starting = threading.Lock()
        self._closed = False
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The id of the engine's process."""
        return self._process.pid

    @property
    def unfinished(self) -> int:
        """How many outputs the engine is generating, or has waiting."""
        return len(self._process.outputs)

    @property
    def stats(self) -> dict[str, Any]:
        """What the engine said last of what it is doing: the fields of its Stats; empty before its first request."""
        return self._process.stats

    def wait(self) -> None:
        """Wait until the model is loaded. Raises MlflowException if it cannot be."""
        if why := self._process.loaded.result():
            self._end()
            raise MlflowException(why)

    def close(self) -> None:
        """End the process. Outputs that are not finished fail."""
        with self._starting:
            self._closed = True
        self._end()

    def submit(self, outputs: Sequence[RequestOutput]) -> None:
        """Have *outputs* generated; returns at once. Raises MlflowException if this client was closed."""
        with self._starting:
            if self._closed:
                raise MlflowException(CLOSED)
            if not self._process.is_alive:
                self._end.detach()  # it has ended by itself, or belongs to the process that this one was forked from
                self._process = self._start()
            self._process.submit(outputs)

    def cancel(self, outputs: Iterable[RequestOutput]) -> None:
        """Stop generating *outputs*; returns at once. The engine frees their place before its next step."""
        outputs = list(outputs)
        for output in outputs:
            output.finish("cancelled")
        self._process.cancel([output.id for output in outputs])

    @contextlib.contextmanager
    def generating(self, outputs: Sequence[RequestOutput]) -> Iterator[None]:
        """Generate *outputs*; those not finished at the end of the block are cancelled."""
        self.submit(outputs)
        try:
            yield
        finally:
            self.cancel(outputs)

    def _start(self) -> "EngineProcess":
        process = EngineProcess(self._arguments, self._end_ids)
        # The process and its threads do not refer to this object. So they end when the last user of this object
        # goes, or when Python exits.
        self._end = weakref.finalize(self, process.close)
        return process


class EngineProcess:
    """One process of the engine, and the two threads that talk to it."""

    def __init__(self, arguments: Sequence[str], end_ids: frozenset[int]) -> None:
        self.outputs: dict[int, RequestOutput] = {}  # those that the process has not finished
        self.stats: dict[str, Any] = {}
        self.loaded: Future[str | None] = Future()  # None, or why the model could not be loaded
        self._owner = os.getpid()
        self._end_ids = end_ids
        self._lock = threading.Lock()  # of `outputs` and `_ended`
        self._ended: str | None = None  # why
        self._closing = False
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            # Not multiprocessing.Process: that would import MLflow once more, or fork a process that has threads.
            # -P: Python must not import what lies beside the program. -B: nothing is written into the logged model.
            program, *others = arguments
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-B", program, str(theirs.fileno()), *others, str(self._owner)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # numpy's threads would only idle
            )
        self.pid = self._process.pid
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        # Two, because a pipe that is full makes the sender wait, and the receiver has to read on meanwhile.
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs and belongs to this one, which may be a fork of the one that started it."""
        return self._owner == os.getpid() and self._ended is None and self._process.poll() is None

    def submit(self, outputs: Sequence[RequestOutput]) -> None:
        """Have *outputs* generated; they fail if the process has ended."""
        with self._lock:
            if self._ended is None:
                self.outputs.update((output.id, output) for output in outputs)
                self._messages.put({"add": [output.sequence() for output in outputs]})
                return
        for output in outputs:
            output.finish("lost", self._ended)

    def cancel(self, ids: Iterable[int]) -> None:
        """Forget those of the outputs *ids* that the process has not finished."""
        with self._lock:
            unfinished = [number for number in ids if self.outputs.pop(number, None)]
        if unfinished:
            self._messages.put({"drop": unfinished})

    def close(self) -> None:
        """End the process; what it was generating fails."""
        if self._owner != os.getpid():  # the process belongs to the parent of this fork
            return
        self._closing = True
        self._process.kill()  # it has nothing to save, and may be in a step of many seconds
        self._process.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():  # garbage is collected in any thread
                thread.join(timeout=10)

    def _send(self) -> None:
        """Send all messages, until the process has ended."""
        while (message := self._messages.get()) is not None:
            with contextlib.suppress(OSError):  # the process has ended: _receive hears of it
                self._connection.send_bytes(json.dumps(message).encode())

    def _receive(self) -> None:
        """Handle all messages from the process, until it has ended."""
        failure = None
        try:
            self._finish_loading(json.loads(self._connection.recv_bytes()).get("failed"))
            while True:
                self._handle(json.loads(self._connection.recv_bytes()))
        except (EOFError, OSError):
            pass
        except Exception as error:  # noqa: BLE001  # whatever it is, the callers that wait must hear of it
            self._process.kill()  # nothing reads its messages any more
            failure = f"the model's process was not understood, {brief_error(error)}; the next request starts it again"
        exit_reason = self._exit_reason()
        self._messages.put(None)
        if not self.loaded.done():
            self.loaded.set_result(f"{exit_reason} while it loaded the model")
        self._fail_all(CLOSED if self._closing else failure or f"{exit_reason}; the next request starts it again")

    def _finish_loading(self, why: str | None) -> None:
        if why:
            self._fail_all(why)
        self.loaded.set_result(why)

    def _handle(self, message: dict[str, Any]) -> None:
        """Pass tokens and errors on to the outputs that they are for."""
        stopped = []
        for number, tokens, logprobs in message["tokens"]:
            if output := self.outputs.get(number):
                count = len(output.tokens) + len(tokens)
                if tokens[-1] in self._end_ids or count == output.request.max_tokens:
                    self.outputs.pop(number, None)  # before its caller hears of the end, and asks for `unfinished`
                self._push(output, tokens, logprobs)
                if number in self.outputs and output.finished.is_set():  # by a stop string, unknown to the engine
                    stopped.append(number)
        for number, reason, why in message["error"]:
            if output := self.outputs.pop(number, None):
                output.finish(reason, why)
        self.stats = message.get("stats", self.stats)
        self.cancel(stopped)

    def _push(self, output: RequestOutput, tokens: list[int], logprobs: list[TokenLogprobs]) -> None:
        try:
            output.push(tokens, self._end_ids, logprobs)
        except Exception as error:  # noqa: BLE001  # the failure of one output must not fail all others
            output.finish("failed", brief_error(error))

    def _fail_all(self, why: str) -> None:
        """Fail all outputs, and take no more."""
        with self._lock:
            self._ended = self._ended or why
            outputs = list(self.outputs.values())
            self.outputs.clear()
            self.stats = {}
        for output in outputs:
            output.finish("lost", why)

    def _exit_reason(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"the model's process ended with exit code {code}, its reason is in the log,"
        reason = ", perhaps for want of memory," if code == -signal.SIGKILL else ""
        return f"the model's process was ended by {signal.Signals(-code).name}{reason}"


def brief_error(error: Exception) -> str:
    """Return the kind of *error* and its first line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
