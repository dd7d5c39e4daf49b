"""What of tools, tool_choice and calls in messages is taken, and what a mistake is answered."""

import json
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from steps.wrappers.onnx.messages import read_messages
from steps.wrappers.onnx.tools.formats import FORMATS
from steps.wrappers.onnx.tools.request import ToolUse, read_tools
from steps.wrappers.onnx.tools.template import ToolSupport
from tests.tool_templates import tool

HERMES, MISTRAL, *_, LLAMA = (ToolSupport(form, in_system=False, has_calls=True) for form in FORMATS)
F, G = tool("f", a={"type": "string"}), tool("g")
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
QUESTION = {"role": "user", "content": "x"}


def used(row: dict[str, Any], support: ToolSupport = HERMES) -> ToolUse:
    found = read_tools(row, support)
    assert found
    return found


def function(**changes: object) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **changes}}]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tools": {}}, r"^tools={} is not a list of functions$"),
        ({"tools": ["f"]}, r"^tools\[0\]='f' is not {'type': 'function', 'function': {'name': \.\.\.}}$"),
        ({"tools": [F, {"type": "custom"}]}, r"^tools\[1\]\.type='custom' is not supported; function is$"),
        ({"tools": [{"type": "function", "function": {}}]}, r"^tools\[0\]\.function\.name=None is not a string of at"),
        (function(name=5), r"^tools\[0\]\.function\.name=5 is not a string$"),
        (function(parameters=[]), r"^tools\[0\]\.function\.parameters=\[\] is not an object$"),
        (function(strict="yes"), r"^tools\[0\]\.function\.strict='yes' is not true or false$"),
        (function(returns={}), r"^tools\[0\]\.function\.returns={} is not supported; name, description, parameters, "),
        (function(description="\ud83d"), r"^tools\[0\] has half a surrogate pair"),
        ({"tools": [F], "tool_choice": "any"}, r"^tool_choice='any' is none of 'none', 'auto', 'required', {'type': "),
        (
            {"tools": [F], "tool_choice": {"type": "allowed_tools"}},
            r"^tool_choice={'type': 'allowed_tools'} is none of",
        ),
        (
            {"tools": [F, G], "tool_choice": {"type": "function", "function": {"name": "h"}}},
            r"^tool_choice\.function\.name='h' is none of the tools: f, g$",
        ),
        ({"tool_choice": "required"}, r"^tool_choice='required' is not possible without tools$"),
        ({"tools": [F], "parallel_tool_calls": "no"}, r"^parallel_tool_calls='no' is neither true nor false$"),
        (
            {"tools": [F], "response_format": {"type": "json_object"}},
            r"^response_format={'type': 'json_object'} is not supported together with tools, unless tool_choice='no",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(row: dict[str, Any], message: str) -> None:
    with pytest.raises(MlflowException, match=message):
        read_tools(row, HERMES)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "tool", "content": "x"}, r"tool_call_id=None is not the id of a call$"),
        ({"role": "tool", "tool_call_id": "1"}, r"content=None is not a string"),
        ({"role": "user", "content": "x", "tool_call_id": "1"}, r"tool_call_id='1' is not supported"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, r"tool_calls=\[.*\] is not supported"),
        ({"role": "assistant", "tool_calls": "f"}, r"tool_calls='f' is not a list of at least 1 call$"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": 1}]}, r"tool_calls\[0\]={.*} is not {'id': '\.\.\.', '"),
        ({"role": "assistant", "content": None, "tool_calls": []}, r"content=None is not a string of at least 1"),
        *(
            (
                {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": arguments}}]},
                r"tool_calls\[0\]\.function\.arguments='.*' is not a JSON object, as text$",
            )
            for arguments in ("{", "[1]", "[" * 5000)
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_a_message_names_it(message: dict[str, Any], why: str) -> None:
    with pytest.raises(MlflowException, match=rf"^messages\[1\]\.{why}"):
        read_messages({"messages": [QUESTION, message]}, HERMES)


def test_arguments_of_earlier_calls_become_objects_and_content_may_be_missing() -> None:
    calls = [{**CALL, "function": {"name": "f", "arguments": text}} for text in ('{"a": "é"}', "")]
    turn = [QUESTION, {"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": "", "tool_call_id": "1"}]
    _asked, called, answered = read_messages({"messages": turn}, HERMES)
    assert called["content"] == answered["content"] == ""
    assert [each["function"]["arguments"] for each in called["tool_calls"]] == [{"a": "é"}, {}]


def test_an_answer_of_this_server_may_be_sent_back_also_an_empty_one() -> None:
    answer = {"role": "assistant", "content": "", "refusal": None, "annotations": []}
    assert read_messages({"messages": [QUESTION, answer]}, HERMES)[1] == {"role": "assistant", "content": ""}
    for role, annotations in (("user", []), ("assistant", [{"type": "url_citation"}])):
        with pytest.raises(MlflowException, match=r"^messages\[0\]\.annotations=\[.*\] is not supported"):
            read_messages({"messages": [{"role": role, "content": "x", "annotations": annotations}]}, HERMES)


def test_the_template_gets_tools_as_they_are_without_strict_and_nulls() -> None:
    assert used({"tools": [F]}).tools == [F]
    assert used(function(strict=True, description=None)).tools == function()["tools"]


@pytest.mark.parametrize("row", [{}, {"tools": []}, {"tools": [F], "tool_choice": "none"}, {"tool_choice": "auto"}])
def test_where_the_model_is_told_of_no_tools_nothing_is_read(row: dict[str, Any]) -> None:
    assert read_tools(row, HERMES) is None


def test_only_a_forced_call_has_a_schema() -> None:
    assert used({"tools": [F]}).schema is None
    named = {"type": "function", "function": {"name": "g"}}
    schema = json.loads(used({"tools": [F, G], "tool_choice": named}).schema or "")
    assert schema["properties"]["name"] == {"const": "g"}
    assert len(json.loads(used({"tools": [F, G], "tool_choice": "required"}).schema or "")["anyOf"]) == 2


def test_the_schema_has_the_form_of_the_family() -> None:
    row = {"tools": [F], "tool_choice": "required"}
    assert "arguments" in json.loads(used(row).schema or "")["properties"]
    assert "parameters" in json.loads(used(row, LLAMA).schema or "")["properties"]
    many, one = (json.loads(used({**row, "parallel_tool_calls": each}, MISTRAL).schema or "") for each in (None, False))
    assert (many["type"], many["minItems"], "maxItems" in many, one["maxItems"]) == ("array", 1, False, 1)


def test_references_within_parameters_are_moved_along_with_them() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "top": {"$ref": "#"}, "$ref": {}}}
    first = {"name": "f", "parameters": {"$ref": "#/$defs/Node", "$defs": {"Node": node}}}
    row = {"tools": [{"type": "function", "function": each} for each in (first, {"name": "g"})]}
    definitions = json.loads(used({**row, "tool_choice": "required"}).schema or "")["$defs"]
    assert definitions["0"]["$ref"] == "#/$defs/0/$defs/Node"
    moved = definitions["0"]["$defs"]["Node"]["properties"]
    assert moved == {"next": {"$ref": "#/$defs/0/$defs/Node"}, "top": {"$ref": "#/$defs/0"}, "$ref": {}}
    assert definitions["1"] == {"type": "object", "additionalProperties": False}, "a function without arguments"
