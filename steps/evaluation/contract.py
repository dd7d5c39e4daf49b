"""Does a candidate do what its signature promises? Seen from real calls."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from steps.evaluation.tasks import Example

Predict = Callable[[dict[str, Any]], Mapping[str, Any]]
"""A candidate: from a Chat Completions request to its response."""

CountTokens = Callable[[str], int | None]
"""From an answer's text to the number of its tokens, or None when nobody knows."""

FEW = 1
"""The `max_tokens` that an answer is cut at."""


def contract_metrics(
    predict: Predict,
    examples: Sequence[Example],
    max_tokens: int,
    fields: Collection[str],
    count_tokens: CountTokens,
) -> dict[str, float]:
    """Return the shares of *examples* for which each promise is kept, from 0 to 1; a call that fails keeps none.

    `repeatable`: asked twice, the same answer. Of the signature's *fields*, `max_tokens`: an answer limited to FEW
    tokens is that short, and the beginning of the whole one; `stop`: nothing of the answer follows the stop string. An
    answer too short to be cut says nothing, and does not count; when none counts, the figure is left out.
    """
    kept: dict[str, list[bool]] = {}

    def ask(example: Example, **options: Any) -> tuple[str, int | None] | None:  # noqa: ANN401  a request holds anything
        """Return the answer's text and number of tokens, or None when the call fails."""
        try:
            response = predict({"messages": [dict(message) for message in example.messages], **options})
            text = response["choices"][0]["message"]["content"].strip()
            return text, (response.get("usage") or {}).get("completion_tokens") or count_tokens(text)
        except Exception:  # noqa: BLE001  a promise that ends in an error is one that was not kept
            return None

    for example in examples:
        whole = ask(example, max_tokens=max_tokens)
        kept.setdefault("repeatable", []).append(whole is not None and whole == ask(example, max_tokens=max_tokens))
        if whole is None:
            continue
        text, tokens = whole
        if "max_tokens" in fields and tokens is not None and tokens > FEW:
            short = ask(example, max_tokens=FEW)
            cut = short is not None and (short[1] or 0) <= FEW and _begins(text, short[0])
            kept.setdefault("max_tokens", []).append(cut)
        words = text.split()
        if "stop" in fields and len(text) > 1:
            # Not the end of the answer: there, to stop and to go on are the same.
            stop = words[(len(words) - 1) // 2] if len(words) > 1 else text[(len(text) - 1) // 2]
            stopped = ask(example, max_tokens=max_tokens, stop=[stop])
            before = text[: text.index(stop)]
            ends = (before.strip(), (before + stop).strip())
            kept.setdefault("stop", []).append(stopped is not None and stopped[0] in ends)
    return {f"contract.{name}": sum(each) / len(each) for name, each in kept.items()}


def _begins(whole: str, short: str) -> bool:
    # The last token may be half a character.
    return whole.startswith(short.rstrip("\ufffd"))
