"""Listens, ends on signals, and follows the alias."""

import asyncio
import os
import signal
import socket
import sys
import threading
from contextlib import closing

import uvicorn

from steps.config.entry_points import Serve
from steps.records.errors import ConfigError, StepError, in_one_line
from steps.serving.app import create_app
from steps.serving.metrics import Metrics
from steps.serving.models import Files, Models, Served, Target, find
from steps.serving.tracing.traces import Traces


def serve(options: Serve, question: str) -> None:
    """Serve the model that *options* name until SIGTERM, SIGINT or SIGHUP; it answers *question* before it does.

    After the signal, requests that have begun get `options.grace` seconds to end. Raises StepError if the model cannot
    be loaded or the port cannot be had, ConfigError without the key that `options.api_key_env` names.
    """
    key = key_of(options.api_key_env)
    with closing(_listen(options.host, options.port)) as listener:
        first = Served(Files(find(options.model)), question)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # uvicorn's own handlers, while it runs; afterwards it sends itself the signal again, which must not exit.
            signal.signal(number, lambda _number, _frame: None)
        asyncio.run(_serve(options, question, key, first, listener))


async def _serve(options: Serve, question: str, key: str | None, first: Served, listener: socket.socket) -> None:
    models = Models(first, question)
    metrics = Metrics(models)
    traces = Traces(options, models, metrics)
    config = uvicorn.Config(
        create_app(options, models, metrics, traces, key),
        # What the lock holds, even where Ray Serve has installed httptools, which uvicorn would prefer.
        http="h11",
        log_level="error",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=options.grace,
    )
    server = uvicorn.Server(config)
    signal.signal(signal.SIGHUP, server.handle_exit)
    follower = Follower(options, models, metrics)
    if "@" in options.model:
        follower.start()
    if options.trace_share:
        traces.start()
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    print(f"Serving {first.target.label} at http://{address} (chat page /, API /v1, metrics /metrics)", flush=True)
    try:
        await server.serve(sockets=[listener])
    finally:
        follower.ended.set()
        await models.close()
        traces.close()


LONGEST_PAUSE = 60
"""Looks after which a version that could not be loaded is tried again at the latest; at first it is the next look."""


class Follower(threading.Thread):
    """Looks every `serve.follow_seconds` which version the alias names, and has it take over.

    A thread, which ends with the process: a registry that does not answer must not hold up the end of the server.
    """

    def __init__(self, options: Serve, models: Models, metrics: Metrics) -> None:
        """*models* belong to the event loop that runs now."""
        super().__init__(daemon=True)
        self._options, self._models, self._metrics = options, models, metrics
        self.ended = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._failed: Target | None = None  # a version that could not be loaded: the disk may have been full just then
        self._pause, self._looks = 1, 0  # looks from one try of it to the next; those since the last one
        self._said = ""

    def run(self) -> None:
        """Look, until `ended` is set."""
        while not self.ended.wait(self._options.follow_seconds):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001  # whatever it is, the server goes on
                if not self.ended.is_set():
                    self._say(f"serve: goes on as it is: {in_one_line(error)}")

    def _look(self) -> None:
        target = find(self._options.model)
        current = self._models.current
        if current and target == current.target:
            self._failed, self._said, self._models.failed = None, "", None
            return
        self._looks += 1
        if current and target == self._failed and self._looks < self._pause:
            return
        before = current.target.label if current else "nothing"
        try:
            asyncio.run_coroutine_threadsafe(self._models.replace(target), self._loop).result()
        except Exception:
            self._pause = min(LONGEST_PAUSE, 2 * self._pause) if target == self._failed else 1
            self._failed, self._looks = target, 0
            raise
        self._failed, self._said = None, ""
        self._metrics.count_switch()
        print(f"Serving {target.label} in place of {before}", flush=True)

    def _say(self, line: str) -> None:
        if line != self._said:  # once, not every few seconds
            print(line, file=sys.stderr, flush=True)
        self._said = line


def key_of(variable: str | None) -> str | None:
    """Return the key in the environment variable *variable*, if it names one. Raises ConfigError if that is not set."""
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key:
        msg = f"serve.api_key_env={variable} is not set in the environment: export {variable}=<key>"
        raise ConfigError(msg)
    return key


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        msg = f"serve.host={host} serve.port={port} cannot be listened on: {error.strerror}; choose another port"
        raise StepError(msg) from error
