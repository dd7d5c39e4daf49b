"""How `mlflow run . -e serve` answers 1, 8 and 32 clients, beside other servers of the same model.

    python -m benchmarks.server [--clients 1 8 32] [--requests 4] [--prompt 100] [--tokens 64]
                                [--spread 0] [--rounds 1] [--json FILE] [--onnx FOLDER] [--gguf FILE --llama PYTHON]

Each client sends its next request when the last is answered. Definitions are those of guidellm: time to first token
(TTFT) from sending a request to its first chunk with text; time per output token (TPOT) is the latency of a request
over its output tokens; output tokens per second over the whole run. Meanwhile /health is asked 20 times a second.

Before the time is taken, each client gets an answer: the first batch after a pause begins with the first request alone.

Beside it, in turns: `mlflow models serve`, which does not stream and so has no TTFT; og's bare loop over one batch of
as many prompts as there are clients, without a server, with threads that spin while they wait, as is the default, and
with threads that sleep; with --gguf, llama.cpp's server (llama-cpp-python[server], which the interpreter PYTHON has),
which answers one request at a time.

The model is the embedded one's build in fp32, with random sampling, because its answers are short. --onnx names another
folder with an ONNX model, whose answers are greedy.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import httpx
import mlflow

from benchmarks.contenders import BareLoop
from benchmarks.report import machine
from benchmarks.started_servers import llama_cpps, mlflows, ours
from steps.build_onnx_wrapper import log_wrapper
from steps.config.command_line import compose_config
from steps.config.onnx import ExecutionProvider
from steps.config.schema import ROOT
from steps.onnx_build.export import build_onnx
from steps.records.onnx_recipes import Recipe
from steps.wrappers.onnx.cpus import usable_cpus

TINY = ROOT / "models" / "tiny_phi3"


@dataclass(frozen=True)
class Load:
    """What the clients send: each *requests* requests, of about *prompt* tokens, for *tokens* tokens.

    With *spread*, the tokens asked for lie evenly between `tokens * (1 - spread)` and `tokens * (1 + spread)`.
    """

    requests: int
    prompt: int
    tokens: int
    temperature: float
    spread: float = 0

    def tokens_of(self, number: int) -> int:
        """Return how many tokens the request *number* asks for."""
        return max(1, round(self.tokens * (1 + self.spread * random.Random(number).uniform(-1, 1))))

    def text(self, number: int) -> str:
        """Return the prompt of the request *number*; each begins differently, so that no prefix cache helps."""
        return f"{number:07} Write a long story about: " + " ".join(["capital"] * self.prompt)

    def body(self, number: int, *, stream: bool) -> dict[str, Any]:
        """Return the request *number*."""
        sampling = {"temperature": self.temperature, "seed": number, "max_tokens": self.tokens_of(number)}
        streaming = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return {"messages": [{"role": "user", "content": self.text(number)}], **sampling, **streaming}


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
    health_p99: float | None


@dataclass(frozen=True)
class Server:
    """A server at `url`, whether it streams Chat Completions, and the path that says it lives."""

    name: str
    url: str
    streams: bool
    health: str


async def ask_streaming(client: httpx.AsyncClient, body: dict[str, Any]) -> Timing:
    """Stream one answer."""
    began, first, tokens, texts = time.perf_counter(), None, 0, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if first is None and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - began
            texts += bool(chunk["choices"] and chunk["choices"][0]["delta"].get("content"))
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return Timing(first, time.perf_counter() - began, tokens or texts)  # llama.cpp sends no usage


async def ask_mlflows(client: httpx.AsyncClient, body: dict[str, Any]) -> Timing:
    """Ask for one answer."""
    began = time.perf_counter()
    response = await client.post("/invocations", json=body)
    response.raise_for_status()
    return Timing(None, time.perf_counter() - began, response.json()[0]["usage"]["completion_tokens"])


async def measure(server: Server, clients: int, load: Load) -> Figures:
    """Return the figures of *server* under *clients*."""
    timings: list[Timing] = []
    pings: list[float] = []
    ask = ask_streaming if server.streams else ask_mlflows

    async def one_client(number: int) -> None:
        for at in range(load.requests):
            timings.append(await ask(client, load.body(number * load.requests + at, stream=server.streams)))

    async def ping() -> None:
        while True:
            began = time.perf_counter()
            await health.get(server.health)
            pings.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)

    limits = httpx.Limits(max_connections=clients)
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client,
        httpx.AsyncClient(base_url=server.url, timeout=600) as health,
    ):
        await asyncio.gather(*(ask(client, load.body(10**6 + n, stream=server.streams)) for n in range(clients)))
        pinging = asyncio.create_task(ping())
        began = time.perf_counter()
        await asyncio.gather(*map(one_client, range(clients)))
        seconds = time.perf_counter() - began
        pinging.cancel()
    firsts = [timing.first for timing in timings if timing.first is not None]
    return Figures(
        server=server.name,
        clients=clients,
        tokens_per_second=sum(timing.tokens for timing in timings) / seconds,
        ttft_median=statistics.median(firsts) if firsts else None,
        tpot_median=statistics.median(timing.latency / max(1, timing.tokens) for timing in timings),
        latency_median=statistics.median(timing.latency for timing in timings),
        health_p99=statistics.quantiles(pings, n=100)[98] if len(pings) > 1 else max(pings, default=0),
    )


def bare_batch(name: str, loop: BareLoop, clients: int, load: Load) -> Figures:
    """Return the figures of og's bare *loop* over a batch of as many prompts as there are *clients*, under *name*.

    A batch runs until its longest answer ends; of the others, only the tokens that were asked for count.
    """
    tokens, seconds = 0, 0.0
    for at in range(load.requests):
        numbers = [number * load.requests + at for number in range(clients)]
        wanted = [load.tokens_of(number) for number in numbers]
        made, taken = loop([load.text(number) for number in numbers], max(wanted))
        tokens, seconds = tokens + (sum(wanted) if load.spread else made), seconds + taken
    latency = seconds / load.requests
    return Figures(name, clients, tokens / seconds, None, clients * seconds / tokens, latency, None)


def middle(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure over *rounds*."""

    def median(figures: Iterable[float | None]) -> Any:  # noqa: ANN401  # None where there are none
        known = [each for each in figures if each is not None]
        return statistics.median(known) if known else None

    return Figures(
        rounds[0].server,
        rounds[0].clients,
        *(median(getattr(each, field.name) for each in rounds) for field in fields(Figures)[2:]),
    )


