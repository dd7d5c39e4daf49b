"""An ONNX language model as an MLflow pyfunc model: Chat Completions, or raw prompts, in and out.

MLflow ships this one file inside the logged model (models-from-code), so it imports nothing of ours, and
neither torch nor transformers. One file, because two versions of a model can then be loaded side by side,
each with its own code. A call passes through four parts, which can be read, and replaced, one by one:

    OnnxChatModel  what MLflow calls: rows in, answers or chunks out
    Request        one row, checked against stated limits
    Text, Answer   messages to token ids, and ids to text, exactly as transformers does it
    Engine         ids to ids: the only part that knows onnxruntime-genai ("og"), and how answers share it

Every mistake in a request is one line that names field, value and limit; `mlflow models serve` answers it
with status 400.
"""

import contextlib
import dataclasses
import json
import math
import os
import queue
import re
import secrets
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from reprlib import repr as brief
from types import ModuleType
from typing import Any, ClassVar, NoReturn

import jinja2.ext
import mlflow
import numpy as np
import numpy.typing as npt
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
    value = row.get("stop") or []
    stop = [value] if isinstance(value, str) else value
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
        rows = model_input.to_dict("records")
    if not rows:
        refuse("the request has 0 rows: at least 1 is needed")
    for row in rows:
        if not isinstance(row, dict):
            refuse(f"{brief(row)} is not an object with fields")
    # A table has a cell for every row and field: what a row leaves out shows as NaN or NA there.
    return [{field: _plain(value) for field, value in row.items() if not _is_absent(value)} for row in rows]


def _is_absent(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


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
        for token in special:
            token["normalized"] = False  # True: looked for after normalising
        self._tokenizer = Tokenizer.from_str(json.dumps(spec))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Phi-3 lists </s> among its ordinary added tokens.
        control = {"<s>", "</s>"}.union(token["content"] for token in special)
        longest_first = sorted((text for text in control if len(text) > 1), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)))

        self._special_ids = frozenset(token["id"] for token in special)
        byte_tokens = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self.byte_ids = frozenset(token for token in byte_tokens if token is not None)

        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self._named = {}  # the tokens that a template may ask for by name
        for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
            if token := config.get(f"{name}_token"):
                self._named[f"{name}_token"] = token["content"] if isinstance(token, dict) else token
        file = folder / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        self._template = compile_template(source) if source else None

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of *messages* under the chat template, up to where the assistant answers."""
        if self._template is None:
            refuse("messages: this model has no chat template; log it with interface=prompt")
        safe = [{key: self._disarm(value) for key, value in message.items()} for message in messages]
        try:
            prompt = self.render(safe)
        except TemplateError as error:
            refuse(f"messages: the model's chat template says: {error}")
        for index, message in enumerate(safe):
            # A template without a system role either raises or stays silent about it.
            with contextlib.suppress(TemplateError):
                if message["role"] == "system" and self.render(safe[:index] + safe[index + 1 :]) == prompt:
                    refuse(f"messages[{index}].role='system' is one that the model's chat template leaves out")
        return list(self._tokenizer.encode(prompt, add_special_tokens=False).ids)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids of raw text, control tokens included, with one BOS token where the model has that."""
        bos = self._named.get("bos_token")
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
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._named
        )

    def _disarm(self, text: str) -> str:
        while self._control.search(text):  # again: breaking one look-alike may uncover one that overlaps it
            text = self._control.sub(lambda match: match[0][0] + self.BREAK + match[0][1:], text)
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
        # Random numbers of its own: the text depends on the seed, not on who shares the batch.
        self.random = np.random.default_rng([request.seed % 2**64, choice])
        self._decode = text.decode
        self._on_text = on_text
        self._stream = TextStream(text) if request.stop or on_text else None

    def push(self, token: int, *, is_end: bool) -> None:
        """Take the next token; *is_end* says that it is an end token of the model, which is never shown."""
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


