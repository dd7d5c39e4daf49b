"""OpenAI's objects for log probabilities, of Chat Completions and of Completions.

They have an entry for each generated token but the end token. A token that holds part of a character has U+FFFD as its
text and no bytes.
"""

from typing import Any

from .output import RequestOutput

Objects = dict[str, Any]


def chat_logprobs(output: RequestOutput, first: int = 0) -> Objects | None:
    """Return the object of a chat's choice for the tokens from number *first* on; None if none was asked for."""
    if output.request.logprobs is None:
        return None
    content = []
    for at in range(first, len(output.logprobs)):
        logprob, alternatives = output.logprobs[at]
        others = [_entry(output, at, each, value) for each, value in alternatives]
        content.append({**_entry(output, at, output.tokens[at], logprob), "top_logprobs": others})
    return {"content": content, "refusal": None}


def completion_logprobs(output: RequestOutput, first: int = 0) -> Objects | None:
    """Return the object of a Completions choice, likewise; its offsets count characters of the answer."""
    if output.request.logprobs is None:
        return None
    texts = [_text(output, at, output.tokens[at]) for at in range(len(output.logprobs))]
    offsets = [sum(map(len, texts[:at])) for at in range(len(texts))]
    alternatives = [
        {_text(output, at, token): value for token, value in others}
        for at, (_logprob, others) in enumerate(output.logprobs)
    ]
    return {
        "tokens": texts[first:],
        "token_logprobs": [logprob for logprob, _others in output.logprobs[first:]],
        "top_logprobs": alternatives[first:] if output.request.logprobs else None,
        "text_offset": offsets[first:],
    }


def _entry(output: RequestOutput, at: int, token: int, logprob: float) -> Objects:
    text = _text(output, at, token)
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def _text(output: RequestOutput, at: int, token: int) -> str:
    return output.tokenizer.token_text(token, is_first=at == 0)
