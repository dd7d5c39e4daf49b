"""Whether `mlflow run . -e serve` stays what it is: minutes under load, and clients that hang up.

    python -m benchmarks.soak [--minutes 10] [--onnx FOLDER] [--json FILE]

First, eight clients ask without a pause for --minutes: errors, and the memory of each process of the server every ten
seconds, as medians of the fifths of that time, so that a growth that goes on can be told from one that ends.
Then 32 clients ask, half of whom hang up after a random time: what is left in the engine when all are gone. The model
is the embedded one's fp32 build, or the ONNX model in --onnx.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.report import machine
from benchmarks.server import Load, ask_streaming, built, logged
from benchmarks.started_servers import ours

CLIENTS, HANGING_UP = 8, 32
GAUGES = ("slm:answers_unfinished", "vllm:num_requests_running", "vllm:num_requests_waiting")


def memory(port: int) -> dict[str, int]:
    """Return the resident bytes of the server that listens on *port*, and of the processes that it started."""
    (server,) = {
        psutil.Process(each.pid)
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and getattr(each.laddr, "port", 0) == port and each.pid
    }
    found = {"server": server}
    for child in server.children(recursive=True):
        found["trace writer" if "steps.serving.tracing.writer" in child.cmdline() else "engine"] = child
    return {name: int(each.memory_info().rss) for name, each in found.items()}


async def ask_for(minutes: float, url: str, load: Load) -> dict[str, Any]:
    """Return what eight clients met, and the memory every ten seconds."""
    answers, errors = 0, 0
    sizes: list[dict[str, int]] = []
    end = time.monotonic() + 60 * minutes

    async def one_client(number: int) -> None:
        nonlocal answers, errors
        while time.monotonic() < end:
            try:
                await ask_streaming(client, load.body(number + CLIENTS * answers, stream=True))
                answers += 1
            except httpx.HTTPError:
                errors += 1

    async def watch() -> None:
        while True:
            sizes.append(memory(httpx.URL(url).port or 80))
            await asyncio.sleep(10)

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        watching = asyncio.create_task(watch())
        await asyncio.gather(*map(one_client, range(CLIENTS)))
        watching.cancel()
    fifth = max(1, len(sizes) // 5)
    fifths = [sizes[at : at + fifth] for at in range(0, 5 * fifth, fifth)]
    return {
        "minutes": minutes,
        "answers": answers,
        "errors": errors,
        "memory, MB": {
            name: [round(statistics.median(each.get(name, 0) for each in part) / 1e6) for part in fifths if part]
            for name in sizes[-1]
        },
    }


async def hang_up(url: str, load: Load) -> dict[str, Any]:
    """Return what is left of 32 clients' requests when half of them have hung up and the others are answered."""
    whole, gone = 0, 0

    async def one_client(number: int) -> None:
        nonlocal whole, gone
        for at in range(load.requests):
            patience = random.uniform(0.01, 2) if number % 2 else 600
            try:
                async with asyncio.timeout(patience):
                    await ask_streaming(client, load.body(number * load.requests + at, stream=True))
                whole += 1
            except TimeoutError:
                gone += 1

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await asyncio.gather(*map(one_client, range(HANGING_UP)))
    async with httpx.AsyncClient(base_url=url) as client:
        began = time.monotonic()
        while any((left := await gauges(client)).values()) and time.monotonic() < began + 60:
            await asyncio.sleep(0.01)
    return {"answered": whole, "hung up": gone, "seconds until idle": round(time.monotonic() - began, 3), **left}


async def gauges(client: httpx.AsyncClient) -> dict[str, float]:
    """Return what the server says is unfinished, running and waiting."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {name: sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)) for name in GAUGES}


def main() -> None:
    """Print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--onnx", type=Path, help="a folder with an ONNX model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = Load(requests=4, prompt=100, tokens=64, temperature=0 if options.onnx else 2)
    random.seed(0)
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        url = stack.enter_context(ours(logged(Path(work), options.onnx or built(Path(work)))))
        found = {"load": asyncio.run(ask_for(options.minutes, url, load)), "hang-ups": asyncio.run(hang_up(url, load))}
    print(machine())
    for what, figures in found.items():
        print(f"\n{what}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
