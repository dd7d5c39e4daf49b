"""How the ONNX wrapper serves eight clients at once over HTTP, compared with other ways to serve the same build.

    python -m benchmarks.serving [--work build/benchmarks] [--rounds 3] [--json FILE]

Makes the random Phi-3 of 330 M parameters and the default build (as `benchmarks.generation`, which shares its folder),
and has `mlflow models serve` serve it in turns through: the wrapper; the source document's wrapper behind a lock, with
the same threads. Eight clients send prompts of 20 tokens and get 64; meanwhile /ping is asked 20 times a second.
MLflow's server does not stream, so the time to the first token is taken from eight threads that share a loaded model.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import shutil
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow

from benchmarks import contenders
from benchmarks.builds import make_onnx
from benchmarks.contenders import BareLoop, Contender, OgEngine, ask, timed
from benchmarks.document_wrapper import DocumentWrapper
from benchmarks.generation import WORK, Medians, words
from benchmarks.random_phi3 import Size, add_size_options, chosen_size, make_checkpoint
from benchmarks.report import Goal, in_turns, ratio, tell
from steps.build_onnx_wrapper import copied_wrapper
from steps.config.schema import ROOT
from steps.wrappers import onnx_chat
from steps.wrappers.onnx.cpus import usable_cpus
from steps.wrappers.onnx.model import OnnxChatModel
from steps.wrappers.onnx.signatures import chat_signature
from tests.servers import free_port, process, wait_for

CLIENTS, PROMPT, ANSWER = 8, 20, 64
TEMPLATE = "<|user|>\n{}<|end|>\n<|assistant|>\n"


@dataclass
class Server:
    """A way to serve, where it answers, and what a client sends it for a text."""

    name: str
    code: Path
    body: Callable[[str], dict[str, Any]]
    config: dict[str, Any]
    url: str = ""


def chat_body(text: str) -> dict[str, Any]:
    """Return the request of the wrapper."""
    return ask(text, ANSWER)


def document_body(text: str) -> dict[str, Any]:
    """Return the request of the source document's wrapper."""
    return {"dataframe_split": {"columns": ["prompt"], "data": [[TEMPLATE.format(text)]]}}


def in_threads(model: OnnxChatModel) -> Contender:
    """Return *model* called as a server calls it, every prompt from a thread of its own, with no server."""

    def answer(prompt: str, max_tokens: int) -> int:
        row: Any = [ask(prompt, max_tokens)]
        return int(model.predict(None, row)[0]["usage"]["completion_tokens"])

    def generate(prompts: Sequence[str], max_tokens: int) -> tuple[int, float]:
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            return timed(lambda: sum(pool.map(answer, prompts, [max_tokens] * len(prompts))))

    return generate


@contextlib.contextmanager
def served(server: Server, onnx: Path, work: Path) -> Iterator[None]:
    """Run `mlflow models serve` on a model of *server*'s code."""
    folder = work / f"served-{server.code.stem}"
    shutil.rmtree(folder, ignore_errors=True)  # the code may have changed since
    with copied_wrapper() as package:
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(server.code),
            artifacts={"onnx": str(onnx), "wrapper": str(package)},
            model_config=server.config,
            signature=chat_signature() if server.body is chat_body else None,
            pip_requirements=["mlflow"],
        )
    port = str(free_port())
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "-p", port]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow looks for uvicorn there
    with process(*command, "--env-manager", "local", PYTHONPATH=str(ROOT), PATH=path) as running:
        server.url = f"http://127.0.0.1:{port}"
        wait_for(f"{server.url}/ping", running)
        yield


