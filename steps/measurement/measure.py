"""Measure several loaded candidates on the same questions, texts and prompts.

They take turns, so that what slows the machine slows all of them. A failure is a finding: it is noted, the figures are
missing, and a gate that asks for them fails.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, product
from typing import Concatenate, ParamSpec, TypeVar

from mlflow.pyfunc import PyFuncModel

from steps.config.schema import Cost, Evaluate, project_path
from steps.evaluation.asking import Answer, batches, progress
from steps.evaluation.cost import Footprint, Timing
from steps.evaluation.fidelity import Logits, Text, TokenFidelity, compare, joined
from steps.evaluation.integrity import HARD_TEXTS
from steps.evaluation.metrics import Measured
from steps.evaluation.scoring import CHOOSING
from steps.evaluation.tasks import Example
from steps.logged_models.language_model import checkpoint_tokenizer
from steps.logged_models.process import Candidate
from steps.measurement import worker
from steps.records.errors import in_one_line
from steps.records.files import files_below

P = ParamSpec("P")
T = TypeVar("T")

TURN = 10
"""How many examples a candidate is asked, one at a time, before the next candidate's turn."""

COMPARES_TEXT = ("exact", "contains", "choice", "choice_norm")
"""The scorers whose reference is an answer; for the others it is a pattern or a schema."""

LOGITS_TOGETHER = 512
"""The most tokens, padding included, whose logits are computed as one batch: bounds the memory."""


