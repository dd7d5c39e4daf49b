import json
from pathlib import Path
from typing import Any

import pytest

from steps.evaluation.tasks import Example, read_task

SPAIN = {
    "id": "spain",
    "messages": [{"role": "user", "content": "What is the capital of Spain?"}],
    "reference": "The capital of Spain is Madrid.",
}

LOST = {"properties": {"capital": {"$ref": "#/$defs/city"}}, "$defs": {"town": {"type": "string"}}}
"""A JSON schema whose `$ref` leads nowhere."""

CHOICE = {**SPAIN, "reference": "Madrid", "choices": ["Madrid", "Lisbon"]}


def task(folder: Path, *lines: Any) -> Path:
    """Write *lines* to a task file: objects as JSON, strings as they are."""
    path = folder / "task.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_a_task_is_read_in_its_order_and_scored_exactly_unless_it_says_otherwise(tmp_path: Path) -> None:
    path = task(tmp_path, SPAIN, "", {**SPAIN, "id": "spain-2", "scorer": "contains", "reference": "Madrid"})

    first, second = read_task(path)

    assert first == Example("spain", SPAIN["messages"], "The capital of Spain is Madrid.", "exact")  # type: ignore[arg-type]
    assert (second.id, second.scorer) == ("spain-2", "contains")


def test_the_scorer_of_the_configuration_is_for_the_questions_that_name_none_and_that_it_can_score(
    tmp_path: Path,
) -> None:
    named = {**SPAIN, "id": "named", "scorer": "exact"}
    path = task(tmp_path, SPAIN, named, {**CHOICE, "id": "choice"})

    assert [example.scorer for example in read_task(path, "contains")] == ["contains", "exact", "choice"]
    assert [example.scorer for example in read_task(path, "choice_norm")] == ["exact", "exact", "choice_norm"]


def test_the_embedded_task_is_readable_and_large_enough_for_its_gates() -> None:
    examples = read_task(Path(__file__).parents[2] / "data" / "capitals.jsonl")

    assert len(examples) >= 195


def test_the_examples_of_the_documentation_are_examples(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "guides" / "evaluation.md").read_text(encoding="utf-8")
    lines = text.partition("```json\n")[2].partition("```")[0].splitlines()

    assert [example.scorer for example in read_task(task(tmp_path, *lines))] == ["contains", "choice"]


def test_a_line_separator_inside_a_text_does_not_cut_the_line(tmp_path: Path) -> None:
    question = {"role": "user", "content": "Capital\u2028of Spain?"}

    (example,) = read_task(task(tmp_path, {**SPAIN, "messages": [question]}))

    assert example.messages == [question]


