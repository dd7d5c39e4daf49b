"""What runs in a candidate's process: the first argument of each function is the loaded model."""

import bisect
import itertools
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from steps.evaluation.asking import Answer, ask_one, ask_together
from steps.evaluation.choices import log_likelihoods
from steps.evaluation.contract import contract_metrics
from steps.evaluation.fidelity import Logits, Text, chunks, measured_rows, shortened
from steps.evaluation.scoring import CHOOSING
from steps.evaluation.tasks import Example
from steps.logged_models.dtype import describe_dtype
from steps.logged_models.language_model import LanguageModel, language_model
from steps.logged_models.process import chat_with, is_pipeline, predict_rows, predict_together, render, takes_prompts
from steps.records.errors import StepError
from steps.wrappers.onnx.cpus import usable_cpus

Chat = list[dict[str, str]]


def ask_alone(model: PyFuncModel, folder: Path, examples: Sequence[Example], max_tokens: int) -> list[Answer]:
    """Return the answers of *model*, loaded from *folder*, to *examples*, asked and timed one at a time."""
    if any(example.scorer in CHOOSING for example in examples):
        language_model(model, folder).logits([0])  # loads the weights once more, which must not be timed

    def likelihoods(example: Example) -> dict[str, float]:
        return log_likelihoods(language_model(model, folder), example)

    return [ask_one(chat_with(model), example, {"max_tokens": max_tokens}, likelihoods) for example in examples]


def ask_batch(model: PyFuncModel, examples: Sequence[Example], max_tokens: int) -> list[Answer]:
    """Return the answers of *model* to *examples*, computed as one batch and not timed."""
    return ask_together(partial(predict_together, model), examples, {"max_tokens": max_tokens})


def keep_contract(model: PyFuncModel, folder: Path, examples: Sequence[Example], max_tokens: int) -> dict[str, float]:
    """Return how far *model* does what its signature promises, on *examples*; see `contract_metrics`."""
    signature = model.metadata.signature
    fields = [*signature.inputs.input_names(), *(each.name for each in signature.params or [])]

    def count_tokens(text: str) -> int | None:
        try:
            return len(language_model(model, folder).text(text)[1])
        except StepError:  # another kind of model, whose tokenizer is unknown
            return None

    metrics = contract_metrics(chat_with(model), examples, max_tokens, fields, count_tokens)
    return metrics | {"contract.signature": float(_fits_signature(model, examples[0], max_tokens))}


def _fits_signature(model: PyFuncModel, example: Example, max_tokens: int) -> bool:
    """Return whether *model* accepts a request that fits its signature, and its response fits too."""
    options = {"max_tokens": max_tokens}
    try:
        if takes_prompts(model):
            prompt = render(model, example.messages)
            return all(isinstance(text, str) for text in model.predict({"prompt": [prompt]}, params=options))
        response = predict_rows(model, [example.messages], options)
        mlflow.models.validate_schema(pd.DataFrame(response), model.metadata.signature.outputs)
    except MlflowException:
        return False
    return True


def token_texts(
    model: PyFuncModel, folder: Path, chats: Sequence[tuple[Chat, str]], text: str | None, context: int
) -> list[Text]:
    """Return *chats*, each with an answer, and *text*, as the ids that *model* reads.

    Cut to *context* tokens, or to the model's own context if that is shorter.
    """
    return texts_of(language_model(model, folder), chats, text, context)


def texts_of(language: LanguageModel, chats: Sequence[tuple[Chat, str]], text: str | None, context: int) -> list[Text]:
    """Return *chats*, each with an answer, and *text*, as the ids that *language* reads; see `token_texts`."""
    context = min(context, language.context)
    texts = [shortened(Text(*language.chat(chat, answer)), context) for chat, answer in chats]
    return texts + (chunks(*language.text(text), context) if text is not None else [])


def rows_of(model: PyFuncModel, folder: Path, texts: Sequence[Text]) -> list[Logits]:
    """Return for each of *texts* the logits that predict its measured tokens: [measured tokens, vocabulary]."""
    logits = language_model(model, folder).logits_of([text.ids for text in texts])
    return [measured_rows(each, text) for each, text in zip(logits, texts, strict=True)]


