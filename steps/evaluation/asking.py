"""Ask one candidate the examples of a task: one at a time, each answer timed, or several together."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from steps.evaluation.choices import likeliest
from steps.evaluation.scoring import CHOOSING
from steps.evaluation.tasks import Example
from steps.records.errors import in_one_line

Predict = Callable[[dict[str, Any]], Mapping[str, Any]]
"""A candidate: from a Chat Completions request to its response."""

PredictTogether = Callable[[Sequence[list[dict[str, str]]], Mapping[str, Any]], Sequence[Mapping[str, Any]]]
"""A candidate that computes several chats as one batch: from the chats, and the options of all, to their responses."""

Likelihoods = Callable[[Example], dict[str, float]]
"""A candidate that answers multiple choice: from an example to the log-probability of each of its choices."""

OnAnswer = Callable[[int, int], None]
"""Called after every answer with how many are done and how many there are."""

MOST_TOGETHER, TOGETHER_TOKENS = 32, 4_096
"""The most examples in a batch, and the most tokens of a batch, padding and answers included: bounds its memory."""


@dataclass(frozen=True)
class Answer:
    """A candidate's answer to one example; no text when *error* is set.

    *seconds* is wall time, or None if the answer was computed in a batch. The numbers of tokens are those that the
    candidate reported, or None. For a multiple choice, *text* is the choice taken and *likelihoods* has the
    log-probability of each, in nats.
    """

    example_id: str
    text: str
    completion_tokens: int | None
    seconds: float | None
    error: str | None = None
    likelihoods: dict[str, float] | None = None
    prompt_tokens: int | None = None

    @property
    def answered(self) -> bool:
        """Whether there is a text to score."""
        return self.error is None and bool(self.text.strip())


def ask_one(
    predict: Predict, example: Example, options: Mapping[str, Any], likelihoods: Likelihoods | None = None
) -> Answer:
    """Return the answer of *predict* to *example*, timed; *likelihoods* answers a multiple choice.

    *options* join the request (`max_tokens`, `temperature`). A crash or a malformed response is the answer's error.
    """
    started = time.perf_counter()
    try:
        if example.scorer in CHOOSING:
            assert likelihoods is not None, "a multiple choice needs a model that shows its likelihoods"
            found = likelihoods(example)
            seconds = time.perf_counter() - started
            return Answer(example.id, likeliest(found, example.scorer), None, seconds, likelihoods=found)
        response = predict({"messages": _copied(example), **options})
        seconds = time.perf_counter() - started
        return _answer(example, response, seconds)
    except Exception as error:  # noqa: BLE001  any failure of a candidate is a finding, not our end
        seconds = time.perf_counter() - started
        return Answer(example.id, "", None, seconds, in_one_line(error))


def ask_together(predict: PredictTogether, examples: Sequence[Example], options: Mapping[str, Any]) -> list[Answer]:
    """Return the answers of *predict* to *examples*, in their order, computed as one batch and not timed.

    Where the batch fails, each example is asked on its own: one bad request must not cost the others their answers.
    """
    try:
        responses = predict([_copied(example) for example in examples], options)
        return [_answer(example, response, None) for example, response in zip(examples, responses, strict=True)]
    except Exception as error:  # noqa: BLE001  see ask_one
        if len(examples) > 1:
            return [answer for example in examples for answer in ask_together(predict, [example], options)]
        return [Answer(examples[0].id, "", None, None, in_one_line(error))]


def batches(examples: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """Return *examples*, the shortest first, in batches of at most MOST_TOGETHER examples and TOGETHER_TOKENS tokens.

    This order needs little padding. Each character counts as one token, which is too many for most texts.
    """

    def tokens(example: Example) -> int:
        return sum(len(message["content"]) for message in example.messages) + max_tokens

    found: list[list[Example]] = []
    for example in sorted(examples, key=tokens):
        full = not found or len(found[-1]) == MOST_TOGETHER
        if full or tokens(example) * (len(found[-1]) + 1) > TOGETHER_TOKENS:
            found.append([])
        found[-1].append(example)
    return found


def progress(label: str, stream: TextIO | None = None, lines: int = 5) -> OnAnswer:
    """Return a callback that shows progress on *stream* (stderr): live on a terminal, else *lines* lines."""
    out = sys.stderr if stream is None else stream
    started = time.perf_counter()

    def show(done: int, total: int) -> None:
        text = f"{label}: {done}/{total} answers, {time.perf_counter() - started:.0f} s"
        if out.isatty():
            out.write(f"\r{text}" + ("\n" if done == total else ""))
        elif done * lines // total > (done - 1) * lines // total:
            out.write(f"{text}\n")
        out.flush()

    return show


def _copied(example: Example) -> list[dict[str, str]]:
    # A candidate that changes its request must not change what the next one is asked.
    return [dict(message) for message in example.messages]


def _answer(example: Example, response: Mapping[str, Any], seconds: float | None) -> Answer:
    """Return the answer that the Chat Completions *response* holds."""
    prompt, completion = _tokens(response, "prompt"), _tokens(response, "completion")
    return Answer(example.id, _content(response), completion, seconds, prompt_tokens=prompt)


def _content(response: Mapping[str, Any]) -> str:
    """Return the text of a Chat Completions *response*."""
    try:
        text = response["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        msg = f"the response has no choices[0].message.content: {response!r:.200}"
        raise ValueError(msg) from error
    if not isinstance(text, str):
        msg = f"choices[0].message.content is {text!r:.200}, not a string"
        raise TypeError(msg)
    return text


def _tokens(response: Mapping[str, Any], which: str) -> int | None:
    """Return how many tokens a Chat Completions *response* says its "prompt" or "completion" has, if it does."""
    tokens = (response.get("usage") or {}).get(f"{which}_tokens")
    return None if tokens is None else int(tokens)
