"""The model that answers now, and its replacement by another version without losing a request."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from steps.logged_models.logged_model import without_bytecode
from steps.records.artifacts import as_folder
from steps.records.errors import StepError, in_one_line
from steps.records.files import files_below
from steps.safety.memory import available_memory
from steps.serving.errors import late, unavailable
from steps.serving.transformers_model import TransformersModel

ROOM = 1.5
"""Memory that a model is expected to take, as a multiple of its files: the KV cache and buffers come on top."""


@dataclass(frozen=True)
class Target:
    """What is to be served: a model's `uri`, its `name`, and its `version` if it is a registered one."""

    uri: str
    name: str
    version: str | None = None

    @property
    def label(self) -> str:
        """How answers name it: name and version."""
        return self.name if self.version is None else f"{self.name}/{self.version}"


def find(uri: str) -> Target:
    """Return what *uri* names now. Raises StepError if that does not exist.

    An alias, as in models:/name@champion, names another version when it is moved.
    """
    path = uri.removeprefix("models:/")
    try:
        if uri.startswith("models:/") and "@" in path:
            name, _, alias = path.partition("@")
            version = str(MlflowClient().get_model_version_by_alias(name, alias).version)
            return Target(f"models:/{name}/{version}", name, version)
        if uri.startswith("models:/") and "/" in path:
            name, _, version = path.partition("/")
            return Target(uri, name, str(MlflowClient().get_model_version(name, version).version))
        if uri.startswith("models:/"):
            return Target(uri, str(MlflowClient().get_logged_model(path).model_id))
    except MlflowException as error:
        msg = f"serve.model={uri} is not there: {error.message}; register a model, or name another one"
        raise StepError(msg) from error
    return Target(uri, Path(path).name)


class Files:
    """The files of a model, in a `folder` until they are closed; `bytes` is their size."""

    def __init__(self, target: Target) -> None:
        """Fetch the files of *target*. Raises StepError if they cannot be had."""
        self.target = target
        with ExitStack() as stack:
            with _saying(target, "fetched"):
                self.folder = stack.enter_context(as_folder(_location(target)))
                self.bytes = sum(path.stat().st_size for path in files_below(self.folder))
            self.close = stack.pop_all().close


class Served:
    """A loaded model. `model` has the interface of OnnxChatModel, in the version that the model brings along."""

    def __init__(self, files: Files, question: str) -> None:
        """Load the model in *files*, which are closed with it, and see it answer *question*.

        Raises StepError if it cannot, or is of another kind.
        """
        self.target = files.target
        self.loaded_at = int(time.time())
        self.users = 0
        self.unused = asyncio.Event()  # no request uses it
        self.unused.set()
        with ExitStack() as stack:
            stack.callback(files.close)
            with _saying(files.target, "loaded"):
                self.model: Any = _load(files.folder)
                stack.callback(self.model.engine.close)
                self._answer(question)
            self._open = stack.pop_all()  # onnxruntime may read its files later

    def close(self) -> None:
        """End its engine, and free its files."""
        self._open.close()

    def _answer(self, question: str) -> None:
        """Generate one token. A damaged model may load, and fail then."""
        if self.model.is_chat:
            chat = {"messages": [{"role": "user", "content": question}], "max_tokens": 1}
            (request,) = self.model.read_requests([chat], None, streaming=False)
        else:
            (request,) = self.model.read_completions({"prompt": question, "max_tokens": 1})
        outputs = self.model.outputs(request)
        self.model.engine.submit(outputs)
        outputs[0].finished.wait()
        outputs[0].raise_if_failed()


@contextmanager
def _saying(target: Target, done: str) -> Iterator[None]:
    """Raise whatever error it is as a StepError, which says that *target* cannot be *done*."""
    try:
        yield
    except StepError:
        raise
    except Exception as error:  # a model's own code can raise anything
        msg = f"{target.label} cannot be {done}: {in_one_line(error)}"
        raise StepError(msg) from error


