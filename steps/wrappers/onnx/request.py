"""Reads a row, whose fields were checked, as a Request."""

import dataclasses
import json
import math
import secrets
from collections.abc import Mapping
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .fields import Fields, refuse

if TYPE_CHECKING:
    from .tools.request import ToolUse

MOST_LOGPROBS = 20
"""Alternatives to a token, as OpenAI limits them."""

TEMPLATE_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt")
"""Variables of the chat template that chat_template_kwargs cannot set."""


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
    logprobs: int | None = None  # alternatives to state beside each token's log probability; None: state neither
    schema_field: str = "response_format.json_schema.schema"  # that json_schema is from
    tools: "ToolUse | None" = None
    ignore_eos: bool = False  # no end token is chosen: the answer has max_tokens tokens, or ends at a stop string


def read_request(
    row: Fields, prompt: list[int], context: int, default_max_tokens: int, tools: "ToolUse | None" = None
) -> Request:
    """Return *row* checked, for *prompt* and a model whose context holds *context* tokens."""
    free = context - len(prompt)
    if not prompt:
        refuse("prompt is empty: at least 1 token is needed")
    if free < 1:
        refuse(f"prompt of {len(prompt)} tokens leaves no room for an answer in the context of {context} tokens")
    field = _max_tokens_field(row)
    max_tokens = read_integer(row, field, min(default_max_tokens, free), 1, context)
    if max_tokens > free:
        refuse(
            f"{field}={max_tokens} is more than the {free} tokens that a prompt of {len(prompt)} tokens "
            f"leaves in the context of {context} tokens"
        )
    forced = tools.schema if tools else None
    return Request(
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=read_number(row, "temperature", 0, 0, 2),
        top_p=read_number(row, "top_p", 1, 0, 1),
        top_k=max(0, read_integer(row, "top_k", 0, -1, 2**31 - 1)),  # vLLM: -1 is all too
        seed=read_integer(row, "seed", secrets.randbits(63), -(2**63), 2**63 - 1),
        stop=read_stop(row),
        n=read_integer(row, "n", 1, 1, 128),
        json_schema=forced or read_json_schema(row),
        logprobs=read_logprobs(row),
        schema_field="tools" if forced else Request.schema_field,
        tools=tools,
        ignore_eos=read_ignore_eos(row, forced=forced is not None),
    )


def _max_tokens_field(row: Fields) -> str:
    """Return the name under which *row* states max_tokens."""
    old, new = row.get("max_tokens"), row.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        refuse(f"max_completion_tokens={brief(new)} and max_tokens={brief(old)} differ: give one of them")
    return "max_tokens" if new is None else "max_completion_tokens"


def read_number(row: Fields, field: str, default: float, low: float, high: float) -> float:
    """Return the number row[field], or *default* where there is none."""
    value = row.get(field)
    if value is None:
        return default
    # Not pydantic: it takes True and "1" for numbers, and its strict mode refuses 20.0 for an integer.
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(f"{field}={brief(value)} is not a number")
    if not low <= value <= high:  # NaN too
        refuse(f"{field}={value} is outside {low} to {high}")
    return value


def read_integer(row: Fields, field: str, default: int, low: int, high: int) -> int:
    """Return the integer row[field], or *default* where there is none."""
    value = read_number(row, field, default, low, high)
    if value != int(value):  # 20.0 is fine: a table turns integers into floats when one is missing
        refuse(f"{field}={value} is not an integer")
    return int(value)


def read_stop(row: Fields) -> tuple[str, ...]:
    """Return the stop strings of *row*, given as one string or a list of them."""
    value = row.get("stop")
    stop = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        refuse(f"stop={brief(value)} is neither a string nor a list of strings of at least 1 character")
    return tuple(stop)


def read_logprobs(row: Fields) -> int | None:
    """Return how many alternatives *row* wants stated beside each token's log probability, None if it wants none.

    Chat Completions says that in two fields, Completions in one.
    """
    if "messages" not in row:
        return None if row.get("logprobs") is None else read_integer(row, "logprobs", 0, 0, MOST_LOGPROBS)
    asked = False if row.get("logprobs") is None else row["logprobs"]
    if not isinstance(asked, bool):
        refuse(f"logprobs={brief(asked)} is neither true nor false")
    alternatives = read_integer(row, "top_logprobs", 0, 0, MOST_LOGPROBS)
    if alternatives and not asked:
        refuse(f"top_logprobs={alternatives} needs logprobs=true")
    return alternatives if asked else None


def read_ignore_eos(row: Fields, *, forced: bool) -> bool:
    """Return whether *row* asks for an answer without an end. That to a JSON schema, or a *forced* call, has one."""
    value = row.get("ignore_eos")
    if value is not None and not isinstance(value, bool):
        refuse(f"ignore_eos={brief(value)} is neither true nor false")
    if value and (forced or read_json_schema(row)):
        refuse("ignore_eos=True cannot be combined with a JSON schema, whose answer has an end")
    return bool(value)


def read_json_schema(row: Fields) -> str | None:
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
    return json_schema_text(schema)


def json_schema_text(schema: Mapping[str, Any]) -> str:
    """Return *schema* as the engine takes it."""
    # Where white space is free, a small model can go on with it until max_tokens.
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps({"x-guidance": style, **schema})


def read_template_kwargs(row: Fields, field: str = "chat_template_kwargs") -> dict[str, Any]:
    """Return the variables that *row* sets for the chat template."""
    value = row.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        refuse(f"{field}={brief(value)} is not an object")
    for name in TEMPLATE_VARIABLES:
        if name in value:
            refuse(f"{field}.{name}={brief(value[name])} is not supported; variables of the template's own are")
    return value


def read_rows(model_input: object) -> list[dict[str, Any]]:
    """Return a table, one row, or a list of rows as dicts of plain values; absent fields are left out."""
    rows: list[Any] = model_input if isinstance(model_input, list) else [model_input]
    if isinstance(model_input, pd.DataFrame):
        # A table has a cell for every row and field: a field that a row leaves out shows as NaN or NA there.
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
