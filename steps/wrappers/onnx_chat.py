"""An ONNX language model as an MLflow pyfunc model: Chat Completions, or raw prompts, in and out.

MLflow ships this file inside the logged model as its code (models-from-code), and onnx_engine.py as an artifact,
which is never imported. So it imports nothing of ours, two versions of a model can be loaded side by side, each
with its own code, and neither torch nor transformers is needed. A call passes through four parts, which can be
read, and replaced, one by one:

    OnnxChatModel  what MLflow calls: rows in, answers or chunks out
    Request        one row, checked against stated limits
    Text, Answer   messages to token ids, and ids to text, exactly as transformers does it
    Engine         ids to ids, in a process of its own: onnx_engine.py, the only part that knows onnxruntime-genai

Every mistake in a request is one line that names field, value and limit; `mlflow models serve` answers it
with status 400.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from reprlib import repr as brief
from typing import Any, ClassVar, NoReturn

import jinja2.ext
import mlflow
import numpy as np
import pandas as pd
from jinja2 import TemplateError, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema
from tokenizers import Tokenizer

Message = dict[str, str]
Row = Mapping[str, Any]


def chat_signature() -> ModelSignature:
    """Return the signature of interface=chat: MLflow's llm/v1/chat, with the fields that are served here."""
    served = ("messages", "temperature", "max_tokens", "n", "stream", "top_p", "top_k")
    columns = [column for column in CHAT_MODEL_INPUT_SCHEMA.inputs if column.name in served]
    anything = AnyType()
    columns += [
        ColSpec(anything, "stop", required=False),  # a string or a list of strings
        ColSpec(DataType.long, "seed", required=False),
        ColSpec(anything, "response_format", required=False),
    ]
    signature = ModelSignature(inputs=Schema(columns), outputs=CHAT_MODEL_OUTPUT_SCHEMA)
    # With this flag MLflow hands requests to predict as they came. Without it, MLflow drops fields that it
    # does not know (max_token=5 would be ignored, not refused), and turns down a table in which one row
    # leaves out an integer, and every stop that is one string.
    signature._is_signature_from_type_hint = True
    return signature


def prompt_signature() -> ModelSignature:
    """Return the signature of interface=prompt: a column of prompts to strings, sampling options as params."""
    options = [
        ParamSpec("max_tokens", DataType.long, None),  # None: model_config decides
        ParamSpec("temperature", DataType.double, 0.0),
        ParamSpec("top_p", DataType.double, 1.0),
        ParamSpec("top_k", DataType.long, 0),
        ParamSpec("seed", DataType.long, 0),
        ParamSpec("stop", DataType.string, [], shape=(-1,)),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema(options),
    )


# -------------------------------------------------------------------------------------------- requests


@dataclasses.dataclass(frozen=True)
class Request:
    """One checked row: what to continue, and how."""

    prompt: list[int]
    max_tokens: int
    temperature: float  # 0: greedy
    top_p: float  # 1: all
    top_k: int  # 0: all
    seed: int
    stop: tuple[str, ...]
    n: int
    json_schema: str | None


def refuse(message: str) -> NoReturn:
    """Raise the error of a request that is wrong."""
    raise MlflowException.invalid_parameter_value(message)


def read_request(row: Row, prompt: list[int], context: int, default_max_tokens: int) -> Request:
    """Return *row* checked, for *prompt* and a model whose context holds *context* tokens."""
    free = context - len(prompt)
    if not prompt:
        refuse("prompt is empty: at least 1 token is needed")
    if free < 1:
        refuse(f"prompt of {len(prompt)} tokens leaves no room for an answer in the context of {context} tokens")
    max_tokens = read_integer(row, "max_tokens", min(default_max_tokens, free), 1, context)
    if max_tokens > free:
        refuse(
            f"max_tokens={max_tokens} is more than the {free} tokens that a prompt of {len(prompt)} tokens "
            f"leaves in the context of {context} tokens"
        )
    return Request(
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=read_number(row, "temperature", 0, 0, 2),
        top_p=read_number(row, "top_p", 1, 0, 1),
        top_k=read_integer(row, "top_k", 0, 0, 2**31 - 1),
        seed=read_integer(row, "seed", secrets.randbits(63), -(2**63), 2**63 - 1),
        stop=read_stop(row),
        n=read_integer(row, "n", 1, 1, 128),
        json_schema=read_json_schema(row),
    )


