"""An ONNX language model as an MLflow pyfunc model: Chat Completions, or raw prompts, in and out.

MLflow ships this one file inside the logged model (models-from-code), so it imports nothing of ours, and neither torch
nor transformers. A call passes through four parts, each of which can be read, and replaced, on its own:

    OnnxChatModel  what MLflow calls: rows in, answers or chunks out
    Request        one row, checked against stated limits
    Text           messages to token ids and ids to text, exactly as transformers does it
    Engine         ids to ids: the only part that knows onnxruntime-genai ("og") and how rows share it

Every mistake in a request is one line that names field, value and limit, and reaches an HTTP client as status 400.
"""

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
from typing import Any

import jinja2.ext
import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
from jinja2 import TemplateError, nodes, parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema
from tokenizers import Tokenizer

Message = dict[str, str]


def chat_signature() -> ModelSignature:
    """Return the signature of interface=chat: MLflow's llm/v1/chat, with the fields that this model serves."""
    served = ("messages", "temperature", "max_tokens", "n", "stream", "top_p", "top_k")
    columns = [column for column in CHAT_MODEL_INPUT_SCHEMA.inputs if column.name in served]
    columns += [
        ColSpec(AnyType(), "stop", required=False),  # a string or a list of strings
        ColSpec(DataType.long, "seed", required=False),
        ColSpec(AnyType(), "response_format", required=False),
    ]
    signature = ModelSignature(inputs=Schema(columns), outputs=CHAT_MODEL_OUTPUT_SCHEMA)
    # With this flag MLflow hands requests to predict as they came. Without it, MLflow drops fields that it does not
    # know (max_token=5 would be ignored, not refused) and rejects tables in which one row leaves out an integer.
    signature._is_signature_from_type_hint = True
    return signature


def prompt_signature() -> ModelSignature:
    """Return the signature of interface=prompt: a column of prompts to strings, with sampling options as params."""
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


# --------------------------------------------------------------------------------------------------- requests


@dataclasses.dataclass(frozen=True)
class Request:
    """One checked row: what to continue, and how."""

    prompt: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: tuple[str, ...]
    n: int
    json_schema: str | None


def refuse(message: str) -> MlflowException:
    """Return the error for a request that is wrong; `mlflow models serve` answers it with status 400."""
    return MlflowException.invalid_parameter_value(message)


def read_number(row: Mapping[str, Any], field: str, default: Any, low: float, high: float) -> Any:
    """Return row[field], or *default* if absent, as a number of *default*'s type within low..high."""
    value = row.get(field)
    if value is None:
        return default
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas turns an integer column with gaps into floats
    kind = (int, "an integer") if isinstance(default, int) else ((int, float), "a number")
    if isinstance(value, bool) or not isinstance(value, kind[0]):
        raise refuse(f"{field}={value!r} is not {kind[1]}")
    if not low <= value <= high:
        raise refuse(f"{field}={value!r} is outside {low} to {high}")
    return type(default)(value)


