"""The process in which onnxruntime-genai ("og") runs for onnx_chat.py: token ids in, token ids out.

og holds Python's global lock for a whole step, so nothing else would run beside it in the server's process. MLflow
ships this file as an artifact of the logged model, and onnx_chat.py starts it as a script. It imports neither MLflow
nor anything of ours, and ends with the process that started it. Messages are JSON, over one connection:

    to here    {"add": [fields of a Row, ...]}    {"drop": [id, ...]}
    from here  {"ready": true} or {"failed": why}, once; then
               {"tokens": [[id, [token, ...]], ...]}    {"error": [[id, "refused" or "failed", why], ...]}

Rows share og generators ("batches"), because one batch is much faster than its rows apart. og can neither take a row
into a running batch nor give one up, so `Scheduler` begins a batch anew where that pays, lets batches take turns, and
keeps the generator of a lone row for the next prompt that begins alike. docs/reference/serving.md has the measurements.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

# What a step costs in prompt tokens, which og computes many at once: to read the weights, and for each row.
STEP_COST, ROW_COST = 2, 1
# Prompt tokens that a lone row computes between two turns of the others.
CHUNK = 256
# Seconds that who asks waits for the next to ask, where several shared the batch before; and the first of them in all.
GATHER, GATHER_IN_ALL = 0.02, 0.05
# Prefixes are kept in such units. Matrix kernels take rows in groups, so a prompt that goes on from a multiple of
# this many tokens gets the same logits, to the last bit, as one computed whole.
GRAIN = 16
# og takes the *last* pad tokens of a prompt for padding, and many models pad with a token that a prompt may end
# with. No token has this id. ONNX looks up its embedding all the same, and the result is masked.
PAD = -1


@dataclasses.dataclass(eq=False)
class Row:
    """One prompt to continue, the options of its sampling, and what came so far."""

    id: int
    prompt: list[int]
    max_tokens: int
    temperature: float  # 0: greedy
    top_p: float
    top_k: int
    seed: list[int]
    json_schema: str | None
    at_once: bool  # send every token as it comes, not all at the end
    tokens: list[int] = dataclasses.field(default_factory=list)
    ended: bool = False

    @cached_property
    def random(self) -> np.random.Generator:
        """Random numbers of its own: the text depends on the seed, not on who shares the batch."""
        return np.random.default_rng(self.seed)

    @property
    def text(self) -> list[int]:
        """The prompt and what came so far: what a batch that begins anew has to compute."""
        return self.prompt + self.tokens

    @property
    def length(self) -> int:
        """How many tokens `text` has."""
        return len(self.prompt) + len(self.tokens)

    @property
    def left(self) -> int:
        """How many tokens may still come."""
        return self.max_tokens - len(self.tokens)


@dataclasses.dataclass(eq=False)
class Batch:
    """Rows that one og generator continues; with one row it can be rewound, and takes its prompt in parts."""

    generator: Any
    rows: list[Row]
    length: int  # of a row of its KV cache, in tokens
    prompt: list[int]  # of a lone row: what is computed, or will be before its first step
    computed: int = 0  # of `prompt`

    @property
    def live(self) -> list[Row]:
        """The rows that have not ended."""
        return [row for row in self.rows if not row.ended]

    @property
    def cache(self) -> int:
        """The size of its KV cache in tokens."""
        return self.length * len(self.rows)


def longest(rows: Iterable[Row]) -> int:
    """Return the number of tokens of the longest of *rows*, 0 for none."""
    return max((row.length for row in rows), default=0)


def cache_length(rows: Iterable[Row]) -> int:
    """Return the length of the KV cache that a batch of *rows* needs: og sizes it to this."""
    rows = list(rows)
    return longest(rows) + max(row.left for row in rows)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens *one* and *other* begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class Refused(Exception):  # noqa: N818  # it is no error of ours
    """A row asks for what og cannot do, and why."""


class Model:
    """og's model of a folder, and the generators made of it."""

    def __init__(self, folder: Path, threads: int) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime_genai as og  # heavy: not for who only wants this file's path

        genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        providers = genai["decoder"]["session_options"].get("provider_options", [])
        if any("cuda" in provider for provider in providers) and not og.is_cuda_available():
            msg = "this ONNX model was built for CUDA: it needs onnxruntime-genai-cuda and an NVIDIA GPU"
            raise Refused(msg)
        session = {"intra_op_num_threads": threads}
        config = og.Config(str(folder))
        config.overlay(json.dumps({"model": {"pad_token_id": PAD, "decoder": {"session_options": session}}}))
        self._og = og
        self._model = og.Model(config)
        self.context = int(genai["context_length"])
        ends = genai["eos_token_id"]
        self.end_ids = frozenset(ends if isinstance(ends, list) else [ends])

    def generator(self, rows: int, length: int, json_schema: str | None = None) -> Any:  # noqa: ANN401
        """Return a greedy og generator of *rows* whose KV cache holds *length* tokens each. Raises Refused."""
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(
            batch_size=rows,
            max_length=length,  # otherwise og makes the KV cache as long as the model's context
            do_sample=False,  # whatever the model's folder says: `sampled` does that
            num_beams=1,
            min_length=0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )
        try:
            if json_schema:
                params.set_guidance("json_schema", json_schema, False)
            return self._og.Generator(self._model, params)
        except RuntimeError as error:
            if not json_schema:
                raise
            msg = f"response_format.json_schema.schema is not usable: {first_line(error)}"
            raise Refused(msg) from error


