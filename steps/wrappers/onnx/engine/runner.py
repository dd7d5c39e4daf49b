"""Runner: has og compute the prompts and the steps of a batch. A step has a cost, which is measured."""

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt

from .logprobs import token_logprobs
from .og_model import PAD, OgModel, Refused
from .sampling import sampled
from .sequence import Batch, Sequence, longest

CHUNK_SIZE = 256
"""Chunked prefill: the prompt tokens of a single sequence that are computed between two steps of the other batches."""

SEVERAL, PROMPT = 4, 33
"""The sequences, and the prompt tokens, with which the cost of a step is measured."""


@dataclass(frozen=True)
class StepCost:
    """What a step of a batch costs, in prompt tokens: `fixed`, to read the weights, and `each` for every sequence."""

    fixed: float
    each: float

    def of(self, sequences: int) -> float:
        """Return the cost of a step of that many *sequences*."""
        return self.fixed + self.each * sequences


def measured_cost(model: OgModel) -> StepCost:
    """Measure what a step of *model* costs here, in about the time of 130 prompt tokens.

    It differs with model, recipe and machine: `fixed` is between 4 and 10 for the recipes of one model on one machine.
    """

    def seconds(sequences: int, length: int) -> float:
        generator = model.generator(sequences, length + 1)
        started = perf_counter()
        generator.append_tokens(np.ones((sequences, length), dtype=np.int32))
        return perf_counter() - started

    # The least of some: another program may have had the processor. A step costs as much as a prompt of one token.
    one, several = (min(seconds(sequences, 1) for _ in range(3)) for sequences in (1, SEVERAL))
    prompt = min(seconds(1, PROMPT) for _ in range(2))
    token = max(prompt - one, prompt / 20, 1e-9) / (PROMPT - 1)  # whatever another program did to `one`
    each = max(several - one, 0) / (SEVERAL - 1)
    return StepCost(max(one - each, 0) / token, each / token)


class Runner:
    """Begins batches of sequences and lets them take steps."""

    def __init__(self, model: OgModel) -> None:
        self.prompt_tokens = self.generators = 0  # counters: prompt tokens computed, generators made
        self._model = model

    def begin(self, sequences: list[Sequence], length: int) -> Batch:
        """Return a new batch of *sequences*, each with a KV cache of *length*; prompts of several are computed at once.

        Raises Refused for a JSON schema that og cannot use, and what og raises.
        """
        limit = self._model.rope_limit
        if sequences[0].json_schema and sequences[0].length <= limit < length:  # og would begin the grammar anew
            most = limit - sequences[0].length
            msg = (
                f"is not usable in an answer across {limit} tokens: max_tokens may be {most} at most after this prompt"
            )
            raise Refused(msg)
        generator = self._model.generator(len(sequences), length, sequences[0].json_schema)
        self.generators += 1
        batch = Batch(generator, sequences, length, sequences[0].token_ids)
        if len(sequences) > 1:
            ids = np.full((len(sequences), longest(sequences)), PAD, dtype=np.int32)
            for at, sequence in enumerate(sequences):
                ids[at, : sequence.length] = sequence.token_ids  # og counts positions from the left: pad right
            self._append(batch, ids)
            batch.computed = len(batch.prompt)
        return batch

    def step(self, batch: Batch) -> list[tuple[Sequence, int]]:
        """Compute the next chunk of the prompt; after the last one, return the next token of every running sequence."""
        if batch.computed < len(batch.prompt):
            chunk = batch.prompt[batch.computed : batch.computed + self._chunk_size(batch)]
            self._append(batch, np.array([chunk], dtype=np.int32))
            batch.computed += len(chunk)
            if batch.computed < len(batch.prompt):
                return []
        running = [(at, sequence) for at, sequence in enumerate(batch.sequences) if not sequence.finished]
        logits = None
        if any(each.temperature or each.ignore_eos or each.logprobs is not None for _, each in running):
            logits = np.array(batch.generator.get_logits())[:, 0]  # batch, vocabulary
            self._change(batch, running, logits)
        batch.generator.generate_next_token()
        tokens = batch.generator.get_next_tokens()
        for at, sequence in running:
            if logits is not None and sequence.logprobs is not None:
                sequence.stated.append(token_logprobs(logits[at], int(tokens[at]), sequence.logprobs))
        return [(sequence, int(tokens[at])) for at, sequence in running]

    def _chunk_size(self, batch: Batch) -> int:
        """Return how many tokens of the prompt to compute next; the first chunk goes beyond the limit of LongRoPE."""
        limit = self._model.rope_limit
        return max(CHUNK_SIZE, limit + 1) if batch.computed <= limit < len(batch.prompt) else CHUNK_SIZE

    def _change(self, batch: Batch, running: list[tuple[int, Sequence]], logits: npt.NDArray[np.float32]) -> None:
        """Have og choose as each *running* sequence asks, at random or no end token; *logits* stay as they are."""
        if any(sequence.temperature or sequence.ignore_eos for _, sequence in running):
            changed = logits.copy()
            for at, sequence in running:
                if sequence.ignore_eos:
                    changed[at, list(self._model.end_ids)] = -np.inf
                if sequence.temperature:
                    changed[at] = sampled(changed[at], sequence)
            batch.generator.set_logits(changed[:, None])

    def _append(self, batch: Batch, ids: npt.NDArray[np.int32]) -> None:
        batch.generator.append_tokens(ids)
        self.prompt_tokens += ids.size
