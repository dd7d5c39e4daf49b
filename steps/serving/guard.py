"""Refuses requests by key, host and content type, and turns every error into OpenAI's shape."""

import asyncio
import hmac
import re
import sys
import traceback
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steps.config.entry_points_validation import is_loopback
from steps.serving.errors import ApiError, unavailable

OPEN = ("/", "/health", "/ready")
"""Paths that need no key: a page without content, and what a load balancer asks."""

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:]+)(:\d+)?", re.IGNORECASE)
"""A Host header: name or address, and port."""


def error_response(error: ApiError) -> JSONResponse:
    """Return *error* as a response."""
    return JSONResponse(error.body, error.status, error.headers)


class Guard:
    """An ASGI application around *app*, the outermost one. Without *key*, it answers requests to loopback only."""

    def __init__(self, app: ASGIApp, key: str | None, count: Callable[[str, int], None]) -> None:
        """*count* is called with path and status of every response."""
        self._app, self._key, self._count = app, key, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def counting(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                route = scope.get("route")  # the table of metrics must not grow with what clients ask for
                self._count(route.path if route else "other", message["status"])
            await send(message)

        try:
            self._require_allowed(scope)
            await self._app(scope, receive, counting)
        except asyncio.CancelledError:  # the grace is over
            if not started:
                ending = unavailable("the server is ending", "shutting_down")
                await error_response(ending)(scope, receive, counting)
            raise
        except ApiError as error:
            if not started:
                await error_response(error)(scope, receive, counting)
        except Exception as error:  # noqa: BLE001  # the server outlives whatever it is
            report(error)
            if not started:
                message = f"{type(error).__name__} in the server; its log says where"
                await error_response(ApiError(500, message, code="internal_error"))(scope, receive, counting)

    def _require_allowed(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._key is None:
            # A page of another site, whose name was made to point here (DNS rebinding), would send that name.
            host = HOST.fullmatch(headers.get("host", ""))
            if not host or not is_loopback(host[1].lower()):
                raise ApiError(400, "the Host header names another machine: ask 127.0.0.1 or localhost", code="host")
        elif scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key.encode()):
                message = "the key is missing or wrong: send it as Authorization: Bearer <key>"
                raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        # Without this, a page of any site could send a form here and have the engine compute.
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            raise ApiError(415, "the body must be application/json: send that Content-Type", code="content_type")


def report(error: BaseException) -> None:
    """Print where *error* was raised, without its message, which may have text of a request."""
    places = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{place.filename}:{place.lineno}" for place in reversed(places))
    print(f"serve: {type(error).__name__} at {where}", file=sys.stderr, flush=True)
