"""The endpoints."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from reprlib import repr as brief
from typing import NoReturn

import mlflow
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from mlflow.exceptions import MlflowException
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from steps.config.entry_points import Serve
from steps.serving import openapi
from steps.serving.answers import Answers, JsonObject
from steps.serving.errors import ApiError, busy, hung_up, late, refused, unavailable
from steps.serving.generation import Generation
from steps.serving.guard import Guard, error_response
from steps.serving.metrics import Metrics
from steps.serving.models import Models, Served
from steps.serving.streams import EventStream, events
from steps.serving.tracing.traces import Traces
from steps.wrappers.onnx.request import Request as ModelRequest

PAGE = Path(__file__).with_name("chat.html")

INLINE_BYTES = 16_384
"""A body up to this size is tokenised in the event loop, in about a millisecond; a larger one in a thread."""


def create_app(options: Serve, models: Models, metrics: Metrics, traces: Traces, key: str | None) -> FastAPI:
    """Return the application that answers with *models*; *key* is what clients have to send, if anything."""
    # FastAPI's own pages of documentation load scripts from the network.
    app = FastAPI(title="slm-project", version="1", docs_url=None, redoc_url=None)
    server = Endpoints(options, models, metrics, traces)
    app.add_middleware(Guard, key=key, count=metrics.count_response)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # OpenAI's client sends a dozen of its own
            expose_headers=["x-model-version", "retry-after", "x-should-retry"],
        )
    app.exception_handler(HTTPException)(http_error)
    app.post("/v1/chat/completions", **openapi.CHAT)(server.chat)
    app.post("/v1/completions", **openapi.COMPLETION)(server.completions)
    app.get("/v1/models", responses=openapi.errors(401))(server.list_models)
    app.get("/v1/models/{name:path}", responses=openapi.errors(401, 404))(server.model)
    app.get("/health", responses=openapi.errors(400))(server.health)
    app.get("/ready", responses=openapi.errors(503))(server.ready)
    app.get("/version", responses=openapi.errors(401))(server.version)
    app.get("/metrics", response_class=Response, responses=openapi.errors(401))(server.metrics)
    app.get("/", response_class=HTMLResponse)(server.page)
    for path, answer in {"/v1/models": server.list_models, "/health": server.health, "/ready": server.ready}.items():
        app.head(path, include_in_schema=False)(answer)
    app.head("/", response_class=HTMLResponse, include_in_schema=False)(server.page)
    return app


async def http_error(_request: Request, error: Exception) -> Response:
    """Return a path or method that does not exist in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}; /openapi.json lists the paths"
    return error_response(ApiError(error.status_code, message, headers=error.headers))