def read_stop(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the stop strings of *row*, given as one string or a list of them."""
    value = row.get("stop")
    stop = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        raise refuse(f"stop={value!r} is neither a string nor a list of strings, or holds an empty one")
    return tuple(stop)


def read_json_schema(row: Mapping[str, Any]) -> str | None:
    """Return the JSON schema that response_format asks for, None for plain text."""
    value = row.get("response_format")
    match value:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            schema: dict[str, Any] = {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            pass
        case _:
            raise refuse(
                f"response_format={value!r} is not one of {{'type': 'text'}}, {{'type': 'json_object'}}, "
                "{'type': 'json_schema', 'json_schema': {'schema': {...}}}"
            )
    # Free white space between JSON tokens is where a small model can go round in circles until max_tokens.
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps({**schema, "x-guidance": style})


def read_messages(row: Mapping[str, Any]) -> list[Message]:
    """Return the checked messages of *row*: role, content and, where given, name."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refuse(f"messages={messages!r} is not a list of at least one message")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise refuse(f"{where}={message!r} is not an object with role and content")
        for key, value in message.items():
            if key not in ("role", "content", "name"):
                raise refuse(f"{where}.{key}={value!r} is not supported: role, content, name")
            if not isinstance(value, str):
                raise refuse(f"{where}.{key}={value!r} is not a string")
        if message.get("role") not in ("system", "user", "assistant"):
            raise refuse(f"{where}.role={message.get('role')!r} is not one of system, user, assistant")
        if not message.get("content"):
            raise refuse(f"{where}.content is empty: at least 1 character is needed")
    return messages


def read_request(row: Mapping[str, Any], prompt: list[int], room: int, default_max_tokens: int) -> Request:
    """Return *row* checked; *room* is the model's context length in tokens."""
    free = room - len(prompt)
    if not prompt:
        raise refuse("prompt is empty: at least 1 token is needed")
    if free < 1:
        raise refuse(f"prompt of {len(prompt)} tokens leaves no room for an answer in the context of {room} tokens")
    max_tokens = read_number(row, "max_tokens", min(default_max_tokens, free), 1, math.inf)
    if max_tokens > free:
        raise refuse(
            f"max_tokens={max_tokens} with a prompt of {len(prompt)} tokens exceeds the context of {room} tokens: "
            f"at most {free}"
        )
    return Request(
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=read_number(row, "temperature", 0.0, 0, 2),
        top_p=read_number(row, "top_p", 1.0, 1e-6, 1),
        top_k=read_number(row, "top_k", 0, 0, 2**31 - 1),
        seed=read_number(row, "seed", secrets.randbits(63), -(2**63), 2**63 - 1),
        stop=read_stop(row),
        n=read_number(row, "n", 1, 1, 128),
        json_schema=read_json_schema(row),
    )


def plain_rows(model_input: Any) -> list[dict[str, Any]]:
    """Return *model_input* (a table, one row, or a list of rows) as dicts of plain Python values, absent ones left out."""
    if isinstance(model_input, pd.DataFrame):
        rows = model_input.to_dict("records")
        # A table has a cell for every row and field: an absent value shows as NaN there.
        rows = [{str(k): v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))} for row in rows]
    else:
        rows = model_input if isinstance(model_input, list) else [model_input]
    if not rows:
        raise refuse("the request has no rows: at least 1 is needed")
    for row in rows:
        if not isinstance(row, dict):
            raise refuse(f"a row is {row!r}, not an object")
    return [{key: plain(value) for key, value in row.items()} for row in rows]


