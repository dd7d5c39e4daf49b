"""Who shares a batch and what is kept changes the cost of an answer, never the answer."""

import random
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from steps.checkpoint.onnx_export import build_onnx, recipe_of
from steps.config.command_line import compose_config
from steps.config.schema import ExecutionProvider
from steps.wrappers import onnx_engine
from steps.wrappers.onnx_engine import GRAIN, Model, Row, Scheduler
from tests.conftest import ROOT

IDS = count()
PLAIN: dict[str, Any] = {"temperature": 0, "top_p": 1, "top_k": 0, "json_schema": None, "at_once": True}


def prompt_of(length: int, seed: int = 0) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(10, 400) for _ in range(length)]


def row(prompt: list[int], max_tokens: int = 12, **options: Any) -> Row:
    return Row(next(IDS), prompt, max_tokens, **{**PLAIN, "seed": [1, 2], **options})


def scheduler(model: Model, **limits: int) -> Scheduler:
    return Scheduler(model, **{"max_batch": 8, "max_batch_tokens": 4096, "max_kept_tokens": 2048, **limits})


def answers(engine: Scheduler, *rows: Row) -> list[list[int]]:
    """Return the tokens of *rows*, which begin together."""
    for each in rows:
        engine.add(each)
    while not engine.idle:
        engine.turn()
    assert not engine.errors
    return [each.tokens for each in rows]


