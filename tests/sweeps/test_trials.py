"""Runs below one that has ended are closed, on whatever machine their process was; a lost trial is started again."""

import subprocess
from collections.abc import Callable

import mlflow
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.safety.processes import close_below
from steps.sweeps.trials import ATTEMPTS, LOST, ThisMachine, run_trials
from tests.conftest import run


def test_what_is_running_below_a_run_is_closed_and_nothing_else(store: str) -> None:
    client = MlflowClient()

    def child_of(parent: str | None) -> str:
        tags = {"mlflow.parentRunId": parent} if parent else {}
        run_id: str = client.create_run("0", tags=tags | {"process": "another-machine 1 1.00"}).info.run_id
        return run_id

    above = child_of(None)
    trial = child_of(above)
    step, finished, other = child_of(trial), child_of(trial), child_of(above)
    client.set_terminated(finished, "FINISHED")
    close_below(trial)
    statuses = {each: client.get_run(each).info.status for each in (above, trial, step, finished, other)}
    assert statuses == {above: "RUNNING", trial: "RUNNING", step: "KILLED", finished: "FINISHED", other: "RUNNING"}


class Unlucky:
    """A place whose first *lost* machines die under their trial; on the others `true` is run instead of the chain."""

    def __init__(self, lost: int) -> None:
        self.lost, self.started = lost, 0

    def start(self, command: str, variables: dict[str, str]) -> int:
        self.started += 1
        if self.started <= self.lost:
            return LOST
        MlflowClient().set_terminated(variables["MLFLOW_RUN_ID"], "FINISHED")
        return run("true").returncode

    def stop(self, is_over: Callable[[], bool]) -> None: ...


@pytest.mark.parametrize(
    ("lost", "statuses"), [(0, ["FINISHED"]), (1, ["FINISHED", "KILLED"]), (9, ["KILLED"] * ATTEMPTS)]
)
def test_a_trial_whose_machine_dies_is_started_again_in_a_run_of_its_own(
    store: str, lost: int, statuses: list[str]
) -> None:
    with mlflow.start_run() as parent:
        (result,) = run_trials([("seed=1",)], parent, 1, Unlucky(lost))
    below: list[Run] = MlflowClient().search_runs(["0"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(one.info.status for one in below) == statuses
    assert result.status == statuses[0]


def test_a_trial_that_ends_while_it_is_told_to_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen("true") as child:
        ended = psutil.Process(child.pid)
    asked: list[bool] = []
    # As when the thread that waits for a trial learns of its end just after we have asked which there are.
    monkeypatch.setattr(psutil.Process, "children", lambda self: [ended])
    ThisMachine().stop(lambda: bool(asked) or asked.append(True) is not None)
    assert asked


def test_the_run_of_a_trial_is_named_after_what_the_others_have_not(store: str) -> None:
    trials = [("seed=1", "evaluate.limit=5", f"onnx={name}") for name in ("int4_cpu", "int8_cpu")]
    with mlflow.start_run() as parent:
        run_trials(trials, parent, 1, Unlucky(0))
    below = MlflowClient().search_runs(["0"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {one.info.run_name for one in below} == {"onnx=int4_cpu", "onnx=int8_cpu"}