def encode_texts(model: PyFuncModel, folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids that *model* reads of each of *texts*, without special tokens."""
    language = language_model(model, folder)
    return [language.encode(text) for text in texts]


def prompt_lengths(model: PyFuncModel, folder: Path, chats: Sequence[Chat]) -> list[int]:
    """Return how many tokens *model* reads of each of *chats* before it answers."""
    language = language_model(model, folder)
    return [len(language.chat(chat, "")[0]) for chat in chats]


def prompts_of(
    model: PyFuncModel, folder: Path, words: Sequence[str], tokens: int, numbers: Sequence[int]
) -> tuple[list[Chat], int]:
    """Return for each of *numbers* a chat of *words* with a prompt of *tokens* tokens, and the longest prompt's length.

    Each chat begins with a word and its number, so no two begin alike, even if *tokens* leaves room for nothing else.
    """
    language = language_model(model, folder)
    chats = [_prompt_of(language, words, tokens, number) for number in numbers]
    return chats, max(prompt_lengths(model, folder, chats))


def _prompt_of(language: LanguageModel, words: Sequence[str], tokens: int, number: int) -> Chat:
    at = number % len(words)
    turned = [f"{words[at]} {number}", *words[at + 1 :], *words[:at]]

    def chat(count: int, fill: int = 0) -> Chat:
        return [{"role": "user", "content": " ".join([*itertools.islice(itertools.cycle(turned), count), *"a" * fill])}]

    def length(count: int, fill: int = 0) -> int:
        return len(language.chat(chat(count, fill), "")[0])

    count = max(1, bisect.bisect_right(range(tokens + 1), tokens, key=length) - 1)
    # The next word may have more tokens than are left: fill up with short ones, so that all chats are equally long.
    free = range(1 + max(0, tokens - length(count)))
    return chat(count, max(0, bisect.bisect_right(free, tokens, key=lambda fill: length(count, fill)) - 1))


def time_call(
    model: PyFuncModel, folder: Path, first_chats: Sequence[Chat], chats: Sequence[Chat], new_tokens: int
) -> tuple[int, float, float]:
    """Return how many tokens *model* adds to each of *chats*, and the seconds to the first and to the last of them.

    It adds at most *new_tokens*. The time to the first token is that of a call for one token, on *first_chats*. If
    that call used *chats*, a model with a prefix cache would not compute them again in the second call.
    """
    started = time.perf_counter()
    predict_rows(model, first_chats, {"max_tokens": 1})
    first = time.perf_counter() - started
    started = time.perf_counter()
    response = predict_rows(model, chats, {"max_tokens": new_tokens})[0]
    seconds = time.perf_counter() - started
    usage: dict[str, Any] = response.get("usage") or {}
    text = response["choices"][0]["message"]["content"]
    tokens = usage.get("completion_tokens") or len(language_model(model, folder).text(text)[1])
    return max(1, int(tokens)), first, seconds


def dtype(model: PyFuncModel) -> str | None:
    """Return the dtype that a model of the transformers flavour computes in; None for any other model."""
    return describe_dtype(model.get_raw_model().model) if is_pipeline(model) else None


def threads(_model: PyFuncModel) -> int:
    """Return how many threads the model computes with: torch's setting, or the ONNX wrapper's."""
    return int(sys.modules["torch"].get_num_threads()) if "torch" in sys.modules else usable_cpus()


def peak_memory(_model: PyFuncModel) -> float:
    """Return the sum of the peak resident bytes of this process and of the processes that it started.

    The ONNX wrapper computes in a process of its own. Pages that processes share count in each.
    """
    process = psutil.Process()
    return float(sum(_high_water(each) for each in (process, *process.children(recursive=True))))


def _high_water(process: psutil.Process) -> int:
    """Return the peak resident bytes of *process*; its current ones where the system does not tell the peak."""
    try:
        if not psutil.LINUX:
            return int(process.memory_info().rss)
        # Not getrusage: after spawn it starts from the peak of the parent process.
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except (OSError, psutil.Error):  # it has ended meanwhile
        return 0
    # A zombie has no such line.
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
