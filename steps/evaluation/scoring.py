"""Decide whether one answer is right; `SCORERS` is the list to extend.

A scorer sees text only. For a scorer in `CHOOSING`, that is the choice which the model found likeliest (see `choices`).
"""

import difflib
import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any

from steps.records.errors import first_line

if TYPE_CHECKING:
    import referencing

THINK, THINK_END = "<think>", "</think>"


def normalise(text: str) -> str:
    """Return *text* in NFKC, casefolded, with single spaces and without punctuation at its end."""
    # Casefolding can undo NFKC, so it is applied again (Unicode, chapter 3.13, definition D146).
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = " ".join(text.split())
    while text and (text[-1].isspace() or unicodedata.category(text[-1]).startswith("P")):
        text = text[:-1]
    return text


def without_reasoning(answer: str) -> str:
    """Return what *answer* says after its reasoning, which ends with `</think>`; nothing if the reasoning has no end.

    Templates of reasoning models may write `<think>` themselves, so that an answer has the end tag only.
    """
    if THINK_END in answer:
        return answer.rpartition(THINK_END)[2].strip()
    return "" if answer.lstrip().startswith(THINK) else answer


def exact(answer: str, reference: str) -> bool:
    """Return whether *answer* equals *reference* after normalising both."""
    return normalise(answer) == normalise(reference)


def contains(answer: str, reference: str) -> bool:
    """Return whether *answer* contains *reference* after normalising both."""
    return normalise(reference) in normalise(answer)


def regex(answer: str, reference: str) -> bool:
    """Return whether the pattern *reference* is found anywhere in *answer*; anchor it with `^` and `$`."""
    return re.search(reference, answer.strip()) is not None


def json_schema(answer: str, reference: str) -> bool:
    """Return whether *answer* is JSON, with nothing around it, and valid against the JSON schema *reference*."""
    try:
        return _validator(reference)(json.loads(answer, parse_constant=_refuse_constant))
    except (ValueError, RecursionError):  # RecursionError: a model that repeats "[" thousands of times
        return False


def choice(answer: str, reference: str) -> bool:
    """Return whether the choice *answer* is exactly *reference*."""
    return answer == reference


SCORERS: dict[str, Callable[[str, str], bool]] = {
    "exact": exact,
    "contains": contains,
    "regex": regex,
    "json_schema": json_schema,
    "choice": choice,
    "choice_norm": choice,
}

CHOOSING = ("choice", "choice_norm")
"""Scorers of multiple choice: likeliest by the sum of log-probabilities, or by that sum over the choice's bytes."""


def check_reference(scorer: str, reference: str, choices: Sequence[str] = ()) -> None:
    """Raise ValueError with fact and remedy unless *scorer* exists and can use *reference* and *choices*."""
    if scorer not in SCORERS:
        msg = f"scorer is {scorer!r}; {one_of(scorer, SCORERS)}"
        raise ValueError(msg)
    if scorer in CHOOSING and not choices:
        msg = f"scorer {scorer!r} needs 'choices'; add a list of texts, one of them the reference"
        raise ValueError(msg)
    if scorer in CHOOSING and reference not in choices:
        msg = f"reference {brief(reference)} is not one of the {len(choices)} choices; write it as it stands there"
        raise ValueError(msg)
    if scorer in ("exact", "contains") and not normalise(reference):
        msg = f"reference {brief(reference)} is empty after normalising, so nothing can be compared; write a word"
        raise ValueError(msg)
    if scorer == "regex":
        try:
            re.compile(reference)
        except re.error as error:
            msg = f"reference {brief(reference)} is not a regular expression ({error}); correct it"
            raise ValueError(msg) from error
    if scorer == "json_schema":
        _validator(reference)


def one_of(name: str, known: Iterable[str]) -> str:
    """Return the remedy for the unknown *name*: the *known* one that is nearest, if one is near, and all of them."""
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"{f'did you mean {nearest[0]!r}? ' if nearest else ''}use one of {', '.join(names)}"


@functools.lru_cache(maxsize=1024)
def _validator(schema_text: str) -> Callable[[Any], bool]:
    """Return the test of a value against the JSON schema *schema_text*, or raise ValueError with fact and remedy."""
    # Only this scorer needs the package.
    import jsonschema
    import referencing
    import referencing.exceptions
    import referencing.jsonschema

    try:
        schema = json.loads(schema_text)
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (ValueError, jsonschema.SchemaError) as error:
        msg = f"reference is not a JSON schema ({first_line(error)}); correct it"
        raise ValueError(msg) from error
    # Nothing but the schema itself: a `$ref` to another site is an error instead of a download.
    resource = referencing.Resource.from_contents(schema, default_specification=referencing.jsonschema.DRAFT202012)
    registry = referencing.Registry().with_resource("", resource)
    for reference in _references(resource):
        try:
            registry.resolver_with_root(resource).lookup(reference)
        except (referencing.exceptions.Unresolvable, ValueError) as error:
            msg = f"reference is a JSON schema whose $ref {brief(reference)} leads nowhere; define it under $defs"
            raise ValueError(msg) from error
    return kind(schema, registry=registry).is_valid


def _references(schema: "referencing.Resource[Any]") -> Iterator[str]:
    """Yield every `$ref` in *schema* that is read from its root; not those below an `$id` of their own."""
    if isinstance(schema.contents, dict) and isinstance(schema.contents.get("$ref"), str):
        yield schema.contents["$ref"]
    for each in schema.subresources():
        if each.id() is None:
            yield from _references(each)


def _refuse_constant(name: str) -> None:
    """Raise ValueError: Python reads NaN and Infinity, JSON does not know them."""
    msg = f"{name} is not JSON"
    raise ValueError(msg)
