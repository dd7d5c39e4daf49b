"""The requests of a version, as the server traced them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Trace

from steps.records import traces as names
from steps.records.errors import StepError

PAGE = 200
"""How many traces are read at a time."""


@dataclass(frozen=True)
class Request:
    """One request.

    `time`: when it began, in seconds since 1970. `seconds`: how long it took. `first_token`: only for streams.
    `status`: 200, or that of its error. `prompt` and `answers` are hashes, equal for equal texts of one run of a
    `server`. `messages`: only if texts were kept.
    """

    time: float
    seconds: float
    status: int = 200
    error: str | None = None
    field: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    max_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()
    first_token: float | None = None
    script: str | None = None
    server: str | None = None
    prompt: str | None = None
    answers: tuple[str, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()

    @property
    def answered(self) -> bool:
        """Whether it got a whole answer."""
        return self.status == 200

    @property
    def refused(self) -> bool:
        """Whether the server would not answer it."""
        return 400 <= self.status < names.CANCELLED

    @property
    def cancelled(self) -> bool:
        """Whether its client went away."""
        return self.status == names.CANCELLED

    @property
    def failed(self) -> bool:
        """Whether the server could not answer it."""
        return self.status >= 500

    @property
    def late(self) -> bool:
        """Whether that was because time was over."""
        return self.failed and self.error == names.LATE

    @property
    def reason(self) -> str | None:
        """The code of its error, with the field that is wrong."""
        return f"{self.error}: {self.field}" if self.error and self.field else self.error


def read_window(model: str, version: str, hours: float | None, limit: int) -> list[Request]:
    """Return the newest *limit* requests that *version* of *model* got in the last *hours*, the oldest first.

    Raises StepError if there is none.
    """
    client, name = MlflowClient(), names.experiment_name(model)
    experiment = client.get_experiment_by_name(name)
    now = time.time()
    since = 0 if hours is None else now - hours * 3600
    # Until now: a trace that arrives between two pages would push the others down, and some would be read twice.
    period = f"timestamp_ms >= {int(since * 1000)} AND timestamp_ms <= {int(now * 1000)}"
    found: list[Trace] = []
    token = None
    while experiment and len(found) < limit:
        page = client.search_traces(
            locations=[experiment.experiment_id],
            filter_string=f"tags.{names.VERSION} = '{version}' AND {period}",
            order_by=["timestamp_ms DESC"],
            max_results=min(PAGE, limit - len(found)),
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            break
    if not found:
        of = f"version {version} of {model}" + (f" in the last {hours:g} h" if hours is not None else "")
        msg = f"the experiment {name!r} has no trace of {of}: serve it, with serve.trace_share above 0"
        raise StepError(msg)
    return [request_of(trace) for trace in reversed(found)]


def request_of(trace: Trace) -> Request:
    """Return the request that *trace* is of."""
    (span,) = trace.data.spans
    found: Mapping[str, Any] = span.attributes
    asked = found.get(names.INPUT) or {}
    return Request(
        time=span.start_time_ns / 1e9,
        seconds=((span.end_time_ns or span.start_time_ns) - span.start_time_ns) / 1e9,
        status=found.get(names.STATUS, 200),
        error=found.get(names.ERROR),
        field=found.get(names.FIELD),
        prompt_tokens=found.get(names.INPUT_TOKENS),
        output_tokens=found.get(names.OUTPUT_TOKENS),
        max_tokens=found.get(names.MAX_TOKENS),
        finish_reasons=tuple(found.get(names.FINISH_REASONS, ())),
        first_token=found.get(names.FIRST_TOKEN),
        script=found.get(names.SCRIPT),
        server=found.get(names.SERVER),
        prompt=found.get(names.PROMPT_HASH),
        answers=tuple(found.get(names.ANSWER_HASHES, ())),
        # A chat with tools cannot be asked again as it was.
        messages=() if names.TOOLS in found else tuple(asked.get("messages", ())),
    )
