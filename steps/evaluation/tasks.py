"""Read evaluation tasks: JSON Lines of chat messages, each with a reference and a scorer."""

import json
from dataclasses import dataclass
from pathlib import Path

from steps.evaluation.scoring import check_reference

ROLES = ("system", "user", "assistant")
KEYS = ("id", "messages", "reference", "scorer")


@dataclass(frozen=True)
class Example:
    """One question: the messages a model sees, and the reference its answer is scored against."""

    id: str
    messages: list[dict[str, str]]
    reference: str
    scorer: str = "exact"


def read_task(path: Path) -> list[Example]:
    """Return the examples of the JSON Lines file *path*, in its order; blank lines are skipped.

    A line reads `{"id": "...", "messages": [{"role": "user", "content": "..."}], "reference": "..."}` and may
    name its `scorer`. The reference of `json_schema` may be the schema itself instead of its text.

    Raises ValueError naming file, line, fact and remedy at the first line that is not such an example.
    """
    examples: dict[str, Example] = {}
    lines_of: dict[str, int] = {}
    # As bytes: str.splitlines would also cut at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            example = _example(json.loads(line.decode("utf-8")))
            if example.id in examples:
                msg = f"id {example.id!r} was used in line {lines_of[example.id]}; give every example its own"
                raise ValueError(msg)
        except json.JSONDecodeError as error:
            msg = f"{path}:{number}: not JSON ({error.msg}, column {error.colno}); write one object a line"
            raise ValueError(msg) from error
        except UnicodeDecodeError as error:
            msg = f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
            raise ValueError(msg) from error
        except ValueError as error:
            msg = f"{path}:{number}: {error}"
            raise ValueError(msg) from error
        examples[example.id] = example
        lines_of[example.id] = number
    if not examples:
        msg = f"{path}: holds no examples; write one JSON object a line with {', '.join(KEYS[:3])}"
        raise ValueError(msg)
    return list(examples.values())


def _example(fields: object) -> Example:
    """Return the example that the JSON value *fields* describes, or raise ValueError with fact and remedy."""
    if not isinstance(fields, dict):
        msg = f"holds {_kind(fields)}; write one JSON object with {', '.join(KEYS[:3])}"
        raise ValueError(msg)
    if missing := [key for key in KEYS[:3] if key not in fields]:
        msg = f"{missing[0]!r} is missing; add it"
        raise ValueError(msg)
    if unknown := [key for key in fields if key not in KEYS]:
        msg = f"{unknown[0]!r} is not a field of an example; remove it or use one of {', '.join(KEYS)}"
        raise ValueError(msg)

    scorer = fields.get("scorer", "exact")
    reference = fields["reference"]
    if scorer == "json_schema" and isinstance(reference, dict | bool):
        reference = json.dumps(reference)
    for key, value in (("id", fields["id"]), ("reference", reference), ("scorer", scorer)):
        if not isinstance(value, str) or not value.strip():
            msg = f"{key!r} is {_kind(value)}; write a string that is not empty"
            raise ValueError(msg)
    check_reference(scorer, reference)
    return Example(fields["id"], _messages(fields["messages"]), reference, scorer)


def _messages(value: object) -> list[dict[str, str]]:
    """Return *value* if it is a chat that waits for an answer, or raise ValueError with fact and remedy."""
    if not isinstance(value, list) or not value:
        msg = f"'messages' is {_kind(value)}; write a list of objects with role and content"
        raise ValueError(msg)
    for position, message in enumerate(value):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            msg = f"messages[{position}] is {_kind(message)}; write an object with just role and content"
            raise ValueError(msg)
        # Chat templates drop a role they do not know without a word.
        if message["role"] not in ROLES:
            msg = f"messages[{position}].role is {message['role']!r}; use one of {', '.join(ROLES)}"
            raise ValueError(msg)
        if not isinstance(message["content"], str):
            msg = f"messages[{position}].content is {_kind(message['content'])}; write a string"
            raise ValueError(msg)
    if value[-1]["role"] != "user":
        msg = f"the last message is the {value[-1]['role']}'s; end with the user's, which asks for the answer"
        raise ValueError(msg)
    return value


def _kind(value: object) -> str:
    """Return what *value* is, for an error: its JSON type, with its keys or text where that helps."""
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, value)) or 'no keys'}"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an empty string" if value == "" else json.dumps(value)
