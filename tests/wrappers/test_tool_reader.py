"""Calls are found in what models write, the text beside them is shown, and nothing is lost."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.wrappers.onnx.tools.formats import FORMATS
from steps.wrappers.onnx.tools.reader import Call, CallReader
from tests.tool_templates import KINDS

FORMS = {form.name: form for form in FORMATS}
NAMES = ["get_weather", "f"]
ANSWERS = [
    pytest.param(kind.form, answer, calls, id=f"{name}-{index}")
    for name, kind in KINDS.items()
    for index, (answer, calls) in enumerate(kind.answers.items())
]
F = '{"name": "f", "arguments": {"a": 1}}'


def read(form: str, pieces: Sequence[str], **options: bool) -> tuple[str, list[Call]]:
    """Return the text and the calls of an answer that comes in *pieces*."""
    reader = CallReader(FORMS[form], NAMES, **options)
    parts = [part for piece in pieces for part in reader.push(piece)] + reader.finish()
    return "".join(each for each in parts if isinstance(each, str)), [each for each in parts if isinstance(each, Call)]


@pytest.mark.parametrize(("form", "answer", "calls"), ANSWERS)
def test_the_calls_of_each_family_are_read_and_no_mark_is_shown(
    form: str, answer: str, calls: list[tuple[str, dict[str, object]]]
) -> None:
    for pieces in ([answer], list(answer)):
        text, found = read(form, pieces)
        assert (text, [(each.name, json.loads(each.arguments)) for each in found]) == ("", calls)


def test_a_call_is_given_when_its_json_is_complete_and_text_before_it_at_once() -> None:
    reader = CallReader(FORMS["hermes"], NAMES)
    assert reader.push("Let me see. <tool") == ["Let me see."]
    assert reader.push('_call>{"name": "f", "arguments": {"a": 1}') == []
    assert reader.push("}") == [Call("f", '{"a": 1}')]
    assert reader.push("</tool_call>") == []


@pytest.mark.parametrize(
    ("form", "answer", "text", "calls"),
    [
        ("hermes", f"I look. \n<tool_call>{F}</tool_call>\nDone.", "I look.Done.", 1),
        ("hermes", f"<tool_call>{F}}}}}</tool_call>", "", 1),  # closed twice
        ("hermes", f"<tool_call>{F}", "", 1),  # ended before its mark
        ("hermes", f"<tool_call>{F}</tool", "", 1),  # cut off within its mark
        ("hermes", f"<tool_call>{F}\n{F}</tool_call>", "", 2),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", 1),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>}\\""}}</tool_call>', "", 1),
        ("granite", '<|tool_call|>[{"name": "f", "arguments": "{\\"a\\": 1}"}]', "", 1),
        ("llama", f"  {F}", "", 1),
    ],
)
def test_what_models_do_besides_is_read_too(form: str, answer: str, text: str, calls: int) -> None:
    found = read(form, list(answer))
    assert (found[0], len(found[1])) == (text, calls)


NO_CALLS = [
    ("hermes", '<tool_call>{"name": "f", "argu'),  # cut off
    ("hermes", "<tool_call>\n<function=f>\n</function>\n</tool_call>"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call> sorry'),
    ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>'),  # Infinity is not JSON
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\ud83d"}}</tool_call>'),  # could not be sent
    ("hermes", "<tool_call>" + "[" * 9999 + "]" * 9999),
    ("hermes", "1 <tool 2 < 3\n\n"),
    ("hermes", "so:\n<tool_call> x"),
    ("mistral", "[TOOL_CALLS] get_weather[ARGS]{}"),
    ("llama", '{"name": "Bob", "parameters": {}}'),  # no tool has this name
    ("llama", '{"answer": 5} is it'),
    ("llama", ' \n {"name": "f"}'),
    ("llama", '<|python_tag|>brave_search.call(query="x")'),
    ("llama", " "),
]


@pytest.mark.parametrize(("form", "answer"), NO_CALLS)
def test_what_is_no_whole_call_is_text_as_the_model_wrote_it(form: str, answer: str) -> None:
    assert read(form, [answer]) == read(form, list(answer)) == (answer, [])


def test_a_call_after_a_wrong_one_is_read() -> None:
    wrong = '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>'
    assert read("hermes", [f"{wrong}<tool_call>{F}</tool_call>"]) == (wrong, [Call("f", '{"a": 1}')])


def test_only_the_first_call_is_given_where_one_is_asked_for() -> None:
    for answer in (f"<tool_call>{F}</tool_call><tool_call>{F}</tool_call>", f"<tool_call>[{F}, {F}]</tool_call>"):
        assert len(read("hermes", [answer])[1]) == 2
        assert read("hermes", [answer], parallel=False) == ("", [Call("f", '{"a": 1}')])


def test_an_answer_that_is_forced_begins_within_a_call() -> None:
    assert read("hermes", list(F), forced=True) == ("", [Call("f", '{"a": 1}')])
    assert read("hermes", [F[:-2]], forced=True) == (F[:-2], [])


SNIPPETS = [
    "",
    " ",
    "\n",
    "a",
    "[",
    "{",
    "}",
    "]",
    ";",
    '"',
    "\\",
    "<",
    "é",
    "{}",
    "[]",
    '{"name":',
    '"f"',
    F,
    f"[{F}]",
]
MARKS = [mark for form in FORMATS for mark in form.marks]


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.booleans(), st.booleans(), st.data())
def test_however_an_answer_is_cut_into_pieces_text_and_calls_are_the_same(
    form: str, forced: bool, parallel: bool, data: st.DataObject
) -> None:
    pieces = data.draw(st.lists(st.sampled_from([*SNIPPETS, *MARKS, *FORMS[form].marks]), max_size=12))
    answer = "".join(pieces)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)), max_size=6)))
    parts = [answer[one:two] for one, two in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    options = {"forced": forced, "parallel": parallel}
    whole = read(form, [answer], **options)
    assert read(form, parts, **options) == read(form, list(answer), **options) == whole
    if not whole[1]:
        assert whole[0] == answer