def _location(target: Target) -> str:
    uri = target.uri
    if target.version is not None:
        uri = MlflowClient().get_model_version_download_uri(target.name, target.version)
    if uri.startswith("models:/"):
        uri = MlflowClient().get_logged_model(uri.removeprefix("models:/")).artifact_location
    return str(uri)


def _load(folder: Path) -> Any:  # noqa: ANN401  # of the class that the model brings along
    flavours = Model.load(str(folder)).flavors
    with without_bytecode():
        model = mlflow.pyfunc.load_model(str(folder))
    if "transformers" in flavours:
        return TransformersModel(model, folder)
    wrapper = model.unwrap_python_model()
    if not hasattr(getattr(wrapper, "tokenizer", None), "tools"):  # the newest part of what is asked of it
        msg = f"the model in {folder} is neither of the transformers flavour nor an ONNX wrapper of this version"
        raise StepError(msg)
    return wrapper


class Models:
    """The model that answers now. All methods are for the event loop's thread."""

    def __init__(self, first: Served, question: str) -> None:
        """Answer with *first*. Each later model has to answer *question* before it takes over."""
        self._question = question
        self.current: Served | None = first
        self._last = first.target  # that could be loaded
        self.failed: Target | None = None  # whose files are there, but could not be loaded; or None, to try it anew
        self.unfinished = 0  # choices of requests that are being generated, or wait
        self._may_begin = asyncio.Event()
        self._may_begin.set()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether a request would begin at once."""
        return self.current is not None and self._may_begin.is_set()

    @asynccontextmanager
    async def use(self, timeout: float) -> AsyncIterator[Served]:
        """Yield the model for one request, which keeps it until the end. Waits *timeout* seconds for one that loads."""
        try:
            await asyncio.wait_for(self._may_begin.wait(), timeout)
        except TimeoutError:
            raise late(timeout) from None
        served = self.current
        if served is None:
            message = "no model is loaded: the one named by serve.model could not be; the next look may find another"
            raise unavailable(message, "no_model")
        served.users += 1
        served.unused.clear()
        try:
            yield served
        finally:
            served.users -= 1
            if not served.users:
                served.unused.set()

    async def replace(self, target: Target) -> None:
        """Let the model at *target* answer from now on; requests that have begun finish on the old one.

        It is loaded beside the old one if there is memory for both. Otherwise new requests wait while the old one
        finishes and goes: once for each target, after its files were fetched. Raises StepError if it cannot be loaded;
        the old one stays, or where there was no memory for both, is loaded again. If that fails too, there is no model
        until the next call, which tries both.
        """
        old = self.current
        if old is None:
            await self._load_or_last(target)
            return
        files = await asyncio.to_thread(Files, target)
        if files.bytes * ROOM < available_memory():
            self.current = await self._load(files)
            self._close_when_unused(old)
            return
        if target == self.failed:
            await asyncio.to_thread(files.close)
            msg = (
                f"{target.label} could not be loaded, and without memory for both {old.target.label} does not go again"
            )
            raise StepError(msg)
        self._may_begin.clear()
        try:
            await old.unused.wait()
            self.current, self._last = None, old.target
            await asyncio.to_thread(old.close)
            await self._load_or_last(target, files)
        finally:
            self._may_begin.set()

    async def _load_or_last(self, target: Target, files: Files | None = None) -> None:
        try:
            if files is None:
                files = await asyncio.to_thread(Files, target)
            self.current = await self._load(files)
        except StepError:
            last = await asyncio.to_thread(Files, self._last)
            self.current = await asyncio.to_thread(Served, last, self._question)
            raise

    async def _load(self, files: Files) -> Served:
        try:
            return await asyncio.to_thread(Served, files, self._question)
        except StepError:
            self.failed = files.target
            raise

    async def close(self) -> None:
        """Close all models."""
        await asyncio.gather(*self._closing)
        if self.current is not None:
            await asyncio.to_thread(self.current.close)

    def _close_when_unused(self, served: Served) -> None:
        async def close() -> None:
            await served.unused.wait()
            await asyncio.to_thread(served.close)

        task = asyncio.create_task(close())
        self._closing.add(task)  # the loop itself would not keep it
        task.add_done_callback(self._closing.discard)
