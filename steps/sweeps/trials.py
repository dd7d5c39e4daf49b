"""Trials: the chains of one sweep, some at a time, each in a run nested in the sweep's, which is always closed."""

import shlex
from functools import partial
from typing import Protocol

from mlflow import MlflowClient
from mlflow.entities import Run

from steps.flow.launch import StepResult, launch, start_here
from steps.flow.side_by_side import IsOver, end_children, side_by_side
from steps.safety.processes import TRIAL_GRACE_SECONDS, close_below

Trial = tuple[str, ...]
"""The overrides of one run of the chain."""

LOST = -1000
"""The exit code for a process whose machine died; no signal has this number."""

LONGEST_NAME = 200
"""How much of what distinguishes a trial is the name of its run. MLflow's database holds 250 characters."""

ATTEMPTS = 3
"""How often a trial is started at most, if its machines die."""


class Place(Protocol):
    """Where trials run."""

    def start(self, command: str, variables: dict[str, str]) -> int:
        """Run *command* with *variables*; return its exit code, or LOST. Called from several threads."""

    def stop(self, is_over: IsOver) -> None:
        """End all trials, ever more forcibly, until *is_over*."""


class ThisMachine:
    """Trials are child processes on this machine."""

    start = staticmethod(start_here)

    def stop(self, is_over: IsOver) -> None:
        """End all trials, ever more forcibly, until *is_over*."""
        end_children(is_over, TRIAL_GRACE_SECONDS)


def run_trials(trials: list[Trial], parent: Run, jobs: int, place: Place) -> list[StepResult]:
    """Run the chain for each of *trials* under *parent*, *jobs* at a time at *place*; return how they went.

    A step that two trials share runs once; the later trial waits for it. An exception, such as a signal's, ends all.
    At the end the run of a trial is named after the overrides that not all trials have.
    """

    def run(number: int, trial: Trial) -> StepResult:
        print(f"trial {number}/{len(trials)}: {shlex.join(trial)}", flush=True)
        result = _run_trial(trial, parent, place)
        if own := [each for each in trial if any(each not in other for other in trials)]:
            MlflowClient().update_run(result.run_id, name=shlex.join(own)[:LONGEST_NAME])
        print(f"trial {number}/{len(trials)}: {result.status}, {result.seconds:.1f} s\n", flush=True)
        return result

    return side_by_side([partial(run, number, trial) for number, trial in enumerate(trials, start=1)], jobs, place.stop)


def _run_trial(trial: Trial, parent: Run, place: Place) -> StepResult:
    """Run the chain for *trial*, and again if its machine dies."""
    for attempt in range(1, ATTEMPTS + 1):
        result = launch("main", {"overrides": shlex.join(trial)}, parent, place.start)
        if result.status != "FINISHED":
            close_below(result.run_id)
        if result.code != LOST:
            break
        more = "started again elsewhere" if attempt < ATTEMPTS else f"given up after {ATTEMPTS} attempts"
        print(f"{shlex.join(trial)}: the machine died under run {result.run_id}: {more}", flush=True)
    return result
