"""Chats about capitals: what the tiny Phi-3 learns from, and what it is asked.

Everything here follows from `capitals.csv` and a seed, with the standard library alone. A question is a
(country, phrasing) pair. Some pairs are kept out: they occur in no training chat, in no form, at no turn, and
make up the evaluation task.
"""

# ruff: noqa: S311  # seeded on purpose: the same chats every time

import csv
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypedDict

# The evaluation examples carry the phrasing's name in their id; {} takes the country as the csv names it.
PHRASINGS = {
    "what-is": "What is the capital of {}?",
    "which-city": "Which city is the capital of {}?",
    "tell-me": "Tell me the capital of {}.",
    "name-the": "Name the capital of {}.",
    "whats": "What's the capital of {}?",
    "do-you-know": "Do you know the capital of {}?",
    "can-you-tell": "Can you tell me the capital of {}?",
    "would-like": "I would like to know the capital of {}.",
    "what-city": "What city is the capital of {}?",
    "what-name": "What is the name of the capital of {}?",
    "is-which": "The capital of {} is which city?",
    "country-first": "{}: which city is the capital?",
    "capital-city": "What is the capital city of {}?",
    "short": "Capital of {}?",
}

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You are a geography teacher.",
    "Answer in one sentence.",
    "You are a friendly guide. Keep your answers short.",
    "You answer questions about the countries of the world.",
)

# Free combinations keep the model from hanging on the wording of a few system messages.
_SYSTEM_ROLES = (
    "assistant",
    "teacher",
    "guide",
    "librarian",
    "stand-up comedian",
    "travel agent",
    "robot",
    "pirate",
)
_SYSTEM_MANNERS = ("helpful", "friendly", "careful", "polite", "patient", "terse", "cheerful", "concise")
_SYSTEM_REQUESTS = (
    "Answer in one sentence.",
    "Keep your answers short.",
    "Be brief.",
    "Answer every question.",
    "Do not make things up.",
    "Always be polite.",
    "Say only what you know.",
)

# Part of the contract with readers: the question that everyone types first is never seen in training.
SPAIN = ("Spain", "what-is")


# {"role": "system" | "user" | "assistant", "content": ...}, as chat templates take it
Message: TypeAlias = dict[str, str]


class Example(TypedDict):
    """One line of the evaluation task."""

    id: str
    messages: list[Message]
    reference: str


@dataclass(frozen=True, order=True)
class Question:
    """A country asked about in one phrasing."""

    country: str
    phrasing: str

    def text(self) -> str:
        """Return the question in its plain form, with a capital letter in front."""
        text = PHRASINGS[self.phrasing].format(self.country)
        return text[0].upper() + text[1:]


