"""Sharing a batch or a prefix changes the cost of an answer, never the answer."""

import random
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from steps.config.command_line import compose_config
from steps.onnx_build.export import build_onnx, recipe_of
from steps.wrappers.onnx.engine import scheduler as scheduler_module
from steps.wrappers.onnx.engine.og_model import OgModel
from steps.wrappers.onnx.engine.prefix_cache import BLOCK_SIZE
from steps.wrappers.onnx.engine.runner import StepCost
from steps.wrappers.onnx.engine.scheduler import Scheduler
from steps.wrappers.onnx.engine.sequence import Sequence
from tests.conftest import ROOT

from .asking import generate

IDS = count()
PLAIN: dict[str, Any] = {"temperature": 0, "top_p": 1, "top_k": 0, "json_schema": None, "stream": True}


def prompt_of(length: int, seed: int = 0) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(10, 400) for _ in range(length)]


def sequence(prompt: list[int], max_tokens: int = 12, **options: Any) -> Sequence:
    return Sequence(next(IDS), prompt, max_tokens, **{**PLAIN, "seed": [1, 2], **options})


def scheduler(model: OgModel, **limits: int) -> Scheduler:
    return Scheduler(
        model, StepCost(2, 1), **{"max_batch": 8, "max_batch_tokens": 4096, "max_kept_tokens": 2048, **limits}
    )


def answers(engine: Scheduler, *sequences: Sequence) -> list[list[int]]:
    return generate(engine, sequences)


@pytest.fixture(scope="module")
def model(onnx_folder: Path) -> OgModel:
    """Return the fp32 model with a window of 64 tokens."""
    return OgModel(onnx_folder, 1)


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> OgModel:
    """Return the embedded model as the flow builds it."""
    folder = tmp_path_factory.mktemp("int4")
    options = compose_config([]).build_onnx_wrapper
    build_onnx(
        ROOT / "models" / "tiny_phi3",
        folder / "onnx",
        recipe_of(options),
        options.execution_provider,
        folder / "builder.log",
    )
    return OgModel(folder / "onnx", 1)


