"""What /openapi.json says of requests and answers, made from the tables that check them."""

from typing import Any

from steps.wrappers.onnx.fields import ANY, CHAT_FIELDS, COMPLETION_FIELDS, REFUSED
from steps.wrappers.onnx.request import MOST_LOGPROBS
from steps.wrappers.onnx.tools.request import CHOICES

Schema = dict[str, Any]

INTEGER, TEXT, BOOLEAN = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
NAME: Schema = {"type": "string", "minLength": 1}
OBJECT, NULL = {"type": "object"}, {"type": "null"}


def or_null(value: Schema) -> Schema:
    """Return the schema of a field that may be absent, for which null stands."""
    return {"anyOf": [value, NULL]}


FUNCTION: Schema = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": NAME,
        "description": or_null(TEXT),
        "parameters": or_null(OBJECT),
        "strict": or_null(BOOLEAN),
    },
    "additionalProperties": NULL,
}
TOOL: Schema = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {"type": {"const": "function"}, "function": FUNCTION},
}
CALL: Schema = {
    "type": "object",
    "required": ["id", "type", "function"],
    "properties": {
        "id": TEXT,
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": NAME, "arguments": TEXT},
        },
    },
}
EMPTY: Schema = or_null({"type": "array", "maxItems": 0})


def content(least: int) -> Schema:
    """Return the schema of a message's text of at least *least* characters, in one piece or in parts."""
    text = {"type": "string", "minLength": least}
    part = {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": text}}
    return {"anyOf": [text, {"type": "array", "minItems": least, "items": part}]}


def message(*roles: str, required: tuple[str, ...] = ("content",), **fields: Schema) -> Schema:
    """Return the schema of a message of *roles*; any field else may be null, as in messages that clients send back."""
    properties = {"role": {"enum": list(roles)}, "name": or_null(TEXT), "content": content(0), **fields}
    return {
        "type": "object",
        "required": ["role", *required],
        "properties": properties,
        "additionalProperties": NULL,
    }


CALLS: Schema = {"type": "array", "minItems": 1, "items": CALL}
MESSAGE: Schema = {
    "anyOf": [
        message("system", "developer"),
        message("user", content=content(1)),
        message("assistant", tool_calls=EMPTY, annotations=EMPTY),
        message(
            "assistant", required=("tool_calls",), content=or_null(content(0)), tool_calls=CALLS, annotations=EMPTY
        ),
        message("tool", required=("content", "tool_call_id"), tool_call_id=NAME),
    ]
}
CHOICE: Schema = {
    "anyOf": [
        {"enum": list(CHOICES)},
        {
            "type": "object",
            "required": ["type", "function"],
            "properties": {
                "type": {"const": "function"},
                "function": {"type": "object", "required": ["name"], "properties": {"name": NAME}},
            },
        },
    ]
}
RESPONSE_FORMAT: Schema = {
    "anyOf": [
        {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}},
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {"type": "object", "required": ["schema"], "properties": {"schema": OBJECT}},
            },
        },
    ]
}
ANSWER: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"content": {"type": ["string", "null"]}, "tool_calls": {"type": "array", "items": CALL}},
}
TAKEN_FIELDS: dict[str, Schema] = {
    "messages": {"type": "array", "minItems": 1, "items": MESSAGE},
    "prompt": {"anyOf": [TEXT, {"type": "array", "minItems": 1, "items": TEXT}]},
    "max_tokens": {**INTEGER, "minimum": 1},
    "max_completion_tokens": {**INTEGER, "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "top_k": {**INTEGER, "minimum": -1, "maximum": 2**31 - 1},
    "stop": {
        "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}}]
    },
    "seed": {**INTEGER, "minimum": -(2**63), "maximum": 2**63 - 1},
    "n": {**INTEGER, "minimum": 1, "maximum": 128},
    "response_format": RESPONSE_FORMAT,
    "tools": {"type": "array", "items": TOOL},
    "tool_choice": CHOICE,
    "parallel_tool_calls": BOOLEAN,
    "stream": BOOLEAN,
    "top_logprobs": {**INTEGER, "minimum": 0, "maximum": MOST_LOGPROBS},
    "chat_template_kwargs": OBJECT,
    "ignore_eos": BOOLEAN,
}
"""The values of the fields that are taken. How long a prompt may be, and with it max_tokens, depends on the model."""

STREAM_OPTIONS: Schema = {"type": "object", "properties": {"include_usage": BOOLEAN}}

USAGE: Schema = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), INTEGER),
}
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def request_schema(table: dict[str, str | tuple[object, ...]], required: str) -> Schema:
    """Return the schema of a request whose fields are those of *table*; null stands for an absent field."""
    properties: dict[str, Schema] = {}
    for field, served in table.items():
        if field == "stream_options":
            value = STREAM_OPTIONS
        elif served == REFUSED:
            continue
        elif served == ANY:
            value = {}
        elif isinstance(served, tuple):
            value = {"enum": list(served)}
        elif field == "logprobs":  # a switch in Chat Completions, a number in Completions
            value = BOOLEAN if "top_logprobs" in table else TAKEN_FIELDS["top_logprobs"]
        else:
            value = TAKEN_FIELDS[field]
        properties[field] = value if field == required else or_null(value)
    return {"type": "object", "required": [required], "properties": properties, "additionalProperties": NULL}


def answer_schema(kind: str, content: Schema) -> Schema:
    """Return the schema of an answer of this *kind*, whose choices have *content*."""
    choice = {
        "type": "object",
        "required": ["index", "finish_reason", *content],
        "properties": {"index": INTEGER, "finish_reason": {"enum": ["stop", "length", "tool_calls"]}, **content},
    }
    names = {"id": TEXT, "object": {"const": kind}, "created": INTEGER, "model": TEXT, "system_fingerprint": TEXT}
    properties = {**names, "choices": {"type": "array", "items": choice}, "usage": USAGE}
    return {"type": "object", "required": list(properties), "properties": properties}


def operation(request: Schema, answer: Schema) -> dict[str, Any]:
    """Return what FastAPI's decorator takes to describe a POST endpoint."""
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": request}}}},
        "responses": {
            200: {
                "description": "the answer, or with stream=true its chunks",
                "content": {"application/json": {"schema": answer}, "text/event-stream": {"schema": TEXT}},
            },
            **errors(400, 401, 413, 415, 429, 500, 503),
        },
    }


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of the errors with *statuses*."""
    content = {"application/json": {"schema": ERROR}}
    return {status: {"description": MEANINGS[status], "content": content} for status in statuses}


MEANINGS = {
    400: "the request is wrong",
    401: "the key is missing or wrong",
    404: "there is no such thing",
    413: "the body is larger than serve.max_body_bytes",
    415: "the body is not application/json",
    429: "serve.max_waiting requests are unfinished",
    500: "the engine failed",
    503: "the request was lost, or ran out of time",
}

CHAT = operation(
    request_schema(CHAT_FIELDS, "messages"),
    answer_schema("chat.completion", {"message": ANSWER}),
)
COMPLETION = operation(request_schema(COMPLETION_FIELDS, "prompt"), answer_schema("text_completion", {"text": TEXT}))