def read_number(row: Row, field: str, default: float, low: float, high: float) -> float:
    """Return the number row[field], or *default* where there is none."""
    value = row.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(f"{field}={brief(value)} is not a number")
    if not low <= value <= high:  # NaN too
        refuse(f"{field}={value} is outside {low} to {high}")
    return value


def read_integer(row: Row, field: str, default: int, low: int, high: int) -> int:
    """Return the integer row[field], or *default* where there is none."""
    value = read_number(row, field, default, low, high)
    if value != int(value):  # 20.0 is fine: a table turns integers into floats when one is missing
        refuse(f"{field}={value} is not an integer")
    return int(value)


def read_stop(row: Row) -> tuple[str, ...]:
    """Return the stop strings of *row*, given as one string or a list of them."""
    value = row.get("stop")
    stop = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        refuse(f"stop={brief(value)} is neither a string nor a list of strings of at least 1 character")
    return tuple(stop)


def read_json_schema(row: Row) -> str | None:
    """Return the JSON schema that response_format asks for, None for plain text."""
    match row.get("response_format"):
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            schema: dict[str, Any] = {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": dict(asked_for)}}:
            schema = asked_for
        case value:
            refuse(
                f"response_format={brief(value)} is none of {{'type': 'text'}}, {{'type': 'json_object'}}, "
                "{'type': 'json_schema', 'json_schema': {'schema': {...}}}"
            )
    # Where white space is free, a small model can go on with it until max_tokens.
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps({"x-guidance": style, **schema})


def read_messages(row: Row) -> list[Message]:
    """Return the messages of *row*: role, content and, where given, name."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        refuse(f"messages={brief(messages)} is not a list of at least 1 message")
    checked = []
    for index, message in enumerate(messages):
        here = f"messages[{index}]"
        if not isinstance(message, dict):
            refuse(f"{here}={brief(message)} is not an object with role and content")
        message = {key: value for key, value in message.items() if value is not None}
        for key, value in message.items():
            if key not in ("role", "content", "name"):
                refuse(f"{here}.{key}={brief(value)} is not supported; role, content and name are")
            if not isinstance(value, str):
                refuse(f"{here}.{key}={brief(value)} is not a string")
        if message.get("role") not in ("system", "user", "assistant"):
            refuse(f"{here}.role={brief(message.get('role'))} is not one of system, user, assistant")
        if not message.get("content"):
            refuse(f"{here}.content={brief(message.get('content'))} is not a string of at least 1 character")
        checked.append(message)
    return checked


def read_rows(model_input: object) -> list[dict[str, Any]]:
    """Return a table, one row, or a list of rows as dicts of plain values; what is absent is left out."""
    rows: list[Any] = model_input if isinstance(model_input, list) else [model_input]
    if isinstance(model_input, pd.DataFrame):
        # A table has a cell for every row and field: what a row leaves out shows as NaN or NA there, and only there.
        cells = model_input.to_dict("records")
        rows = [{field: value for field, value in row.items() if not _is_empty(value)} for row in cells]
    if not rows:
        refuse("the request has 0 rows: at least 1 is needed")
    for row in rows:
        if not isinstance(row, dict):
            refuse(f"{brief(row)} is not an object with fields")
    return [{field: _plain(value) for field, value in row.items() if value is not None} for row in rows]


def _is_empty(cell: object) -> bool:
    return cell is pd.NA or (isinstance(cell, float) and math.isnan(cell))


def _plain(value: Any) -> Any:  # noqa: ANN401  # whatever JSON, a table or Parquet brings
    """Return *value* with numpy's scalars and arrays as Python's own."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


# ------------------------------------------------------------------------------------------------ text


class GenerationTag(jinja2.ext.Extension):
    """Render what {% generation %} and {% endgeneration %} enclose; transformers marks it for training."""

    tags = {"generation"}  # noqa: RUF012  # the base class has it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the enclosed nodes."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str) -> jinja2.Template:
    """Return a chat template compiled as transformers.utils.chat_template_utils does it."""

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: object, **options: Any) -> str:  # noqa: ANN401  # json.dumps checks them
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda style: datetime.now().strftime(style)
    return environment.from_string(source)


ORDINARY = (
    r"<0x[0-9A-F]{2}>|</?([abipsu]|blockquote|br|caption|code|div|em|h[1-6]|hr|img|li|ol|pre|span|strong|sub|sup|table"
    r"|tbody|td|tfoot|th|thead|tr|ul)>"
)


