"""The errors that a client gets, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

import re
from collections.abc import Mapping
from typing import Any

from steps.records.traces import CANCELLED, LATE

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
"""OpenAI's type of an error, by status; of another status below 500 it is that of 400."""

FIELD = re.compile(r"(\w+(?:\[\d+\]|\.\w+)*)(?:=| has | is )")
"""How the message of a refused request begins: with the field that is wrong."""


class ApiError(Exception):
    """An answer other than 200. `param` is the field of the request that is wrong, `code` a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        # A field's name in a request may be half a surrogate pair, which cannot be sent.
        message = message.encode(errors="backslashreplace").decode()
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The object that the client gets."""
        kind = KINDS.get(self.status, KINDS[400])
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refused(message: str) -> ApiError:
    """Return the error of a request that is wrong; *message* begins with the field."""
    field = FIELD.match(message)
    return ApiError(400, message, param=field[1] if field else None, code="invalid_value")


def busy(message: str, seconds: int = 1) -> ApiError:
    """Return the error of a request that there is no room for now."""
    return ApiError(429, message, code="too_many_requests", headers={"Retry-After": str(seconds)})


def hung_up() -> ApiError:
    """Return the error of a request whose client is gone; metrics and traces see it."""
    return ApiError(CANCELLED, "the client hung up", code="cancelled")


def late(seconds: float) -> ApiError:
    """Return the error of a request that took more than *seconds*."""
    return unavailable(f"no answer within serve.timeout={seconds:g} s", LATE, again=False)


def unavailable(message: str, code: str, *, again: bool = True) -> ApiError:
    """Return the error of a request that was lost; OpenAI's clients send it again unless *again* is False."""
    headers = {"Retry-After": "1"} if again else {"x-should-retry": "false"}
    return ApiError(503, message, code=code, headers=headers)
