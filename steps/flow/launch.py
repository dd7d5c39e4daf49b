"""Starts a step as its MLproject entry point: in a process of its own, with a run nested in the chain's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Param, Run
from mlflow.projects.utils import get_run_env_vars, load_project
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_PROJECT_ENTRY_POINT

from steps.config.schema import ROOT
from steps.records.tags import PROCESS, STEP, outputs
from steps.safety.processes import ENDING, closing, end, process_tag

Start = Callable[[str, dict[str, str]], int]
"""Runs a shell command with additional environment variables; returns its exit code, negative after a signal."""


@dataclass(frozen=True)
class StepResult:
    """How a step went: `status` of its run, exit `code` of its process, wall `seconds`, and its outputs."""

    run_id: str
    status: str
    code: int
    seconds: float
    outputs: dict[str, str]


def start_here(command: str, variables: dict[str, str]) -> int:
    """Run *command* on this machine, in a process group that ends with this call; the default `Start`.

    A process that is ending starts nothing more: then the code is that of SIGTERM.
    """
    if ENDING.is_set():
        return -signal.SIGTERM
    # MLproject says `python`; put the interpreter that runs the chain first on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | variables | {"PATH": path}
    process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        closing()
        raise
    finally:
        end(lambda number: _signal_group(process, number))


def launch(step: str, parameters: dict[str, str], parent: Run, start: Start = start_here) -> StepResult:
    """Run *step* with *parameters* in a run nested under *parent*, and wait for it. May be called from any thread.

    *start* decides on which machine its process runs. The run is opened and closed here, even if that machine dies.
    `mlflow.projects.run` does the same, but does not return the id of a failed run, and leaves the process alive when
    its caller is killed.
    """
    experiment, client = parent.info.experiment_id, MlflowClient()
    entry_point = load_project(str(ROOT)).get_entry_point(step)
    declared, others = entry_point.compute_parameters(parameters, None)
    command = entry_point.compute_command(parameters, None)
    tags, started, code = _tags(client, step, parent), time.monotonic(), -1
    run_id = client.create_run(experiment, run_name=step, tags=tags).info.run_id
    try:
        client.log_batch(run_id, params=[Param(key, value) for key, value in (declared | others).items()])
        code = start(command, get_run_env_vars(run_id, experiment))
    except BaseException:
        closing()  # or the next signal would leave the run RUNNING
        raise
    finally:
        seconds = time.monotonic() - started
        if client.get_run(run_id).info.status == "RUNNING":
            # A shell in between reports a signal as 128 or more.
            client.set_terminated(run_id, "KILLED" if code < 0 or code > 128 else "FAILED")
    closed = client.get_run(run_id)
    return StepResult(run_id, closed.info.status, code, seconds, outputs(closed))


def _tags(client: MlflowClient, step: str, parent: Run) -> dict[str, str]:
    """Return the tags of a new run of *step* under *parent*: its origin and its process."""
    # Read again, because the tags in *parent* may still contain the credentials of a git URL.
    own = client.get_run(parent.info.run_id).data.tags
    return {key: value for key, value in own.items() if key.startswith(("mlflow.user", "mlflow.source."))} | {
        MLFLOW_PROJECT_ENTRY_POINT: step,
        MLFLOW_PARENT_RUN_ID: parent.info.run_id,
        # Until the step sets its own: the server may go away before it does.
        PROCESS: process_tag(),
        STEP: step,
    }


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Send *number* to the process group of *process*. Raises ProcessLookupError if the group is empty."""
    process.poll()  # reap the leader if it has ended: a zombie stays in its group
    os.killpg(process.pid, number)
