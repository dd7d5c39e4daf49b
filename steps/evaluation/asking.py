"""Ask one candidate every example of a task, and time each answer."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from steps.evaluation.choices import likeliest
from steps.evaluation.scoring import CHOOSING
from steps.evaluation.tasks import Example

Predict = Callable[[dict[str, Any]], Mapping[str, Any]]
"""A candidate: from a Chat Completions request to its response."""

Likelihoods = Callable[[Example], dict[str, float]]
"""A candidate as one that chooses: from an example to the log-probability of each of its choices."""

OnAnswer = Callable[[int, int], None]
"""Called after every answer with how many are done and how many there are."""


@dataclass(frozen=True)
class Answer:
    """What a candidate said to one example in *seconds* of wall time; no text when *error* is set.

    The numbers of tokens are what it said they were, if it did. Of a multiple choice, *text* is the choice taken and
    *likelihoods* the log-probability of each, in nats.
    """

    example_id: str
    text: str
    completion_tokens: int | None
    seconds: float
    error: str | None = None
    likelihoods: dict[str, float] | None = None
    prompt_tokens: int | None = None

    @property
    def answered(self) -> bool:
        """Whether there is a text to score."""
        return self.error is None and bool(self.text.strip())


@dataclass(frozen=True)
class Asked:
    """A candidate's answers, and the seconds of its very first one, a warm-up that is not among them."""

    first_answer_seconds: float
    answers: list[Answer]


def ask(
    predict: Predict,
    examples: Sequence[Example],
    options: Mapping[str, Any],
    *,
    likelihoods: Likelihoods | None = None,
    warmup: int = 1,
    on_answer: OnAnswer | None = None,
) -> Asked:
    """Return the answers of *predict* to *examples*, in their order; *likelihoods* answers what is multiple choice.

    *options* join every request (`max_tokens`, `temperature`). Beforehand the first example is asked *warmup*
    times without being counted. A crash or a malformed response is that answer's error, and the rest go on.
    """
    first: float | None = None
    for _ in range(warmup):
        answer = ask_one(predict, examples[0], options, likelihoods)
        first = answer.seconds if first is None else first
    answers = []
    for example in examples:
        answers.append(ask_one(predict, example, options, likelihoods))
        if on_answer is not None:
            on_answer(len(answers), len(examples))
    return Asked(answers[0].seconds if first is None else first, answers)


def ask_one(
    predict: Predict, example: Example, options: Mapping[str, Any], likelihoods: Likelihoods | None = None
) -> Answer:
    """Return the answer of *predict*, or of *likelihoods*, to *example*; whatever goes wrong is the answer's error."""
    # Copies: a candidate that changes its request must not change what the next one is asked.
    request = {"messages": [dict(message) for message in example.messages], **options}
    started = time.perf_counter()
    try:
        if example.scorer in CHOOSING:
            assert likelihoods is not None, "a multiple choice is asked of a model that shows its likelihoods"
            found = likelihoods(example)
            seconds = time.perf_counter() - started
            return Answer(example.id, likeliest(found, example.scorer), None, seconds, likelihoods=found)
        response = predict(request)
        seconds = time.perf_counter() - started
        text, prompt, completion = _content(response), _tokens(response, "prompt"), _tokens(response, "completion")
    except Exception as error:  # noqa: BLE001  any failure of a candidate is a finding, not our end
        seconds = time.perf_counter() - started
        return Answer(example.id, "", None, seconds, in_one_line(error))
    return Answer(example.id, text, completion, seconds, prompt_tokens=prompt)


def in_one_line(error: Exception) -> str:
    """Return *error* in one line: what a candidate, or a task's code, raises can be anything, of any length."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


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
