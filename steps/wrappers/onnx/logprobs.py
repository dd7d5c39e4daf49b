"""OpenAI's objects for log probabilities, of Chat Completions and of Completions.

They have an entry for each generated token but the end token. A token that holds part of a character has U+FFFD as its
text and no bytes.
"""

from typing import Any

from .output import RequestOutput

Objects = dict[str, Any]


def chat_logprobs(output: RequestOutput) -> Objects | None:
    """Return the object of a chat's choice for its tokens since the last call; None if none was asked for."""
    if output.request.logprobs is None:
        return None
    content = []
    for at in output.take_logprobs():
        logprob, alternatives = output.logprobs[at]
        others = [_entry(output, at, each, value) for each, value in alternatives]
        content.append({**_entry(output, at, output.tokens[at], logprob), "top_logprobs": others})
    return {"content": content, "refusal": None}


def completion_logprobs(output: RequestOutput) -> Objects | None:
    """Return the object of a Completions choice, likewise; its offsets count characters of the answer."""
    if output.request.logprobs is None:
        return None
    positions = output.take_logprobs()
    texts, offsets, alternatives = [], [], []
    offset = len(output.tokenizer.decode(output.tokens[: positions.start]))
    for at in positions:
        texts.append(_text(output, at, output.tokens[at]))
        offsets.append(offset)
        offset += len(texts[-1])
        alternatives.append({_text(output, at, token): value for token, value in output.logprobs[at][1]})
    return {
        "tokens": texts,
        "token_logprobs": [output.logprobs[at][0] for at in positions],
        "top_logprobs": alternatives if output.request.logprobs else None,
        "text_offset": offsets,
    }


def _entry(output: RequestOutput, at: int, token: int, logprob: float) -> Objects:
    text = _text(output, at, token)
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def _text(output: RequestOutput, at: int, token: int) -> str:
    return output.tokenizer.token_text(token, is_first=at == 0)
