"""Samples are distributed as the options say."""

from typing import Any

import numpy as np
import pytest

from steps.wrappers.onnx.engine.sampling import sampled
from steps.wrappers.onnx.engine.sequence import Sequence


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0.5}, [0.7246, 0.1812, 0.0652, 0.029]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.7}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.8}, [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
    ],
)
def test_samples_are_distributed_as_asked(options: dict[str, Any], expected: list[float]) -> None:
    sequence = Sequence(
        0,
        [1],
        1,
        **{"temperature": 1.0, "top_p": 1, "top_k": 0, **options},
        seed=[0, 0],
        json_schema=None,
        stream=False,
    )
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32))
    picks = [int(np.argmax(sampled(logits, sequence))) for _ in range(20_000)]
    assert np.bincount(picks, minlength=4) / 20_000 == pytest.approx(expected, abs=0.015)
