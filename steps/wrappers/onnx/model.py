"""What MLflow loads and calls: rows in, answers or chunks out."""

import queue
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from reprlib import repr as brief
from typing import Any, ClassVar

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from .cpus import usable_cpus
from .engine_client import EngineClient
from .fields import (
    Fields,
    check_chat_fields,
    check_completion_fields,
    check_prompt_fields,
    refuse,
    require_whole_characters,
)
from .logprobs import chat_logprobs
from .messages import Message, read_messages
from .output import RequestOutput
from .request import Request, read_request, read_rows, read_template_kwargs
from .tokenizer import ChatTokenizer
from .tools.request import ToolUse, read_tools

Pieces = queue.SimpleQueue[tuple[int, str]]
"""Pieces of text by choice; an empty one ends its choice."""


class OnnxChatModel(PythonModel):
    """What MLflow loads, and calls from any number of threads.

    Artifact "onnx": the model folder. model_config: see CONFIG.
    """

    CONFIG: ClassVar[dict[str, Any]] = {
        "interface": "chat",  # or prompt
        "model_name": "onnx",  # as answers give it
        "max_tokens": 64,  # of an answer whose request does not say
        "threads": 0,  # 0: as many as the process may use CPUs
        "max_batch": 16,  # sequences
        "max_batch_tokens": 8192,  # KV cache in all; one sequence may take more
        "max_kept_tokens": 4096,  # of it, the prefix cache: kept after an answer for prompts that begin alike; 0: none
        "chat_template_kwargs": {},  # variables of the chat template, such as {"enable_thinking": False}
    }

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model's folder, and start the engine."""
        config = {**self.CONFIG, **(context.model_config or {})}
        if unknown := sorted(config.keys() - self.CONFIG.keys()):
            refuse(f"model_config.{unknown[0]} is not known; {', '.join(self.CONFIG)} are")
        if config["interface"] not in ("chat", "prompt"):
            refuse(f"model_config.interface={config['interface']!r} is neither chat nor prompt")
        self.is_chat = config["interface"] == "chat"
        self.model_name, self.max_tokens = config["model_name"], config["max_tokens"]
        key = "model_config.chat_template_kwargs"
        template_kwargs = read_template_kwargs({key: config["chat_template_kwargs"]}, key)
        folder = Path(context.artifacts["onnx"])
        limits = {name: config[name] for name in ("max_batch", "max_batch_tokens", "max_kept_tokens")}
        self.engine = EngineClient(folder, config["threads"] or usable_cpus(), limits)
        self.tokenizer = ChatTokenizer(folder, template_kwargs)  # while the engine loads the model
        self.engine.wait()

    # MLflow warns of every other type for model_input; with interface=chat it is what the caller gave.
    def predict(
        self,
        context: PythonModelContext | None,  # noqa: ARG002  # load_context took what it has
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Return for every row one Chat Completions object, or with interface=prompt one string."""
        requests = self.read_requests(model_input, params, streaming=False)
        rows = [self.outputs(request) for request in requests]
        outputs = [output for choices in rows for output in choices]
        with self.engine.generating(outputs):
            for output in outputs:
                output.finished.wait()
                output.raise_if_failed()
        return [self._completion(choices) if self.is_chat else choices[0].text for choices in rows]

    def predict_stream(
        self,
        context: PythonModelContext | None,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> Iterator[Any]:
        """Yield one row's answer as it is generated: Chat Completions chunks, or with interface=prompt strings."""
        requests = self.read_requests(model_input, params, streaming=True)
        if len(requests) != 1:
            refuse(f"predict_stream got {len(requests)} rows: it takes 1")
        pieces: Pieces = queue.SimpleQueue()
        choices = self.outputs(requests[0], lambda n, text: pieces.put((n, text)), lambda n: pieces.put((n, "")))
        with self.engine.generating(choices):
            yield from self._chunks(choices, pieces) if self.is_chat else _texts(choices[0], pieces)

    def read_requests(self, model_input: object, params: dict[str, Any] | None, *, streaming: bool) -> list[Request]:
        """Return all rows checked. Raises MlflowException with the first mistake."""
        rows = read_rows(model_input)
        if not self.is_chat:
            # {"prompt": ["a", "b"]} arrives as one row with a list.
            shared = read_rows(params or {})[0]
            prompts = [row.get("prompt") for row in rows]
            lists = [prompt if isinstance(prompt, list) else [prompt] for prompt in prompts]
            rows = [{**shared, "prompt": prompt} for prompts in lists for prompt in prompts]
        requests = []
        for index, row in enumerate(rows):
            try:
                tools = read_tools(row, self.tokenizer.tools) if self.is_chat else None
                prompt = self._chat_ids(row, tools, streaming=streaming) if self.is_chat else self._prompt_ids(row)
                requests.append(read_request(row, prompt, self.engine.context, self.max_tokens, tools))
            except MlflowException as error:
                if len(rows) == 1:
                    raise
                refuse(f"row {index}: {error.message}")
        return requests

    def read_completions(self, row: Fields) -> list[Request]:
        """Return *row*, of the Completions interface, checked: a request for each of its prompts."""
        check_completion_fields(row)
        prompts = row.get("prompt")
        if isinstance(prompts, list) and any(isinstance(each, int | list) for each in prompts):
            refuse(f"prompt={brief(prompts)} is not supported: send text, not token ids")
        requests = []
        for prompt in prompts if isinstance(prompts, list) and prompts else [prompts]:
            ids = self._prompt_ids({"prompt": prompt})
            requests.append(read_request(row, ids, self.engine.context, self.max_tokens))
        return requests

    def outputs(
        self,
        request: Request,
        on_text: Callable[[int, str], None] | None = None,
        on_finish: Callable[[int], None] | None = None,
    ) -> list[RequestOutput]:
        """Return the outputs of *request*, one for each choice; both functions get the choice's number first."""
        return [
            RequestOutput(
                request,
                self.tokenizer,
                n,
                partial(on_text, n) if on_text else None,
                partial(on_finish, n) if on_finish else None,
            )
            for n in range(request.n)
        ]

    def _chat_ids(self, row: Fields, tools: ToolUse | None, *, streaming: bool) -> list[int]:
        check_chat_fields(row)
        if row.get("stream") not in (None, False, streaming):
            refuse(f"stream={brief(row['stream'])} is not for predict; predict_stream streams")
        messages, variables = read_messages(row, self.tokenizer.tools), read_template_kwargs(row)
        if tools is None:
            return self.tokenizer.encode_chat(messages, variables)
        opening = tools.form.opening if tools.schema else ""
        return self.tokenizer.encode_chat(messages, variables, tools.tools, opening)

    def _prompt_ids(self, row: Fields) -> list[int]:
        check_prompt_fields(row)
        prompt = row.get("prompt")
        if not isinstance(prompt, str):
            refuse(f"prompt={brief(prompt)} is not a string")
        require_whole_characters("prompt", prompt)
        return self.tokenizer.encode_prompt(prompt)

    def _completion(self, choices: list[RequestOutput]) -> dict[str, Any]:
        return {
            **self._header("chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": output.message(),
                    "finish_reason": output.stated_reason,
                    **_logprobs(output),
                }
                for index, output in enumerate(choices)
            ],
            "usage": _usage(choices),
        }

    def _chunks(self, choices: list[RequestOutput], pieces: Pieces) -> Iterator[dict[str, Any]]:
        """Yield OpenAI's chunks; the last one, which ends the last choice, has the usage too."""
        header = self._header("chat.completion.chunk")

        def chunk(index: int, delta: Message, reason: str | None = None) -> dict[str, Any]:
            return {
                **header,
                "choices": [{"index": index, "delta": delta, "finish_reason": reason, **_logprobs(choices[index])}],
            }

        for index in range(len(choices)):
            yield chunk(index, {"role": "assistant", "content": ""})
        running = len(choices)
        while running:
            index, text = pieces.get()
            if not text:
                choices[index].raise_if_failed()
            for delta in choices[index].deltas(text):
                yield chunk(index, delta)
            if text:
                continue
            running -= 1
            end = chunk(index, {}, choices[index].stated_reason)
            yield end if running else {**end, "usage": _usage(choices)}

    def _header(self, kind: str) -> dict[str, Any]:
        created = int(time.time())
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": created, "model": self.model_name}


def _texts(output: RequestOutput, pieces: Pieces) -> Iterator[str]:
    while text := pieces.get()[1]:
        yield text
    output.raise_if_failed()


def _logprobs(output: RequestOutput) -> dict[str, Any]:
    """Return what a choice says of log probabilities since the last call; nothing if none was asked for."""
    found = chat_logprobs(output)
    return {"logprobs": found} if found else {}


def _usage(choices: list[RequestOutput]) -> dict[str, int]:
    """Return the tokens of a request: its prompt once, and all that was generated, end tokens included."""
    prompt = len(choices[0].request.prompt)
    completion = sum(len(output.tokens) for output in choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
