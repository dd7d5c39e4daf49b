"""A store with more experiments and runs than one page of MLflow's answers is searched as a whole."""

import sqlite3

import mlflow
import pytest

from steps.records.tags import PROCESS
from steps.safety.processes import close_abandoned_runs, process_tag
from steps.safety.search import runs_in_store

PAGE = 1_000


@pytest.fixture
def crowded(store: str) -> str:
    """Return the URI of a store with a page of experiments, and in the first of them a page of RUNNING runs."""
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        database.executemany(
            "INSERT INTO experiments SELECT ?, 'other ' || ?, artifact_location, lifecycle_stage, creation_time + ?, "
            "last_update_time + ?, workspace FROM experiments WHERE experiment_id = 0",
            [(number,) * 4 for number in range(1, PAGE + 1)],
        )
        columns = "run_uuid, name, user_id, status, start_time, lifecycle_stage, artifact_uri, experiment_id"
        database.executemany(
            f"INSERT INTO runs ({columns}) VALUES (?, 'other', 'other', 'RUNNING', ?, 'active', 'file:///nowhere', 1)",
            [(f"{number:032x}", 2**42 + number) for number in range(PAGE)],
        )
    return store


def test_a_run_in_the_oldest_of_many_experiments_is_found(crowded: str) -> None:
    with mlflow.start_run(experiment_id="0", tags={"mark": "here"}) as run:
        pass
    assert [found.info.run_id for found in runs_in_store("tags.mark = 'here'", most=20)] == [run.info.run_id]


def test_an_abandoned_run_is_closed_where_other_machines_run_many(crowded: str) -> None:
    machine, pid, _identity = process_tag().split()
    run = mlflow.MlflowClient().create_run("0", tags={PROCESS: f"{machine} {pid} 1"}, start_time=1)
    assert [closed.info.run_id for closed in close_abandoned_runs()] == [run.info.run_id]
