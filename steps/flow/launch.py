"""Starts a step as the MLproject entry point that it is: a process of its own, a run of its own under the chain's."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.projects.utils import get_or_create_run, get_run_env_vars, load_project

from steps.flow.schema import ROOT
from steps.flow.tracking import outputs

GRACE_SECONDS = 5
"""How long a step may take to close its run after SIGTERM, before SIGKILL."""


@dataclass(frozen=True)
class StepResult:
    """How a step went: `status` of its run, wall `seconds`, and what it handed over."""

    step: str
    run_id: str
    status: str
    seconds: float
    outputs: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return what `flow.json` keeps."""
        return asdict(self)


def inputs_of(step: str) -> list[str]:
    """Return the keys of the runs that *step* builds on: the parameters that MLproject declares, less `overrides`."""
    return [key for key in load_project(str(ROOT)).get_entry_point(step).parameters if key != "overrides"]


def launch(step: str, parameters: dict[str, str]) -> StepResult:
    """Run *step* with *parameters* under the active run, and wait for it.

    As `mlflow.projects.run` does with the local environment; but that call tells nobody the id of a run that failed,
    and leaves the process alive when its caller dies.
    """
    parent = mlflow.active_run()
    assert parent is not None
    experiment = parent.info.experiment_id
    run = get_or_create_run(None, str(ROOT), experiment, str(ROOT), None, step, parameters)
    client, run_id = MlflowClient(), run.info.run_id
    client.set_tag(run_id, "mlflow.runName", step)
    command = load_project(str(ROOT)).get_entry_point(step).compute_command(parameters, None)
    started = time.monotonic()
    code = _run(command, os.environ | get_run_env_vars(run_id, experiment))
    seconds = time.monotonic() - started
    closed = client.get_run(run_id)
    if closed.info.status == "RUNNING":
        client.set_terminated(run_id, "KILLED" if code < 0 else "FAILED")
        closed = client.get_run(run_id)
    return StepResult(step, run_id, closed.info.status, seconds, outputs(closed))


def _run(command: str, environment: dict[str, str]) -> int:
    """Return the exit code of *command*, run in a process group of its own that ends with this call."""
    # The entry point says `python`: the one that runs the chain, whatever PATH says.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait()
    finally:
        _end_group(process)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End every process of the group that *process* leads: SIGTERM, then SIGKILL for what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