@pytest.fixture(scope="module")
def model(onnx_folder: Path) -> Model:
    """Return the fp32 model with a window of 64 tokens."""
    return Model(onnx_folder, 1)


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return the embedded model as the flow builds it."""
    folder = tmp_path_factory.mktemp("int4")
    options = compose_config([]).build_onnx_wrapper
    recipe = recipe_of(options)
    build_onnx(ROOT / "models" / "tiny_phi3", folder / "onnx", recipe, ExecutionProvider.cpu, folder / "builder.log")
    return Model(folder / "onnx", 1)


@pytest.mark.parametrize("which", ["model", "int4"])
@pytest.mark.parametrize("first", [20, 63, 64, 65, 150, 300])
def test_a_second_turn_gets_the_answer_that_it_gets_without_the_first(
    request: pytest.FixtureRequest, which: str, first: int
) -> None:
    loaded = request.getfixturevalue(which)
    length = min(first, loaded.context // 2 - 20)
    engine, forgetful = scheduler(loaded), scheduler(loaded, max_kept_tokens=0)
    beginning = prompt_of(length)
    (answer,) = answers(engine, row(beginning))
    for turn in range(3):
        prompt = beginning + answer[:turn] + prompt_of(5 + turn, seed=turn)
        before = engine.computed
        reused = answers(engine, row(prompt))
        assert reused == answers(forgetful, row(prompt))
        assert engine.computed - before <= len(prompt) - length // GRAIN * GRAIN
        assert forgetful.computed >= len(prompt)


def test_a_system_message_is_computed_once(model: Model) -> None:
    system = prompt_of(96)
    engine, forgetful = scheduler(model), scheduler(model, max_kept_tokens=0)
    for seed in range(5):
        prompt = system + prompt_of(10 + seed, seed)
        assert answers(engine, row(prompt)) == answers(forgetful, row(prompt))
    assert engine.computed == 96 + sum(10 + seed for seed in range(5))


def test_the_same_prompt_again_gets_the_same_answer(model: Model) -> None:
    engine = scheduler(model)
    prompt = prompt_of(64)
    assert answers(engine, row(prompt)) == answers(engine, row(prompt))
    assert engine.computed == 64 + GRAIN


def test_what_is_kept_stays_within_its_limit(model: Model) -> None:
    engine = scheduler(model, max_kept_tokens=300)
    for seed in range(6):
        answers(engine, row(prompt_of(60, seed)))
    assert 0 < sum(batch.cache for batch in engine._kept) <= 300
    answers(engine, row(prompt_of(400)))
    assert sum(batch.cache for batch in engine._kept) <= 300


def test_a_cache_taken_over_for_another_prompt_leaves_no_trace(model: Model) -> None:
    engine = scheduler(model, max_kept_tokens=200)
    for seed in range(4):
        generators = [batch.generator for batch in engine._kept]
        assert answers(engine, row(prompt_of(80, seed))) == answers(scheduler(model), row(prompt_of(80, seed)))
        assert not generators or engine._kept[0].generator is generators[0]


def test_a_row_that_joins_a_running_batch_changes_nobodys_answer(model: Model) -> None:
    prompts = [prompt_of(20 + seed, seed) for seed in range(4)]
    options = [{"temperature": seed % 2, "seed": [seed, 0]} for seed in range(4)]
    alone = [
        answers(scheduler(model), row(prompt, 60, **each))[0] for prompt, each in zip(prompts, options, strict=True)
    ]
    engine = scheduler(model)
    rows = [row(prompt, 60, **each) for prompt, each in zip(prompts, options, strict=True)]
    for each in rows:
        engine.add(each)
        for _ in range(3):
            engine.turn()
    assert len(engine._batches) == 1
    assert answers(engine) == []
    assert [each.tokens for each in rows] == alone


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time that the scheduler reads, which stands still."""
    now = [1000.0]
    monkeypatch.setattr(onnx_engine, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("clock")
def test_clients_that_shared_a_batch_are_waited_for_until_as_many_ask_again(model: Model) -> None:
    engine = scheduler(model)
    engine.add(row(prompt_of(20)))
    assert engine.patience == 0, "nobody has ever asked beside it"
    answers(engine, row(prompt_of(20, 1)))  # and the one before

    engine.add(row(prompt_of(20, 2)))
    assert engine.patience > 0
    engine.add(row(prompt_of(20, 3)))
    assert engine.patience == 0, "as many are here"
    engine.turn()
    engine.add(row(prompt_of(20, 4)))
    assert engine.patience == 0, "a running batch waits for nobody"
    answers(engine)

    answers(engine, row(prompt_of(20, 5)))
    engine.add(row(prompt_of(20, 6)))
    assert engine.patience == 0, "alone again"


def test_who_asks_first_waits_50_ms_at_most_however_the_others_trickle_in(model: Model, clock: list[float]) -> None:
    engine = scheduler(model)
    answers(engine, *(row(prompt_of(20, seed)) for seed in range(8)))
    for seed, patience in enumerate([0.02, 0.02, 0.012]):  # at 0, 19 and 38 ms
        engine.add(row(prompt_of(20, seed)))
        assert engine.patience == pytest.approx(patience)
        clock[0] += 0.019
    assert engine.patience == 0


def test_rows_that_are_added_together_are_one_batch(model: Model) -> None:
    engine = scheduler(model)
    for seed in range(6):
        engine.add(row(prompt_of(20 + seed, seed)))
    engine.turn()
    assert [len(batch.rows) for batch in engine._batches] == [6]


def test_rows_that_nobody_waits_for_are_given_up(model: Model) -> None:
    engine = scheduler(model)
    rows = [row(prompt_of(20, seed), 400) for seed in range(4)]
    for each in rows:
        engine.add(each)
    for _ in range(3):
        engine.turn()
    shown = [len(each.tokens) for each in rows]
    engine.drop([each.id for each in rows])
    assert not engine.idle
    engine.turn()
    assert engine.idle
    assert [len(each.tokens) for each in rows] == shown


@pytest.mark.usefixtures("clock")
def test_rows_that_outlast_their_batch_go_on_without_the_others(model: Model) -> None:
    lengths = [100, 3, 5, 7]
    prompts = [prompt_of(20, seed) for seed in range(4)]
    alone = [answers(scheduler(model), row(p, n))[0] for p, n in zip(prompts, lengths, strict=True)]
    engine = scheduler(model)
    rows = [row(p, n) for p, n in zip(prompts, lengths, strict=True)]
    for each in rows:
        engine.add(each)
    for _ in range(20):
        engine.turn()
    assert [len(batch.rows) for batch in engine._batches] == [1]
    answers(engine)
    assert [each.tokens for each in rows] == alone
    engine.add(row(prompts[0]))
    assert engine.patience > 0, "four began together last, whoever outlasted whom"


def test_a_long_prompt_lets_others_take_their_turns(model: Model) -> None:
    engine = scheduler(model)
    long, short = row(prompt_of(450), 2), row(prompt_of(10), 30)
    engine.add(short)
    engine.turn()
    engine.add(long)
    engine.turn()
    shown = len(short.tokens)
    engine.turn()
    assert not long.tokens
    assert len(short.tokens) == shown + 1
    answers(engine)
    assert [long.tokens, short.tokens] == [
        answers(scheduler(model), row(r.prompt, r.max_tokens))[0] for r in (long, short)
    ]


@pytest.mark.parametrize("kept", [0, 200])
@pytest.mark.parametrize(("lengths", "cache"), [([70] * 5, 200), ([250, 50, 250, 50, 50], 400)])
def test_rows_beyond_the_cache_wait(model: Model, lengths: list[int], cache: int, kept: int) -> None:
    engine = scheduler(model, max_batch_tokens=cache, max_kept_tokens=kept)
    rows = [row(prompt_of(length, seed), 20) for seed, length in enumerate(lengths)]
    for each in rows:
        engine.add(each)
    while not engine.idle:
        engine.turn()
        assert sum(batch.cache for batch in [*engine._batches, *engine._kept]) <= cache
    assert [r.tokens for r in rows] == [answers(scheduler(model), row(r.prompt, 20))[0] for r in rows]