def looks_like_control(token: str) -> bool:
    """Return whether an added token of a tokenizer is a mark such as <tool_call>, special or not, and no mere text.

    Tokenizers also add runs of white space, words, bytes (<0x0A>) and the tags of HTML, which are part of ordinary
    text: their ids have to stay those of transformers.
    """
    return bool(re.fullmatch(r"<\S{2,}>|\[\S{2,}\]", token)) and not re.fullmatch(ORDINARY, token)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))  # the longest first


class Text:
    """The tokenizer and chat template of a model folder: ids and text equal to those of transformers.

    One thing differs on purpose: in a message, what looks like a control token, such as <|end|>, is plain
    text. Whoever writes a message must not be able to end it and begin another in a role of their choice.
    """

    # Put into look-alikes of control tokens, so that the tokenizer passes them by. Two Unicode noncharacters:
    # no text may use them.
    BREAK = "\ufdd0\ufdd1"

    def __init__(self, folder: Path) -> None:
        spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        # The tokenizer looks for control tokens in the raw text and normalises what is between them: once
        # its normaliser begins by removing BREAK, a look-alike becomes whole again when it is safe.
        remove = {"type": "Replace", "pattern": {"String": self.BREAK}, "content": ""}
        others = [spec["normalizer"]] if spec.get("normalizer") else []
        spec["normalizer"] = {"type": "Sequence", "normalizers": [remove, *others]}
        special = [token for token in spec["added_tokens"] if token["special"]]
        marks = [token for token in spec["added_tokens"] if looks_like_control(token["content"])]
        for token in (*special, *marks):
            token["normalized"] = False  # True: looked for after normalising
        self._tokenizer = Tokenizer.from_str(json.dumps(spec))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Phi-3 lists </s> among its ordinary added tokens.
        control = {"<s>", "</s>"}.union(token["content"] for token in special if len(token["content"]) > 1)
        # Templates look for marks such as </think> in what the assistant said, and often leave out what is before.
        self._control = {"assistant": _any_of(control)}
        self._control["user"] = self._control["system"] = _any_of(control.union(token["content"] for token in marks))

        self._special_ids = frozenset(token["id"] for token in special)
        byte_tokens = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self.byte_ids = frozenset(token for token in byte_tokens if token is not None)

        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.named = {}  # the tokens that a template may ask for by name
        for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
            if token := config.get(f"{name}_token"):
                self.named[f"{name}_token"] = token["content"] if isinstance(token, dict) else token
        file = folder / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        self._template = compile_template(source) if source else None

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of *messages* under the chat template, up to where the assistant answers."""
        if self._template is None:
            refuse("messages: this model has no chat template; log it with interface=prompt")
        safe = [{key: self._disarm(value, message["role"]) for key, value in message.items()} for message in messages]
        try:
            prompt = self.render(safe)
        except TemplateError as error:
            refuse(f"messages: the model's chat template says: {error}")
        for index, message in enumerate(safe):
            # A template without a system role either raises or stays silent about it. Asked by another text, not by
            # none: where there is none, some templates write one of their own, which may be the very same.
            other = {**message, "content": f"{message['content']}x"}
            with contextlib.suppress(TemplateError):
                if message["role"] == "system" and self.render([*safe[:index], other, *safe[index + 1 :]]) == prompt:
                    refuse(f"messages[{index}].role='system' is one that the model's chat template leaves out")
        return list(self._tokenizer.encode(prompt, add_special_tokens=False).ids)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids of raw text, control tokens included, with one BOS token where the model has that."""
        bos = self.named.get("bos_token")
        has_bos = bos is not None and prompt.startswith(bos)
        return list(self._tokenizer.encode(prompt, add_special_tokens=not has_bos).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of *ids* without control tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def has_text(self, token: int) -> bool:
        """Return whether *token* is shown: not a control token, nor one that only fills up the vocabulary."""
        return token not in self._special_ids and self._tokenizer.id_to_token(token) is not None

    def render(self, messages: list[Message]) -> str:
        """Return *messages* as the checkpoint's chat template writes them: a prompt, as interface=prompt takes it."""
        assert self._template is not None
        return self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self.named
        )

    def _disarm(self, text: str, role: str) -> str:
        control = self._control[role]
        while control.search(text):  # again: breaking one look-alike may uncover one that overlaps it
            text = control.sub(lambda match: match[0][0] + self.BREAK + match[0][1:], text)
        return text


