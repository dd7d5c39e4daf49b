"""A candidate as a model of EleutherAI's lm-evaluation-harness, and its tasks run on it.

This module imports lm_eval, an optional extra: see requirements-lm-eval.in.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, handle_non_serializable

from steps.evaluation import choices
from steps.evaluation.asking import Predict, ask_one
from steps.evaluation.scoring import one_of
from steps.evaluation.tasks import Example

BOOTSTRAPS = 1_000
"""Resamples for the standard error of metrics that are not a mean, such as F1."""

KEPT = ("results", "samples", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "lm_eval_version")
"""The parts of the harness's results that are kept; the others describe the machine, as the run already does."""


class Model(choices.Model, Protocol):
    """A language model with its logits, which also reads plain text."""

    @property
    def context(self) -> int:
        """The maximum number of tokens in a sequence."""

    @property
    def prefix(self) -> int:
        """The token id that precedes a text without context."""

    def text(self, text: str, /) -> tuple[list[int], list[int]]:
        """Return the ids that the model expects before any text (BOS, or none), and the ids of *text*."""


class CandidateLM(LM):  # type: ignore[misc]  # lm_eval ships no types
    """A candidate as a model of the harness: likelihoods from its logits, answers from its chat interface.

    A chat passes through the harness as JSON text, which the harness does not change. Without `apply_chat_template`,
    contexts are plain text.
    """

    tokenizer_name = "candidate"

    def __init__(self, model: Model, predict: Predict, *, chat: bool) -> None:
        super().__init__()
        self._model, self._predict, self._chat = model, predict, chat
        # Cache the last one, because the choices of an example share their context.
        self._logits = functools.lru_cache(maxsize=1)(model.logits)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:  # noqa: ARG002
        """Return *chat_history* as JSON; an assistant's message at its end is the beginning of the answer."""
        return json.dumps(chat_history, ensure_ascii=False)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Return the log-probability of each (context, continuation), and whether greedy decoding would generate it."""
        return [self._score(*self._tokens(*request.args)) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Return the log-probability of each text, computed in windows of the model's context."""
        totals = []
        for request in requests:
            _before, ids = self._model.text(request.args[0])
            windows = get_rolling_token_windows(ids, self._model.prefix, self._model.context, context_len=1)
            totals.append(sum(self._score([*read, told[-1]], len(read) + 1 - len(told))[0] for read, told in windows))
        return totals

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return the candidate's greedy answer to each (chat, options), up to the first stop string."""
        # Check all before the first is answered: the answers may take hours.
        asked = [(_messages(request.args[0], chat=self._chat), _options(request.args[1])) for request in requests]
        allowed = [min(tokens, self._room(messages)) for messages, (tokens, _stop) in asked]
        texts = []
        for (messages, (_tokens, stop)), max_tokens in zip(asked, allowed, strict=True):
            answer = ask_one(self._predict, Example("", messages, ""), {"max_tokens": max_tokens})
            if answer.error is not None:
                msg = f"no answer to {messages[-1]['content']!r:.80}: {answer.error}"
                raise RuntimeError(msg)
            texts.append(functools.reduce(lambda text, end: text.partition(end)[0], stop, answer.text))
        return texts

    def _tokens(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Return the ids of *context* and *continuation*, and the position where *continuation* begins."""
        if self._chat and context:
            messages = json.loads(context)
            begun = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
            whole, start = self._model.chat(messages, begun + continuation)
            return whole, _shared(self._model.chat(messages, begun)[0], whole) if begun else start
        before, whole = self._model.text(context + continuation)
        if not context:
            return [self._model.prefix, *whole], 1
        read = self._model.text(context)[1]
        return [*before, *whole], max(1, len(before) + _shared(read, whole))

    def _score(self, tokens: list[int], start: int) -> tuple[float, bool]:
        """Return the log-probability of tokens[start:]; too long a context is cut at its beginning."""
        over = max(0, len(tokens) - 1 - self._model.context)
        tokens, start = tokens[over:], max(1, start - over)
        return choices.log_probability(self._logits(tuple(tokens[:-1])), tokens, start)

    def _room(self, messages: list[dict[str, str]]) -> int:
        prompt = len(self._model.chat(messages, "")[0])
        if prompt >= self._model.context:
            msg = f"a prompt of {prompt} tokens leaves no room for an answer in the context of {self._model.context}"
            raise ValueError(msg)
        return self._model.context - prompt


def load_tasks(tasks: Sequence[str], include_path: Path | None) -> TaskManager:
    """Return the harness's index of tasks, which contains *tasks*. Raises ValueError for the first that it lacks."""
    if include_path is not None:
        # The harness's own tasks are about ten thousand files; try without them first.
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for task in tasks:
        if task not in manager.all_tasks:
            msg = f"evaluate.harness.tasks names {task!r}, which the harness does not know; {_nearest(task, manager)}"
            raise ValueError(msg)
    return manager


def run_harness(
    model: Model,
    predict: Predict,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the harness's results of *tasks* as plain values, for the candidate *model*, which answers with *predict*.

    `results` holds each task's metrics by `<metric>,<filter>`; `samples` holds its questions, answers and scores.
    """
    results = simple_evaluate(
        CandidateLM(model, predict, chat=apply_chat_template),
        tasks=list(tasks),
        task_manager=load_tasks(tasks, include_path),
        num_fewshot=num_fewshot,
        limit=limit,
        bootstrap_iters=BOOTSTRAPS,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=apply_chat_template,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    kept = {key: results[key] for key in KEPT}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=handle_non_serializable, ensure_ascii=False))
    return plain


def _messages(context: str, *, chat: bool) -> list[dict[str, str]]:
    """Return the chat in *context*. Raises ValueError if a chat model cannot be asked it."""
    if not chat:
        remedy = "set evaluate.harness.apply_chat_template=true"
        msg = f"the task generates text, which a candidate does in a chat only; {remedy}"
        raise ValueError(msg)
    messages: list[dict[str, str]] = json.loads(context)
    if messages[-1]["role"] == "assistant":
        msg = "the task begins the answer itself (gen_prefix), which a chat interface cannot do; choose another task"
        raise ValueError(msg)
    return messages


def _options(given: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Return max_tokens and stop strings from a task's generation_kwargs. Raises ValueError for sampling."""
    if given.get("do_sample", given.get("temperature", 0) > 0):
        msg = "the task wants answers sampled, and candidates answer greedily; set do_sample: false in the task"
        raise ValueError(msg)
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    tokens = next((given[name] for name in names if given.get(name) is not None), 256)
    until = given.get("until") or []
    return int(tokens), [until] if isinstance(until, str) else [each for each in until if each]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of *one* and *other*."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _nearest(task: str, manager: TaskManager) -> str:
    near = one_of(task, manager.all_tasks).partition("use one of")[0]
    return near + "or name the folder of its YAML file in evaluate.harness.include_path"
