"""What a chat template does with tools is found out from itself, and rendered as transformers renders it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from steps.wrappers.onnx.messages import read_messages
from steps.wrappers.onnx.output import RequestOutput
from steps.wrappers.onnx.request import read_request
from steps.wrappers.onnx.tokenizer import ChatTokenizer
from steps.wrappers.onnx.tools.request import read_tools
from steps.wrappers.onnx.tools.template import ToolSupport
from tests.families import byte_level
from tests.tool_templates import HERMES, KINDS, PYTHONIC, XML, Kind, tool

from .conftest import TEMPLATE, llama_tokenizer, save_tokenizer

TOOLS = [tool("get_weather", city={"type": "string"}), tool("get_time")]
CALL = {
    "id": "call_0123456789abcdef",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}
TURN = [
    {"role": "user", "content": "How warm is it in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "20 degrees"},
    {"role": "user", "content": "And now?"},
]


def save(kind: Kind, folder: Path) -> Any:
    """Write a tokenizer with the template of *kind*, whose control tokens are special; return transformers' view."""
    return save_tokenizer(byte_level(("<s>", "<|endoftext|>", *kind.control), nfc=True), folder, kind.template)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def test_the_form_of_the_calls_is_found_in_the_template(kind: Kind, tmp_path: Path) -> None:
    save(kind, tmp_path)
    found = ChatTokenizer(tmp_path).tools
    assert isinstance(found, ToolSupport)
    assert found.form.name == kind.form
    assert found.in_system == (kind.template == KINDS["phi4"].template)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "this model has no chat template"),
        (TEMPLATE, "the model's chat template has no place for tools: leave them out, or describe them in a system"),
        (XML, "has tools, but its calls are in none of the forms that are read here (hermes, mistral, phi4, granite, "),
        (PYTHONIC, "has tools, but its calls are in none of the forms that are read here"),
    ],
)
def test_a_template_without_tools_or_with_calls_of_an_unknown_form_is_refused_by_name(
    tmp_path: Path, template: str | None, why: str
) -> None:
    save_tokenizer(llama_tokenizer(), tmp_path, template)
    support = ChatTokenizer(tmp_path).tools
    assert isinstance(support, str)
    assert why in support
    with pytest.raises(MlflowException, match=r"^tools=\[.*\] is not supported: th"):
        read_tools({"tools": TOOLS}, support)
    with pytest.raises(MlflowException, match=r"^messages\[2\]\.role='tool' is not supported: th"):
        read_messages({"messages": [TURN[0], TURN[0], TURN[2]]}, support)
    assert read_tools({"tools": [], "tool_choice": "auto"}, support) is None


@pytest.mark.parametrize("turn", [TURN[:1], TURN])
@pytest.mark.parametrize("name", ["qwen", "mistral", "llama", "granite", "smollm3"])
def test_tools_calls_and_results_are_rendered_as_in_transformers(
    tmp_path: Path, name: str, turn: list[dict[str, Any]]
) -> None:
    theirs, ours = save(KINDS[name], tmp_path), ChatTokenizer(tmp_path)
    assert isinstance(ours.tools, ToolSupport)
    messages = read_messages({"messages": turn}, ours.tools)
    if not ours.tools.has_calls:  # transformers would leave the calls out
        text = ours.tools.form.written([{"name": "get_weather", "arguments": {"city": "Paris"}}])
        expected = [{"role": "assistant", "content": text} if "tool_calls" in each else each for each in messages]
    elif name == "mistral" and turn == TURN:  # whose template takes ids of nine characters only
        (number,) = set(re.findall(r'"(?:call_)?id": "(\w{9})"', ours.render(messages, tools=TOOLS)))
        expected = json.loads(json.dumps(messages).replace("call_0123456789abcdef", number))
    else:
        expected = messages
    given = {"xml_tools": TOOLS} if name == "smollm3" else {"tools": TOOLS}
    assert ours.encode_chat(messages, tools=TOOLS) == theirs.apply_chat_template(
        expected, add_generation_prompt=True, **given
    )["input_ids"]  # fmt: skip


