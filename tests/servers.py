"""Real servers on loopback, up while a test needs them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""For `mlflow server`: its eight processes for jobs, which nothing here asks for, would each import MLflow."""


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(*command: str, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run *command* beside the test, with its whole group ended afterwards."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    running = subprocess.Popen(command, env=os.environ | {"PATH": path} | environment, start_new_session=True)
    try:
        yield running
    finally:
        os.killpg(running.pid, 15)
        running.wait()


@contextmanager
def serving(model_uri: str, store: str) -> Iterator[str]:
    """Yield the URL at which `mlflow models serve` serves *model_uri*."""
    port = str(free_port())
    command = ["mlflow", "models", "serve", "-m", model_uri, "--env-manager", "local", "-p", port]
    with process(*command, MLFLOW_TRACKING_URI=store) as server:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/ping", server)
        yield url


@contextmanager
def mlflow_server(folder: Path, *options: str, before: tuple[str, ...] = (), **environment: str) -> Iterator[str]:
    """Yield the URL of an `mlflow server` with its database in *folder*; *before* comes before its command."""
    port = str(free_port())
    command = [*before, "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/store.db", "--workers", "1"]
    with process(*command, "--port", port, *options, **NO_JOBS, **environment) as server:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    """Return when *url* answers; AssertionError when *server* ends first."""
    while server.poll() is None:
        try:
            with urlopen(url, timeout=60):
                return
        except OSError:  # not up yet
            time.sleep(0.2)
    msg = f"the server ended with {server.returncode}"
    raise AssertionError(msg)
