"""How `mlflow run . -e serve` answers 1, 8 and 32 clients, beside `mlflow models serve` of the same model.

    python -m benchmarks.server [--clients 1 8 32] [--requests 4] [--prompt 100] [--tokens 64] [--json FILE]

Each client sends its next request when the last is answered. Definitions are those of guidellm: time to first token
(TTFT) from sending a request to its first chunk with text; time per output token (TPOT) is the latency of a request
over its output tokens; output tokens per second over the whole run. MLflow's server does not stream: it has no TTFT.
Meanwhile /health (/ping) is asked 20 times a second.

The model is the embedded one's build in fp32, so figures compare servers, not models; `--onnx` names another folder.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import mlflow

from steps.build_onnx_wrapper import log_wrapper
from steps.checkpoint.onnx_export import build_onnx
from steps.config.command_line import compose_config
from steps.config.schema import ROOT, ExecutionProvider
from steps.records.onnx_recipes import Recipe
from tests.servers import free_port, process, wait_for

TINY = ROOT / "models" / "tiny_phi3"


@dataclass(frozen=True)
class Load:
    """What the clients send: each *requests* requests, of about *prompt* tokens, for *tokens* tokens."""

    requests: int
    prompt: int
    tokens: int

    def body(self, number: int, *, stream: bool) -> dict[str, Any]:
        """Return the request *number*; each begins differently, so that no prefix cache helps."""
        text = f"{number} " + " ".join(["capital"] * self.prompt)
        sampling = {"temperature": 2, "seed": number, "max_tokens": self.tokens}
        streaming = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return {"messages": [{"role": "user", "content": text}], **sampling, **streaming}


@dataclass(frozen=True)
class Timing:
    """Of one request, in seconds."""

    first: float | None
    latency: float
    tokens: int


@dataclass(frozen=True)
class Figures:
    """Of one server with one number of clients."""

    server: str
    clients: int
    tokens_per_second: float
    ttft_median: float | None
    tpot_median: float
    latency_median: float
    health_p99: float


@contextlib.contextmanager
def ours(uri: str) -> Iterator[str]:
    """Yield the URL of `mlflow run . -e serve` for the model at *uri*."""
    port = free_port()
    command = [sys.executable, "-m", "steps.serve", f"serve.port={port}", f"serve.model={uri}"]
    with process(*command, PYTHONPATH=str(ROOT)) as running:
        wait_for(f"http://127.0.0.1:{port}/health", running)
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def mlflows(uri: str) -> Iterator[str]:
    """Yield the URL of `mlflow models serve` for the model at *uri*."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "-p", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow looks for uvicorn there
    with process(*command, "--env-manager", "local", PYTHONPATH=str(ROOT), PATH=path) as running:
        wait_for(f"http://127.0.0.1:{port}/ping", running)
        yield f"http://127.0.0.1:{port}"


async def ask_ours(client: httpx.AsyncClient, body: dict[str, Any]) -> Timing:
    """Stream one answer."""
    began, first, tokens = time.perf_counter(), None, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if first is None and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - began
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return Timing(first, time.perf_counter() - began, tokens)


async def ask_mlflows(client: httpx.AsyncClient, body: dict[str, Any]) -> Timing:
    """Ask for one answer."""
    began = time.perf_counter()
    response = await client.post("/invocations", json=body)
    response.raise_for_status()
    return Timing(None, time.perf_counter() - began, response.json()[0]["usage"]["completion_tokens"])


async def measure(url: str, clients: int, load: Load, *, streams: bool) -> Figures:
    """Return the figures of the server at *url* under *clients*."""
    timings: list[Timing] = []
    pings: list[float] = []
    ask = ask_ours if streams else ask_mlflows

    async def one_client(number: int) -> None:
        for at in range(load.requests):
            timings.append(await ask(client, load.body(number * load.requests + at, stream=streams)))

    async def ping() -> None:
        while True:
            began = time.perf_counter()
            await health.get("/health" if streams else "/ping")
            pings.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)

    limits = httpx.Limits(max_connections=clients)
    async with (
        httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client,
        httpx.AsyncClient(base_url=url, timeout=600) as health,
    ):
        await ask(client, load.body(10**6, stream=streams))
        pinging = asyncio.create_task(ping())
        began = time.perf_counter()
        await asyncio.gather(*map(one_client, range(clients)))
        seconds = time.perf_counter() - began
        pinging.cancel()
    firsts = [timing.first for timing in timings if timing.first is not None]
    return Figures(
        server="serve" if streams else "mlflow models serve",
        clients=clients,
        tokens_per_second=sum(timing.tokens for timing in timings) / seconds,
        ttft_median=statistics.median(firsts) if firsts else None,
        tpot_median=statistics.median(timing.latency / timing.tokens for timing in timings),
        latency_median=statistics.median(timing.latency for timing in timings),
        health_p99=statistics.quantiles(pings, n=100)[98] if len(pings) > 1 else max(pings, default=0),
    )


def logged(work: Path, onnx: Path | None) -> str:
    """Log the wrapper of the build *onnx*, by default one of the embedded model; return its URI."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work}/store.db"
    config = compose_config(["onnx=fp32_cpu"])
    if onnx is None:
        onnx = work / "onnx"
        build_onnx(TINY, onnx, Recipe("fp32", "fp32"), ExecutionProvider.cpu, work / "builder.log")
    experiment = mlflow.create_experiment("server", artifact_location=str(work / "artifacts"))
    with mlflow.start_run(experiment_id=experiment):
        return log_wrapper(onnx, "tiny_phi3", config.question, config.build_onnx_wrapper)


def row(figures: Figures) -> str:
    """Return *figures* as a row of Markdown."""
    first = "-" if figures.ttft_median is None else f"{1000 * figures.ttft_median:.0f} ms"
    return (
        f"| {figures.server} | {figures.clients} | {figures.tokens_per_second:.0f} | {first} "
        f"| {1000 * figures.tpot_median:.1f} ms | {1000 * figures.latency_median:.0f} ms "
        f"| {1000 * figures.health_p99:.0f} ms |"
    )


def main() -> None:
    """Measure both servers in turns for every number of clients, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--prompt", type=int, default=100, help="tokens, about")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--onnx", type=Path, help="a folder with an ONNX model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = Load(options.requests, options.prompt, options.tokens)
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        uri = logged(Path(work), options.onnx)
        servers = [(stack.enter_context(ours(uri)), True), (stack.enter_context(mlflows(uri)), False)]
        found = []
        print("| server | clients | tokens/s | TTFT | TPOT | latency | health p99 |\n|---|---|---|---|---|---|---|")
        for clients in options.clients:
            for url, streams in servers:
                figures = asyncio.run(measure(url, clients, load, streams=streams))
                found.append(figures)
                print(row(figures), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(figures) for figures in found], indent=1))


if __name__ == "__main__":
    main()
