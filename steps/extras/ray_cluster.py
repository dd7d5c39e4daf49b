"""Trials on a Ray cluster: each is a Ray task that runs the chain of this commit on a node.

This uses Ray Core, because Hydra's Ray launcher cannot join a running cluster. Ray chooses the node. Runs are opened
and closed here, because a dead node cannot close its own.
"""

import io
import os
import signal
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.config.schema import ROOT
from steps.extras import ray_node as node
from steps.flow.provenance import provenance_tags
from steps.records.errors import ConfigError, StepError, one_line
from steps.records.tags import ERROR
from steps.safety.processes import end, end_on_signals
from steps.sweeps.trials import LOST


class Cluster:
    """The Ray cluster at *address*, or this machine's own for `auto`. With *gpu* each trial gets a GPU."""

    def __init__(self, address: str, *, gpu: bool) -> None:
        """Connect. Raises ConfigError if trials could not run there as they would here."""
        self._commit = _clean_commit(address)
        _require_server(address)
        threads = os.environ.get("OMP_NUM_THREADS")
        self._variables = {} if threads is None else {"OMP_NUM_THREADS": threads}
        self._ray = ray = _connected(address)
        ray.cloudpickle.register_pickle_by_value(node)
        # No retries by Ray: they would leave the runs of a dead node open.
        task = ray.remote(node.run_command)
        self._task = task.options(
            name="trial", num_cpus=1, num_gpus=int(gpu), max_retries=0, scheduling_strategy="SPREAD"
        )
        self._project = ray.put(_packed())
        self._active: set[Any] = set()

    def start(self, command: str, variables: dict[str, str]) -> int:
        """Run *command* with *variables* on a node; return its exit code, or LOST if the node or its worker died."""
        errors = self._ray.exceptions
        task = self._task.remote(self._project, self._commit, command, variables | self._variables)
        self._active.add(task)
        try:
            return int(self._ray.get(task))
        except errors.TaskCancelledError:
            return -signal.SIGTERM
        except errors.RayError as error:
            cause = error.cause if isinstance(error, errors.RayTaskError) else error
            MlflowClient().set_tag(variables["MLFLOW_RUN_ID"], ERROR, one_line(cause))
            return 1 if isinstance(error, errors.RayTaskError) else LOST
        finally:
            self._active.discard(task)

    def stop(self, is_over: Callable[[], bool]) -> None:
        """Cancel the tasks on the nodes; a chain ends by itself when its worker is gone."""

        def send(_number: int) -> None:
            if is_over():
                raise ProcessLookupError
            for task in list(self._active):
                self._ray.cancel(task, force=True)

        end(send)


def require_shared_artifacts(run: Run) -> None:
    """Raise StepError if the artifacts of *run* would be on one machine's disk."""
    uri = run.info.artifact_uri
    if urlparse(uri).scheme in ("", "file"):
        where = (
            f"experiment {run.info.experiment_id} keeps its artifacts in {uri}, a folder that other nodes do not have"
        )
        msg = f"{where}: start the server with --serve-artifacts, and use an experiment made since then"
        raise StepError(msg)


def _require_server(address: str) -> None:
    uri = mlflow.get_tracking_uri()
    if urlparse(uri).scheme in ("", "file", "sqlite"):
        remedy = "start mlflow server --serve-artifacts, and set MLFLOW_TRACKING_URI"
        msg = f"sweep.ray={address} needs a tracking server that every node reaches, and {uri} is a file: {remedy}"
        raise ConfigError(msg)


def _clean_commit(address: str) -> str:
    """Return the commit of the project's folder. Raises ConfigError if the folder differs from it."""
    tags = provenance_tags(0)
    if tags["code.dirty"] != "false":
        fact = f"sweep.ray={address} runs the project's last commit on every node, and {ROOT}"
        remedy = "commit or stash what `git status` shows"
        msg = f"{fact} {'differs from it' if tags['code.dirty'] == 'true' else 'is no git repository'}: {remedy}"
        raise ConfigError(msg)
    return tags["code.commit"]


def _connected(address: str) -> Any:  # noqa: ANN401  an optional package has no type to name
    """Return the module `ray`, connected to the cluster at *address*."""
    import ray

    try:
        _require_answer(address)
        ray.init(address=address, logging_level="WARNING")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        msg = f"sweep.ray={address} cannot be joined ({one_line(error)}): see docs/guides/sweeps.md"
        raise ConfigError(msg) from error
    end_on_signals()  # again, because Ray has replaced the handlers
    return ray


def _require_answer(address: str) -> None:
    """Raise OSError if no server listens at *address*; `ray.init` would wait for minutes."""
    from ray._private.services import canonicalize_bootstrap_address  # no public function resolves `auto`

    if not address.startswith("ray://") and (found := canonicalize_bootstrap_address(address)) is not None:
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _packed() -> bytes:
    """Return a clone of the project at its last commit as a tar file, without untracked files."""
    with tempfile.TemporaryDirectory() as work:
        clone = Path(work) / "project"
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", clone], check=True)
        # The remote names a folder of this machine.
        subprocess.run(["git", "-C", clone, "remote", "remove", "origin"], check=True)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            tar.add(clone, arcname=".")
        return packed.getvalue()