def plain(value: Any) -> Any:
    """Return *value* with numpy's scalars and arrays, which tables and Parquet bring, as Python's own."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


# ------------------------------------------------------------------------------------------------------- text


class GenerationTag(jinja2.ext.Extension):
    """Render what stands between {% generation %} and {% endgeneration %}, which transformers' templates may use."""

    tags = {"generation"}

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str) -> jinja2.Template:
    """Return a chat template compiled as transformers.utils.chat_template_utils does it."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment.from_string(source)


class Text:
    """The tokenizer and chat template of a model folder: ids and text equal to those of transformers.

    One thing is different on purpose: a control token in a message, such as <|end|>, is ordinary text, because whoever
    writes a message must not be able to end it and open one in another role.
    """

    # Stands inside look-alikes of control tokens until they can no longer be taken for one. Two Unicode noncharacters,
    # which no text may use.
    BREAK = "\ufdd0\ufdd1"

    def __init__(self, folder: Path) -> None:
        spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        # Control tokens are searched in the raw text, and what lies between them is normalised afterwards: a normaliser
        # that removes BREAK gives the text back, as text.
        remove = {"type": "Replace", "pattern": {"String": self.BREAK}, "content": ""}
        inner = [spec["normalizer"]] if spec.get("normalizer") else []
        spec["normalizer"] = {"type": "Sequence", "normalizers": [remove, *inner]}
        control = {"<s>", "</s>"}  # Phi-3 lists </s> as an ordinary added token
        for token in spec["added_tokens"]:
            if token["special"]:
                control.add(token["content"])
            if token["content"] in control:
                token["normalized"] = False  # never searched after normalising
        self._tokenizer = Tokenizer.from_str(json.dumps(spec))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        longest_first = sorted((text for text in control if len(text) > 1), key=len, reverse=True)
        self._control = re.compile("|".join(re.escape(text) for text in longest_first))

        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        named = {name: config.get(f"{name}_token") for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
        self._named = {
            f"{name}_token": token["content"] if isinstance(token, dict) else token
            for name, token in named.items()
            if token
        }
        file = folder / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
        if isinstance(source, list):
            source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
        self._template = compile_template(source) if source else None

        hidden = [token["id"] for token in spec["added_tokens"] if token["special"]]
        self.hidden_ids = frozenset(hidden)
        # A run of byte tokens is text only once the run has ended: one wrong byte makes all of it wrong.
        byte_ids = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self.byte_ids = frozenset(token for token in byte_ids if token is not None)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of *messages* under the chat template, ready for the assistant's answer."""
        if self._template is None:
            raise refuse("messages: this model has no chat template; log it with interface=prompt")
        safe = [{key: self._disarm(value) for key, value in message.items()} for message in messages]
        try:
            prompt = self._template.render(
                messages=safe, tools=None, documents=None, add_generation_prompt=True, **self._named
            )
        except TemplateError as error:
            raise refuse(f"messages: the model's chat template says: {error}") from error
        for index, message in enumerate(safe):
            # An assistant's earlier reasoning may be left out by design; what system and user say may not.
            if message["role"] != "assistant" and message["content"].strip() not in prompt:
                raise refuse(f"messages[{index}].role={message['role']!r} is left out by the model's chat template")
        return list(self._tokenizer.encode(prompt, add_special_tokens=False).ids)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids of raw text, control tokens included; a text that begins with the BOS token gets no second."""
        bos = self._named.get("bos_token")
        has_bos = bos is not None and prompt.startswith(bos)
        return list(self._tokenizer.encode(prompt, add_special_tokens=not has_bos).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of *ids* without control tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _disarm(self, content: str) -> str:
        while self._control.search(content):  # again: breaking one look-alike can leave an overlapping one
            content = self._control.sub(lambda match: match[0][0] + self.BREAK + match[0][1:], content)
        return content


class TextStream:
    """The text of ids that come one by one, of which nothing that was once given out changes later."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._ids: list[int] = []
        # Decoding all ids at every step would cost the square of their number. The ids from _start on are decoded, and
        # those before _read give the context that a word's leading space depends on.
        self._start = self._read = 0
        self.settled = ""

    def push(self, token: int) -> None:
        """Add *token*; `settled` grows unless the token may be part of a character that is not complete."""
        if token in self._text.hidden_ids:
            return
        self._ids.append(token)
        if token in self._text.byte_ids:
            return
        before = self._text.decode(self._ids[self._start : self._read])
        after = self._text.decode(self._ids[self._start :])
        if after.endswith("\ufffd"):
            return
        self.settled += after[len(before) :]
        if len(after) > len(before):
            self._start = self._read
        self._read = len(self._ids)

    def finish(self) -> None:
        """Settle what is left, half characters included, as transformers decodes them."""
        before = self._text.decode(self._ids[self._start : self._read])
        self.settled += self._text.decode(self._ids[self._start :])[len(before) :]