@dataclass
class Measurements:
    """What was measured, by candidate: `answers` to every example, and everything else in `measured`.

    `threads`: how many each computes with. `dtypes`: the dtype of each PyTorch model. `failures`: a line for each thing
    that could not be measured.
    """

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def of(self, name: str) -> Measured:
        """Return what was measured of the candidate *name*; the caller adds to it."""
        return self.measured.setdefault(name, Measured())

    def attempt(
        self, loaded: Candidate, function: Callable[Concatenate[PyFuncModel, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Return what *function* returns in the process of *loaded*; None, with the reason noted, when it fails."""
        try:
            return loaded.run(function, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  any failure of a candidate is a finding, not our end
            self.fail(loaded, error)
            return None

    def fail(self, loaded: Candidate, error: Exception) -> None:
        """Note and print that *loaded* failed with *error*, once for each different error."""
        if (failure := f"{loaded.name}: {in_one_line(error)}") not in self.failures:
            self.failures.append(failure)
            print(failure, file=sys.stderr, flush=True)


def measure_candidates(
    candidates: Mapping[str, Candidate], reference: str, examples: Sequence[Example], options: Evaluate
) -> Measurements:
    """Return all measurements of *candidates*, compared with the one named *reference*; waits until they are loaded."""
    found = Measurements()
    for name, loaded in candidates.items():
        measure_loading(found, name, loaded)
    chosen = [example for example in examples if example.scorer in CHOOSING]
    generated = [example for example in examples if example.scorer not in CHOOSING]
    if generated:
        time_first_answers(found, candidates, generated[0], options.max_tokens)
        ask_in_turns(found, candidates, generated, options.max_tokens, timed=options.timed_examples)
    time_in_turns(found, candidates, candidates[reference], examples, options.cost)
    for name, loaded in candidates.items():
        found.of(name).footprint.peak_memory_bytes = found.attempt(loaded, worker.peak_memory)
    if chosen:
        # After memory is measured: for likelihoods, an ONNX model is loaded once more, outside the wrapper. One at a
        # time, because a batch generates.
        ask_in_turns(found, candidates, chosen, options.max_tokens, timed=len(chosen))
    place = {example.id: number for number, example in enumerate(examples)}
    for answers in found.answers.values():
        answers.sort(key=lambda answer: place[answer.example_id])
    few = examples[: options.contract_examples]
    for name, loaded in candidates.items():
        contract = found.attempt(loaded, worker.keep_contract, loaded.folder, few, options.max_tokens)
        found.of(name).contract = contract or {}
    compare_tokens(found, candidates, reference, examples)
    measure_fidelity(found, candidates, reference, examples, options)
    return found


def measure_loading(found: Measurements, name: str, loaded: Candidate) -> None:
    """Note size and loading time of *loaded*, and what it computes with."""
    footprint = Footprint(size_bytes=float(sum(path.stat().st_size for path in files_below(loaded.folder))))
    found.of(name).footprint = footprint
    try:
        footprint.load_seconds = loaded.load_seconds
    except Exception as error:  # noqa: BLE001  see attempt
        found.fail(loaded, error)
        return
    if (threads := found.attempt(loaded, worker.threads)) is not None:
        found.threads[name] = threads
    if (dtype := found.attempt(loaded, worker.dtype)) is not None:
        found.dtypes[name] = dtype


def time_first_answers(
    found: Measurements, candidates: Mapping[str, Candidate], example: Example, max_tokens: int
) -> None:
    """Time the very first answer of each candidate, which also warms it up."""
    for name, loaded in candidates.items():
        first = found.attempt(loaded, worker.ask_alone, loaded.folder, [example], max_tokens)
        if first:
            found.of(name).footprint.first_answer_seconds = first[0].seconds


def ask_in_turns(
    found: Measurements,
    candidates: Mapping[str, Candidate],
    examples: Sequence[Example],
    max_tokens: int,
    *,
    timed: int = 0,
) -> None:
    """Ask all *candidates* the *examples*: the first *timed* one at a time, the rest in batches.

    Adds their answers to those in *found*. When a candidate fails a turn, each of its answers in that turn is an error.
    """
    show = {name: progress(name) for name in candidates}
    by_id: dict[str, dict[str, Answer]] = {name: {} for name in candidates}
    for together, turn in _turns(examples, timed, max_tokens):
        for name, loaded in candidates.items():
            if together:
                given = found.attempt(loaded, worker.ask_batch, turn, max_tokens)
            else:
                given = found.attempt(loaded, worker.ask_alone, loaded.folder, turn, max_tokens)
            if given is None:
                why = next(each for each in reversed(found.failures) if each.startswith(f"{name}: "))
                given = [Answer(example.id, "", None, None, why) for example in turn]
            for answer in given:
                by_id[name][answer.example_id] = answer
                show[name](len(by_id[name]), len(examples))
    for name, answers in by_id.items():
        found.answers.setdefault(name, []).extend(answers[example.id] for example in examples)


def _turns(examples: Sequence[Example], timed: int, max_tokens: int) -> Iterator[tuple[bool, Sequence[Example]]]:
    """Yield the examples of each turn, and whether they are asked together."""
    for at in range(0, len(examples[:timed]), TURN):
        yield False, examples[at : min(timed, at + TURN)]
    for batch in batches(examples[timed:], max_tokens):
        yield True, batch


def time_in_turns(
    found: Measurements,
    candidates: Mapping[str, Candidate],
    reference: Candidate,
    examples: Sequence[Example],
    cost: Cost,
) -> None:
    """Time calls of every length and batch size; the first round of each is a warm-up, and not counted.

    Every prompt is new to every candidate: otherwise a candidate with a prefix cache would look too fast.
    """
    words = list(dict.fromkeys(word for example in examples for word in example.messages[-1]["content"].split()))
    number = count()
    for length, batch in product(cost.prompt_lengths, cost.batches):
        numbers = [next(number) for _ in range((cost.repeats + 1) * 2 * batch)]
        prompts = found.attempt(reference, worker.prompts_of, reference.folder, words, length, numbers)
        if prompts is None:
            return
        chats, tokens = prompts
        for repeat in range(cost.repeats + 1):
            first, whole = (chats[at : at + batch] for at in (2 * repeat * batch, (2 * repeat + 1) * batch))
            for name, loaded in candidates.items():
                timed = found.attempt(loaded, worker.time_call, loaded.folder, first, whole, cost.new_tokens)
                if timed is not None and repeat > 0:
                    found.of(name).timings.append(Timing(name, tokens, batch, *timed))


def compare_tokens(
    found: Measurements, candidates: Mapping[str, Candidate], reference: str, examples: Sequence[Example]
) -> None:
    """Note for each text whether a candidate's ids are those of the checkpoint's own tokenizer.json."""
    tokenizer = checkpoint_tokenizer(candidates[reference].folder)
    if tokenizer is None:
        return
    asked = [text for example in examples for text in (example.messages[-1]["content"], example.reference)]
    texts = [*HARD_TEXTS, *dict.fromkeys(asked)]
    right = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    for name, loaded in candidates.items():
        ids = found.attempt(loaded, worker.encode_texts, loaded.folder, texts)
        if ids is not None:
            found.of(name).token_ids.checkpoint = [one == other for one, other in zip(ids, right, strict=True)]


def measure_fidelity(
    found: Measurements,
    candidates: Mapping[str, Candidate],
    reference: str,
    examples: Sequence[Example],
    options: Evaluate,
) -> None:
    """Compare the probabilities of all *candidates* with the reference's, on the ids that the reference reads."""
    # One chat for each example, even if its answer is empty and nothing is compared: text n belongs to example n.
    chats = [
        (example.messages, example.reference if example.scorer in COMPARES_TEXT else given.text)
        for example, given in zip(examples, found.answers[reference], strict=True)
    ]
    path, context = options.fidelity.text, options.fidelity.context
    text = project_path(path).read_text(encoding="utf-8") if path else None
    read = {
        name: found.attempt(loaded, worker.token_texts, loaded.folder, chats, text, context)
        for name, loaded in candidates.items()
    }
    first, texts = candidates[reference], read[reference]
    lengths = found.attempt(first, worker.prompt_lengths, first.folder, [chat for chat, _ in chats]) if texts else None
    if not texts or lengths is None:
        return
    builds = {name: loaded for name, loaded in candidates.items() if name != reference and read[name] is not None}
    for name in builds:
        same = [one == other for one, other in zip(read[name] or [], texts, strict=False)]
        # An answer may also say how many tokens the candidate really read.
        for at, (answer, length) in enumerate(zip(found.answers[name], lengths, strict=True)):
            same[at] = same[at] and answer.prompt_tokens in (None, length)
        found.of(name).token_ids.same = same
    compared = len(chats) if options.fidelity.questions is None else options.fidelity.questions
    for at in range(compared, len(chats)):
        texts[at] = replace(texts[at], begins=len(texts[at].ids))  # nothing of it is measured
    for name, tokens in compare_texts(found, first, builds, texts).items():
        found.of(name).fidelity = tokens


def compare_texts(
    found: Measurements, reference: Candidate, builds: Mapping[str, Candidate], texts: Sequence[Text]
) -> dict[str, TokenFidelity]:
    """Return the fidelity of each of *builds* on *texts*; a build is left out if one text cannot be compared.

    The reference's logits are computed once for all builds.
    """
    parts: dict[str, list[TokenFidelity]] = {name: [] for name in builds}
    for batch in in_batches(texts):
        numbered = [texts[number] for number in batch]
        right = found.attempt(reference, worker.rows_of, reference.folder, numbered) if parts else None
        if right is None:
            return {}
        for name in list(parts):
            rows = found.attempt(builds[name], worker.rows_of, builds[name].folder, numbered)
            try:
                parts[name] += _compare_batch(batch, numbered, right, rows)
            except ValueError as error:
                if rows is not None:
                    found.fail(builds[name], error)
                del parts[name]
    return {name: joined(each) for name, each in parts.items() if each}


def _compare_batch(
    numbers: Sequence[int], texts: Sequence[Text], right: Sequence[Logits], rows: Sequence[Logits] | None
) -> list[TokenFidelity]:
    """Return the fidelity of each of *texts*. Raises ValueError if *rows* is None or has another vocabulary's width."""
    if rows is None:
        msg = "there are no logits"
        raise ValueError(msg)
    return [compare(*each) for each in zip(numbers, texts, right, rows, strict=True)]


def in_batches(texts: Sequence[Text]) -> list[list[int]]:
    """Return the numbers of the texts that have a token to measure, in batches of at most LOGITS_TOGETHER tokens.

    The shortest come first, so that little is padded.
    """
    found: list[list[int]] = []
    measured = [number for number, text in enumerate(texts) if text.begins < len(text.ids)]
    for number in sorted(measured, key=lambda each: len(texts[each].ids)):
        if not found or len(texts[number].ids) * (len(found[-1]) + 1) > LOGITS_TOGETHER:
            found.append([])
        found[-1].append(number)
    return found