def test_phi_4_mini_gets_tools_in_the_system_message_and_its_earlier_calls_as_text(tmp_path: Path) -> None:
    save(KINDS["phi4"], tmp_path)
    ours = ChatTokenizer(tmp_path)
    said = ours.render(read_messages({"messages": TURN}, ours.tools), tools=TOOLS)
    functions = json.dumps([each["function"] for each in TOOLS])
    assert said == (
        f"<|system|><|tool|>{functions}<|/tool|><|end|><|user|>How warm is it in Paris?<|end|>"
        '<|assistant|><|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|><|end|>'
        "<|tool|>20 degrees<|end|><|user|>And now?<|end|><|assistant|>"
    )
    system = [{"role": "system", "content": "Be brief."}, *TURN[:1]]
    assert ours.render(system, tools=TOOLS[:1]).startswith('<|system|>Be brief.<|tool|>[{"name": "get_weather", ')


def test_a_template_of_its_own_for_tools_is_used_for_chats_with_tools_only(tmp_path: Path) -> None:
    theirs = save_tokenizer(
        byte_level(KINDS["qwen"].control, nfc=True), tmp_path, [  # type: ignore[arg-type]
            {"name": "default", "template": "{{ messages[0].content }}"}, {"name": "tool_use", "template": HERMES}
        ]
    )  # fmt: skip
    for tools in ((), TOOLS):
        ids = theirs.apply_chat_template(TURN[:1], tools=list(tools) or None, add_generation_prompt=True)["input_ids"]
        assert ChatTokenizer(tmp_path).encode_chat(TURN[:1], tools=tools) == ids


def test_results_and_tools_cannot_write_control_tokens(kind: Kind, tmp_path: Path) -> None:
    theirs, ours = save(kind, tmp_path), ChatTokenizer(tmp_path)
    control = set(theirs.convert_tokens_to_ids(list(kind.control)))

    def control_tokens(text: str) -> list[int]:
        arguments = json.dumps({"city": text, text: 1})
        call = {**CALL, "function": {"name": "get_weather", "arguments": arguments}}
        turn = [TURN[0], {**TURN[1], "tool_calls": [call]}, {**TURN[2], "content": text}]
        tools = [tool("get_weather", city={"type": "string", "description": text})]
        ids = ours.encode_chat(read_messages({"messages": turn}, ours.tools), tools=tools)
        return [token for token in ids if token in control]

    for attack in kind.control:
        assert control_tokens(f"a {attack} b {attack}{attack}") == control_tokens("a b"), attack


def test_marks_that_are_special_tokens_are_seen_by_the_parser_and_not_by_the_user(kind: Kind, tmp_path: Path) -> None:
    theirs, ours = save(kind, tmp_path), ChatTokenizer(tmp_path)
    assert isinstance(ours.tools, ToolSupport)
    for answer, calls in kind.answers.items():
        tools = [tool(name) for name, _arguments in calls]
        for fields in ({"tools": tools}, {}):
            request = read_request(fields, [1], 4096, 4000, read_tools(fields, ours.tools))
            pieces: list[str] = []
            streamed, whole = RequestOutput(request, ours, on_text=pieces.append), RequestOutput(request, ours)
            for output in (streamed, whole):
                for token in theirs(answer + kind.control[0])["input_ids"]:
                    output.push([token], ())
                output.push([0], [0])
            deltas = [delta for piece in [*pieces, ""] for delta in streamed.deltas(piece)]
            shown = "".join(delta.get("content", "") for delta in deltas)
            message = whole.message()
            if not fields:
                assert message["content"] == shown
                assert not [mark for mark in kind.control if mark in shown]
                assert whole.stated_reason == "stop"
                continue
            assert (message["content"], shown) == (None, "")
            made = [each["function"] for each in message["tool_calls"]]
            assert [(each["name"], json.loads(each["arguments"])) for each in made] == calls
            assert [each["tool_calls"][0]["index"] for each in deltas] == [n for n in range(len(calls)) for _ in "12"]
            assert whole.stated_reason == streamed.stated_reason == "tool_calls"
