"""The fields of a request: which are taken, ignored or refused, and how a mistake is answered.

A mistake is one line that names field, value and limit. `mlflow models serve` answers such an error with status 400.
"""

import re
from collections.abc import Mapping, Sequence
from reprlib import repr as brief
from typing import Any, NoReturn

from mlflow.exceptions import MlflowException

Fields = Mapping[str, Any]

PROMPT_FIELDS = ("prompt", "max_tokens", "temperature", "top_p", "top_k", "stop", "seed")
"""What interface=prompt takes."""

TAKEN, REFUSED, ANY = "taken", "refused", "any"
CHAT_FIELDS: dict[str, str | tuple[object, ...]] = {
    "messages": TAKEN,
    "max_tokens": TAKEN,
    "temperature": TAKEN,
    "top_p": TAKEN,
    "top_k": TAKEN,  # as vLLM has it
    "stop": TAKEN,
    "seed": TAKEN,
    "n": TAKEN,
    "response_format": TAKEN,
    "tools": TAKEN,
    "tool_choice": TAKEN,
    "parallel_tool_calls": TAKEN,
    "stream": TAKEN,
    "logprobs": TAKEN,
    "top_logprobs": TAKEN,
    "max_completion_tokens": TAKEN,  # OpenAI's newer name of max_tokens
    "chat_template_kwargs": TAKEN,  # as vLLM has it
    "ignore_eos": TAKEN,  # as vLLM has it; load generators ask for answers of a certain length
    "model": ANY,
    "user": ANY,
    "metadata": ANY,
    "service_tier": ANY,
    "safety_identifier": ANY,
    "prompt_cache_key": ANY,
    "prompt_cache_options": ANY,
    "prompt_cache_retention": ANY,
    "stream_options": ANY,  # the last chunk has the usage anyway
    "store": (False,),
    "min_p": (0,),  # as vLLM has it, and the next
    "repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "audio": REFUSED,
    "moderation": REFUSED,
    "prediction": REFUSED,
    "web_search_options": REFUSED,
}
"""Every field of Chat Completions: taken, accepted and ignored with any value or with these, or refused.

Any field may be null. The list is that of the openai package 3.57 (CompletionCreateParams), with fields of vLLM.
"""

COMPLETION_FIELDS: dict[str, str | tuple[object, ...]] = {
    "prompt": TAKEN,
    **dict.fromkeys(("max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "n", "stream", "logprobs"), TAKEN),
    "ignore_eos": TAKEN,
    "model": ANY,
    "user": ANY,
    "stream_options": ANY,
    "best_of": (1,),
    "echo": (False,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "suffix": ("",),
}
"""Every field of Completions, OpenAI's older interface to raw prompts, in the same way."""


def refuse(message: str) -> NoReturn:
    """Raise the error of a request that is wrong."""
    # The name of a field may have half a surrogate pair, which no response could say.
    raise MlflowException.invalid_parameter_value(message.encode(errors="backslashreplace").decode())


def require_whole_characters(field: str, text: str) -> None:
    """Refuse *text*, the value of *field*, if it has half a surrogate pair: no tokenizer can encode it."""
    if half := re.search("[\ud800-\udfff]", text):
        refuse(
            f"{field} has half a surrogate pair, {half[0]!a}, at character {half.start()}: "
            "send whole characters (was an emoji cut in two?)"
        )


def check_chat_fields(row: Fields) -> None:
    """Refuse the first field of *row* that Chat Completions does not serve, or not with that value."""
    _check_fields(row, CHAT_FIELDS)


def check_completion_fields(row: Fields) -> None:
    """Refuse the first field of *row* that Completions does not serve, or not with that value."""
    _check_fields(row, COMPLETION_FIELDS)


def _check_fields(row: Fields, table: Mapping[str, str | tuple[object, ...]]) -> None:
    for field, value in row.items():
        served = table.get(field, REFUSED)
        if served == REFUSED:
            _refuse_field(field, value, [name for name, how in table.items() if how == TAKEN])
        if isinstance(served, tuple) and not any(_same(value, neutral) for neutral in served):
            refuse(f"{field}={brief(value)} is not supported; only {' or '.join(map(repr, served))} is")


def check_prompt_fields(row: Fields) -> None:
    """Refuse the first field of *row* that interface=prompt does not serve."""
    for field, value in row.items():
        if field not in PROMPT_FIELDS:
            _refuse_field(field, value, PROMPT_FIELDS)


def _refuse_field(field: str, value: object, known: Sequence[str]) -> NoReturn:
    refuse(f"{field}={brief(value)} is not supported; {', '.join(known)} are")


def _same(value: object, neutral: object) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)  # 0 is not False