class Scheduler:
    """Decides which rows share a batch, which batch takes the next step, and which prefixes are kept."""

    def __init__(self, model: Model, max_batch: int, max_batch_tokens: int, max_kept_tokens: int) -> None:
        self._model = model
        self._max_batch = max_batch
        self._max_cache = max_batch_tokens
        self._max_kept = min(max_kept_tokens, max_batch_tokens)
        self._waiting: list[Row] = []
        self._batches: list[Batch] = []  # in the order of their turns
        self._kept: list[Batch] = []  # lone ones that ended, the latest last
        self._typical = 64.0  # tokens that an answer still has before it, whatever it has: the mean of recent ones
        self._together = 1  # rows that began together last, those that waited and those that they joined
        self._since = 0.0  # when the first of those that wait asked
        self.computed = 0  # prompt tokens, since the start
        self.news: list[tuple[int, list[int]]] = []
        self.errors: list[tuple[int, str, str]] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._batches

    @property
    def patience(self) -> float:
        """The seconds to listen for another row before the next turn.

        Clients whose answers ended together ask again within milliseconds. One that began alone would compute its
        prompt again with the others'.
        """
        if self._batches or len(self._waiting) >= self._together:
            return 0
        return max(0, min(GATHER, self._since + GATHER_IN_ALL - monotonic()))

    def add(self, row: Row) -> None:
        """Let *row* wait for its turn."""
        if not self._waiting:
            self._since = monotonic()
        self._waiting.append(row)

    def drop(self, ids: Iterable[int]) -> None:
        """Forget the rows *ids*: nobody waits for them."""
        gone = set(ids)
        for row in [*self._waiting, *(row for batch in self._batches for row in batch.rows)]:
            row.ended = row.ended or row.id in gone

    def turn(self) -> None:
        """Admit what waits, and let the batch whose turn it is take a step: `news` and `errors` tell what came."""
        self._waiting = [row for row in self._waiting if not row.ended]
        for dropped in [batch for batch in self._batches if not batch.live]:
            self._end(dropped)
        while self._waiting and self._admit():
            pass
        if not self._batches:
            return
        batch = self._batches.pop(0)
        live = batch.live
        if self._pays(live, [], ROW_COST * (len(batch.rows) - len(live))):  # rows that ended still take their time
            batch.generator = None  # its memory, before more is asked for
            fresh = self._begin(live)
            if not fresh:
                return
            batch = fresh
        self._batches.append(batch)
        try:
            self._step(batch)
        except Exception as error:  # noqa: BLE001  # a batch that failed must not end the process
            self._batches.remove(batch)
            self._fail(batch.rows, "failed", f"onnxruntime-genai: {first_line(error)}")

    # ------------------------------------------------------------------------------------- who shares a batch

    def _admit(self) -> bool:
        """Find a place for the row that has waited longest, and whoever can share it; return whether there was one."""
        row = self._waiting[0]
        together = self._sharing([], self._waiting)
        kept, reused = self._kept_for(row)
        expected = min(row.left, self._typical)
        if kept and (reused >= STEP_COST * expected or (len(together) == 1 and not self._joinable(row))):
            self._kept.remove(kept)
            self._waiting.remove(row)
            kept.generator.rewind_to(reused)
            self._batches.insert(0, Batch(kept.generator, [row], kept.length, row.prompt, reused))
            self._together = 1
            return True
        if batch := self._joinable(row):
            together = self._sharing(batch.live, self._waiting)
            self._batches.remove(batch)
            self._keep(batch)
        elif self._batches and self._used() + cache_length(together) * len(together) > self._max_cache:
            return False  # until a batch ends
        self._waiting = [row for row in self._waiting if row not in together]
        if new := self._begin(together):
            self._batches.insert(0, new)
            self._together = len(together)
        return True

    def _joinable(self, row: Row) -> Batch | None:
        """Return a running batch that may as well begin anew, with *row*."""
        for batch in self._batches:
            live = batch.live
            if row in self._sharing(live, [row]) and self._pays(live, [row], STEP_COST):
                return batch
        return None

    def _sharing(self, rows: list[Row], others: list[Row]) -> list[Row]:
        """Return *rows*, with those of *others* that can share a batch with them and each other."""
        rows = list(rows)
        elsewhere = sum(batch.cache for batch in self._batches if not set(rows) & set(batch.rows))
        for row in others:
            if len(rows) == self._max_batch:
                break
            if not rows or self._fits([*rows, row], elsewhere):
                rows.append(row)
        return rows

    def _fits(self, rows: list[Row], elsewhere: int) -> bool:
        length = cache_length(rows)
        return (
            length <= self._model.context
            and length * len(rows) + elsewhere <= self._max_cache
            and longest(rows) <= 2 * min(row.length for row in rows) + 32  # og computes padding as if it were text
            and all(row.json_schema is None for row in rows)  # og: one grammar, one row
        )

    def _pays(self, live: list[Row], joining: list[Row], saved: int) -> bool:
        """Return whether computing *live* again, with *joining*, costs less than *saved* at every step to come."""
        rows = [*live, *joining]
        again = longest(rows) * len(rows) - longest(joining) * len(joining)
        steps = min(self._typical, *(row.left for row in rows))
        return bool(live) and live[0].json_schema is None and again <= saved * steps

    # ---------------------------------------------------------------------------------------------- KV cache

    def _used(self) -> int:
        return sum(batch.cache for batch in self._batches)

    def _kept_for(self, row: Row) -> tuple[Batch | None, int]:
        """Return what is kept and serves *row*'s prompt best, and how much of it; not where more would be lost.

        Where no prefix fits, and the oldest would have to go, it is that one: its memory spares making another.
        """
        best, most, needed = None, 0, cache_length([row])
        for batch in self._kept if row.json_schema is None else []:
            reused = min(common_prefix(batch.prompt, row.prompt), len(row.prompt) - 1) // GRAIN * GRAIN
            if reused > most and len(batch.prompt) <= 2 * reused + GRAIN and needed <= batch.length:
                best, most = batch, reused
        full = sum(batch.cache for batch in self._kept) + self._roomy(needed) > self._max_kept
        if not best and full and row.json_schema is None and self._kept and needed <= self._kept[0].length:
            best = self._kept[0]
        return best, most

    def _roomy(self, length: int) -> int:
        """Return the length of a lone row's cache that needs *length*: its prompt and answer may begin the next."""
        free = self._max_cache - self._used()
        return max(length, min(2 * length, self._model.context, self._max_kept, free))

    def _keep(self, batch: Batch) -> None:
        """Keep the KV cache of a batch that ended, if it was a lone row's, and as long as there is room."""
        if len(batch.rows) == 1 and batch.computed == len(batch.prompt) and batch.rows[0].json_schema is None:
            self._kept.append(batch)
            self._make_room(0)
        else:
            batch.generator = None  # its memory, before more is asked for

    def _make_room(self, cache: int) -> None:
        """Give up what was kept longest, until *cache* tokens more fit."""
        free = self._max_cache - self._used() - cache
        while self._kept and sum(batch.cache for batch in self._kept) > min(self._max_kept, free):
            self._kept.pop(0)

    # ------------------------------------------------------------------------------------------------- steps

    def _begin(self, rows: list[Row]) -> Batch | None:
        """Return a batch of *rows*, its prompts computed if there are several; None if og will not have it."""
        length = cache_length(rows)
        if len(rows) == 1 and rows[0].json_schema is None:
            length = self._roomy(length)
        self._make_room(length * len(rows))
        try:
            batch = Batch(self._model.generator(len(rows), length, rows[0].json_schema), rows, length, rows[0].text)
            if len(rows) > 1:
                ids = np.full((len(rows), longest(rows)), PAD, dtype=np.int32)
                for at, row in enumerate(rows):
                    ids[at, : len(row.text)] = row.text  # padded on the right: og counts positions from the left
                batch.generator.append_tokens(ids)
                batch.computed = len(batch.prompt)
                self.computed += ids.size
        except Refused as error:
            self._fail(rows, "refused", str(error))
        except Exception as error:  # noqa: BLE001  # as above
            self._fail(rows, "failed", f"onnxruntime-genai: {first_line(error)}")
        else:
            return batch
        return None

    def _step(self, batch: Batch) -> None:
        """Compute the next part of the prompt, or a token for every row."""
        if batch.computed < len(batch.prompt):
            part = batch.prompt[batch.computed : batch.computed + CHUNK]
            batch.generator.append_tokens(np.array([part], dtype=np.int32))
            batch.computed += len(part)
            self.computed += len(part)
            if batch.computed < len(batch.prompt):
                return
        running = [(at, row) for at, row in enumerate(batch.rows) if not row.ended]
        if any(row.temperature for _, row in running):
            logits = np.array(batch.generator.get_logits())  # batch, 1, vocabulary
            for at, row in running:
                if row.temperature:
                    logits[at, 0] = sampled(logits[at, 0], row)
            batch.generator.set_logits(logits)
        batch.generator.generate_next_token()
        tokens = batch.generator.get_next_tokens()
        for at, row in running:
            self._push(row, int(tokens[at]))
        if not batch.live:
            self._end(batch)

    def _push(self, row: Row, token: int) -> None:
        row.tokens.append(token)
        row.ended = token in self._model.end_ids or row.left == 0
        if row.ended:
            self._typical += 0.1 * (len(row.tokens) - self._typical)
        if row.at_once:
            self.news.append((row.id, [token]))
        elif row.ended:
            self.news.append((row.id, row.tokens))

    def _end(self, batch: Batch) -> None:
        self._batches.remove(batch)
        self._keep(batch)

    def _fail(self, rows: list[Row], how: str, why: str) -> None:
        self.errors += [(row.id, how, why) for row in rows if not row.ended]
        for row in rows:
            row.ended = True


