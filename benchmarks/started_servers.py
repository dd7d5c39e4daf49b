"""The servers that are measured beside each other, started and ended."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from steps.config.schema import ROOT
from steps.wrappers.onnx.cpus import usable_cpus
from tests.servers import free_port, process, wait_for


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


@contextlib.contextmanager
def llama_cpps(gguf: Path, python: str) -> Iterator[str]:
    """Yield the URL of llama.cpp's server for the model *gguf*."""
    port = free_port()
    threads = ("--n_threads", str(usable_cpus()), "--n_threads_batch", str(usable_cpus()))
    # By default a new request interrupts the one that is being answered.
    options = ("--n_ctx", "2048", "--interrupt_requests", "false", "--verbose", "false", *threads)
    command = [python, "-m", "llama_cpp.server", "--model", str(gguf), "--port", str(port), *options]
    with process(*command) as running:
        wait_for(f"http://127.0.0.1:{port}/v1/models", running)
        yield f"http://127.0.0.1:{port}"
