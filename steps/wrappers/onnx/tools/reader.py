"""Reads an answer piece by piece: text for the user, and whole calls.

A call is given when its JSON is complete. So what turns out to be none (half a call at max_tokens, JSON that is wrong)
is text, as the model wrote it, in a stream too. Marks and white space around calls are left out.
"""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from .formats import Format

NO_JSON = re.compile(r'[^\s\w{}\[\]",:+.-]')
"""A character that JSON has in strings only."""

AFTER = re.compile(r"[\s;}\]]*")
"""What may follow a call: separators, and brackets that the model closed twice."""


@dataclass(frozen=True)
class Call:
    """A call; `arguments` is a JSON object, as text."""

    name: str
    arguments: str


Parts = list[str | Call]


class CallReader:
    """Splits an answer into text and calls. Both are the same however the answer is cut into pieces."""

    def __init__(self, form: Format, names: Collection[str], *, forced: bool = False, parallel: bool = True) -> None:
        """Read calls in *form*. *names*: the functions that a call without a mark may name.

        *forced*: the answer begins within a call, whose opening the prompt has. Without *parallel*, calls after the
        first are left out.
        """
        self._form, self._names, self._forced, self._parallel = form, names, forced, parallel
        self._rest = ""  # what is not decided yet
        self._given = False  # a call was
        self._state: Callable[[bool], Parts] = self._text
        if forced:
            self._open("", is_marked=True)
        elif form.bare:
            self._state = self._start

    def push(self, text: str) -> Parts:
        """Take the next piece, and return what it decides."""
        self._rest += text
        return self._decide(is_all=False)

    def finish(self) -> Parts:
        """Return what is left when the answer has ended."""
        return self._decide(is_all=True)

    def _decide(self, *, is_all: bool) -> Parts:
        parts: Parts = []
        before = None
        while before != (before := (self._state, len(self._rest))):
            parts += self._state(is_all)
        return [part for part in parts if part]

    # ------------------------------------------------- states: each takes from _rest what can be decided, and goes on

    def _start(self, is_all: bool) -> Parts:
        """At the beginning of an answer that may be a call without a mark."""
        if first := self._rest.lstrip()[:1]:
            self._state = self._text
            if first == "{":
                self._open("", is_marked=False)
        elif is_all:
            self._state = self._text
        return []

    def _text(self, is_all: bool) -> Parts:
        text, begin = self._rest, self._form.begin
        if (at := text.find(begin)) >= 0:
            before, self._rest = text[:at].rstrip(), text[at + len(begin) :]
            self._open(text[len(before) : at] + begin, is_marked=True)
            return [before]
        shown = len(text)
        if not is_all:  # what may be the first of the mark, and the white space before it, waits
            shown -= max((n for n in range(1, len(begin)) if text.endswith(begin[:n])), default=0)
            shown = len(text[:shown].rstrip())
        self._rest = text[shown:]
        return [text[:shown]]

    def _open(self, mark: str, *, is_marked: bool) -> None:
        self._state, self._mark, self._is_marked = self._json, mark, is_marked
        self._at = self._depth = 0  # how much of _rest was looked at, and its open brackets
        self._in_string = self._is_escaped = False

    def _json(self, is_all: bool) -> Parts:
        """Within a call, up to the bracket that closes it."""
        while self._at < len(self._rest):
            char = self._rest[self._at]
            if self._in_string:
                self._in_string = char != '"' or self._is_escaped
                self._is_escaped = char == "\\" and not self._is_escaped
            elif char in "{[":
                self._depth += 1
            elif NO_JSON.match(char) or (not self._depth and not char.isspace()):
                return self._give_up(self._at)
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    return self._close(self._at + 1)
            elif char == '"':
                self._in_string = True
            self._at += 1
        return self._give_up(self._at) if is_all else []

    def _close(self, end: int) -> Parts:
        try:
            calls = self._calls(self._rest[:end])
        except (ValueError, RecursionError):
            return self._give_up(end)
        self._rest, self._state = self._rest[end:], self._after
        if not self._parallel:
            calls = calls[: 0 if self._given else 1]
        self._given = True
        return list(calls)

    def _give_up(self, end: int) -> Parts:
        """Return as text what was no call."""
        text = self._mark + self._rest[:end]
        self._rest, self._state = self._rest[end:], self._text
        return [text]

    def _after(self, is_all: bool) -> Parts:
        """After a call: another one, the mark that ends it, or text."""
        between = AFTER.match(self._rest)
        rest = self._rest = self._rest[between.end() if between else 0 :]
        end = self._form.end
        if end and rest.startswith(end):
            self._rest = rest[len(end) :]
        elif rest.startswith("{"):
            self._open("", is_marked=False)
        elif rest and not end.startswith(rest):
            self._state = self._text
        elif is_all:
            self._rest = ""  # the limit has cut the mark
        return []

    # -------------------------------------------------------------------------------------------------------- JSON

    def _calls(self, text: str) -> list[Call]:
        """Return the calls that *text* says. Raises ValueError if it is something else."""
        said = json.loads(text)
        calls = [self._call(each) for each in (said if isinstance(said, list) else [said])]
        if not calls:
            raise ValueError
        return calls

    def _call(self, said: Any) -> Call:  # noqa: ANN401  # whatever the model wrote
        match said:
            case {"name": str(name), "arguments": arguments} | {"name": str(name), "parameters": arguments}:
                pass
            case {"name": str(name)} if self._is_marked:
                arguments = {}
            case _:
                raise ValueError
        if isinstance(arguments, str):  # JSON within JSON, as OpenAI has it
            arguments = json.loads(arguments)
        if not isinstance(arguments, dict) or not name or not (self._is_marked or name in self._names):
            raise ValueError
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (name + text).encode()  # half a surrogate pair could not be sent
        return Call(name, text)


def read_calls(form: Format, answer: str, names: Collection[str]) -> list[Call]:
    """Return the calls in a whole *answer*; *names*: the functions that it may call."""
    reader = CallReader(form, names)
    return [part for part in reader.push(answer) + reader.finish() if isinstance(part, Call)]
