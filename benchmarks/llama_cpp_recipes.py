"""llama.cpp's quantisations as models that `benchmarks.recipes` measures beside its own."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gguf_files import FULL

KINDS = ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", FULL)
"""From small to large. F16 is the check that both libraries compute the same model."""

CLOSEST = 1e-3
"""What the KL divergence of F16 may be, in nats."""


class LlamaCpp:
    """The GGUF file *path*, loaded with a thread for each usable CPU, for sequences of at most *context* tokens."""

    def __init__(self, path: Path, context: int) -> None:
        import llama_cpp

        threads = len(os.sched_getaffinity(0))
        settings = {"n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        # Flash attention is what llama.cpp's own programs choose.
        self._llama: Any = llama_cpp.Llama(str(path), logits_all=True, flash_attn=True, **settings)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits after each of *ids*."""
        self._llama.reset()
        self._llama.eval(list(ids))
        return np.array(self._llama.scores[: len(ids)], dtype=np.float32)

    def decode_rate(self, prompt: Sequence[int], answer: int) -> float:
        """Return the tokens a second of *answer* tokens after *prompt*, without the first, which needs the prompt."""
        token = self._likeliest(self.logits(prompt))
        started = time.perf_counter()
        for _ in range(answer - 1):
            self._llama.eval([token])
            token = self._likeliest(self._llama.scores[: self._llama.n_tokens])
        return (answer - 1) / (time.perf_counter() - started)

    @staticmethod
    def _likeliest(logits: npt.NDArray[np.float32]) -> int:
        return int(logits[-1].argmax())
