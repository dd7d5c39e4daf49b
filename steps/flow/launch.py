"""Starts a step as the MLproject entry point that it is: a process of its own, a run of its own under the chain's."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.projects.utils import get_or_create_run, get_run_env_vars, load_project

from steps.flow.processes import LAUNCHER_PID, PROCESS, closing, end, process_tag
from steps.flow.schema import ROOT
from steps.flow.tracking import outputs

Start = Callable[[str, dict[str, str]], int]
"""Runs a shell command, with variables added to its environment, and returns its exit code, negative after a signal."""


@dataclass(frozen=True)
class StepResult:
    """How a step went: `status` of its run, exit `code` of its process, wall `seconds`, and what it handed over."""

    run_id: str
    status: str
    code: int
    seconds: float
    outputs: dict[str, str]


def start_here(command: str, variables: dict[str, str]) -> int:
    """Run *command* on this machine, in a process group of its own that ends with this call; the `Start` of a step."""
    return _run(command, os.environ | variables | {LAUNCHER_PID: str(os.getpid())})


def launch(step: str, parameters: dict[str, str], parent: Run, start: Start = start_here) -> StepResult:
    """Run *step* with *parameters* in a run nested under *parent*, and wait for it. May be called from any thread.

    *start* says on which machine its process runs; the run is opened and closed here, whatever becomes of that machine.
    As `mlflow.projects.run` does with the local environment; but that call tells nobody the id of a run that failed,
    and leaves the process alive when its caller is killed.
    """
    experiment, client = parent.info.experiment_id, MlflowClient()
    run_id = get_or_create_run(None, str(ROOT), experiment, str(ROOT), None, step, parameters).info.run_id
    # Until the step says that it works on the run itself: a server may go away between the two.
    client.set_tag(run_id, PROCESS, process_tag())
    client.set_tag(run_id, "mlflow.runName", step)
    client.set_tag(run_id, "mlflow.parentRunId", parent.info.run_id)
    command = load_project(str(ROOT)).get_entry_point(step).compute_command(parameters, None)
    started, code = time.monotonic(), -1
    try:
        code = start(command, get_run_env_vars(run_id, experiment))
    finally:
        seconds = time.monotonic() - started
        if client.get_run(run_id).info.status == "RUNNING":
            # A shell between the two reports a signal as 128 and more.
            client.set_terminated(run_id, "KILLED" if code < 0 or code > 128 else "FAILED")
    closed = client.get_run(run_id)
    return StepResult(run_id, closed.info.status, code, seconds, outputs(closed))


def _run(command: str, environment: dict[str, str]) -> int:
    """Return the exit code of *command*, run in a process group of its own that ends with this call."""
    # The entry point says `python`: the one that runs the chain, whatever PATH says.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        closing()
        raise
    finally:
        end(lambda number: _signal_group(process, number))


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Send *number* to the group that *process* leads. Raises ProcessLookupError when nobody is in it."""
    process.poll()  # a leader that has ended stays in its group until it is asked after
    os.killpg(process.pid, number)