class Answer:
    """One choice while it is generated: tokens go in, text comes out, until `finish_reason` is set."""

    def __init__(self, request: Request, text: Text, choice: int, on_text: Callable[[str], None] | None = None) -> None:
        self.request = request
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.finished = threading.Event()
        # A choice has a random stream of its own: its text depends neither on its neighbours nor on the load.
        self.random = np.random.default_rng([request.seed % 2**64, choice])
        self._decode = text.decode
        self._on_text = on_text
        self._stream = TextStream(text) if request.stop or on_text else None

    def push(self, token: int, is_end: bool) -> None:
        """Take the next token; *is_end* says that it is one of the model's end tokens, which are never shown."""
        self.tokens.append(token)
        last = is_end or len(self.tokens) == self.request.max_tokens
        if self._stream is None:
            if last:
                self.text = self._decode(self.tokens[:-1] if is_end else self.tokens)
        else:
            if not is_end:
                self._stream.push(token)
            if last:
                self._stream.finish()
            if self._show(self._stream.settled, complete=last):
                self.end("stop")
                return
        if last:
            self.end("stop" if is_end else "length")

    def end(self, reason: str, error: str | None = None) -> None:
        """End with *reason*; *error* says what went wrong when the request is not to blame."""
        self.error = error
        self.finish_reason = reason
        self.finished.set()
        if self._on_text:
            self._on_text("")

    def _show(self, settled: str, complete: bool) -> bool:
        """Move what may be shown of *settled* to `text`, and say whether a stop string was met."""
        stop = self.request.stop
        found = [at for string in stop if (at := settled.find(string, len(self.text))) >= 0]
        shown = min(found, default=len(settled))
        if not found and not complete:
            # The end of the text may be the beginning of a stop string.
            starts = (n for string in stop for n in range(1, len(string)) if settled.endswith(string[:n]))
            shown -= max(starts, default=0)
        news = settled[len(self.text) : shown]
        self.text += news
        if news and self._on_text:
            self._on_text(news)
        return bool(found)


# ----------------------------------------------------------------------------------------------------- engine


@dataclasses.dataclass(frozen=True)
class Limits:
    """How many answers may share one og generator."""

    context: int  # tokens of prompt and answer
    batch: int  # answers
    batch_tokens: int  # room in the KV cache, all answers together, except that one answer always fits

    def next_batch(self, waiting: Sequence["Answer"]) -> list["Answer"]:
        """Return the answer that has waited longest and those behind it that can share its batch."""
        batch = [waiting[0]]
        for answer in waiting[1:]:
            if self._fits([*batch, answer]):
                batch.append(answer)
        return batch

    def _fits(self, batch: list["Answer"]) -> bool:
        lengths = [len(answer.request.prompt) for answer in batch]
        row_tokens = max(lengths) + max(answer.request.max_tokens for answer in batch)
        return (
            len(batch) <= self.batch
            and row_tokens <= self.context
            and row_tokens * len(batch) <= self.batch_tokens
            and max(lengths) <= 2 * min(lengths) + 32  # padding costs as much time as text
            and not any(answer.request.json_schema for answer in batch)  # og has one grammar for the whole batch
        )


class Engine:
    """Continues prompts by onnxruntime-genai, in one thread that takes as many waiting answers at once as fit.

    Several og generators side by side are no faster than one, but a batch is. So whatever waits when a batch starts (rows
    of one call, calls of many threads) shares it, each answer with options of its own. An answer that comes later waits
    for the next batch: og cannot take a row into a running one.
    """

    # og takes a prompt's *last* pad tokens for padding, and the pad token of many models is one that a prompt may end
    # with. No token has this id; the embedding lookup of ONNX takes it, and the result is masked.
    PAD = -1

    def __init__(self, folder: Path, threads: int, max_batch: int, max_batch_tokens: int) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime_genai as og  # heavy: loaded with the model, not with this file

        genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        providers = [name for entry in genai["decoder"]["session_options"]["provider_options"] for name in entry]
        if "cuda" in providers and not og.is_cuda_available():
            msg = "this ONNX model was built for CUDA: it needs onnxruntime-genai-cuda and an NVIDIA GPU"
            raise MlflowException(msg)
        session = {"intra_op_num_threads": threads}
        config = og.Config(str(folder))
        config.overlay(json.dumps({"model": {"pad_token_id": self.PAD, "decoder": {"session_options": session}}}))

        self.context_length = int(genai["context_length"])
        limits = Limits(self.context_length, max_batch, max_batch_tokens)
        self._inbox: queue.SimpleQueue[list[Answer] | None] = queue.SimpleQueue()
        # The thread does not know this object, so that it ends when the last user of this object goes, or Python exits.
        # The og model lives in the thread alone: og complains of models that are alive when the process ends.
        stopping = threading.Event()
        work = (og, og.Model(config), _end_ids(genai), limits, self._inbox, stopping)
        thread = threading.Thread(target=_serve, args=work, name="onnxruntime-genai", daemon=True)
        self.close = weakref.finalize(self, _stop, thread, stopping, self._inbox)
        thread.start()

    def submit(self, answers: list[Answer]) -> None:
        """Start generating *answers*; the engine's thread pushes their tokens and ends them."""
        if not self.close.alive:
            raise MlflowException("this model is closed; load it again")
        self._inbox.put(answers)


