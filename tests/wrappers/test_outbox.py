"""Tokens in the middle of a stream go together; nobody waits for a first or a last one."""

import pytest

from steps.wrappers.onnx.engine import outbox as outbox_module
from steps.wrappers.onnx.engine.outbox import INTERVAL, Outbox
from steps.wrappers.onnx.engine.sequence import Sequence


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time that the outbox reads, which stands still."""
    now = [1000.0]
    monkeypatch.setattr(outbox_module, "monotonic", lambda: now[0])
    return now


def sequence(number: int, *, stream: bool = True) -> Sequence:
    return Sequence(number, [1], 100, temperature=0, top_p=1, top_k=0, seed=[0], json_schema=None, stream=stream)


def put(outbox: Outbox, each: Sequence, token: int, *, last: bool = False) -> None:
    each.tokens.append(token)
    each.stated.append((-float(token), []))
    each.finished = last
    outbox.put(each)


def test_tokens_after_the_first_wait_until_the_interval_is_over(clock: list[float]) -> None:
    outbox, one = Outbox(), sequence(1)
    put(outbox, one, 5)
    assert outbox.take(wait=True) == [(1, [5], [(-5, [])])], "the first one goes at once"
    for token in (6, 7):
        clock[0] += INTERVAL / 3
        put(outbox, one, token)
        assert outbox.take(wait=True) == []
    clock[0] += INTERVAL / 2
    assert outbox.take(wait=True) == [(1, [6, 7], [(-6, []), (-7, [])])]
    assert outbox.take(wait=False) == [], "each is sent once"


@pytest.mark.usefixtures("clock")
def test_the_last_token_of_one_sequence_takes_those_of_the_others_along() -> None:
    outbox, one, two = Outbox(), sequence(1), sequence(2)
    for each in (one, two):
        put(outbox, each, 5)
    outbox.take(wait=True)
    put(outbox, two, 6)
    assert outbox.take(wait=True) == []
    put(outbox, one, 7, last=True)
    assert [(number, tokens) for number, tokens, _ in outbox.take(wait=True)] == [(2, [6]), (1, [7])]


@pytest.mark.usefixtures("clock")
def test_before_a_long_step_everything_is_sent() -> None:
    outbox, one = Outbox(), sequence(1)
    put(outbox, one, 5)
    outbox.take(wait=True)
    put(outbox, one, 6)
    assert [tokens for _, tokens, _ in outbox.take(wait=False)] == [[6]]


def test_without_a_stream_all_tokens_are_sent_at_the_end() -> None:
    outbox, one = Outbox(), sequence(1, stream=False)
    put(outbox, one, 5)
    assert outbox.take(wait=False) == []
    put(outbox, one, 6, last=True)
    assert outbox.take(wait=True) == [(1, [5, 6], [(-5, []), (-6, [])])]
