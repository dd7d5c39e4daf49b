"""A request from its first byte to its end, and the record that it becomes."""

import hashlib
import json
import re
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steps.records import traces as names
from steps.serving.errors import ApiError
from steps.serving.generation import Generation
from steps.serving.models import Target
from steps.serving.tracing.record import Record
from steps.wrappers.onnx.fields import CHAT_FIELDS, COMPLETION_FIELDS
from steps.wrappers.onnx.output import RequestOutput

MOST_TEXT = 32_000
"""The most characters of a request whose text is kept: bounds the memory of the queue."""


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
            names.SERVER: hashed(b"", key),
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
