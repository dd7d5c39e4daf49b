"""An engine that sends a sequence its own prompt, less than was asked for, and fails all once some are dropped."""

import contextlib
import json
import sys
from multiprocessing.connection import Connection

connection = Connection(int(sys.argv[1]))
connection.send_bytes(b'{"ready": true}')
known: list[int] = []
with contextlib.suppress(EOFError, OSError):
    while True:
        message = json.loads(connection.recv_bytes())
        added, dropped = message.get("add", []), message.get("drop", [])
        known += [each["id"] for each in added]
        tokens = [
            [each["id"], [t], []] for each in added if each["stream"] for t in each["prompt"][: each["max_tokens"] - 1]
        ]
        errors = [[number, "failed", f"dropped {dropped}"] for number in known if dropped]
        connection.send_bytes(json.dumps({"tokens": tokens, "error": errors}).encode())
