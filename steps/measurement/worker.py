"""What a candidate's process does when it is told to: each function's first argument is the loaded model."""

import bisect
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from steps.evaluation.asking import Asked, ask
from steps.evaluation.choices import log_likelihoods
from steps.evaluation.contract import contract_metrics
from steps.evaluation.fidelity import Logits, Text, chunks, measured_rows, shortened
from steps.evaluation.scoring import CHOOSING
from steps.evaluation.tasks import Example
from steps.logged_models.language_model import LanguageModel, language_model
from steps.logged_models.process import chat_with, predict_rows, takes_prompts
from steps.records.errors import StepError
from steps.wrappers.onnx_chat import usable_cpus

Chat = list[dict[str, str]]


def ask_some(model: PyFuncModel, folder: Path, examples: Sequence[Example], max_tokens: int, warmup: int) -> Asked:
    """Return the answers of *model*, loaded from *folder*, to *examples*."""
    if any(example.scorer in CHOOSING for example in examples):
        language_model(model, folder).logits([0])  # loads the weights once more, which is no part of an answer

    def likelihoods(example: Example) -> dict[str, float]:
        return log_likelihoods(language_model(model, folder), example)

    return ask(chat_with(model), examples, {"max_tokens": max_tokens}, likelihoods=likelihoods, warmup=warmup)


def keep_contract(model: PyFuncModel, folder: Path, examples: Sequence[Example], max_tokens: int) -> dict[str, float]:
    """Return how far *model* keeps what its signature promises, on *examples*; see `contract_metrics`."""
    signature = model.metadata.signature
    fields = [*signature.inputs.input_names(), *(each.name for each in signature.params or [])]

    def count_tokens(text: str) -> int | None:
        try:
            return len(language_model(model, folder).text(text)[1])
        except StepError:  # a model of another kind, which does not say how many it generated either
            return None

    metrics = contract_metrics(chat_with(model), examples, max_tokens, fields, count_tokens)
    return metrics | {"contract.signature": float(_fits_signature(model, examples[0], max_tokens))}


def _fits_signature(model: PyFuncModel, example: Example, max_tokens: int) -> bool:
    """Return whether *model* takes a request by its signature, and gives a response by it."""
    options = {"max_tokens": max_tokens}
    try:
        if takes_prompts(model):
            prompt = model.unwrap_python_model().text.render(example.messages)
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

    Cut to *context* tokens, or to those that the model's own context holds if they are fewer.
    """
    return texts_of(language_model(model, folder), chats, text, context)


def texts_of(language: LanguageModel, chats: Sequence[tuple[Chat, str]], text: str | None, context: int) -> list[Text]:
    """Return *chats*, each with an answer, and *text*, as the ids that *language* reads; see `token_texts`."""
    context = min(context, language.context)
    texts = [shortened(Text(*language.chat(chat, answer)), context) for chat, answer in chats]
    return texts + (chunks(*language.text(text), context) if text is not None else [])


def rows_of(model: PyFuncModel, folder: Path, text: Text) -> Logits:
    """Return the logits that foretell the measured tokens of *text*: [measured tokens, vocabulary]."""
    return measured_rows(language_model(model, folder).logits(text.ids), text)


def prompt_lengths(model: PyFuncModel, folder: Path, chats: Sequence[Chat]) -> list[int]:
    """Return how many tokens *model* reads of each of *chats* before it answers."""
    language = language_model(model, folder)
    return [len(language.chat(chat, "")[0]) for chat in chats]


def prompts_of(
    model: PyFuncModel, folder: Path, words: Sequence[str], tokens: int, numbers: Sequence[int]
) -> tuple[list[Chat], int]:
    """Return for each of *numbers* a chat of *words* whose prompt has *tokens* tokens, and how many the longest has.

    Each begins with another of *words*, and with its number, so that no two begin alike. These two it has however few
    *tokens* are.
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
    # The last word may have had more tokens than were free: short ones take their place, so that all are as long.
    free = range(1 + max(0, tokens - length(count)))
    return chat(count, max(0, bisect.bisect_right(free, tokens, key=lambda fill: length(count, fill)) - 1))


def time_call(
    model: PyFuncModel, folder: Path, first_chats: Sequence[Chat], chats: Sequence[Chat], new_tokens: int
) -> tuple[int, float, float]:
    """Return how many tokens *model* adds to each of *chats*, at most *new_tokens*, and the seconds to first and last.

    The time to the first is that of a call for one token, on *first_chats*: a model that keeps what it computed of a
    prompt would not compute that of *chats* again.
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


def threads(_model: PyFuncModel) -> int:
    """Return how many threads the model computes with: torch's, or those that the ONNX wrapper takes."""
    return int(sys.modules["torch"].get_num_threads()) if "torch" in sys.modules else usable_cpus()


def peak_memory(_model: PyFuncModel) -> float:
    """Return the most bytes that this process and those it started ever had resident, each at its own peak, added up.

    With them, because the ONNX wrapper computes in a process of its own. Pages that they share count in each.
    """
    process = psutil.Process()
    return float(sum(_high_water(each) for each in (process, *process.children(recursive=True))))


def _high_water(process: psutil.Process) -> int:
    """Return the most bytes that *process* ever had resident; those of now where the system does not say."""
    try:
        if not psutil.LINUX:
            return int(process.memory_info().rss)
        # Not getrusage: what it says begins, after spawn, with the peak of the process above this one.
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except (OSError, psutil.Error):  # it has ended meanwhile
        return 0
    # One that has ended, and was not waited for, has no such line.
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
