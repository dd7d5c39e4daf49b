"""What a chat template does with tools: found out once, by rendering a tool and a call of our own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from typing import Any

from jinja2 import Template

from .formats import FORMATS, Format, Objects
from .reader import Call, read_calls

ASKED = [{"role": "user", "content": "x"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "probe_name",
        "description": "x",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string", "description": "x"}}},
    },
}
CALL = {
    "id": "probe0000",  # Mistral's templates insist on nine letters or digits
    "type": "function",
    "function": {"name": "probe_name", "arguments": {"probe_key": "probe_value"}},
}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}

NO_TEMPLATE = "this model has no chat template"
NO_TOOLS = "the model's chat template has no place for tools: leave them out, or describe them in a system message"
UNKNOWN = (
    f"the model's chat template has tools, but its calls are in none of the forms that are read here "
    f"({', '.join(form.name for form in FORMATS)}): leave tools out, or describe them in a system message"
)


@dataclass(frozen=True)
class ToolSupport:
    """What a template does with tools; `form`: how its model writes calls.

    `in_system`: it takes tools from the system message, as JSON (Phi-4-mini), not from a variable. `has_calls`: it
    writes the calls of earlier messages; otherwise they become part of their text.
    """

    form: Format
    in_system: bool
    has_calls: bool

    def prepared(self, messages: Sequence[Objects], tools: Sequence[Objects]) -> tuple[list[Objects], Objects]:
        """Return *messages* as the template expects them, and the variables by which it gets *tools*."""
        rendered = [self._prepared(message) for message in messages]
        if not tools or not self.in_system:
            return rendered, variables_of(tools)
        if rendered[0]["role"] != "system":
            rendered.insert(0, {"role": "system", "content": ""})
        rendered[0]["tools"] = in_system(tools)
        return rendered, variables_of(())

    def _prepared(self, message: Objects) -> Objects:
        message = dict(message)
        if "tool_call_id" in message:
            message["tool_call_id"] = self._id(message["tool_call_id"])
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{**call, "id": self._id(call["id"])} for call in calls]
            if not self.has_calls:
                del message["tool_calls"]
                text = self.form.written([call["function"] for call in calls])
                message["content"] = "\n".join(filter(None, (message["content"], text)))
        return message

    def _id(self, number: str) -> str:
        return sha256(number.encode()).hexdigest()[:9] if self.form.name == "mistral" else number


def variables_of(tools: Sequence[Objects]) -> Objects:
    """Return the variables by which templates get *tools*: the usual one, and SmolLM3's."""
    return {"tools": list(tools), "xml_tools": list(tools)} if tools else {"tools": None}


def in_system(tools: Sequence[Objects]) -> str:
    """Return *tools* as Phi-4-mini's system message has them."""
    return json.dumps([tool["function"] for tool in tools], ensure_ascii=False)


def tool_support(source: str, template: Template, named: Mapping[str, Any]) -> ToolSupport | str:
    """Return what the chat template *source* does with tools, or why they cannot be served; *named*: its variables."""

    def rendered(messages: list[Any], **variables: Any) -> str:  # noqa: ANN401
        given = {"tools": None, "documents": None, "add_generation_prompt": True, **named, **variables}
        try:
            return template.render(messages=messages, **given)
        except Exception:  # noqa: BLE001  # whatever it is, such as a role that it does not know: it has no place for this
            return ""

    variables = variables_of([TOOL])
    alone = rendered(ASKED, **variables)
    asked: list[Any] = ASKED
    is_in_system = "probe_name" not in alone
    if is_in_system:
        asked = [{"role": "system", "content": "", "tools": in_system([TOOL])}, *ASKED]
        alone, variables = rendered(asked), {}
        if "probe_name" not in alone:
            return NO_TOOLS
    after = rendered([*asked, CALLED], **variables)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(alone, after, strict=False)))
    for form in FORMATS:
        if form.evidence in source:
            if "probe_value" not in after:
                return ToolSupport(form, is_in_system, has_calls=False)
            if read_calls(form, after[same:], ["probe_name"]) == [Call("probe_name", '{"probe_key": "probe_value"}')]:
                return ToolSupport(form, is_in_system, has_calls=True)
    return UNKNOWN