class TextStream:
    """The text of ids that come one by one; what is once in `settled` never changes."""

    def __init__(self, text: Text) -> None:
        self.settled = ""
        self._text = text
        # Decoding all ids for every new one would take the square of their number. What follows from an id
        # depends on the one before it (a word's space, half a character), so the ids from _start are decoded,
        # of which the text up to _read is known.
        self._ids: list[int] = []
        self._start = self._read = 0

    def push(self, token: int) -> None:
        """Add *token*, and settle the text up to the last character that is sure."""
        if not self._text.has_text(token):
            return
        self._ids.append(token)
        # A run of byte tokens with one wrong byte is wrong from its first byte on: wait for its end.
        if token not in self._text.byte_ids and not (news := self._news()).endswith("\ufffd"):
            self._settle(news)

    def finish(self) -> None:
        """Settle the rest, and with it what remained half a character."""
        self._settle(self._news())

    def _news(self) -> str:
        known = self._text.decode(self._ids[self._start : self._read])
        return self._text.decode(self._ids[self._start :])[len(known) :]

    def _settle(self, news: str) -> None:
        self.settled += news
        self._start, self._read = self._read, len(self._ids)


class Answer:
    """One choice while it is generated: tokens go in, text comes out, until `finish_reason` is set.

    With *on_text*, every piece of text is handed to it at once, and an empty one at the end.
    """

    def __init__(self, request: Request, text: Text, choice: int, on_text: Callable[[str], None] | None = None) -> None:
        self.request = request
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.finished = threading.Event()
        self._choice = choice
        self._decode = text.decode
        self._on_text = on_text
        self._stream = TextStream(text) if request.stop or on_text else None

    def row(self) -> dict[str, Any]:
        """Return what the engine has to know: the fields of a Row of onnx_engine.py, less its id."""
        fields = {field.name: getattr(self.request, field.name) for field in dataclasses.fields(self.request)}
        del fields["n"], fields["stop"]  # what is made of tokens is not its concern
        return {**fields, "seed": [self.request.seed % 2**64, self._choice], "at_once": self._stream is not None}

    def push(self, token: int, *, is_end: bool) -> None:
        """Take the next token; *is_end* says that it is an end token of the model, which is never shown."""
        if self.finished.is_set():
            return
        self.tokens.append(token)
        last = is_end or len(self.tokens) == self.request.max_tokens
        met_stop = False
        if self._stream:
            if not is_end:
                self._stream.push(token)
            if last:
                self._stream.finish()
            met_stop = self._show(self._stream.settled, is_all=last)
        elif last:
            self.text = self._decode(self.tokens[:-1] if is_end else self.tokens)
        if last or met_stop:
            self.end("stop" if is_end or met_stop else "length")

    def end(self, reason: str, error: str | None = None) -> None:
        """End, unless that has happened, with a finish reason, or "refused", "failed", "cancelled" and why."""
        if self.finished.is_set():
            return
        self.error = error
        self.finish_reason = reason
        self.finished.set()
        if self._on_text:
            self._on_text("")

    def raise_if_failed(self) -> None:
        """Raise what the engine had to say instead of an answer."""
        if self.finish_reason == "refused":
            refuse(str(self.error))
        if self.error:
            raise MlflowException(self.error)

    def _show(self, settled: str, *, is_all: bool) -> bool:
        """Move what may be shown of *settled* to `text`, and return whether a stop string was met."""
        stop = self.request.stop
        met = [at for string in stop if (at := settled.find(string, len(self.text))) >= 0]
        shown = min(met, default=len(settled))
        if not met and not is_all:
            # The last characters may be the first of a stop string.
            begun = (n for string in stop for n in range(1, len(string)) if settled.endswith(string[:n]))
            shown -= max(begun, default=0)
        news = settled[len(self.text) : shown]
        self.text += news
        if news and self._on_text:
            self._on_text(news)
        return bool(met)


# ---------------------------------------------------------------------------------------------- engine

CLOSED = "this model was closed: load it again"


