"""The cost of a step is what the clock says of this model on this machine."""

from itertools import count
from typing import Any

import numpy as np
import pytest

from steps.wrappers.onnx.engine import runner as runner_module
from steps.wrappers.onnx.engine.runner import StepCost, measured_cost


class Timed:
    """A model, and its generators: 7 to read the weights, 2 for each sequence, 1 for each further token of a prompt."""

    def __init__(self) -> None:
        self.now = 0.0

    def generator(self, _sequences: int, _length: int) -> "Timed":
        return self

    def append_tokens(self, ids: np.ndarray[Any, Any]) -> None:
        sequences, length = ids.shape
        self.now += 7 + 2 * sequences + (length - 1)


def test_a_step_costs_what_it_takes_in_prompt_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = Timed()
    monkeypatch.setattr(runner_module, "perf_counter", lambda: model.now)
    cost = measured_cost(model)
    assert cost == StepCost(7, 2)
    assert cost.of(8) == 23


@pytest.mark.parametrize("step", [0, -1])
def test_a_clock_that_shows_nonsense_still_gives_a_cost(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    times = count(10**6, step)
    monkeypatch.setattr(runner_module, "perf_counter", lambda: float(next(times)))
    model: Any = Timed()
    cost = measured_cost(model)
    assert 0 <= cost.fixed < 10**3
    assert 0 <= cost.each < 10**3
