"""Decide whether one answer is right; `SCORERS` is the list to extend.

A scorer sees text only. Multiple choice by likelihood needs the model's logits and belongs beside fidelity.
"""

import functools
import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any


def normalise(text: str) -> str:
    """Return *text* in NFKC, casefolded, with single spaces and without punctuation at its end."""
    # Casefolding can undo NFKC, so it is applied again (Unicode, chapter 3.13, definition D146).
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = " ".join(text.split())
    while text and (text[-1].isspace() or unicodedata.category(text[-1]).startswith("P")):
        text = text[:-1]
    return text


def exact(answer: str, reference: str) -> bool:
    """Return whether *answer* equals *reference* after normalising both."""
    return normalise(answer) == normalise(reference)


def contains(answer: str, reference: str) -> bool:
    """Return whether *reference* stands in *answer* after normalising both."""
    return normalise(reference) in normalise(answer)


def regex(answer: str, reference: str) -> bool:
    """Return whether the pattern *reference* is found anywhere in *answer*; anchor it with `^` and `$`."""
    return re.search(reference, answer.strip()) is not None


def json_schema(answer: str, reference: str) -> bool:
    """Return whether *answer* is JSON, nothing else around it, that the JSON schema *reference* accepts."""
    try:
        value = json.loads(answer, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # RecursionError: a model that repeats "[" thousands of times
        return False
    return _validator(reference)(value)


SCORERS: dict[str, Callable[[str, str], bool]] = {
    "exact": exact,
    "contains": contains,
    "regex": regex,
    "json_schema": json_schema,
}


def check_reference(scorer: str, reference: str) -> None:
    """Raise ValueError with fact and remedy unless *scorer* exists and can use *reference*."""
    if scorer not in SCORERS:
        msg = f"scorer is {scorer!r}; use one of {', '.join(SCORERS)}"
        raise ValueError(msg)
    if scorer in ("exact", "contains") and not normalise(reference):
        msg = f"reference {reference!r} is empty after normalising, so nothing can be compared; write a word"
        raise ValueError(msg)
    if scorer == "regex":
        try:
            re.compile(reference)
        except re.error as error:
            msg = f"reference {reference!r} is not a regular expression ({error}); correct it"
            raise ValueError(msg) from error
    if scorer == "json_schema":
        _validator(reference)


@functools.lru_cache(maxsize=1024)
def _validator(schema_text: str) -> Callable[[Any], bool]:
    """Return the test of a value against the JSON schema *schema_text*, or raise ValueError with fact and remedy."""
    # Only this scorer needs the package.
    import jsonschema
    import referencing

    try:
        schema = json.loads(schema_text)
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (ValueError, jsonschema.SchemaError) as error:
        fact = str(error).splitlines()[0]
        msg = f"reference is not a JSON schema ({fact}); correct it"
        raise ValueError(msg) from error
    # An empty registry: a `$ref` to another site is an error instead of a download.
    return kind(schema, registry=referencing.Registry()).is_valid


def _refuse_constant(name: str) -> None:
    """Raise ValueError: Python reads NaN and Infinity, JSON does not know them."""
    msg = f"{name} is not JSON"
    raise ValueError(msg)