def post(server: Server, text: str) -> None:
    """Have *text* answered."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/invocations", json.dumps(server.body(text)).encode(), headers)
    with urllib.request.urlopen(request) as response:
        response.read()


def load_test(server: Server, requests: int) -> tuple[float, list[float]]:
    """Return tokens a second of CLIENTS clients with *requests* each, and the seconds of every /ping meanwhile."""
    pings: list[float] = []
    over = threading.Event()

    def ping() -> None:
        while not over.wait(0.05):
            started = time.perf_counter()
            with urllib.request.urlopen(f"{server.url}/ping") as response:
                response.read()
            pings.append(time.perf_counter() - started)

    def client(_number: int) -> None:
        for _ in range(requests):
            post(server, words(PROMPT))

    prober = threading.Thread(target=ping)
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        started = time.perf_counter()
        prober.start()
        list(pool.map(client, range(CLIENTS)))
        seconds = time.perf_counter() - started
    over.set()
    prober.join()
    return CLIENTS * requests * ANSWER / seconds, pings


def first_tokens(answer: Callable[[str], Iterator[object]], requests: int) -> float:
    """Return the median seconds until the first token, of CLIENTS threads with *requests* answers each."""

    def client(_number: int) -> list[float]:
        waits = []
        for _ in range(requests):
            text, started = words(PROMPT), time.perf_counter()
            stream = answer(text)
            next(stream)
            waits.append(time.perf_counter() - started)
            for _ in stream:
                pass
        return waits

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        return statistics.median(wait for waits in pool.map(client, range(CLIENTS)) for wait in waits)


def measure_first_tokens(onnx: Path, rounds: int, requests: int) -> dict[str, list[float]]:
    """Return the median time to the first token of the wrapper and of the document's behind its lock."""
    threads = usable_cpus()
    ours = contenders.load(OnnxChatModel(), onnx)
    theirs = contenders.load(DocumentWrapper(), onnx, threads=threads)

    def stream(text: str) -> Iterator[object]:
        chunks = ours.predict_stream(None, ask(text, ANSWER))
        next(chunks)  # the role, before there is a token
        return iter(chunks)

    return in_turns(
        rounds,
        {
            "wrapper": lambda: first_tokens(stream, requests),
            "lock": lambda: first_tokens(lambda text: theirs.tokens(TEMPLATE.format(text), ANSWER), requests),
        },
    )


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where models are made and kept")
    parser.add_argument("--rounds", type=int, default=3, help="how often each figure is taken (default: 3)")
    parser.add_argument("--requests", type=int, default=6, help="of each client in a round (default: 6)")
    add_size_options(parser, Size())
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    onnx = make_onnx(make_checkpoint(options.work / "checkpoint", chosen_size(options)), options.work)
    threads = usable_cpus()
    servers = [
        Server("wrapper", Path(onnx_chat.__file__), chat_body, {}),
        Server("document's, locked", ROOT / "benchmarks" / "document_wrapper.py", document_body, {"threads": threads}),
    ]
    pings: dict[str, list[float]] = {server.name: [] for server in servers}
    together: dict[str, Contender] = {
        "wrapper, 8 threads, no server": in_threads(contenders.load(OnnxChatModel(), onnx)),
        "og's bare batch of 8": BareLoop(onnx, threads),
        "og's Engine, 8 requests": OgEngine(onnx, threads),
    }
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

    def under_load(server: Server) -> Callable[[], float]:
        def take() -> float:
            rate, waits = load_test(server, options.requests)
            pings[server.name] += waits
            return rate

        return take

    def rate_of(contender: Contender) -> Callable[[], float]:
        def take() -> float:
            tokens, seconds = contender([words(PROMPT) for _ in range(CLIENTS)], ANSWER)
            return tokens / seconds

        return take

    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(served(server, onnx, options.work))
        takers = {server.name: under_load(server) for server in servers}
        takers |= {name: rate_of(contender) for name, contender in together.items()}
        taken = in_turns(options.rounds, takers)
    waits = measure_first_tokens(onnx, options.rounds, options.requests)
    medians: Medians = {name: {"tokens/s": statistics.median(rates)} for name, rates in taken.items()}
    for server in servers:
        percentiles = statistics.quantiles(pings[server.name], n=100)
        medians[server.name] |= {"/ping median, ms": 1000 * percentiles[49], "/ping p99, ms": 1000 * percentiles[98]}
    medians["wrapper"]["first token, ms"] = 1000 * statistics.median(waits["wrapper"])
    medians["document's, locked"]["first token, ms"] = 1000 * statistics.median(waits["lock"])
    goals = [
        Goal("tokens/s: wrapper over the document's, locked", ratio(taken, "wrapper", "document's, locked"), low=1.8),
        Goal("tokens/s: wrapper over og's bare batch of 8", ratio(taken, "wrapper", "og's bare batch of 8"), low=0.9),
        Goal(
            "the same without a server", ratio(taken, "wrapper, 8 threads, no server", "og's bare batch of 8"), low=0.9
        ),
        Goal("first token: wrapper over the document's, locked", ratio(waits, "wrapper", "lock"), high=1),
        Goal("/ping p99 while eight generate, ms", medians["wrapper"]["/ping p99, ms"], high=100),
    ]
    tell(medians, goals, options.json)


if __name__ == "__main__":
    main()