class Engine:
    """Continues prompts by onnxruntime-genai, in one thread that takes as many waiting answers at once as fit.

    Several og generators side by side are no faster than one, but a batch is. So whatever waits when a batch
    begins (rows of one call, calls of many threads) shares it, each answer with options of its own. What
    comes later waits for the next batch: og cannot take a row into a running one.
    """

    def __init__(self, folder: Path, threads: int, max_batch: int, max_batch_tokens: int) -> None:
        self._inbox: queue.SimpleQueue[list[Answer]] = queue.SimpleQueue()
        worker = _Worker(folder, threads, max_batch, max_batch_tokens, self._inbox)
        self.context = worker.context
        # The thread does not refer to this object. So it ends when the last user of this object goes, or
        # Python exits, and the og model with it; og complains of models that outlive the process.
        thread = threading.Thread(target=worker.serve, name="onnxruntime-genai", daemon=True)
        self.close = weakref.finalize(self, _stop, thread, worker.stopping, self._inbox)
        thread.start()

    @contextlib.contextmanager
    def generating(self, answers: list[Answer]) -> Iterator[None]:
        """Generate *answers* in the engine's thread; those not finished at the end of the block are dropped."""
        if not self.close.alive:
            msg = "this model was closed: load it again"
            raise MlflowException(msg)
        self._inbox.put(answers)
        try:
            yield
        finally:
            for answer in answers:
                answer.end("cancelled")


def _stop(thread: threading.Thread, stopping: threading.Event, inbox: queue.SimpleQueue[list[Answer]]) -> None:
    stopping.set()
    inbox.put([])
    if thread is not threading.current_thread():  # garbage is collected in any thread
        thread.join(timeout=10)


class _Worker:
    """What the engine's thread does, and the og model that it does it with."""

    # og takes the *last* pad tokens of a prompt for padding, and many models pad with a token that a prompt
    # may end with. No token has this id. ONNX looks up its embedding all the same, and the result is masked.
    PAD = -1

    def __init__(
        self,
        folder: Path,
        threads: int,
        max_batch: int,
        max_batch_tokens: int,
        inbox: queue.SimpleQueue[list[Answer]],
    ) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime_genai as og  # heavy: comes with the model, not with this file

        genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        providers = genai["decoder"]["session_options"].get("provider_options", [])
        if any("cuda" in provider for provider in providers) and not og.is_cuda_available():
            msg = "this ONNX model was built for CUDA: it needs onnxruntime-genai-cuda and an NVIDIA GPU"
            raise MlflowException(msg)
        session = {"intra_op_num_threads": threads}
        config = og.Config(str(folder))
        config.overlay(json.dumps({"model": {"pad_token_id": self.PAD, "decoder": {"session_options": session}}}))
        self.og: ModuleType = og
        self.model = og.Model(config)
        self.context = int(genai["context_length"])
        ends = genai["eos_token_id"]
        self.end_ids = frozenset(ends if isinstance(ends, list) else [ends])
        self.max_batch = max_batch
        self.max_batch_tokens = max_batch_tokens
        self.inbox = inbox
        self.stopping = threading.Event()

    def serve(self) -> None:
        """Generate batch after batch of what comes in, until `stopping` is set."""
        waiting: list[Answer] = []
        while not self.stopping.is_set():
            waiting = [answer for answer in waiting if not answer.finished.is_set()]
            if not waiting or not self.inbox.empty():
                waiting += self.inbox.get()
                continue
            batch = self.next_batch(waiting)
            reason = "this model was closed: load it again"
            try:
                self.generate(batch)
            except Exception as error:  # noqa: BLE001  # a failed batch must not end the thread
                reason = f"onnxruntime-genai: {str(error).partition(chr(10))[0]}"
            for answer in batch:
                answer.end("failed", reason)  # means those alone that have not ended
        while not self.inbox.empty():
            waiting += self.inbox.get()
        for answer in waiting:
            answer.end("failed", "this model was closed: load it again")

    def next_batch(self, waiting: list[Answer]) -> list[Answer]:
        """Return the answer that has waited longest, and those after it that can share a batch with it."""
        batch = waiting[:1]
        for answer in waiting[1:]:
            if len(batch) == self.max_batch:
                break
            if self._fits([*batch, answer]):
                batch.append(answer)
        return batch

    def _fits(self, batch: list[Answer]) -> bool:
        prompts = [len(answer.request.prompt) for answer in batch]
        row = max(prompts) + max(answer.request.max_tokens for answer in batch)
        return (
            row <= self.context
            and row * len(batch) <= self.max_batch_tokens
            and max(prompts) <= 2 * min(prompts) + 32  # og computes padding as if it were text
            and all(answer.request.json_schema is None for answer in batch)  # og: one grammar, one row
        )

    def generate(self, batch: list[Answer]) -> None:
        """Generate until every answer of *batch* has ended."""
        prompts = [answer.request.prompt for answer in batch]
        longest = max(map(len, prompts))
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(
            batch_size=len(batch),
            # This sizes the KV cache, which og would otherwise make as long as the model's context.
            max_length=longest + max(answer.request.max_tokens for answer in batch),
            do_sample=False,  # whatever the model's folder says: _sampled does that
            num_beams=1,
            min_length=0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )
        schema = batch[0].request.json_schema
        try:
            if schema:
                params.set_guidance("json_schema", schema, False)
            generator = self.og.Generator(self.model, params)
        except RuntimeError as error:
            if not schema:
                raise
            reason = str(error).partition("\n")[0]
            batch[0].end("refused", f"response_format.json_schema.schema is not usable: {reason}")
            return
        ids = np.full((len(batch), longest), self.PAD, dtype=np.int32)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt  # padded on the right: og counts positions from the left
        generator.append_tokens(ids)
        while not self.stopping.is_set():
            running = [(row, answer) for row, answer in enumerate(batch) if not answer.finished.is_set()]
            if not running:
                return
            if any(answer.request.temperature for _, answer in running):
                logits = np.array(generator.get_logits())  # batch, 1, vocabulary
                for row, answer in running:
                    if answer.request.temperature:
                        logits[row, 0] = _sampled(logits[row, 0], answer.request, answer.random)
                generator.set_logits(logits)
            generator.generate_next_token()
            tokens = generator.get_next_tokens()
            for row, answer in running:
                answer.push(int(tokens[row]), is_end=int(tokens[row]) in self.end_ids)


