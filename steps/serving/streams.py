"""Streams: server-sent events for as long as there are pieces and a client that reads them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from steps.serving.answers import DONE, Answers, event
from steps.serving.errors import ApiError, late

FOR_LAST_EVENT = 5
"""Seconds for the last event of a stream that is out of time."""


class EventStream(Response):
    """A stream of *events*; *stack*, which the events need, is closed at its end, also when the client hangs up.

    A client that does not read loses its place when *timeout* seconds, and FOR_LAST_EVENT, are over.
    """

    def __init__(
        self, events: AsyncIterator[str], headers: dict[str, str], stack: AsyncExitStack, timeout: float
    ) -> None:
        self._response = StreamingResponse(events, headers=headers, media_type="text/event-stream")
        self._stack, self._timeout = stack, timeout
        super().__init__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; see ASGI. Raises ApiError if the client does not read it."""
        async with self._stack:
            try:
                async with asyncio.timeout(self._timeout + FOR_LAST_EVENT):
                    await self._response(scope, receive, send)
            except TimeoutError:
                raise late(self._timeout) from None  # for its trace; the client only sees that the connection ends


async def events(
    answers: Answers, first: tuple[int, str], pieces: AsyncIterator[tuple[int, str]]
) -> AsyncIterator[str]:
    """Yield the server-sent events of a stream; one that fails ends with an error's event."""
    for chunk in answers.beginning():
        yield event(chunk)
    for chunk in answers.pieces(*first):
        yield event(chunk)
    try:
        async for piece in pieces:
            for chunk in answers.pieces(*piece):
                yield event(chunk)
    except ApiError as error:
        yield event(error.body)
        return
    if answers.stream_usage:
        yield event(answers.usage())
    yield DONE