class Engine:
    """Continues prompts by onnxruntime-genai, in a process of its own that takes as many answers at once as fit.

    *script* is onnx_engine.py, which says how. A process that dies is an error for the answers that it was at; the
    next one starts it again.
    """

    def __init__(self, script: Path, folder: Path, threads: int, limits: dict[str, int]) -> None:
        genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self.context = int(genai["context_length"])
        ends = genai["eos_token_id"]
        self._end_ids = frozenset(ends if isinstance(ends, list) else [ends])
        self._command = [str(script), str(folder), str(threads), json.dumps(limits)]
        self._starting = threading.Lock()
        self._closed = False
        self._worker = Worker(self._command, self._end_ids)

    def wait(self) -> None:
        """Wait until the model is loaded. Raises MlflowException if it cannot be."""
        self._worker.wait()

    def close(self) -> None:
        """End the process, and what it was at."""
        self._closed = True
        self._worker.close()

    @contextlib.contextmanager
    def generating(self, answers: list[Answer]) -> Iterator[None]:
        """Generate *answers* in the process; those not finished at the end of the block are dropped."""
        with self._starting:
            if self._closed:
                raise MlflowException(CLOSED)
            if not self._worker.is_alive:
                self._worker = Worker(self._command, self._end_ids)
                self._worker.wait()
            worker = self._worker
        ids = worker.add(answers)
        try:
            yield
        finally:
            for answer in answers:
                answer.end("cancelled")
            worker.drop(ids)


class Worker:
    """One process of the engine, and the thread that hears from it."""

    def __init__(self, command: list[str], end_ids: frozenset[int]) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            # Not multiprocessing.Process: that would import this file, and MLflow with it, or fork a process that
            # has threads. -P: what lies beside the script is no package.
            script, *arguments = command
            self._process = subprocess.Popen(
                [sys.executable, "-P", script, str(theirs.fileno()), *arguments, str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._owner = os.getpid()
        self._answers: dict[int, Answer] = {}  # those that the process is at
        self._ids = itertools.count()
        self._sending = threading.Lock()
        closing = threading.Event()
        # The thread does not refer to this object. So it ends when the last user of this object goes, or Python
        # exits, and the process with it.
        self._thread = threading.Thread(
            target=_listen,
            args=(self._connection, self._sending, self._process, self._answers, end_ids, closing),
            daemon=True,
        )
        self.close = weakref.finalize(self, _end, self._process, self._thread, closing, self._owner)

    @property
    def is_alive(self) -> bool:
        """Whether there is a process that answers to this one, which may be a fork of the one that started it."""
        return self._owner == os.getpid() and self._thread.is_alive() and self._process.poll() is None

    def wait(self) -> None:
        """Wait until the process has loaded the model. Raises MlflowException if it cannot."""
        try:
            why = json.loads(self._connection.recv_bytes()).get("failed")
        except (EOFError, OSError):
            why = f"{_obituary(self._process)} while it loaded the model"
        if why:
            self.close()
            raise MlflowException(why)
        self._thread.start()

    def add(self, answers: list[Answer]) -> list[int]:
        """Have *answers* generated, and return the numbers that the process knows them by."""
        ids = [next(self._ids) for _ in answers]
        self._answers.update(zip(ids, answers, strict=True))
        self._send(add=[{"id": number, **answer.row()} for number, answer in zip(ids, answers, strict=True)])
        return ids

    def drop(self, ids: list[int]) -> None:
        """Forget those of *ids* that the process is still at."""
        if unfinished := [number for number in ids if self._answers.pop(number, None)]:
            self._send(drop=unfinished)

    def _send(self, **message: object) -> None:
        try:
            _send(self._connection, self._sending, message)
        except OSError:  # the process is gone
            _mourn(self._process, self._answers, None)


def _send(connection: Connection, sending: threading.Lock, message: dict[str, Any]) -> None:
    with sending:
        connection.send_bytes(json.dumps(message).encode())


def _drop(connection: Connection, sending: threading.Lock, ids: list[int]) -> None:
    with contextlib.suppress(OSError):  # the process is gone: _listen hears of it
        _send(connection, sending, {"drop": ids})


def _listen(
    connection: Connection,
    sending: threading.Lock,
    process: "subprocess.Popen[bytes]",
    answers: dict[int, Answer],
    end_ids: frozenset[int],
    closing: threading.Event,
) -> None:
    """Hand on what the process says, until it is gone."""
    failure = None
    try:
        while True:
            message = json.loads(connection.recv_bytes())
            unwanted = []
            for number, tokens in message["tokens"]:
                if answer := answers.get(number):
                    _push(answer, tokens, end_ids)
                    ended = tokens[-1] in end_ids or len(answer.tokens) == answer.request.max_tokens
                    if ended or answer.finished.is_set():
                        answers.pop(number, None)
                    if not ended and answer.finished.is_set():  # by a stop string, of which the process knows nothing
                        unwanted.append(number)
            for number, how, why in message["error"]:
                if answer := answers.pop(number, None):
                    answer.end(how, why)
            if unwanted:
                # Not from here: this thread has to read on, or it and the process could wait for each other to read.
                threading.Thread(target=_drop, args=(connection, sending, unwanted), daemon=True).start()
    except (EOFError, OSError):
        pass
    except Exception as error:  # noqa: BLE001  # whatever it is, those who wait must hear of it
        process.kill()  # nobody listens to it any more
        failure = f"the model's process was not understood, {brief_error(error)}; the next request starts it again"
    _mourn(process, answers, CLOSED if closing.is_set() else failure)


def _push(answer: Answer, tokens: list[int], end_ids: frozenset[int]) -> None:
    try:
        for token in tokens:
            answer.push(token, is_end=token in end_ids)
    except Exception as error:  # noqa: BLE001  # one answer's failure must not end the thread, and so all others
        answer.end("failed", brief_error(error))


def brief_error(error: Exception) -> str:
    """Return the kind of *error* and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _mourn(process: "subprocess.Popen[bytes]", answers: dict[int, Answer], why: str | None) -> None:
    """End *answers*, which the process was at when it ended."""
    why = why or f"{_obituary(process)}; the next request starts it again"
    for number in list(answers):
        if answer := answers.pop(number, None):
            answer.end("failed", why)


def _obituary(process: "subprocess.Popen[bytes]") -> str:
    code = process.wait()
    if code >= 0:
        return f"the model's process ended with exit code {code}, its reason is in the log,"
    reason = ", perhaps for want of memory," if code == -signal.SIGKILL else ""
    return f"the model's process was ended by {signal.Signals(-code).name}{reason}"


def _end(process: "subprocess.Popen[bytes]", thread: threading.Thread, closing: threading.Event, owner: int) -> None:
    if owner != os.getpid():  # a fork that goes must leave it to the others
        return
    closing.set()
    process.kill()  # it has nothing to save, and may be in a step of many seconds
    process.wait()
    if thread.ident and thread is not threading.current_thread():  # garbage is collected in any thread
        thread.join(timeout=10)


CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus(limit: Path = CPU_QUOTA) -> int:
    """Return how many CPUs this process may use: its affinity, within its container's quota, *limit* (cgroup v2)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = limit.read_text().split() if limit.exists() else ("max", "0")
    return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))


