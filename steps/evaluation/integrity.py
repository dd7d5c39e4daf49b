"""Was everything answered, and did every candidate read the same tokens? Every figure of the area `integrity`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from steps.evaluation.asking import Answer

HARD_TEXTS = (
    "hello world",
    " leading and trailing spaces ",
    "two  spaces, three   spaces",
    "line\nline\r\nline\n\n\tindented",
    "def f(x):\n    return {'a': x**2}  # 3.14, 1,000,000",
    "don't, I'll, we've — “quoted” … naïve café",
    "e\u0301 is e with an accent, \u00e9 is one character",
    "¿Dónde está la capital de España?",
    "日本の首都は東京です。",
    "عاصمة مصر هي القاهرة",
    "🙂👩‍👩‍👧 \u200b zero width",
    "https://example.org/a?b=c&d=%20",
)
"""Texts on which tokenizers that look alike give different ids."""


@dataclass
class TokenIds:
    """For each text, whether a candidate's token ids are the right ones.

    `same`: equal to the ids that the reference candidate reads. `checkpoint`: equal to those of the checkpoint's own
    tokenizer.json. Empty where it was not measured.
    """

    same: list[bool] = field(default_factory=list)
    checkpoint: list[bool] = field(default_factory=list)


def integrity_metrics(answers: Sequence[Answer], ids: TokenIds) -> dict[str, float]:
    """Return the share of *answers* with a text, the number of errors, and the shares of texts with the right ids."""
    figures = {
        "integrity.answered": sum(answer.answered for answer in answers) / len(answers),
        "integrity.errors": float(sum(answer.error is not None for answer in answers)),
    }
    for name, hits in (("same_tokens", ids.same), ("checkpoint_tokens", ids.checkpoint)):
        if hits:
            figures[f"integrity.{name}"] = sum(hits) / len(hits)
    return figures