def built(work: Path) -> Path:
    """Return the folder of an fp32 build of the embedded model."""
    build_onnx(TINY, work / "onnx", Recipe("fp32", "fp32"), ExecutionProvider.cpu, work / "builder.log")
    return work / "onnx"


def logged(work: Path, onnx: Path) -> str:
    """Log the wrapper of the build *onnx*; return its URI."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work}/store.db"
    config = compose_config(["onnx=fp32_cpu"])
    experiment = mlflow.create_experiment("server", artifact_location=str(work / "artifacts"))
    with mlflow.start_run(experiment_id=experiment):
        return log_wrapper(onnx, "tiny_phi3", config.question, config.build_onnx_wrapper)


def row(figures: Figures) -> str:
    """Return *figures* as a row of Markdown."""

    def milliseconds(value: float | None, digits: int = 0) -> str:
        return "-" if value is None else f"{1000 * value:.{digits}f} ms"

    return (
        f"| {figures.server} | {figures.clients} | {figures.tokens_per_second:.0f} | "
        f"{milliseconds(figures.ttft_median)} | {milliseconds(figures.tpot_median, 1)} | "
        f"{milliseconds(figures.latency_median)} | {milliseconds(figures.health_p99)} |"
    )


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--prompt", type=int, default=100, help="tokens, about")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--spread", type=float, default=0, help="of --tokens: 0.75 asks for 16 to 112, not always 64")
    parser.add_argument("--rounds", type=int, default=1, help="of which the medians are taken")
    parser.add_argument("--onnx", type=Path, help="a folder with an ONNX model")
    parser.add_argument("--gguf", type=Path, help="the same weights for llama.cpp")
    parser.add_argument("--llama", default=sys.executable, help="the Python that has llama-cpp-python[server]")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure all servers in turns for every number of clients, and print a table."""
    options = read_options()
    load = Load(options.requests, options.prompt, options.tokens, 0 if options.onnx else 2, options.spread)
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        onnx = options.onnx or built(Path(work))
        uri = logged(Path(work), onnx)
        servers = [
            Server("serve", stack.enter_context(ours(uri)), streams=True, health="/health"),
            Server("mlflow models serve", stack.enter_context(mlflows(uri)), streams=False, health="/ping"),
        ]
        if options.gguf:
            url = stack.enter_context(llama_cpps(options.gguf, options.llama))
            servers.append(Server("llama.cpp's server", url, streams=True, health="/v1/models"))
        loops = {
            "og's bare batch": BareLoop(onnx, usable_cpus()),
            "og's bare batch, threads that sleep": BareLoop(onnx, usable_cpus(), sleep=True),
        }
        found = []
        print(f"{machine()}\n\n| server | clients | tokens/s | TTFT | TPOT | latency | health p99 |\n|{'---|' * 7}")
        for clients in options.clients:
            rounds: list[list[Figures]] = []
            for _ in range(options.rounds):
                taken = [asyncio.run(measure(server, clients, load)) for server in servers]
                rounds.append([*taken, *(bare_batch(name, loop, clients, load) for name, loop in loops.items())])
            for figures in map(middle, zip(*rounds, strict=True)):
                found.append(figures)
                print(row(figures), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(figures) for figures in found], indent=1))


if __name__ == "__main__":
    main()