def _sampled(logits: npt.NDArray[np.float32], request: Request, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return *logits* changed at random, so that the token of the largest is a sample at request.temperature.

    argmax(logits / T - log(E)) with exponentially distributed E is distributed as softmax(logits / T): the
    Gumbel-max trick. It leaves the last word to og, which rules out tokens that a JSON schema forbids. For
    the same reason tokens outside top_k and top_p come far behind the others, and are not ruled out here.
    """
    scaled = (logits - logits.max()) / np.float32(max(request.temperature, 1e-4))
    outside = np.zeros(scaled.shape, dtype=bool)
    if 0 < request.top_k < scaled.size:
        outside |= scaled < np.partition(scaled, -request.top_k)[-request.top_k]
    if request.top_p < 1:
        weights = np.where(outside, 0, np.exp(scaled))
        total = weights.sum(dtype=np.float64)
        # Tokens this light are outside even if all are as light (0.999: rounding): far fewer are left to sort.
        falling = np.sort(weights[weights >= 0.999 * (1 - request.top_p) * total / weights.size])[::-1]
        reached = int(np.searchsorted(falling.cumsum(dtype=np.float64), request.top_p * total))
        outside |= weights < falling[min(reached, falling.size - 1)]
    noise = np.log(np.maximum(random.standard_exponential(scaled.size, dtype=np.float32), 1e-30))
    return np.asarray(scaled - noise - np.float32(1e6) * outside, dtype=np.float32)


def usable_cpus() -> int:
    """Return how many CPUs this process may use: its affinity, within its container's quota (cgroup v2)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, period = limit.read_text().split() if limit.exists() else ("max", "0")
    return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))


# ----------------------------------------------------------------------------------------------- model


class OnnxChatModel(PythonModel):
    """What MLflow loads, and calls from as many threads as it likes.

    Artifact "onnx": the model folder. model_config: see CONFIG.
    """

    CONFIG: ClassVar[dict[str, Any]] = {
        "interface": "chat",  # or prompt
        "model_name": "onnx",  # as answers give it
        "max_tokens": 64,  # of an answer whose request does not say
        "threads": 0,  # 0: as many as the process may use CPUs
        "max_batch": 16,  # answers
        "max_batch_tokens": 8192,  # KV cache of a batch; one answer may take more
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
        self.text = Text(folder)
        threads = config["threads"] or usable_cpus()
        self.engine = Engine(folder, threads, config["max_batch"], config["max_batch_tokens"])

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
