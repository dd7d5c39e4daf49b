"""Runner: has og compute the prompts of a batch and its steps, and measures what they cost."""

from time import perf_counter

import numpy as np
import numpy.typing as npt

from .logprobs import token_logprobs
from .og_model import PAD, OgModel
from .sampling import sampled
from .sequence import Batch, Sequence, longest

CHUNK_SIZE = 256
"""Chunked prefill: the prompt tokens of a single sequence that are computed between two steps of the other batches."""


class StepCost:
    """What a step of a batch costs, in prompt tokens: `fixed`, to read the weights, and `each` for every sequence.

    It is measured, because it differs with model, recipe and machine: between 2 and 13, and between 1.4 and 1.9, for
    the recipes of one model on one machine (docs/reference/serving.md). A straight line is fitted to the last steps.
    """

    LASTING = 0.99
    """The weight of a measurement beside the next one."""

    def __init__(self, fixed: float = 4, each: float = 1.5) -> None:
        """Begin with *fixed* and *each*, until there are measurements."""
        self.fixed, self.each = fixed, each
        self._seconds = self._tokens = 0.0  # of prompts
        # Sums over steps of n sequences that cost c: of 1, n, c, n², nc; as if a few of 1 and of 8 had been measured.
        begun = [[1, n, cost, n * n, n * cost] for n in (1, 8) for cost in [fixed + n * each]]
        self._sums = 4 * np.sum(begun, axis=0, dtype=float)

    def of(self, sequences: int) -> float:
        """Return the cost of a step of that many *sequences*."""
        return self.fixed + self.each * sequences

    def prompt_took(self, tokens: int, seconds: float) -> None:
        """Take the *seconds* for *tokens* of prompts into account."""
        self._seconds = self.LASTING * self._seconds + seconds
        self._tokens = self.LASTING * self._tokens + tokens

    def step_took(self, sequences: int, seconds: float) -> None:
        """Take the *seconds* for a step of that many *sequences* into account."""
        if not self._seconds:
            return
        cost = seconds * self._tokens / self._seconds
        self._sums = self.LASTING * self._sums + np.array([1, sequences, cost, sequences * sequences, sequences * cost])
        mean_n, mean_cost, mean_square, mean_product = self._sums[1:] / self._sums[0]
        if (variance := mean_square - mean_n**2) > 0.1:  # otherwise nearly all steps had as many sequences
            self.each = max(0.0, float(mean_product - mean_n * mean_cost) / variance)
        self.fixed = max(0.0, float(mean_cost - mean_n * self.each))


class Runner:
    """Begins batches of sequences and lets them take steps, one call of og at a time."""

    def __init__(self, model: OgModel, cost: StepCost) -> None:
        self.cost = cost
        self.prompt_tokens = self.generators = 0  # computed, made
        self._model = model

    def begin(self, sequences: list[Sequence], length: int) -> Batch:
        """Return a new batch of *sequences*, each with a KV cache of *length*; prompts of several are computed at once.

        Raises Refused for a JSON schema that og cannot use, and what og raises.
        """
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
            chunk = batch.prompt[batch.computed : batch.computed + CHUNK_SIZE]
            self._append(batch, np.array([chunk], dtype=np.int32))
            batch.computed += len(chunk)
            if batch.computed < len(batch.prompt):
                return []
        running = [(at, sequence) for at, sequence in enumerate(batch.sequences) if not sequence.finished]
        logits = None
        started = perf_counter()
        if any(sequence.temperature or sequence.logprobs is not None for _, sequence in running):
            logits = np.array(batch.generator.get_logits())[:, 0]  # batch, vocabulary
            _sample(batch, running, logits)
        batch.generator.generate_next_token()
        self.cost.step_took(len(batch.sequences), perf_counter() - started)
        tokens = batch.generator.get_next_tokens()
        for at, sequence in running:
            if logits is not None and sequence.logprobs is not None:
                sequence.stated.append(token_logprobs(logits[at], int(tokens[at]), sequence.logprobs))
        return [(sequence, int(tokens[at])) for at, sequence in running]

    def _append(self, batch: Batch, ids: npt.NDArray[np.int32]) -> None:
        started = perf_counter()
        batch.generator.append_tokens(ids)
        self.cost.prompt_took(ids.size, perf_counter() - started)
        self.prompt_tokens += ids.size


def _sample(batch: Batch, running: list[tuple[int, Sequence]], logits: npt.NDArray[np.float32]) -> None:
    """Have og choose the next token of each *running* sequence that samples at random; *logits* stay as they are."""
    if any(sequence.temperature for _, sequence in running):
        changed = logits.copy()
        for at, sequence in running:
            if sequence.temperature:
                changed[at] = sampled(logits[at], sequence)
        batch.generator.set_logits(changed[:, None])
