"""One request in the engine: it is answered, cancelled by its client, or out of time."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from steps.serving.errors import ApiError, refused, unavailable
from steps.serving.models import Served
from steps.wrappers.onnx.output import RequestOutput
from steps.wrappers.onnx.request import Request


class Generation:
    """All choices of a request, as an asynchronous context: what is not finished at its end is cancelled.

    The engine frees the place of a cancelled choice before its next step.
    """

    def __init__(self, served: Served, requests: Sequence[Request], *, streaming: bool) -> None:
        """Choices of *requests* are numbered one after the other. `pieces` has text only with *streaming*."""
        self.served, self.streaming = served, streaming
        self.started = time.monotonic()
        self.first_token: float | None = None  # with streaming
        self.error: ApiError | None = None  # what `pieces` raised
        self._why = unavailable("the server is ending", "shutting_down")
        self._events: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.outputs: list[RequestOutput] = []
        for request in requests:
            at = len(self.outputs)

            def on_text(choice: int, text: str, at: int = at) -> None:
                self._loop.call_soon_threadsafe(self._events.put_nowait, (at + choice, text))

            def on_finish(choice: int, at: int = at) -> None:
                self._loop.call_soon_threadsafe(self._events.put_nowait, (at + choice, ""))

            self.outputs += served.model.outputs(request, on_text if streaming else None, on_finish)

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts, each counted once."""
        prompts = {id(output.request): len(output.request.prompt) for output in self.outputs}
        return sum(prompts.values())

    @property
    def completion_tokens(self) -> int:
        """The tokens generated so far, end tokens included."""
        return sum(len(output.tokens) for output in self.outputs)

    async def __aenter__(self) -> "Generation":
        self.served.model.engine.submit(self.outputs)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.served.model.engine.cancel(self.outputs)

    def cancel(self, why: ApiError) -> None:
        """Cancel all choices; `pieces` raises *why*."""
        self._why = why
        self.served.model.engine.cancel(self.outputs)

    async def pieces(self) -> AsyncIterator[tuple[int, str]]:
        """Yield each choice's number with its next text; an empty text ends the choice. Raises ApiError."""
        running = len(self.outputs)
        while running:
            choice, text = await self._events.get()
            if self.first_token is None and self.streaming:
                self.first_token = time.monotonic()
            if not text:
                running -= 1
                self.error = self._error_of(self.outputs[choice])
                if self.error:
                    raise self.error
            yield choice, text

    def _error_of(self, output: RequestOutput) -> ApiError | None:
        message = str(output.error)
        match output.finish_reason:
            case "refused":
                return refused(message)
            case "lost":
                return unavailable(message, "engine_ended")
            case "failed":
                return ApiError(500, message, code="engine_failed")
            case "cancelled":
                return self._why
        return None
