"""OpenAI's objects: answers, chunks, usage, and their form as server-sent events."""

import json
import time
import uuid
from typing import Any

from steps.serving.generation import Generation
from steps.wrappers.onnx.logprobs import chat_logprobs, completion_logprobs

DONE = "data: [DONE]\n\n"
"""The last event of a stream."""

LINE_BREAKS = {ord(each): json.dumps(each)[1:-1] for each in "\x85\u2028\u2029"}
"""What JSON need not escape, and clients take for the end of a line that read events by `splitlines`, as httpx does."""

JsonObject = dict[str, Any]


class Answers:
    """The objects of one answer: of Chat Completions, or with *chat* False of Completions."""

    def __init__(self, generation: Generation, *, chat: bool, stream_usage: bool = False) -> None:
        """With *stream_usage*, every chunk has a usage: null, except for the last."""
        self._generation, self._chat, self.stream_usage = generation, chat, stream_usage
        target = generation.served.target
        self._header = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": target.name,
            "system_fingerprint": target.label,
        }

    def whole(self) -> JsonObject:
        """Return the answer, which is complete."""
        choices = [
            self._choice(
                index,
                output.message() if self._chat else {"content": output.text},
                output.stated_reason,
                self._logprobs(index),
                key="message",
            )
            for index, output in enumerate(self._generation.outputs)
        ]
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._header, "object": kind, "choices": choices, "usage": self._usage()}

    def beginning(self) -> list[JsonObject]:
        """Return the chunks before the first text: in a chat, one for each choice, with its role."""
        choices = range(len(self._generation.outputs)) if self._chat else ()
        return [self._chunk(index, {"role": "assistant", "content": ""}, None) for index in choices]

    def pieces(self, index: int, text: str) -> list[JsonObject]:
        """Return the chunks for the next *text* of the choice *index*; without text, those that end it."""
        output = self._generation.outputs[index]
        chunks = [self._chunk(index, delta, None, self._logprobs(index)) for delta in output.deltas(text)]
        return chunks if text else [*chunks, self._chunk(index, {}, output.stated_reason, self._logprobs(index))]

    def usage(self) -> JsonObject:
        """Return the chunk after the last choice has ended, with the usage."""
        return {**self._header, "object": self._chunk_kind, "choices": [], "usage": self._usage()}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _chunk(self, index: int, delta: JsonObject, reason: str | None, logprobs: object = None) -> JsonObject:
        chunk = {
            **self._header,
            "object": self._chunk_kind,
            "choices": [self._choice(index, delta, reason, logprobs, key="delta")],
        }
        return {**chunk, "usage": None} if self.stream_usage else chunk

    def _choice(self, index: int, message: JsonObject, reason: str | None, logprobs: object, *, key: str) -> JsonObject:
        content = {key: message} if self._chat else {"text": message.get("content", "")}
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int) -> JsonObject | None:
        """Return the log probabilities of the choice *index* that were not returned before."""
        output = self._generation.outputs[index]
        return chat_logprobs(output) if self._chat else completion_logprobs(output)

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._generation.prompt_tokens, self._generation.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def event(data: JsonObject) -> str:
    """Return *data* as a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False).translate(LINE_BREAKS)}\n\n"
