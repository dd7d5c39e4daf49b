"""Read evaluation tasks: JSON Lines of chat messages, each with a reference and a scorer."""

import json
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from steps.evaluation.scoring import CHOOSING, check_reference, normalise, one_of, without_reasoning

ROLES = ("system", "user", "assistant")
NEEDED = ("id", "messages", "reference")
KEYS = (*NEEDED, "scorer", "choices")


@dataclass(frozen=True)
class Example:
    """One question: the messages a model sees, and the reference its answer is scored against.

    If the scorer is in `CHOOSING`, the answer is one of the *choices*, which are empty otherwise.
    """

    id: str
    messages: list[dict[str, str]]
    reference: str
    scorer: str = "exact"
    choices: tuple[str, ...] = ()

    def same(self, one: str, other: str) -> bool:
        """Return whether two answers say the same: choices exactly, other texts after normalising."""
        return one == other if self.scorer in CHOOSING else normalise(one) == normalise(other)

    def scored(self, answer: str) -> str:
        """Return the part of *answer* that counts: a choice as it is, other texts without the model's reasoning."""
        return answer if self.scorer in CHOOSING else without_reasoning(answer)


def read_task(path: Path, scorer: str | None = None) -> list[Example]:
    """Return the examples of the JSON Lines file *path*, in its order; blank lines are skipped.

    A line reads `{"id": "...", "messages": [{"role": "user", "content": "..."}], "reference": "..."}` and may name its
    `scorer`; otherwise it is *scorer*, or "exact". The reference of `json_schema` may be the schema itself instead of
    its text. With `choices`, a list of texts that includes the reference, the scorer is "choice" or "choice_norm".

    Raises ValueError naming file, line, fact and remedy at the first line that is not such an example, and OSError.
    """
    examples: dict[str, Example] = {}
    lines_of: dict[str, int] = {}
    # As bytes: str.splitlines would also cut at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            example = _example(_parse(line), scorer)
            if example.id in examples:
                msg = f"id {brief(example.id)} was used in line {lines_of[example.id]}; give every example its own"
                raise ValueError(msg)
        except ValueError as error:
            msg = f"{path}:{number}: {error}"
            raise ValueError(msg) from error
        examples[example.id] = example
        lines_of[example.id] = number
    if not examples:
        msg = f"{path}: holds no examples; write one JSON object a line with {', '.join(NEEDED)}"
        raise ValueError(msg)
    return list(examples.values())


def _parse(line: bytes) -> object:
    """Return the JSON value of *line*, or raise ValueError with fact and remedy."""
    try:
        text = line.decode("utf-8")
        value: object = json.loads(text, object_pairs_hook=_unique)
        # "\ud83d" alone is valid JSON, but half a character: neither a tokenizer nor a file takes it.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        msg = f"not JSON ({error.msg}, column {error.colno}); write one object a line"
        raise ValueError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
        raise ValueError(msg) from error
    except UnicodeEncodeError as error:
        msg = f"holds half a character, {error.object[error.start]!r}; write the whole one"
        raise ValueError(msg) from error
    except RecursionError as error:
        msg = "JSON nested too deeply to be read; write one object with " + ", ".join(NEEDED)
        raise ValueError(msg) from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return *pairs* as a dict; json.loads would keep the last of two equal keys without a word."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"{brief(twice)} stands twice in one object; remove one"
        raise ValueError(msg)
    return fields


def _example(fields: object, default: str | None) -> Example:
    """Return the example that the JSON value *fields* describes, or raise ValueError with fact and remedy.

    If it names no scorer it has *default*, provided that this can score such an example.
    """
    if not isinstance(fields, dict):
        msg = f"holds {_kind(fields)}; write one JSON object with {', '.join(NEEDED)}"
        raise ValueError(msg)
    # Unknown keys first: a misspelt key is also a missing one, and the misspelling explains it.
    if unknown := [key for key in fields if key not in KEYS]:
        msg = f"{brief(unknown[0])} is not a field of an example; {one_of(unknown[0], KEYS)}, or remove it"
        raise ValueError(msg)
    if missing := [key for key in NEEDED if key not in fields]:
        msg = f"{missing[0]!r} is missing; add it"
        raise ValueError(msg)

    choices = _choices(fields["choices"]) if "choices" in fields else ()
    if default is None or (default in CHOOSING) != bool(choices):
        default = CHOOSING[0] if choices else "exact"
    scorer = fields.get("scorer", default)
    reference = fields["reference"]
    if scorer == "json_schema" and isinstance(reference, dict | bool):
        reference = json.dumps(reference)
    for key, value in (("id", fields["id"]), ("reference", reference), ("scorer", scorer)):
        if not isinstance(value, str) or not value.strip():
            msg = f"{key!r} is {_kind(value)}; write a string that is not empty"
            raise ValueError(msg)
    check_reference(scorer, reference, choices)
    if choices and scorer not in CHOOSING:
        msg = f"'choices' are for {' and '.join(CHOOSING)}, and the scorer is {scorer!r}; remove one of them"
        raise ValueError(msg)
    return Example(fields["id"], _messages(fields["messages"]), reference, scorer, choices)


def _choices(value: object) -> tuple[str, ...]:
    """Return *value* if it is a list of different texts to choose from, or raise ValueError with fact and remedy."""
    if not isinstance(value, list) or len(value) < 2:
        msg = f"'choices' is {_kind(value)}; write a list of at least two texts"
        raise ValueError(msg)
    for position, text in enumerate(value):
        if not isinstance(text, str) or not text.strip():
            msg = f"choices[{position}] is {_kind(text)}; write a string that is not empty"
            raise ValueError(msg)
        if text in value[:position]:
            msg = f"choices[{position}] is {brief(text)}, as choices[{value.index(text)}] is; remove one"
            raise ValueError(msg)
    return tuple(value)


def _messages(value: object) -> list[dict[str, str]]:
    """Return *value* if it is a chat that waits for an answer, or raise ValueError with fact and remedy."""
    if not isinstance(value, list) or not value:
        msg = f"'messages' is {_kind(value)}; write a list of objects with role and content"
        raise ValueError(msg)
    for position, message in enumerate(value):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            msg = f"messages[{position}] is {_kind(message)}; write an object with just role and content"
            raise ValueError(msg)
        # Chat templates silently drop a role that they do not know.
        if message["role"] not in ROLES:
            msg = f"messages[{position}].role is {_kind(message['role'])}; use one of {', '.join(ROLES)}"
            raise ValueError(msg)
        if not isinstance(message["content"], str) or not message["content"]:
            msg = f"messages[{position}].content is {_kind(message['content'])}; write a string that is not empty"
            raise ValueError(msg)
    if value[-1]["role"] != "user":
        msg = f"the last message is the {value[-1]['role']}'s; end with the user's, which asks for the answer"
        raise ValueError(msg)
    return value


def _kind(value: object) -> str:
    """Return what *value* is, for an error: its JSON type, with its keys or text where that helps, in a few words."""
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, list(value)[:6])) or 'no keys'}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "an empty string" if value == "" else brief(value)
