"""Requests and an evaluation as tests need them."""

from steps.monitoring.watched import Baseline
from steps.monitoring.window import Request

BASELINE = Baseline(
    max_tokens=32,
    prompts=[f"question {number}" for number in range(100)],
    answers=[f"answer {number}" for number in range(100)],
    scripts=["latin"] * 100,
    prompt_tokens=[10 + number % 10 for number in range(100)],
    cut=[False] * 100,
    agrees=[True] * 100,
    seconds_per_token=0.01,
    first_token={8: 0.1, 16: 0.2},
)


def answer(number: int, **changes: object) -> Request:
    """Return the request *number*, answered like the evaluation's questions, but for *changes*."""
    usual: dict[str, object] = {
        "time": 1_800_000_000.0 + number,
        "seconds": 0.08,
        "prompt_tokens": 10 + number % 10,
        "output_tokens": 8,
        "finish_reasons": ("stop",),
        "script": "latin",
        "prompt": f"p{number}",
        "answers": (f"a{number}",),
    }
    return Request(**{**usual, **changes})  # type: ignore[arg-type]


def refusal(number: int, status: int = 400, error: str = "invalid_value", field: str | None = "messages") -> Request:
    """Return a request that ended in an error."""
    return Request(time=1_800_000_000.0 + number, seconds=0.001, status=status, error=error, field=field)