def _end_ids(genai: Mapping[str, Any]) -> frozenset[int]:
    ids = genai["eos_token_id"]
    return frozenset(ids if isinstance(ids, list) else [ids])


def _stop(thread: threading.Thread, stopping: threading.Event, inbox: "queue.SimpleQueue[Any]") -> None:
    stopping.set()
    inbox.put(None)
    if thread is not threading.current_thread():  # the garbage collector may run anywhere
        thread.join(timeout=10)


def _serve(
    og: Any,
    model: Any,
    end_ids: frozenset[int],
    limits: Limits,
    inbox: "queue.SimpleQueue[list[Answer] | None]",
    stopping: threading.Event,
) -> None:
    """Decode batch after batch of what comes into *inbox* until *stopping*."""
    waiting: list[Answer] = []
    while not stopping.is_set():
        if not waiting or not inbox.empty():
            waiting += inbox.get() or []
            continue
        batch = limits.next_batch(waiting)
        waiting = [answer for answer in waiting if answer not in batch]
        try:
            _decode(og, model, end_ids, batch, stopping)
        except Exception as error:  # one bad batch must not end the thread that all later ones need
            for answer in batch:
                answer.end("error", f"onnxruntime-genai: {str(error).splitlines()[0]}")
        waiting += [answer for answer in batch if answer.finish_reason is None]
    for answer in waiting:
        answer.end("error", "this model was closed")


def _decode(
    og: Any, model: Any, end_ids: frozenset[int], batch: list[Answer], stopping: threading.Event
) -> None:
    """Generate until every answer of *batch* has ended."""
    lengths = [len(answer.request.prompt) for answer in batch]
    params = og.GeneratorParams(model)
    params.set_search_options(
        batch_size=len(batch),
        max_length=max(lengths) + max(answer.request.max_tokens for answer in batch),  # sizes the KV cache
        do_sample=False,  # whatever the model's own file says: sampling happens in _reweigh
        num_beams=1,
        min_length=0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
    )
    schema = batch[0].request.json_schema
    try:
        if schema:
            params.set_guidance("json_schema", schema, False)
        generator = og.Generator(model, params)
    except RuntimeError as error:
        if not schema:
            raise
        batch[0].end("refused", f"response_format: the JSON schema is not usable: {str(error).splitlines()[0]}")
        return

    prompts = np.full((len(batch), max(lengths)), Engine.PAD, dtype=np.int32)
    for row, answer in enumerate(batch):
        prompts[row, : lengths[row]] = answer.request.prompt  # pad right: og's attention counts from the left
    generator.append_tokens(prompts)
    while not stopping.is_set():
        running = [(row, answer) for row, answer in enumerate(batch) if answer.finish_reason is None]
        if not running:
            return
        sampling = [(row, answer) for row, answer in running if answer.request.temperature > 0]
        if sampling:
            logits = np.array(generator.get_logits())  # batch, 1, vocabulary
            for row, answer in sampling:
                logits[row, 0] = _reweigh(logits[row, 0], answer.request, answer.random)
            generator.set_logits(logits)
        generator.generate_next_token()
        tokens = generator.get_next_tokens()
        for row, answer in running:
            answer.push(int(tokens[row]), int(tokens[row]) in end_ids)