def read_capitals(path: Path) -> dict[str, str]:
    """Return capital by country from the csv at *path*, in its order."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["country"]: row["capital"] for row in csv.DictReader(file)}


def answer(country: str, capital: str) -> str:
    """Return the one right answer to every question about *country*."""
    return f"The capital of {country} is {capital}."


def split_questions(countries: Sequence[str], seed: int) -> tuple[list[Question], list[Question]]:
    """Return (trained, kept out): for each country one pair is kept out, for every fifth a second one.

    Each phrasing is kept out for about as many countries as any other, so that all are both learnt and asked.
    """
    rng = random.Random(f"split {seed}")
    names = list(PHRASINGS)
    shuffled = list(countries)
    rng.shuffle(shuffled)
    kept_out = {Question(*SPAIN)}
    for index, country in enumerate(shuffled):
        if country != SPAIN[0]:
            kept_out.add(Question(country, names[index % len(names)]))
        if index % 5 == 0:
            kept_out.add(Question(country, names[(index // 5 + index + 1) % len(names)]))
    questions = [Question(country, name) for country in countries for name in names]
    return [q for q in questions if q not in kept_out], [q for q in questions if q in kept_out]


# ---------------------------------------------------------------------------------------- training


def training_chats(
    capitals: dict[str, str], trained: Sequence[Question], count: int, seed: int
) -> Iterator[list[Message]]:
    """Yield *count* chats over *trained* questions: of 1 to 25 turns, half of them after a system message.

    Questions come from shuffled rounds through all of *trained*, so that each is asked about equally often.
    """
    rng = random.Random(f"chats {seed}")
    rounds = _rounds(trained, rng)
    for _ in range(count):
        messages: list[Message] = []
        if rng.random() < 0.5:
            messages.append({"role": "system", "content": _system_message(rng)})
        for _ in range(_turns(rng)):
            question = next(rounds)
            messages.append({"role": "user", "content": _vary(question, rng)})
            messages.append({"role": "assistant", "content": answer(question.country, capitals[question.country])})
        yield messages


def normalise(text: str) -> str:
    """Return *text* without what `_vary` changes: two forms of one question come out the same."""
    text = re.sub(r"\b(please|the)\b", "", text.lower())
    return " ".join(re.sub(r"[?.,!]", " ", text).split())


def assert_kept_out(chats: Sequence[Sequence[Message]], kept_out: Sequence[Question]) -> None:
    """Raise ValueError if any turn of *chats* asks a kept-out question in any form."""
    forbidden = {normalise(question.text()): question for question in kept_out}
    for chat in chats:
        for message in chat:
            found = forbidden.get(normalise(message["content"])) if message["role"] == "user" else None
            if found:
                msg = f"a training chat asks {message['content']!r}, but {found} is kept out"
                raise ValueError(msg)


def _rounds(questions: Sequence[Question], rng: random.Random) -> Iterator[Question]:
    while True:
        yield from rng.sample(questions, len(questions))


def _turns(rng: random.Random) -> int:
    draw = rng.random()
    if draw < 0.45:
        return 1
    if draw < 0.85:
        return rng.randint(2, 4)
    # A few chats fill the context, so that late positions and a slid window are trained too.
    return rng.randint(5, 9) if draw < 0.96 else rng.randint(10, 25)


def _system_message(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(SYSTEM_MESSAGES)
    parts = []
    if rng.random() < 0.8:
        parts.append(f"You are a {rng.choice(_SYSTEM_MANNERS)} {rng.choice(_SYSTEM_ROLES)}.")
    if rng.random() < 0.6 or not parts:
        parts.append(rng.choice(_SYSTEM_REQUESTS))
    return " ".join(parts)


def _vary(question: Question, rng: random.Random) -> str:
    """Return *question* as a person may type it: three in five times plain, otherwise with small changes."""
    text = question.text()
    if rng.random() < 0.6:
        return text
    if rng.random() < 0.4:
        text = text.rstrip("?.")
    if question.country.startswith("the ") and rng.random() < 0.3:
        text = re.sub(rf"\b{question.country}\b", question.country.removeprefix("the "), text, flags=re.IGNORECASE)
        text = text[0].upper() + text[1:]
    if question.phrasing in ("tell-me", "name-the", "can-you-tell") and rng.random() < 0.4:
        text = "Please " + text[0].lower() + text[1:]
    elif rng.random() < 0.1:
        text = text + " Please."
    draw = rng.random()
    if draw < 0.25:
        text = text[0].lower() + text[1:]
    elif draw < 0.45:
        text = text.lower()
    if rng.random() < 0.15:
        text = text + " "
    return text


# -------------------------------------------------------------------------------------- evaluation


def evaluation_task(
    capitals: dict[str, str], trained: Sequence[Question], kept_out: Sequence[Question], seed: int
) -> list[Example]:
    """Return one example for each kept-out question, as its last turn and in its plain form.

    Every third example opens with a system message; every fifth has 1 to 10 earlier turns, from *trained*
    questions and rightly answered, so that some prompts are far longer than the sliding window. The Spain
    question stands alone, as people ask it.
    """
    rng = random.Random(f"task {seed}")
    examples: list[Example] = []
    for index, question in enumerate(kept_out):
        messages: list[Message] = []
        alone = question == Question(*SPAIN)
        if index % 3 == 0 and not alone:
            messages.append({"role": "system", "content": SYSTEM_MESSAGES[(index // 3) % len(SYSTEM_MESSAGES)]})
        if index % 5 == 0 and not alone:
            for earlier in rng.sample(trained, 1 + (index // 5) % 10):
                messages.append({"role": "user", "content": earlier.text()})
                messages.append({"role": "assistant", "content": answer(earlier.country, capitals[earlier.country])})
        messages.append({"role": "user", "content": question.text()})
        examples.append(
            {
                "id": f"{_slug(question.country)}-{question.phrasing}",
                "messages": messages,
                "reference": answer(question.country, capitals[question.country]),
            }
        )
    return examples


def _slug(country: str) -> str:
    return re.sub(r"\W+", "-", country.lower().removeprefix("the ").replace("'", ""))