def sampled(logits: npt.NDArray[np.float32], row: Row) -> npt.NDArray[np.float32]:
    """Return *logits* changed at random, so that the token of the largest is a sample at row.temperature.

    argmax(logits / T - log(E)) with exponentially distributed E is distributed as softmax(logits / T): the
    Gumbel-max trick. It leaves the last word to og, which rules out tokens that a JSON schema forbids. For
    the same reason tokens outside top_k and top_p come far behind the others, and are not ruled out here.
    """
    scaled = (logits - logits.max()) / np.float32(max(row.temperature, 1e-4))
    outside = np.zeros(scaled.shape, dtype=bool)
    if 0 < row.top_k < scaled.size:
        outside |= scaled < np.partition(scaled, -row.top_k)[-row.top_k]
    if row.top_p < 1:
        weights = np.where(outside, 0, np.exp(scaled))
        total = weights.sum(dtype=np.float64)
        # Tokens this light are outside even if all are as light (0.999: rounding): far fewer are left to sort.
        falling = np.sort(weights[weights >= 0.999 * (1 - row.top_p) * total / weights.size])[::-1]
        reached = int(np.searchsorted(falling.cumsum(dtype=np.float64), row.top_p * total))
        outside |= weights < falling[min(reached, falling.size - 1)]
    noise = np.log(np.maximum(row.random.standard_exponential(scaled.size, dtype=np.float32), 1e-30))
    return np.asarray(scaled - noise - np.float32(1e6) * outside, dtype=np.float32)


