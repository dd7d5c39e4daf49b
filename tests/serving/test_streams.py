"""What a stream does with texts and clients that are not usual."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from steps.serving import streams
from steps.serving.answers import event
from steps.serving.errors import ApiError
from steps.serving.streams import EventStream


def test_an_event_is_one_line_whatever_ends_a_line_for_its_client() -> None:
    text = "one\ntwo\r\nthree\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029é 東京 👍🏽"
    response = httpx.Response(200, text=event({"text": text}), headers={"content-type": "text/event-stream"})
    data, end = response.iter_lines()
    assert (json.loads(data.removeprefix("data: ")), end) == ({"text": text}, "")
    assert "é 東京 👍🏽" in data


def test_a_client_that_does_not_read_loses_its_place_when_its_time_is_over(monkeypatch) -> None:
    monkeypatch.setattr(streams, "FOR_LAST_EVENT", 0)
    left = asyncio.Event()

    async def endless() -> AsyncIterator[str]:
        while True:
            yield "data: {}\n\n"

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":  # no room for it, and never will be
            await asyncio.Event().wait()

    async def answer() -> None:
        async with AsyncExitStack() as stack:
            stack.callback(left.set)
            response = EventStream(endless(), {}, stack.pop_all(), 0.1)
        await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)

    with pytest.raises(ApiError, match=r"no answer within serve.timeout=0\.1 s"):
        asyncio.run(asyncio.wait_for(answer(), 60))
    assert left.is_set()