@pytest.mark.parametrize("which", ["model", "int4"])
@pytest.mark.parametrize("first", [20, 63, 64, 65, 150, 300])
def test_a_second_turn_gets_the_answer_that_it_gets_without_the_first(
    request: pytest.FixtureRequest, which: str, first: int
) -> None:
    loaded = request.getfixturevalue(which)
    length = min(first, loaded.context // 2 - 20)
    engine, forgetful = scheduler(loaded), scheduler(loaded, max_kept_tokens=0)
    beginning = prompt_of(length)
    (answer,) = answers(engine, sequence(beginning))
    for turn in range(3):
        prompt = beginning + answer[:turn] + prompt_of(5 + turn, seed=turn)
        before = engine.stats.prompt_tokens
        reused = answers(engine, sequence(prompt))
        assert reused == answers(forgetful, sequence(prompt))
        assert engine.stats.prompt_tokens - before <= len(prompt) - length // BLOCK_SIZE * BLOCK_SIZE
        assert forgetful.stats.prompt_tokens >= len(prompt)


def test_a_system_message_is_computed_once(model: OgModel) -> None:
    system = prompt_of(96)
    engine, forgetful = scheduler(model), scheduler(model, max_kept_tokens=0)
    for seed in range(5):
        prompt = system + prompt_of(10 + seed, seed)
        assert answers(engine, sequence(prompt)) == answers(forgetful, sequence(prompt))
    assert engine.stats.prompt_tokens == 96 + sum(10 + seed for seed in range(5))


def test_the_same_prompt_again_gets_the_same_answer(model: OgModel) -> None:
    engine = scheduler(model)
    prompt = prompt_of(64)
    assert answers(engine, sequence(prompt)) == answers(engine, sequence(prompt))
    assert engine.stats.prompt_tokens == 64 + BLOCK_SIZE


def test_what_is_kept_stays_within_its_limit(model: OgModel) -> None:
    engine = scheduler(model, max_kept_tokens=300)
    for seed in range(6):
        answers(engine, sequence(prompt_of(60, seed)))
    assert 0 < engine.stats.prefix_cache <= 300
    answers(engine, sequence(prompt_of(400)))
    assert engine.stats.prefix_cache <= 300


def test_a_cache_taken_over_for_another_prompt_leaves_no_trace(model: OgModel) -> None:
    engine = scheduler(model, max_kept_tokens=200)
    for seed in range(4):
        assert answers(engine, sequence(prompt_of(80, seed))) == answers(
            scheduler(model), sequence(prompt_of(80, seed))
        )
        assert engine.stats.generators == 1


def test_a_sequence_that_joins_a_running_batch_changes_nobodys_answer(model: OgModel) -> None:
    prompts = [prompt_of(20 + seed, seed) for seed in range(4)]
    options = [{"temperature": seed % 2, "seed": [seed, 0]} for seed in range(4)]
    alone = [
        answers(scheduler(model), sequence(prompt, 60, **each))[0]
        for prompt, each in zip(prompts, options, strict=True)
    ]
    engine = scheduler(model)
    sequences = [sequence(prompt, 60, **each) for prompt, each in zip(prompts, options, strict=True)]
    for each in sequences:
        engine.add(each)
        for _ in range(3):
            engine.step()
    assert len(engine.stats.batches) == 1
    assert answers(engine) == []
    assert [each.tokens for each in sequences] == alone


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time that the scheduler reads, which stands still."""
    now = [1000.0]
    monkeypatch.setattr(scheduler_module, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("clock")
def test_clients_that_shared_a_batch_are_waited_for_until_as_many_ask_again(model: OgModel) -> None:
    engine = scheduler(model)
    engine.add(sequence(prompt_of(20)))
    assert engine.max_wait == 0, "nobody has ever asked beside it"
    answers(engine, sequence(prompt_of(20, 1)))  # and the one before

    engine.add(sequence(prompt_of(20, 2)))
    assert engine.max_wait > 0
    engine.add(sequence(prompt_of(20, 3)))
    assert engine.max_wait == 0, "as many are here"
    engine.step()
    engine.add(sequence(prompt_of(20, 4)))
    assert engine.max_wait == 0, "a running batch waits for nobody"
    answers(engine)

    answers(engine, sequence(prompt_of(20, 5)))
    engine.add(sequence(prompt_of(20, 6)))
    assert engine.max_wait == 0, "alone again"


def test_who_asks_first_waits_50_ms_at_most_however_the_others_trickle_in(model: OgModel, clock: list[float]) -> None:
    engine = scheduler(model)
    answers(engine, *(sequence(prompt_of(20, seed)) for seed in range(8)))
    for seed, max_wait in enumerate([0.02, 0.02, 0.012]):  # at 0, 19 and 38 ms
        engine.add(sequence(prompt_of(20, seed)))
        assert engine.max_wait == pytest.approx(max_wait)
        clock[0] += 0.019
    assert engine.max_wait == 0


def test_sequences_that_are_added_together_are_one_batch(model: OgModel) -> None:
    engine = scheduler(model)
    for seed in range(6):
        engine.add(sequence(prompt_of(20 + seed, seed)))
    engine.step()
    assert engine.stats.batches == [6]


@pytest.mark.usefixtures("clock")
def test_a_request_waits_for_a_batch_that_ends_before_its_prompt_would_be_computed(model: OgModel) -> None:
    engine = scheduler(model)
    running = [sequence(prompt_of(100, seed), 20) for seed in range(8)]
    for each in running:
        engine.add(each)
    for _ in range(18):
        engine.step()
    early = sequence(prompt_of(60, 8))  # two steps of a batch of 8 cost 20
    engine.add(early)
    engine.step()
    assert engine.stats.batches == [8]
    engine.step()
    assert engine.idle is False
    assert engine.max_wait > 0, "those that it waited for may ask again"
    for seed in range(9, 16):
        engine.add(sequence(prompt_of(60, seed)))
    engine.step()
    assert engine.stats.batches == [8]


def test_a_request_does_not_wait_for_a_batch_that_ends_later(model: OgModel) -> None:
    engine = scheduler(model)
    for seed in range(8):
        engine.add(sequence(prompt_of(100, seed), 20))
    engine.step()
    engine.add(sequence(prompt_of(60, 8)))
    engine.step()
    assert sorted(engine.stats.batches) == [1, 8]


def test_a_sequence_that_is_dropped_frees_its_place_within_one_step(model: OgModel) -> None:
    engine = scheduler(model, max_batch=2, max_kept_tokens=0)
    sequences = [sequence(prompt_of(20, seed), 400) for seed in (0, 1, 3)]
    for each in sequences:
        engine.add(each)
    engine.step()
    assert engine.stats.running == 3, "of two batches"
    engine.drop([each.id for each in sequences[:2]])
    engine.step()
    assert (engine.stats.running, engine.stats.waiting, engine.stats.batches) == (1, 0, [1])


def test_the_stats_say_what_the_scheduler_is_doing(model: OgModel) -> None:
    engine = scheduler(model)
    prompt = prompt_of(40)
    answers(engine, sequence(prompt))
    engine.add(sequence(prompt))
    assert (engine.stats.waiting, engine.stats.running) == (1, 0)
    engine.step()
    stats = engine.stats
    assert (stats.waiting, stats.running, stats.batches) == (0, 1, [1])
    assert (stats.prefix_cache_hits, stats.prefix_cache_hit_tokens, stats.prompt_tokens) == (1, 32, 40 + 8)
    assert (stats.generators, stats.prefix_cache) == (1, 0)


def test_sequences_that_nobody_waits_for_are_given_up(model: OgModel) -> None:
    engine = scheduler(model)
    sequences = [sequence(prompt_of(20, seed), 400) for seed in range(4)]
    for each in sequences:
        engine.add(each)
    for _ in range(3):
        engine.step()
    shown = [len(each.tokens) for each in sequences]
    engine.drop([each.id for each in sequences])
    assert not engine.idle
    engine.step()
    assert engine.idle
    assert [len(each.tokens) for each in sequences] == shown


@pytest.mark.usefixtures("clock")
def test_sequences_that_outlast_their_batch_go_on_without_the_others(model: OgModel) -> None:
    lengths = [100, 3, 5, 7]
    prompts = [prompt_of(20, seed) for seed in range(4)]
    alone = [answers(scheduler(model), sequence(p, n))[0] for p, n in zip(prompts, lengths, strict=True)]
    engine = scheduler(model)
    sequences = [sequence(p, n) for p, n in zip(prompts, lengths, strict=True)]
    for each in sequences:
        engine.add(each)
    for _ in range(20):
        engine.step()
    assert engine.stats.batches == [1]
    answers(engine)
    assert [each.tokens for each in sequences] == alone
    engine.add(sequence(prompts[0]))
    assert engine.max_wait > 0, "four began together last, whoever outlasted whom"


def test_a_long_prompt_lets_others_take_their_turns(model: OgModel) -> None:
    engine = scheduler(model)
    long, short = sequence(prompt_of(450), 2), sequence(prompt_of(10), 30)
    engine.add(short)
    engine.step()
    engine.add(long)
    engine.step()
    shown = len(short.tokens)
    engine.step()
    assert not long.tokens
    assert len(short.tokens) == shown + 1
    answers(engine)
    assert [long.tokens, short.tokens] == [
        answers(scheduler(model), sequence(r.prompt, r.max_tokens))[0] for r in (long, short)
    ]


@pytest.mark.parametrize("kept", [0, 200])
@pytest.mark.parametrize(("lengths", "cache"), [([70] * 5, 200), ([250, 50, 250, 50, 50], 400)])
def test_sequences_beyond_the_cache_wait(model: OgModel, lengths: list[int], cache: int, kept: int) -> None:
    engine = scheduler(model, max_batch_tokens=cache, max_kept_tokens=kept)
    sequences = [sequence(prompt_of(length, seed), 20) for seed, length in enumerate(lengths)]
    for each in sequences:
        engine.add(each)
    while not engine.idle:
        engine.step()
        assert engine.stats.kv_cache + engine.stats.prefix_cache <= cache
    assert [r.tokens for r in sequences] == [answers(scheduler(model), sequence(r.prompt, 20))[0] for r in sequences]


class Unrewindable:
    """An og generator that refuses to be rewound."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def rewind_to(self, length: int) -> None:
        msg = f"RewindTo({length}) is not supported"
        raise RuntimeError(msg)


class UnrewindableModel(OgModel):
    def generator(self, *arguments: Any) -> Any:
        return Unrewindable(super().generator(*arguments))


def test_a_generator_that_cannot_be_rewound_costs_a_fresh_one_and_no_answer(model: OgModel, onnx_folder: Path) -> None:
    engine = scheduler(UnrewindableModel(onnx_folder, 1))
    prompt = prompt_of(60)
    expected = answers(scheduler(model), sequence(prompt))
    for generators in (1, 2, 3):
        assert answers(engine, sequence(prompt)) == expected
        assert engine.stats.generators == generators
    assert (engine.stats.prefix_cache, engine.stats.prefix_cache_hits) == (0, 0)


def test_a_sequence_that_cannot_be_admitted_fails_alone(model: OgModel) -> None:
    engine = scheduler(model)
    broken, other = sequence(None), sequence(prompt_of(20))  # type: ignore[arg-type]
    for each in (broken, other):
        engine.add(each)
    errors = []
    while not engine.idle:
        errors += engine.step()[1]
    assert [(number, how) for number, how, _ in errors] == [(broken.id, "failed")]
    assert other.tokens == answers(scheduler(model), sequence(prompt_of(20)))[0]