# ----------------------------------------------------------------------------------------------- model


class OnnxChatModel(PythonModel):
    """What MLflow loads, and calls from as many threads as it likes.

    Artifacts: "onnx", the model folder; "engine", onnx_engine.py. model_config: see CONFIG.
    """

    CONFIG: ClassVar[dict[str, Any]] = {
        "interface": "chat",  # or prompt
        "model_name": "onnx",  # as answers give it
        "max_tokens": 64,  # of an answer whose request does not say
        "threads": 0,  # 0: as many as the process may use CPUs
        "max_batch": 16,  # answers
        "max_batch_tokens": 8192,  # KV cache in all; one answer may take more
        "max_kept_tokens": 4096,  # of it, kept after an answer for the next prompt that begins alike; 0: none
    }
    OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed")

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model's folder, and start the engine."""
        config = {**self.CONFIG, **(context.model_config or {})}
        if unknown := sorted(config.keys() - self.CONFIG.keys()):
            refuse(f"model_config.{unknown[0]} is not known; {', '.join(self.CONFIG)} are")
        if config["interface"] not in ("chat", "prompt"):
            refuse(f"model_config.interface={config['interface']!r} is neither chat nor prompt")
        self.is_chat = config["interface"] == "chat"
        self.model_name, self.max_tokens = config["model_name"], config["max_tokens"]
        folder = Path(context.artifacts["onnx"])
        script = context.artifacts.get("engine") or Path(__file__).with_name("onnx_engine.py")
        limits = {name: config[name] for name in ("max_batch", "max_batch_tokens", "max_kept_tokens")}
        self.engine = Engine(Path(script), folder, config["threads"] or usable_cpus(), limits)
        self.text = Text(folder)  # while the engine's process loads the model
        self.engine.wait()

    # MLflow warns of every other type for model_input; with interface=chat it is what the caller gave.
    def predict(
        self,
        context: PythonModelContext | None,  # noqa: ARG002  # load_context took what it has
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Return for every row one Chat Completions object, or with interface=prompt one string."""
        requests = self._requests(model_input, params, streaming=False)
        rows = [[Answer(request, self.text, choice) for choice in range(request.n)] for request in requests]
        answers = [answer for choices in rows for answer in choices]
        with self.engine.generating(answers):
            for answer in answers:
                answer.finished.wait()
                answer.raise_if_failed()
        return [self._completion(choices) if self.is_chat else choices[0].text for choices in rows]

    def predict_stream(
        self,
        context: PythonModelContext | None,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> Iterator[Any]:
        """Yield one row's answer as it comes: Chat Completions chunks, or with interface=prompt strings."""
        requests = self._requests(model_input, params, streaming=True)
        if len(requests) != 1:
            refuse(f"predict_stream got {len(requests)} rows: it takes 1")
        news: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()

        def tell(choice: int) -> Callable[[str], None]:
            return lambda text: news.put((choice, text))

        choices = [Answer(requests[0], self.text, choice, tell(choice)) for choice in range(requests[0].n)]
        with self.engine.generating(choices):
            yield from self._chunks(choices, news) if self.is_chat else _pieces(choices[0], news)

    def _requests(self, model_input: object, params: dict[str, Any] | None, *, streaming: bool) -> list[Request]:
        """Return all rows checked, or raise what is wrong with the first that is."""
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
                requests.append(self._request(row, streaming=streaming))
            except MlflowException as error:
                if len(rows) == 1:
                    raise
                refuse(f"row {index}: {error.message}")
        return requests

    def _request(self, row: Row, *, streaming: bool) -> Request:
        known = (
            ("messages", *self.OPTIONS, "n", "response_format", "stream") if self.is_chat else ("prompt", *self.OPTIONS)
        )
        for field, value in row.items():
            if field not in known:
                refuse(f"{field}={brief(value)} is not supported; {', '.join(known)} are")
        if row.get("stream") not in (None, False, streaming):
            refuse(f"stream={brief(row['stream'])} is not for predict; predict_stream streams")
        if self.is_chat:
            prompt = self.text.encode_chat(read_messages(row))
        elif isinstance(row.get("prompt"), str):
            prompt = self.text.encode_prompt(row["prompt"])
        else:
            refuse(f"prompt={brief(row.get('prompt'))} is not a string")
        return read_request(row, prompt, self.engine.context, self.max_tokens)

    def _completion(self, choices: list[Answer]) -> dict[str, Any]:
        return {
            **self._header("chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": answer.text},
                    "finish_reason": answer.finish_reason,
                }
                for index, answer in enumerate(choices)
            ],
            "usage": _usage(choices),
        }

    def _chunks(self, choices: list[Answer], news: queue.SimpleQueue[tuple[int, str]]) -> Iterator[dict[str, Any]]:
        """Yield OpenAI's chunks; the last one, which ends the last choice, has the usage too."""
        header = self._header("chat.completion.chunk")

        def chunk(index: int, delta: Message, reason: str | None = None) -> dict[str, Any]:
            return {**header, "choices": [{"index": index, "delta": delta, "finish_reason": reason}]}

        for index in range(len(choices)):
            yield chunk(index, {"role": "assistant", "content": ""})
        running = len(choices)
        while running:
            index, text = news.get()
            if text:
                yield chunk(index, {"content": text})
                continue
            choices[index].raise_if_failed()
            running -= 1
            end = chunk(index, {}, choices[index].finish_reason)
            yield end if running else {**end, "usage": _usage(choices)}

    def _header(self, kind: str) -> dict[str, Any]:
        created = int(time.time())
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": created, "model": self.model_name}


def _pieces(answer: Answer, news: queue.SimpleQueue[tuple[int, str]]) -> Iterator[str]:
    while text := news.get()[1]:
        yield text
    answer.raise_if_failed()


def _usage(choices: list[Answer]) -> dict[str, int]:
    """Return the tokens of a request: its prompt once, and all that was generated, end tokens included."""
    prompt = len(choices[0].request.prompt)
    completion = sum(len(answer.tokens) for answer in choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


mlflow.models.set_model(OnnxChatModel())
