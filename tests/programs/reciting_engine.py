"""An engine that sends the tokens of a sequence's prompt up to an <|endoftext|>, as if it had generated them.

The template puts a text of the test's own there. So a server reads what models of other families write.
"""

import contextlib
import json
import sys
from multiprocessing.connection import Connection
from pathlib import Path


def main() -> None:
    connection, folder = Connection(int(sys.argv[1])), Path(sys.argv[2])
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    (border,) = (token["id"] for token in tokens if token["content"] == "<|endoftext|>")
    ends = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["eos_token_id"]
    end = ends[0] if isinstance(ends, list) else ends
    connection.send_bytes(b'{"ready": true}')
    with contextlib.suppress(EOFError, OSError):
        while True:
            for each in json.loads(connection.recv_bytes()).get("add", []):
                prompt = each["prompt"]
                recited = [*prompt[: prompt.index(border) if border in prompt else 0], end][: each["max_tokens"]]
                parts = [[token] for token in recited] if each["stream"] else [recited]
                for part in parts:
                    connection.send_bytes(json.dumps({"tokens": [[each["id"], part, []]], "error": []}).encode())


if __name__ == "__main__":  # the wrapper imports it too, for its path
    main()