def test_a_json_schema_may_be_written_as_an_object(tmp_path: Path) -> None:
    (example,) = read_task(task(tmp_path, {**SPAIN, "scorer": "json_schema", "reference": {"type": "object"}}))

    assert json.loads(example.reference) == {"type": "object"}


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("{", "not JSON"),
        ("[1]", "holds a list"),
        ({key: SPAIN[key] for key in ("id", "messages")}, "'reference' is missing"),
        ({**SPAIN, "scorrer": "exact"}, "'scorrer' is not a field"),
        ({**SPAIN, "id": 7}, "'id' is 7"),
        ({**SPAIN, "reference": " "}, "'reference' is"),
        ({**SPAIN, "scorer": "bleu"}, "scorer is 'bleu'; use one of exact, contains, regex, json_schema"),
        ({**SPAIN, "scorer": "contains", "reference": "?!"}, "empty after normalising"),
        ({**SPAIN, "scorer": "regex", "reference": "(Madrid"}, "not a regular expression"),
        ({**SPAIN, "scorer": "json_schema", "reference": {"type": "city"}}, "not a JSON schema"),
        ({**SPAIN, "scorer": "json_schema", "reference": LOST}, "whose $ref '#/$defs/city' leads nowhere; define it"),
        ({**SPAIN, "messages": []}, "'messages' is an empty list"),
        ({**SPAIN, "messages": [{"role": "user"}]}, "messages[0] is an object with role"),
        ({**SPAIN, "messages": [{"role": "tool", "content": "x"}]}, "messages[0].role is 'tool'"),
        ({**SPAIN, "messages": [{"role": "user", "content": None}]}, "messages[0].content is null"),
        (
            {**SPAIN, "messages": [{"role": "assistant", "content": "x"}]},
            "the last message is the assistant's",
        ),
        (SPAIN, "id 'spain' was used in line 1"),
        ({**SPAIN, "refrence": "Madrid"}, "'refrence' is not a field of an example; did you mean 'reference'?"),
        ({**SPAIN, "scorer": "Exact"}, "scorer is 'Exact'; did you mean 'exact'?"),
        ({**SPAIN, "messages": [{"role": "user", "content": ""}]}, "messages[0].content is an empty string"),
        ('{"id": "a", "id": "b"}', "'id' stands twice in one object"),
        ('{"id": "\\ud83d"}', "half a character, '\\ud83d'"),
        ("[" * 100_000, "nested too deeply"),
        ({**SPAIN, "scorer": "choice"}, "scorer 'choice' needs 'choices'"),
        ({**CHOICE, "scorer": "exact"}, "'choices' are for choice and choice_norm, and the scorer is 'exact'"),
        ({**CHOICE, "reference": "madrid"}, "reference 'madrid' is not one of the 2 choices"),
        ({**CHOICE, "choices": ["Madrid"]}, "'choices' is a list of 1; write a list of at least two"),
        ({**CHOICE, "choices": "Madrid"}, "'choices' is 'Madrid'; write a list"),
        ({**CHOICE, "choices": ["Madrid", 7]}, "choices[1] is 7"),
        ({**CHOICE, "choices": ["Madrid", "Lisbon", "Madrid"]}, "choices[2] is 'Madrid', as choices[0] is"),
    ],
)
def test_a_bad_line_is_refused_with_its_file_line_and_fact(tmp_path: Path, line: Any, fact: str) -> None:
    path = task(tmp_path, SPAIN, line)

    with pytest.raises(ValueError) as error:
        read_task(path)

    assert str(error.value).startswith(f"{path}:2: ")
    assert fact in str(error.value)


def test_a_line_that_is_not_utf8_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(json.dumps(SPAIN).encode() + b'\n{"id": "\xff"}\n')

    with pytest.raises(ValueError, match=r"task\.jsonl:2: not UTF-8"):
        read_task(path)


def test_a_task_with_choices_is_multiple_choice(tmp_path: Path) -> None:
    path = task(tmp_path, CHOICE, {**CHOICE, "id": "spain-2", "scorer": "choice_norm"})

    first, second = read_task(path)

    assert (first.scorer, first.choices) == ("choice", ("Madrid", "Lisbon"))
    assert second.scorer == "choice_norm"


def test_a_file_of_another_system_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    lines = [json.dumps(SPAIN), "", json.dumps({**SPAIN, "id": "spain-2"})]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # a byte order mark, CRLF, no end of the last line

    assert [example.id for example in read_task(path)] == ["spain", "spain-2"]


def test_a_line_of_a_megabyte_is_an_example_like_any_other_and_its_error_is_short(tmp_path: Path) -> None:
    long = {"role": "user", "content": "a" * 1_000_000}

    (example,) = read_task(task(tmp_path, {**SPAIN, "messages": [long]}))
    with pytest.raises(ValueError) as error:
        read_task(task(tmp_path, {**SPAIN, "messages": [{**long, "role": "b" * 1_000_000}]}))

    assert example.messages == [long]
    assert len(str(error.value)) < 300


def test_a_task_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no examples"):
        read_task(task(tmp_path, "", "  "))
