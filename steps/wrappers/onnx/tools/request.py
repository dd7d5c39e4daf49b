"""Checks the fields tools, tool_choice and parallel_tool_calls, and the calls that earlier messages made."""

import json
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from ..fields import Fields, refuse, require_whole_characters
from ..request import json_schema_text
from .formats import Format, Objects
from .reader import CallReader
from .template import ToolSupport

CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class ToolUse:
    """What a request does with tools: those that the model is told of, and how its calls are read.

    `schema`: that of the calls, if the request forces the model to make one.
    """

    form: Format
    tools: list[Objects]
    parallel: bool
    schema: str | None

    def reader(self) -> CallReader:
        """Return a reader of one answer."""
        names = [tool["function"]["name"] for tool in self.tools]
        return CallReader(self.form, names, forced=self.schema is not None, parallel=self.parallel)


def read_tools(row: Fields, support: ToolSupport | str) -> ToolUse | None:
    """Return what *row* does with tools, None if the model is to be told of none. Raises MlflowException."""
    tools, choice, parallel = (row.get(field) for field in ("tools", "tool_choice", "parallel_tool_calls"))
    if not isinstance(parallel, bool | None):
        refuse(f"parallel_tool_calls={brief(parallel)} is neither true nor false")
    if not isinstance(tools, list | None):
        refuse(f"tools={brief(tools)} is not a list of functions")
    if tools and isinstance(support, str):
        refuse(f"tools={brief(tools)} is not supported: {support}")
    known = [_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools or [])]
    chosen = _read_choice(choice, known)
    if not known or choice == "none" or isinstance(support, str):
        return None
    schema = forced_schema(chosen, support.form, parallel=parallel is not False) if chosen else None
    asked_for = row.get("response_format")
    if asked_for not in (None, {"type": "text"}):
        refuse(f"response_format={brief(asked_for)} is not supported together with tools, unless tool_choice='none'")
    return ToolUse(support.form, known, parallel is not False, schema)


def _read_tool(tool: object, here: str) -> Objects:
    match tool:
        case {"type": "function", "function": dict(function)}:
            pass
        case {"type": kind} if kind != "function":
            refuse(f"{here}.type={brief(kind)} is not supported; function is")
        case _:
            refuse(f"{here}={brief(tool)} is not {{'type': 'function', 'function': {{'name': ...}}}}")
    function = {key: value for key, value in function.items() if value is not None}
    for key, value in function.items():
        kind = {"name": str, "description": str, "parameters": dict, "strict": bool}.get(key)
        if kind is None:
            refuse(f"{here}.function.{key}={brief(value)} is not supported; name, description, parameters, strict are")
        if not isinstance(value, kind):
            article = {str: "a string", dict: "an object", bool: "true or false"}[kind]
            refuse(f"{here}.function.{key}={brief(value)} is not {article}")
    if not function.get("name"):
        refuse(f"{here}.function.name={brief(function.get('name'))} is not a string of at least 1 character")
    function.pop("strict", None)  # no model was taught this word: a forced call keeps to its schema anyway
    require_whole_characters(here, json.dumps(function, ensure_ascii=False))
    return {"type": "function", "function": function}


def _read_choice(choice: object, tools: list[Objects]) -> list[Objects]:
    """Return the tools one of which the model has to call; none if it may choose."""
    if choice in (None, "none", "auto"):
        return []
    if choice == "required":
        if not tools:
            refuse("tool_choice='required' is not possible without tools")
        return tools
    match choice:
        case {"type": "function", "function": {"name": str(name)}}:
            chosen = [tool for tool in tools if tool["function"]["name"] == name]
        case _:
            form = "{'type': 'function', 'function': {'name': ...}}"
            refuse(f"tool_choice={brief(choice)} is none of {', '.join(map(repr, CHOICES))}, {form}")
    if not chosen:
        names = ", ".join(tool["function"]["name"] for tool in tools)
        refuse(f"tool_choice.function.name={brief(name)} is none of the tools: {names or 'there are none'}")
    return chosen[:1]


def forced_schema(tools: list[Objects], form: Format, *, parallel: bool) -> str:
    """Return the JSON schema of a call of one of *tools*, or where *form* has lists, of calls."""
    calls, definitions = [], {}
    for index, tool in enumerate(tools):
        function = tool["function"]
        parameters = function.get("parameters") or {"additionalProperties": False}  # none: it takes no arguments
        definitions[str(index)] = _moved({"type": "object", **parameters}, f"#/$defs/{index}")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, form.arguments: {"$ref": f"#/$defs/{index}"}},
                "required": ["name", form.arguments],
                "additionalProperties": False,
            }
        )
    schema: Objects = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if form.is_list:
        schema = {"type": "array", "items": schema, "minItems": 1, **({} if parallel else {"maxItems": 1})}
    return json_schema_text({**schema, "$defs": definitions})


def _moved(schema: Any, place: str) -> Any:  # noqa: ANN401  # any part of a schema
    """Return *schema* with the references to its own parts right at *place* of a larger one."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:] if key == "$ref" and str(value).startswith("#") else _moved(value, place)
        for key, value in schema.items()
    }


def read_earlier_calls(calls: object, here: str) -> list[Objects]:
    """Return the calls of an assistant's message, with arguments as objects, as templates expect them."""
    if not isinstance(calls, list) or not calls:
        refuse(f"{here}={brief(calls)} is not a list of at least 1 call")
    return [_read_earlier_call(call, f"{here}[{index}]") for index, call in enumerate(calls)]


def _read_earlier_call(call: object, here: str) -> Objects:
    match call:
        case {"id": str(number), "type": "function", "function": {"name": str(name), "arguments": str(text)}} if name:
            require_whole_characters(here, number + name + text)
        case _:
            form = "{'id': '...', 'type': 'function', 'function': {'name': '...', 'arguments': '{...}'}}"
            refuse(f"{here}={brief(call)} is not {form}")
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        refuse(f"{here}.function.arguments={brief(text)} is not a JSON object, as text")
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}
