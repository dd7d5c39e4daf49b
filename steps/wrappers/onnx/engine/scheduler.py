"""Scheduler: which sequences share a batch, which batch takes the next step, and which prefixes are cached.

A batch is much faster than its sequences one by one. og can neither add a sequence to a running batch nor remove one,
so the scheduler begins a batch anew where that pays, steps the batches in turn, and caches the generator of a
sequence that ran alone for the next prompt that begins alike. docs/reference/serving.md has the measurements.
"""

from collections.abc import Iterable
from time import monotonic

from .og_model import OgModel, Refused, first_line
from .outbox import Outbox, Tokens
from .prefix_cache import PrefixCache
from .runner import Runner, StepCost
from .sequence import Batch, Sequence, longest, reserved_length
from .stats import Stats

# Batching window: wait this many seconds for each further request, and at most MAX_WINDOW in total.
WINDOW, MAX_WINDOW = 0.02, 0.05

Errors = list[tuple[int, str, str]]
"""By sequence id: "refused" or "failed", and why."""


class Scheduler:
    """Generates sequences: `add` or `drop` them, then `step` until it is `idle`."""

    def __init__(
        self, model: OgModel, cost: StepCost, max_batch: int, max_batch_tokens: int, max_kept_tokens: int
    ) -> None:
        """Limit a batch to *max_batch* sequences, all KV caches to *max_batch_tokens*, *max_kept_tokens* of it cached.

        A sequence that alone exceeds *max_batch_tokens* runs alone.
        """
        self._model = model
        self._cost = cost
        self._runner = Runner(model)
        self._max_batch = max_batch
        self._max_cache = max_batch_tokens
        kept = min(max_kept_tokens, max_batch_tokens) if model.is_attention_only else 0
        self._prefixes = PrefixCache(kept, model.rope_limit)
        self._waiting: list[Sequence] = []
        self._batches: list[Batch] = []  # in the order of their steps
        self._expected = 64.0  # expected number of tokens still to generate: a moving average
        self._last_size = 1  # sequences that began together last, in a new batch or by joining one
        self._window_opened = 0.0  # when the first of the waiting sequences came, or the last batch ended after it
        self._hits = self._hit_tokens = 0
        self._outbox = Outbox()
        self._errors: Errors = []

    @property
    def stats(self) -> Stats:
        """What it is doing, and has done."""
        return Stats(
            waiting=sum(not sequence.finished for sequence in self._waiting),
            running=sum(len(batch.live) for batch in self._batches),
            batches=[len(batch.sequences) for batch in self._batches],
            kv_cache=self._used(),
            prefix_cache=self._prefixes.size,
            prefix_cache_hits=self._hits,
            prefix_cache_hit_tokens=self._hit_tokens,
            prompt_tokens=self._runner.prompt_tokens,
            generators=self._runner.generators,
        )

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._batches

    @property
    def max_wait(self) -> float:
        """The seconds to wait for another request before the next step: the rest of the batching window.

        Clients whose answers ended together ask again within milliseconds. A request that began alone would have its
        prompt computed again with the others'.
        """
        if self._batches or len(self._waiting) >= self._last_size:
            return 0
        return max(0, min(WINDOW, self._window_opened + MAX_WINDOW - monotonic()))

    def add(self, sequence: Sequence) -> None:
        """Let *sequence* wait until there is room."""
        if not self._waiting:
            self._window_opened = monotonic()
        self._waiting.append(sequence)

    def drop(self, ids: Iterable[int]) -> None:
        """Give up the sequences *ids*; the next step frees their place."""
        dropped = set(ids)
        for sequence in [*self._waiting, *(sequence for batch in self._batches for sequence in batch.sequences)]:
            sequence.finished = sequence.finished or sequence.id in dropped

    def step(self) -> tuple[Tokens, Errors]:
        """Admit waiting sequences and let the next batch take a step; return the tokens and errors to send."""
        self._waiting = [sequence for sequence in self._waiting if not sequence.finished]
        for dropped in [batch for batch in self._batches if not batch.live]:
            self._end(dropped)
        while self._waiting and self._admit_next():
            pass
        if self._batches and (batch := self._next_batch()):
            self._batches.append(batch)
            try:
                self._compute(batch)
            except Exception as error:  # noqa: BLE001  # a batch that fails must not end the process
                self._batches.remove(batch)
                self._fail(batch.sequences, "failed", f"onnxruntime-genai: {first_line(error)}")
        errors, self._errors = self._errors, []
        # A step that computes a prompt may take long.
        return self._outbox.take(wait=all(batch.is_decoding for batch in self._batches)), errors

    def _next_batch(self) -> Batch | None:
        """Take the batch whose step is next, begun anew if many of its sequences have finished; None if it failed."""
        batch = self._batches.pop(0)
        live = batch.live
        # Finished sequences still take their time.
        if self._pays(live, [], self._cost.each * (len(batch.sequences) - len(live))):
            batch.generator = None  # frees its memory before more is asked for
            return self._begin(live)
        return batch

    # ------------------------------------------------------------------------------------- who shares a batch

    def _admit_next(self) -> bool:
        """Admit the sequence that has waited longest; return whether there was room for it, or it failed."""
        sequence = self._waiting[0]
        try:
            return self._admit(sequence)
        except Exception as error:  # noqa: BLE001  # a sequence that fails must not end the process
            self._waiting = [other for other in self._waiting if other is not sequence]
            self._fail([sequence], "failed", f"onnxruntime-genai: {first_line(error)}")
            return True

    def _admit(self, sequence: Sequence) -> bool:
        """Admit *sequence*, with those waiting that can share its batch; return whether there was room."""
        together = self._sharing([], self._waiting)
        cached, reused = self._prefixes.lookup(sequence, self._roomy_length(reserved_length([sequence])))
        saves_more = reused >= self._cost.fixed * min(sequence.remaining, self._expected)
        alone = len(together) == 1 and not self._joinable(sequence)
        if cached and (saves_more or alone) and self._continue_cached(cached, sequence, reused):
            return True
        if batch := self._joinable(sequence):
            together = self._sharing(batch.live, self._waiting)
            self._batches.remove(batch)
            self._cache(batch)
        elif self._batches and self._used() + reserved_length(together) * len(together) > self._max_cache:
            return False  # until a batch ends
        elif any(self._ends_before(batch, sequence) for batch in self._batches):
            return False
        self._waiting = [other for other in self._waiting if other not in together]
        if new := self._begin(together):
            self._batches.insert(0, new)
            self._last_size = len(together)
        return True

    def _continue_cached(self, cached: Batch, sequence: Sequence, reused: int) -> bool:
        """Let *sequence* use the generator of *cached*, with *reused* tokens of its prompt; return False if it cannot.

        If it cannot rewind this model, nothing is cached from then on.
        """
        self._prefixes.take(cached)
        try:
            cached.generator.rewind_to(reused)
        except Exception:  # noqa: BLE001  # whatever it is, a fresh generator serves the sequence as well
            self._prefixes.disable()
            return False
        self._waiting.remove(sequence)
        self._batches.insert(0, Batch(cached.generator, [sequence], cached.length, sequence.prompt, reused))
        self._last_size = 1
        self._hits += reused > 0
        self._hit_tokens += reused
        return True

    def _joinable(self, sequence: Sequence) -> Batch | None:
        """Return a running batch that pays to begin anew together with *sequence*."""
        for batch in self._batches:
            live = batch.live
            if sequence in self._sharing(live, [sequence]) and self._pays(live, [sequence], self._cost.fixed):
                return batch
        return None

    def _ends_before(self, batch: Batch, sequence: Sequence) -> bool:
        """Return whether *batch* certainly ends before the prompt of *sequence* would be computed.

        Then *sequence* waits: it would hold up the batch for longer, and may share the next one with the same clients.
        """
        steps = max((each.remaining for each in batch.live), default=0)
        return batch.is_decoding and steps * self._cost.of(len(batch.sequences)) <= sequence.length

    def _sharing(self, sequences: list[Sequence], others: list[Sequence]) -> list[Sequence]:
        """Return *sequences* and those of *others* that can share one batch with all of them."""
        sequences = list(sequences)
        elsewhere = sum(batch.cache_size for batch in self._batches if not set(sequences) & set(batch.sequences))
        for other in others:
            if len(sequences) == self._max_batch:
                break
            if not sequences or self._fits([*sequences, other], elsewhere):
                sequences.append(other)
        return sequences

    def _fits(self, sequences: list[Sequence], elsewhere: int) -> bool:
        length = reserved_length(sequences)
        shortest = min(sequence.length for sequence in sequences)
        return (
            length <= self._model.rope_limit
            and length * len(sequences) + elsewhere <= self._max_cache
            and longest(sequences) <= 2 * shortest + 32  # og computes padding as text
            and (self._model.is_attention_only or longest(sequences) == shortest)
            and all(sequence.json_schema is None for sequence in sequences)  # og: one grammar, one sequence
        )

    def _pays(self, live: list[Sequence], joining: list[Sequence], saved: float) -> bool:
        """Return whether computing *live* again, with *joining*, costs less than *saved* at every remaining step."""
        sequences = [*live, *joining]
        again = longest(sequences) * len(sequences) - longest(joining) * len(joining)
        steps = min(self._expected, *(sequence.remaining for sequence in sequences))
        return bool(live) and live[0].json_schema is None and again <= saved * steps

    # ---------------------------------------------------------------------------------------------- KV cache

    def _used(self) -> int:
        return sum(batch.cache_size for batch in self._batches)

    def _roomy_length(self, length: int) -> int:
        """Return the reserved length of a single sequence that needs *length*, with room for its next prompt.

        Its prompt and answer may be the beginning of that.
        """
        free = self._max_cache - self._used()
        return max(length, min(2 * length, self._model.context, self._prefixes.max_tokens, free))

    def _cache(self, batch: Batch) -> None:
        """Put a batch that ended into the prefix cache if it had one sequence, or free its memory."""
        single = len(batch.sequences) == 1 and batch.sequences[0].json_schema is None
        if single and batch.computed == len(batch.prompt):
            self._prefixes.add(batch)
            self._prefixes.evict(self._max_cache - self._used())
        else:
            batch.generator = None

    # ------------------------------------------------------------------------------------------------- steps

    def _begin(self, sequences: list[Sequence]) -> Batch | None:
        """Return a new batch of *sequences*, None if og fails; the prompts of several are computed at once."""
        length = reserved_length(sequences)
        if len(sequences) == 1 and sequences[0].json_schema is None:
            length = self._roomy_length(length)
        self._prefixes.evict(self._max_cache - self._used() - length * len(sequences))
        try:
            return self._runner.begin(sequences, length)
        except Refused as error:
            self._fail(sequences, "refused", f"{sequences[0].schema_field} {error}")
        except Exception as error:  # noqa: BLE001  # a batch that fails must not end the process
            self._fail(sequences, "failed", f"onnxruntime-genai: {first_line(error)}")
        return None

    def _compute(self, batch: Batch) -> None:
        for sequence, token in self._runner.step(batch):
            self._push(sequence, token)
        if not batch.live:
            self._end(batch)

    def _push(self, sequence: Sequence, token: int) -> None:
        sequence.tokens.append(token)
        sequence.finished = token in self._model.end_ids or sequence.remaining == 0
        if sequence.finished:
            self._expected += 0.1 * (len(sequence.tokens) - self._expected)
        self._outbox.put(sequence)

    def _end(self, batch: Batch) -> None:
        self._batches.remove(batch)
        self._cache(batch)
        if not self._batches:
            self._window_opened = monotonic()

    def _fail(self, sequences: list[Sequence], how: str, why: str) -> None:
        self._errors += [(sequence.id, how, why) for sequence in sequences if not sequence.finished]
        for sequence in sequences:
            sequence.finished = True
