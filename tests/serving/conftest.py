"""A registered model in a store of its own, and servers for it as `mlflow run . -e serve` starts them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mlflow
import openai
import psutil
import pytest
from mlflow import MlflowClient

from steps.build_onnx_wrapper import log_wrapper
from steps.build_pipeline_wrapper import log_pipeline
from steps.config.command_line import compose_config
from tests.conftest import ROOT, TINY, once

QUESTION = [{"role": "user", "content": "What is the capital of Spain?"}]
ANSWER = "The capital of Spain is Madrid."
LONG: dict[str, Any] = {"messages": QUESTION, "max_tokens": 400, "temperature": 2, "stream": True}
"""A request that takes a while: at this temperature the model seldom ends by itself."""


@dataclass(frozen=True)
class Store:
    """A registry: `tiny` has the ONNX wrapper as versions 1 and 2, `torch` the pipeline wrapper as version 1."""

    uri: str

    def point(self, version: int) -> None:
        """Make *version* of `tiny` the champion."""
        MlflowClient(self.uri).set_registered_model_alias("tiny", "champion", str(version))


@pytest.fixture(scope="session")
def registered(fp32: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the database of the registry; read only."""

    def make(folder: Path) -> None:
        shutil.copy(empty_store, folder / "store.db")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/store.db")
            experiment = mlflow.create_experiment("serving", artifact_location=str(folder / "artifacts"))
            config = compose_config(["onnx=fp32_cpu", "build_onnx_wrapper.max_tokens=64"])
            client = MlflowClient()
            with mlflow.start_run(experiment_id=experiment):
                onnx = log_wrapper(fp32, "tiny", config.question, config.build_onnx_wrapper)
                torch = log_pipeline(TINY, config.question, config.build_pipeline_wrapper)
            for name, uris in {"tiny": (onnx, onnx), "torch": (torch,)}.items():
                client.create_registered_model(name)
                for uri in uris:
                    client.create_model_version(name, uri, model_id=uri.removeprefix("models:/"))
            client.set_registered_model_alias("tiny", "champion", "1")

    return once(tmp_path_factory, "registered", make) / "store.db"


@pytest.fixture(scope="module")
def models(registered: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return the registry that the servers of a file's tests serve from: its aliases and traces are its own."""
    return Store(f"sqlite:///{shutil.copy(registered, tmp_path_factory.mktemp('registry'))}")


@dataclass(frozen=True)
class Server:
    """A server that runs, and its clients."""

    url: str
    process: "subprocess.Popen[str]"
    log: Path

    def client(self, **options: Any) -> openai.OpenAI:
        """Return OpenAI's client of this server."""
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    def post(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
        """Send *body* as JSON."""
        return httpx.post(f"{self.url}{path}", json=body, timeout=600, **options)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of the metric *name* that have *labels*."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = httpx.get(f"{self.url}/metrics", timeout=600).text.splitlines()
        samples = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in samples if all(label in line for label in wanted))

    def engine(self) -> psutil.Process:
        """Return the engine's process. The others write traces, or have only just begun."""
        children = psutil.Process(self.process.pid).children()
        (engine,) = [each for each in children if any(word.endswith("/engine/__main__.py") for word in each.cmdline())]
        return engine

    def said(self) -> str:
        """Return what the server has printed."""
        return self.log.read_text()


def wait_until(condition: Callable[[], bool], seconds: float = 600) -> None:
    """Return when *condition* holds; AssertionError after *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def serving(store: Store, log: Path, *overrides: str, **environment: str) -> Iterator[Server]:
    """Run the entry point beside the test; end it with SIGTERM."""
    command = [sys.executable, "-m", "steps.serve", "serve.port=0", *overrides]
    env = os.environ | {"MLFLOW_TRACKING_URI": store.uri, "PYTHONPATH": os.environ.get("PYTHONPATH", "")} | environment
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: "Serving " in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        url = log.read_text().partition("Serving ")[2].split()[2]
        yield Server(url, process, log)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def server(models: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server of version 1 of `tiny`, for the tests of a file."""
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(models, log, "serve.model=models:/tiny/1", "serve.max_waiting=16") as running:
        yield running