class Endpoints:
    """What the endpoints do."""

    def __init__(self, options: Serve, models: Models, metrics: Metrics, traces: Traces) -> None:
        self._options, self._models, self._metrics, self._traces = options, models, metrics, traces

    async def chat(self, request: Request) -> Response:
        """Answer a chat, as OpenAI's Chat Completions."""
        return await self._answer(request, chat=True)

    async def completions(self, request: Request) -> Response:
        """Continue prompts, as OpenAI's Completions."""
        return await self._answer(request, chat=False)

    async def list_models(self) -> JsonObject:
        """List the model that is served."""
        served = self._models.current
        return {"object": "list", "data": [describe(served)] if served else []}

    async def model(self, name: str) -> JsonObject:
        """Describe the model *name*, or name/version."""
        served = self._models.current
        if served is None or name not in (served.target.name, served.target.label):
            message = f"the model {name!r} is not served here; /v1/models lists the one that is"
            raise ApiError(404, message, param="model", code="model_not_found")
        return describe(served)

    async def health(self) -> JsonObject:
        """Answer as long as the server runs."""
        return {"status": "ok"}

    async def ready(self) -> JsonObject:
        """Answer 200 if a model is loaded."""
        if not self._models.is_ready:
            message = "no model is loaded now"
            raise unavailable(message, "no_model")
        return {"status": "ready"}

    async def version(self) -> JsonObject:
        """Name the model and the versions of MLflow and the API."""
        served = self._models.current
        return {"model": served.target.label if served else None, "mlflow": mlflow.__version__}

    async def metrics(self) -> Response:
        """Return Prometheus' metrics."""
        return Response(self._metrics.text(), media_type="text/plain; version=1.0.0; charset=utf-8")

    async def page(self) -> HTMLResponse:
        """Return the chat page."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        async with AsyncExitStack() as stack:
            exchange = stack.enter_context(self._traces.following(chat=chat))
            body = await read_body(request, self._options.max_body_bytes)
            exchange.row = row = parse(body)
            streaming, stream_usage = stream_options(row)
            stack.enter_context(self._place(1))
            served = await stack.enter_async_context(self._models.use(self._options.timeout))
            read = partial(read_requests, served, row, chat=chat, streaming=streaming)
            requests = read() if len(body) < INLINE_BYTES else await asyncio.to_thread(read)
            choices = sum(each.n for each in requests)
            require_few(choices, self._options.max_waiting)
            stack.enter_context(self._place(choices - 1))
            exchange.generation = generation = Generation(served, requests, streaming=streaming)
            stack.callback(self._metrics.observe, generation)
            await stack.enter_async_context(generation)
            stack.enter_context(ending_early(generation, request, self._options.timeout))
            answers = Answers(generation, chat=chat, stream_usage=stream_usage)
            headers = {"x-model-version": served.target.label}
            pieces = generation.pieces()
            if not streaming:
                async for _piece in pieces:
                    pass
                return JSONResponse(answers.whole(), headers=headers)
            # A request that fails before its first token still gets a status of its own.
            first = await anext(pieces)
            return EventStream(events(answers, first, pieces), headers, stack.pop_all(), self._options.timeout)

    @contextmanager
    def _place(self, choices: int) -> Iterator[None]:
        """Take a place for *choices* among those that are unfinished. Raises ApiError if there is none."""
        limit = self._options.max_waiting
        if self._models.unfinished + choices > limit:
            message = f"{self._models.unfinished} answers are unfinished, of at most {limit}: try again soon"
            raise busy(message)
        self._models.unfinished += choices
        try:
            yield
        finally:
            self._models.unfinished -= choices


def require_few(choices: int, limit: int) -> None:
    """Raise ApiError if one request asks for more answers than may ever be unfinished."""
    if choices > limit:
        message = f"n={choices} answers in all is more than serve.max_waiting={limit}"
        raise refused(message)


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body of *request*. Raises ApiError if it is larger than *limit* bytes, or its client hangs up."""
    too_large = ApiError(413, f"the body is larger than serve.max_body_bytes={limit}", code="body_too_large")
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        raise hung_up() from None
    return bytes(body)


def parse(body: bytes) -> JsonObject:
    """Return *body*, a JSON object, without fields that are null."""

    def refuse_constant(name: str) -> NoReturn:
        msg = f"{name} is not JSON"
        raise ValueError(msg)

    try:
        row = json.loads(body, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise ApiError(400, f"the body is not valid JSON{place}", code="invalid_json") from error
    if not isinstance(row, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    return {field: value for field, value in row.items() if value is not None}


def stream_options(row: JsonObject) -> tuple[bool, bool]:
    """Return whether *row* asks for a stream, and for the usage in it."""
    streaming, options = row.get("stream", False), row.get("stream_options", {})
    if not isinstance(streaming, bool):
        message = f"stream={brief(streaming)} is neither true nor false"
        raise refused(message)
    if not isinstance(options, dict) or not isinstance(options.get("include_usage", False), bool):
        message = f"stream_options={brief(options)} is not {{'include_usage': true or false}}"
        raise refused(message)
    return streaming, streaming and options.get("include_usage", False)


def read_requests(served: Served, row: JsonObject, *, chat: bool, streaming: bool) -> list[ModelRequest]:
    """Return *row* checked by the model's own wrapper: one request, or for Completions one for each prompt."""
    if chat and not served.model.is_chat:
        message = "messages is for models logged with interface=chat; this one takes prompts at /v1/completions"
        raise refused(message)
    try:
        if chat:
            requests: list[ModelRequest] = served.model.read_requests([row], None, streaming=streaming)
        else:
            requests = served.model.read_completions(row)
    except MlflowException as error:
        raise refused(error.message) from error
    except RecursionError as error:
        message = "the body is nested too deeply"
        raise refused(message) from error
    return requests


@contextmanager
def ending_early(generation: Generation, request: Request, timeout: float) -> Iterator[None]:
    """Cancel *generation* when its client hangs up, or after *timeout* seconds."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        generation.cancel(hung_up())

    timer = asyncio.get_running_loop().call_later(timeout, generation.cancel, late(timeout))
    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        timer.cancel()
        watcher.cancel()


def describe(served: Served) -> JsonObject:
    """Return OpenAI's object for a model, with what clients of vLLM look for."""
    target = served.target
    context = served.model.engine.context
    return {
        "id": target.name,
        "object": "model",
        "created": served.loaded_at,
        "owned_by": "mlflow",
        "version": target.version,
        "max_model_len": context,
    }