def first_line(error: Exception) -> str:
    """Return what *error* says, less og's trace."""
    return str(error).partition("\n")[0]


def serve(connection: Connection, folder: Path, threads: int, limits: dict[str, int], parent: int) -> None:
    """Load the model and do what *connection* says, until it or the process *parent* ends."""
    try:
        model = Model(folder, threads)
    except Exception as error:  # noqa: BLE001  # whatever it is, who started this process has to tell it
        why = first_line(error)
        connection.send_bytes(json.dumps({"failed": why or type(error).__name__}).encode())
        return
    scheduler = Scheduler(model, **limits)
    connection.send_bytes(b'{"ready": true}')
    while True:
        if connection.poll(1.0 if scheduler.idle else scheduler.patience):
            message = json.loads(connection.recv_bytes())
            for row in message.get("add", []):
                scheduler.add(Row(**row))
            scheduler.drop(message.get("drop", []))
        elif os.getppid() != parent:  # a process that inherited the connection would keep it open
            return
        elif not scheduler.idle:
            scheduler.turn()
            if scheduler.news or scheduler.errors:
                told = {"tokens": scheduler.news, "error": scheduler.errors}
                connection.send_bytes(json.dumps(told).encode())
                scheduler.news, scheduler.errors = [], []


def main(arguments: Sequence[str]) -> None:
    """Serve over the connection that *arguments* name: descriptor, folder, threads, limits as JSON, parent's id."""
    descriptor, folder, threads, limits, parent = arguments
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they reach the parent too, which may want to finish its answers
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        serve(Connection(int(descriptor)), Path(folder), int(threads), json.loads(limits), int(parent))
    sys.stderr.flush()
    os._exit(0)  # at once: taking a model of gigabytes apart takes time, and helps nobody


if __name__ == "__main__":
    main(sys.argv[1:])