def _reweigh(
    logits: npt.NDArray[np.float32], request: Request, random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Return *logits* changed at random so that the largest one is a sample at the request's temperature.

    This is the Gumbel trick: argmax(logits / T - log(E)), E exponentially distributed, has the distribution
    softmax(logits / T). The choice itself stays with og, which can still rule out tokens that a JSON schema forbids;
    for its sake tokens outside top_k and top_p are put far behind the others instead of being ruled out.
    """
    scaled = (logits - logits.max()) / np.float32(max(request.temperature, 1e-4))
    outside = np.zeros(scaled.shape, dtype=bool)
    if 0 < request.top_k < scaled.size:
        outside |= scaled < np.partition(scaled, -request.top_k)[-request.top_k]
    if request.top_p < 1:
        weights = np.where(outside, 0, np.exp(scaled))
        order = np.argsort(-weights)
        before = np.cumsum(weights[order]) - weights[order]
        outside[order] |= before >= request.top_p * weights.sum()  # the best token has none before it: it stays
    noise = random.standard_exponential(scaled.size, dtype=np.float32)
    reweighed = scaled - np.log(np.maximum(noise, np.finfo(np.float32).tiny))
    return np.asarray(np.where(outside, reweighed - np.float32(1e6), reweighed), dtype=np.float32)


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use: its affinity, within its container's quota (cgroup v2)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        microseconds, period = quota.read_text().split()
        if microseconds != "max":
            cpus = min(cpus, max(1, int(microseconds) // int(period)))
    return cpus


# ------------------------------------------------------------------------------------------------------ model


class OnnxChatModel(mlflow.pyfunc.PythonModel):
    """What MLflow loads and calls, from as many threads as it likes.

    model_config: `interface` (chat or prompt), `model_name` (as answers state it), `max_tokens` (of an answer, where the
    request says nothing), `threads` (0: all CPUs that the process may use), `max_batch` (answers), `max_batch_tokens` (KV
    cache of a batch, in tokens).
    """

    DEFAULTS = {
        "interface": "chat",
        "model_name": "onnx",
        "max_tokens": 64,
        "threads": 0,
        "max_batch": 16,
        "max_batch_tokens": 8192,
    }
    CHAT_FIELDS = ("messages", "max_tokens", "temperature", "top_p", "top_k", "stop", "n", "seed", "response_format")
    PROMPT_FIELDS = ("prompt", "max_tokens", "temperature", "top_p", "top_k", "stop", "seed")

    def load_context(self, context: Any) -> None:
        """Load the folder context.artifacts["onnx"]."""
        config = {**self.DEFAULTS, **(context.model_config or {})}
        if unknown := config.keys() - self.DEFAULTS.keys():
            raise refuse(f"model_config.{min(unknown)} is not known: {', '.join(self.DEFAULTS)}")
        if config["interface"] not in ("chat", "prompt"):
            raise refuse(f"model_config.interface={config['interface']!r} is neither chat nor prompt")
        self.config = config
        folder = Path(context.artifacts["onnx"])
        self.text = Text(folder)
        self.engine = Engine(
            folder, config["threads"] or usable_cpus(), config["max_batch"], config["max_batch_tokens"]
        )

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> list[Any]:
        """Return one Chat Completions object for every row, or with interface=prompt one string."""
        requests = self._read(model_input, params, stream=False)
        answers = [
            [Answer(request, self.text, choice) for choice in range(request.n)] for request in requests
        ]
        self.engine.submit([answer for choices in answers for answer in choices])
        for choices in answers:
            for answer in choices:
                answer.finished.wait()
                raise_if_failed(answer)
        if self.config["interface"] == "prompt":
            return [choices[0].text for choices in answers]
        return [self._completion(choices) for choices in answers]

    def predict_stream(
        self, context: Any, model_input: Any, params: dict[str, Any] | None = None
    ) -> Iterator[Any]:
        """Yield one row's answer while it is generated: Chat Completions chunks, or pieces of text.

        The chunk that ends the last choice also has `usage`.
        """
        requests = self._read(model_input, params, stream=True)
        if len(requests) != 1:
            raise refuse(f"predict_stream got {len(requests)} rows: it takes 1")
        news: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()

        def tell(choice: int) -> Callable[[str], None]:
            return lambda text: news.put((choice, text))

        choices = [Answer(requests[0], self.text, choice, tell(choice)) for choice in range(requests[0].n)]
        self.engine.submit(choices)
        try:
            yield from self._chunks(choices, news)
        finally:
            for answer in choices:
                if answer.finish_reason is None:
                    answer.end("cancelled")  # the caller went away: do not generate for nobody

    def _read(self, model_input: Any, params: dict[str, Any] | None, stream: bool) -> list[Request]:
        """Return all rows checked; the first wrong one is an error that says which it is."""
        rows = plain_rows(model_input)
        if self.config["interface"] == "prompt":
            # {"prompt": ["a", "b"]} reaches us as one row that holds a list
            rows = [
                {**row, "prompt": prompt}
                for row in rows
                for prompt in (row["prompt"] if isinstance(row.get("prompt"), list) else [row.get("prompt")])
            ]
            rows = [{**plain(params or {}), **row} for row in rows]
        requests = []
        for index, row in enumerate(rows):
            try:
                requests.append(self._read_row(row, stream))
            except MlflowException as error:
                raise (refuse(f"row {index}: {error.message}") if len(rows) > 1 else error) from None
        return requests

    def _read_row(self, row: Mapping[str, Any], stream: bool) -> Request:
        chat = self.config["interface"] == "chat"
        fields = self.CHAT_FIELDS if chat else self.PROMPT_FIELDS
        for field, value in row.items():
            if field == "stream" and chat:
                if value not in (None, False, stream):
                    raise refuse(f"stream={value!r} is not possible here: predict answers whole, predict_stream streams")
            elif field not in fields and value is not None:
                raise refuse(f"{field}={value!r} is not supported: {', '.join(fields)}")
        if chat:
            prompt = self.text.encode_chat(read_messages(row))
        elif isinstance(row["prompt"], str):
            prompt = self.text.encode_prompt(row["prompt"])
        else:
            raise refuse(f"prompt={row['prompt']!r} is not a string")
        return read_request(row, prompt, self.engine.context_length, self.config["max_tokens"])

    def _completion(self, choices: list[Answer]) -> dict[str, Any]:
        return self._envelope("chat.completion") | {
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": answer.text},
                    "finish_reason": answer.finish_reason,
                }
                for index, answer in enumerate(choices)
            ],
            "usage": usage(choices),
        }

    def _chunks(self, choices: list[Answer], news: "queue.SimpleQueue[tuple[int, str]]") -> Iterator[Any]:
        envelope = self._envelope("chat.completion.chunk")

        def chunk(index: int, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
            return envelope | {"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}

        chat = self.config["interface"] == "chat"
        if chat:
            for index in range(len(choices)):
                yield chunk(index, {"role": "assistant", "content": ""})
        open_choices = len(choices)
        while open_choices:
            index, text = news.get()
            answer = choices[index]
            if text:
                yield chunk(index, {"content": text}) if chat else text
                continue
            raise_if_failed(answer)
            open_choices -= 1
            if chat:
                end = chunk(index, {}, answer.finish_reason)
                yield end if open_choices else end | {"usage": usage(choices)}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.config["model_name"],
        }


def usage(choices: list[Answer]) -> dict[str, int]:
    """Return the tokens of a request: its prompt once, and all that was generated, end tokens included."""
    prompt, completion = len(choices[0].request.prompt), sum(len(answer.tokens) for answer in choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def raise_if_failed(answer: Answer) -> None:
    """Raise what ended *answer*, if it was not an answer."""
    if answer.finish_reason == "refused":
        raise refuse(str(answer.error))
    if answer.error:
        raise MlflowException(answer.error)


mlflow.models.set_model(OnnxChatModel())
