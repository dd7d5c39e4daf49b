"""The program: a process of its own, in which onnxruntime-genai ("og") runs.

The wrapper's `engine_client` starts this file. The program ends with the process that started it. Messages are JSON,
over one connection:

    to the engine    {"add": [fields of a Sequence, ...]}    {"drop": [id, ...]}
    from the engine  {"ready": true} or {"failed": why}, once; then
                     {"tokens": [[id, [token, ...], [TokenLogprobs, ...]], ...],
                      "error": [[id, "refused" or "failed", why], ...],
                      "stats": fields of Stats}, when any of it is new
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Sequence as Arguments
from multiprocessing.connection import Connection
from pathlib import Path

if not __package__:
    # Started as a file, this module has no package to import from (PEP 366). sys.path stays as it is: the files beside
    # this one must not hide installed modules.
    __package__ = "onnx_engine"
    _spec = importlib.util.spec_from_file_location(__package__, Path(__file__).with_name("__init__.py"))
    assert _spec
    sys.modules[__package__] = importlib.util.module_from_spec(_spec)

from .og_model import OgModel, first_line
from .runner import measured_cost
from .scheduler import Scheduler
from .sequence import Sequence


def serve(connection: Connection, folder: Path, threads: int, limits: dict[str, int], parent: int) -> None:
    """Load the model and do what *connection* says, until it or the process *parent* ends."""
    try:
        model = OgModel(folder, threads)
        cost = measured_cost(model)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent has to be told
        why = first_line(error)
        connection.send_bytes(json.dumps({"failed": why or type(error).__name__}).encode())
        return
    scheduler = Scheduler(model, cost, **limits)
    stats = scheduler.stats
    connection.send_bytes(b'{"ready": true}')
    while True:
        if connection.poll(1.0 if scheduler.idle else scheduler.max_wait):
            message = json.loads(connection.recv_bytes())
            for sequence in message.get("add", []):
                scheduler.add(Sequence(**sequence))
            scheduler.drop(message.get("drop", []))
        elif os.getppid() != parent:  # a process that inherited the connection would keep it open
            return
        elif not scheduler.idle:
            tokens, errors = scheduler.step()
            before, stats = stats, scheduler.stats
            if tokens or errors or stats != before:
                message = {"tokens": tokens, "error": errors, "stats": dataclasses.asdict(stats)}
                connection.send_bytes(json.dumps(message).encode())


def main(arguments: Arguments[str]) -> None:
    """Serve over the connection that *arguments* name: descriptor, folder, threads, limits as JSON, parent's id."""
    descriptor, folder, threads, limits, parent = arguments
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they reach the parent too, which may want to finish its requests
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has ended
        serve(Connection(int(descriptor)), Path(folder), int(threads), json.loads(limits), int(parent))
    sys.stderr.flush()
    os._exit(0)  # at once: unloading a model of gigabytes takes time, and helps nobody


if __name__ == "__main__":
    main(sys.argv[1:])
