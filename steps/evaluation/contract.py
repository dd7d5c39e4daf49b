"""Does a candidate do what its signature promises? Tried with real calls. Every figure of the area `contract`."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from steps.evaluation.asking import Predict
from steps.evaluation.tasks import Example

CountTokens = Callable[[str], int | None]
"""From an answer's text to the number of its tokens; None if the tokenizer is unknown."""

Ask = Callable[..., tuple[str, int | None] | None]
"""From the options of a request to the answer's text and number of tokens, or None when the call fails."""

FEW = 1
"""The `max_tokens` that an answer is cut at."""


def contract_metrics(
    predict: Predict,
    examples: Sequence[Example],
    max_tokens: int,
    fields: Collection[str],
    count_tokens: CountTokens,
) -> dict[str, float]:
    """Return for each promise the share of *examples* for which it is kept, from 0 to 1; a call that fails keeps none.

    - `repeatable`: the same question gets the same answer twice.
    - `max_tokens`, if it is one of the signature's *fields*: an answer limited to FEW tokens has no more, and is the
      beginning of the unlimited one.
    - `stop`, likewise: nothing follows the stop string.

    An answer too short to be cut does not count. If no answer counts, the figure is left out.
    """
    kept: dict[str, list[bool]] = {}
    for example in examples:
        for promise, is_kept in _promises(partial(_ask, predict, count_tokens, example), max_tokens, fields).items():
            kept.setdefault(promise, []).append(is_kept)
    return {f"contract.{promise}": sum(each) / len(each) for promise, each in kept.items()}


def _ask(
    predict: Predict,
    count_tokens: CountTokens,
    example: Example,
    **options: Any,  # noqa: ANN401  a request holds anything
) -> tuple[str, int | None] | None:
    try:
        response = predict({"messages": [dict(message) for message in example.messages], **options})
        text = response["choices"][0]["message"]["content"].strip()
        return text, (response.get("usage") or {}).get("completion_tokens") or count_tokens(text)
    except Exception:  # noqa: BLE001  a promise that ends in an error is one that was not kept
        return None


def _promises(ask: Ask, max_tokens: int, fields: Collection[str]) -> dict[str, bool]:
    """Return for each promise that this answer can test whether it is kept."""
    whole = ask(max_tokens=max_tokens)
    kept = {"repeatable": whole is not None and whole == ask(max_tokens=max_tokens)}
    if whole is None:
        return kept
    text, tokens = whole
    if "max_tokens" in fields and tokens is not None and tokens > FEW:
        short = ask(max_tokens=FEW)
        kept["max_tokens"] = short is not None and (short[1] or 0) <= FEW and _begins(text, short[0])
    if "stop" in fields and len(text) > 1:
        words = text.split()
        # A word from the middle: at the end, stopping and going on look the same.
        stop = words[(len(words) - 1) // 2] if len(words) > 1 else text[(len(text) - 1) // 2]
        stopped = ask(max_tokens=max_tokens, stop=[stop])
        before = text[: text.index(stop)]
        kept["stop"] = stopped is not None and stopped[0] in (before.strip(), (before + stop).strip())
    return kept


def _begins(whole: str, short: str) -> bool:
    # The last token may be half a character.
    return whole.startswith(short.rstrip("\ufffd"))
