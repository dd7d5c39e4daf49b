"""Several loaded candidates on the same questions, texts and prompts, in turns, so that what slows one slows all.

Whatever fails is noted and measured no further: its figures are missing, and a gate that asks for them fails.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, product
from typing import Concatenate, ParamSpec, TypeVar

from mlflow.pyfunc import PyFuncModel

from steps.config.schema import Cost, Evaluate, project_path
from steps.evaluation.asking import Answer, Asked, progress
from steps.evaluation.fidelity import Text, TokenFidelity, compare, fidelity_metrics, joined, perplexity
from steps.evaluation.latency import Timing, latency_metrics
from steps.evaluation.scoring import CHOOSING
from steps.evaluation.tasks import Example
from steps.logged_models.process import Candidate
from steps.measurement import worker
from steps.records.errors import in_one_line
from steps.records.files import files_below

P = ParamSpec("P")
T = TypeVar("T")

TURN = 20
"""Questions that a candidate answers before it is the next one's turn."""

COMPARES_TEXT = ("exact", "contains", "choice", "choice_norm")
"""The scorers whose reference is an answer; that of the others is a pattern."""


@dataclass
class Measurements:
    """What was measured: `answers` by candidate; `figures` by full name; `fidelity` of each to the reference.

    `threads`: how many each computes with. `failures`: what could not be measured, a line each.
    """

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    fidelity: dict[str, TokenFidelity] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    threads: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def attempt(
        self, loaded: Candidate, function: Callable[Concatenate[PyFuncModel, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Return what *function* returns in the process of *loaded*, or None, and note why, when it fails there."""
        try:
            return loaded.run(function, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  any failure of a candidate is a finding, not our end
            self.fail(loaded, error)
            return None

    def fail(self, loaded: Candidate, error: Exception) -> None:
        """Note that *loaded* failed with *error*, and say so; the same again is not news."""
        if (failure := f"{loaded.name}: {in_one_line(error)}") not in self.failures:
            self.failures.append(failure)
            print(failure, file=sys.stderr, flush=True)


def measure_candidates(
    candidates: Mapping[str, Candidate], reference: str, examples: Sequence[Example], options: Evaluate, seed: int
) -> Measurements:
    """Return all that is measured of *candidates*, which are loading, against the one named *reference*."""
    found = Measurements()
    for name, loaded in candidates.items():
        found.figures[f"{name}.cost.size_bytes"] = float(sum(p.stat().st_size for p in files_below(loaded.folder)))
        try:
            found.figures[f"{name}.cost.load_seconds"] = loaded.load_seconds
        except Exception as error:  # noqa: BLE001  see attempt
            found.fail(loaded, error)
    chooses = any(example.scorer in CHOOSING for example in examples)
    if not chooses:
        ask_in_turns(found, candidates, examples, options.max_tokens)
    time_in_turns(found, candidates, candidates[reference], examples, options.cost)
    for name, loaded in candidates.items():
        memory = found.attempt(loaded, worker.peak_memory)
        if memory is not None:
            found.figures[f"{name}.cost.peak_memory_bytes"] = memory
    if chooses:
        # Last: to show likelihoods, an ONNX model is loaded once more, whose memory is not the wrapper's.
        ask_in_turns(found, candidates, examples, options.max_tokens)
    few = examples[: options.contract_examples]
    for name, loaded in candidates.items():
        if (threads := found.attempt(loaded, worker.threads)) is not None:
            found.threads[name] = threads
        contract = found.attempt(loaded, worker.keep_contract, loaded.folder, few, options.max_tokens)
        found.figures |= {f"{name}.{figure}": value for figure, value in (contract or {}).items()}
    measure_fidelity(found, candidates, reference, examples, options, seed)
    return found


def ask_in_turns(
    found: Measurements, candidates: Mapping[str, Candidate], examples: Sequence[Example], max_tokens: int
) -> None:
    """Ask all *candidates* the *examples*; who fails a turn has an error for each of its answers."""
    show = {name: progress(name) for name in candidates}
    found.answers |= {name: [] for name in candidates}
    for at in range(0, len(examples), TURN):
        turn = examples[at : at + TURN]
        for name, loaded in candidates.items():
            asked = found.attempt(loaded, worker.ask_some, loaded.folder, turn, max_tokens, warmup=int(at == 0))
            if asked is None:
                why = next(each for each in reversed(found.failures) if each.startswith(f"{name}: "))
                asked = Asked(0.0, [Answer(example.id, "", None, 0.0, why) for example in turn])
            elif at == 0 and not any(example.scorer in CHOOSING for example in examples):
                found.figures[f"{name}.cost.first_answer_seconds"] = asked.first_answer_seconds
            found.answers[name] += asked.answers
            for done in range(at + 1, at + len(turn) + 1):
                show[name](done, len(examples))


def time_in_turns(
    found: Measurements,
    candidates: Mapping[str, Candidate],
    reference: Candidate,
    examples: Sequence[Example],
    cost: Cost,
) -> None:
    """Time calls of every length and batch size; the first round of each is a warm-up, and not counted.

    No candidate gets a prompt twice: it may keep what it computed of one, and then only the keeping would be timed.
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
                    found.timings.append(Timing(name, tokens, batch, *timed))
    found.figures |= latency_metrics(found.timings)


def measure_fidelity(
    found: Measurements,
    candidates: Mapping[str, Candidate],
    reference: str,
    examples: Sequence[Example],
    options: Evaluate,
    seed: int,
) -> None:
    """Compare the probabilities of all *candidates* with the reference's, on the ids that the reference reads."""
    # One for each example, also where the answer is empty and nothing is compared: text n is example n.
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
    for name, loaded in candidates.items():
        if name == reference or (own := read[name]) is None:
            continue
        same = [one == other for one, other in zip(own, texts, strict=False)]
        # And what it really fed its weights, where its answer tells.
        for at, (answer, length) in enumerate(zip(found.answers[name], lengths, strict=True)):
            same[at] = same[at] and answer.prompt_tokens in (None, length)
        found.figures[f"{name}.integrity.same_tokens"] = sum(same) / len(texts)
        tokens = compare_texts(found, first, loaded, texts)
        if tokens is not None:
            found.fidelity[name] = tokens
            found.figures |= {f"{name}.{figure}": value for figure, value in fidelity_metrics(tokens, seed).items()}
            found.figures[f"{reference}.fidelity.perplexity"] = perplexity(tokens.reference_nll)


def compare_texts(
    found: Measurements, reference: Candidate, build: Candidate, texts: Sequence[Text]
) -> TokenFidelity | None:
    """Return the fidelity of *build* on *texts*, or None when one of them cannot be compared: some are not all."""
    parts = []
    for number, text in enumerate(texts):
        if text.begins >= len(text.ids):
            continue
        rows = [found.attempt(each, worker.rows_of, each.folder, text) for each in (reference, build)]
        if rows[0] is None or rows[1] is None:
            return None
        try:
            parts.append(compare(number, text, rows[0], rows[1]))
        except ValueError as error:
            found.fail(build, error)
            return None
    return joined(parts) if parts else None
