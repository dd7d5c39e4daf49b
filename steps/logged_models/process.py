"""A logged model in a process of its own: its memory can be measured, and its crash does not end the step."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import mlflow
import pandas as pd
import psutil
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from steps.logged_models.dtype import use_fast_dtype
from steps.logged_models.logged_model import without_bytecode
from steps.records.errors import StepError
from steps.safety.processes import watch

P = ParamSpec("P")
T = TypeVar("T")

_model: PyFuncModel | None = None
"""The model of this process, if the process is a candidate's."""


class Candidate:
    """A model that is loaded as a user would load it, in a process of its own; see `candidate`."""

    def __init__(self, name: str, folder: Path, pool: ProcessPoolExecutor) -> None:
        self.name, self.folder, self._pool = name, folder, pool
        self._loading = pool.submit(_load, str(folder))

    @property
    def load_seconds(self) -> float:
        """The seconds that loading took; waits for its end. Raises StepError when the model cannot be loaded here."""
        return self.wait()

    def run(self, function: Callable[Concatenate[PyFuncModel, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return function(model, *args, **kwargs), called in the candidate's process.

        *function* must be importable by name. Its arguments and its result must be picklable.
        Raises what *function* raises, what loading raised, and StepError when the process dies.
        """
        with self._watched():
            self.wait()
            result: T = self._pool.submit(_call, function, args, kwargs).result()
            return result

    def wait(self) -> float:
        """Wait until the model is loaded; return the seconds that took. Raises StepError when it cannot be loaded."""
        with self._watched():
            try:
                return self._loading.result()
            except MlflowException as error:
                msg = f"candidate {self.name} cannot be loaded here: {error.message}"
                raise StepError(msg) from error

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            msg = f"the process of candidate {self.name} died: it may have run out of memory"
            raise StepError(msg) from error


@contextlib.contextmanager
def candidate(name: str, folder: Path) -> Iterator[Candidate]:
    """Yield the model in *folder*, loading in a process of its own, which ends with this context or with this process.

    Does not wait for loading, so that several candidates load side by side.
    """
    with _own_process() as pool:
        yield Candidate(name, folder, pool)


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return function(*args, **kwargs), called in a process that ends with the call: its memory is given back.

    *function* and its arguments: as for `Candidate.run`. Raises StepError when the process dies.
    """
    with _own_process() as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as error:
            msg = f"the process of {function.__name__} died: it may have run out of memory"
            raise StepError(msg) from error


@contextlib.contextmanager
def _own_process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)) as pool:
        process = pool.submit(os.getpid)
        try:
            yield pool
        finally:
            # Killed, not asked to end: it may be in the middle of a long answer that is no longer needed.
            with contextlib.suppress(psutil.NoSuchProcess, BrokenProcessPool):
                psutil.Process(process.result()).kill()


def _begin(parent: int) -> None:
    # Ctrl-C reaches the parent too, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch(psutil.Process(parent))


def _load(folder: str) -> float:
    """Load the model of this process; return the seconds it took, imports and a change of dtype included."""
    global _model  # one process, one model
    started = time.perf_counter()
    with without_bytecode():
        _model = mlflow.pyfunc.load_model(folder)
        if is_pipeline(_model):
            use_fast_dtype(_model.get_raw_model().model)
    return time.perf_counter() - started


def _call(function: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object]) -> T:
    return function(_model, *args, **kwargs)


def chat_with(model: PyFuncModel) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """Return *model*, chat or prompt, as a function from a Chat Completions request to its response."""

    def predict(request: dict[str, Any]) -> Mapping[str, Any]:
        options = {key: value for key, value in request.items() if key != "messages"}
        return predict_rows(model, [request["messages"]], options)[0]

    return predict


def predict_rows(
    model: PyFuncModel, chats: Sequence[list[dict[str, str]]], options: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Return the Chat Completions responses of *model* to several *chats* in one call, with the same *options*."""
    if takes_prompts(model):
        prompts = [render(model, chat) for chat in chats]
        texts = model.predict({"prompt": prompts}, params=dict(options))
        return [{"choices": [{"message": {"role": "assistant", "content": text}}]} for text in texts]
    rows: Any = {"messages": chats[0], **options}
    if len(chats) > 1:
        rows = pd.DataFrame([{"messages": chat, **options} for chat in chats])
    responses: Any = model.predict(rows)
    return list(responses)


def predict_together(
    model: PyFuncModel, chats: Sequence[list[dict[str, str]]], options: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Return the Chat Completions responses of *model* to *chats*, computed as one batch.

    MLflow's transformers flavour takes several chats, but computes one after the other. So this calls its pipeline
    directly, with the prompts and options that MLflow would give it. The responses hold no token counts.
    """
    if not is_pipeline(model):
        return predict_rows(model, chats, options)
    pipeline = model.get_raw_model()
    pad = pipeline.tokenizer.pad_token_id
    if pad is None or pad >= pipeline.model.get_input_embeddings().num_embeddings:
        pipeline.tokenizer.pad_token = pipeline.tokenizer.eos_token
    template = pipeline.tokenizer.apply_chat_template
    prompts = [template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    settings = {**model.model_config, "max_new_tokens": options["max_tokens"], "return_full_text": False}
    # The pipeline pads on the left, and masks what it padded.
    rows = pipeline(prompts, batch_size=len(prompts), **settings)
    texts = [row[0]["generated_text"].lstrip() for row in rows]
    return [{"choices": [{"message": {"role": "assistant", "content": text}}]} for text in texts]


def is_pipeline(model: PyFuncModel) -> bool:
    """Return whether *model* is of MLflow's transformers flavour."""
    return "transformers" in model.metadata.flavors


def render(model: PyFuncModel, messages: Sequence[Mapping[str, str]]) -> str:
    """Return *messages* as the prompt that *model*, an ONNX wrapper with interface=prompt, takes for them."""
    wrapper = model.unwrap_python_model()
    # A model that was logged before the wrapper became a package has its tokenizer as `text`.
    tokenizer = wrapper.tokenizer if hasattr(wrapper, "tokenizer") else wrapper.text
    return str(tokenizer.render(messages))


def takes_prompts(model: PyFuncModel) -> bool:
    """Return whether *model* takes prompts and gives strings, rather than Chat Completions."""
    names: list[str] = model.metadata.get_input_schema().input_names()
    return names == ["prompt"]
