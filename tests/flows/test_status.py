"""Signals to a flow at work: every process ends, no run stays RUNNING, and the same command then completes."""

import signal
import sqlite3
from contextlib import closing

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run

from tests.conftest import ROOT, run
from tests.marked_processes import Started

pytestmark = pytest.mark.slow

CHOSEN = "steps=[fetch_model,build_pipeline_wrapper]"
COMMAND = ["mlflow", "run", str(ROOT), "--env-manager", "local", "-P", CHOSEN]
BY_HAND = ["python", "-m", "steps.main", CHOSEN]
KILLS = [
    (COMMAND, "mlflow run", signal.SIGINT),
    (COMMAND, "mlflow run", signal.SIGTERM),
    (COMMAND, "mlflow run", signal.SIGKILL),
    (COMMAND, "steps.main", signal.SIGKILL),
    (BY_HAND, "steps.main", signal.SIGINT),
    (BY_HAND, "steps.main", signal.SIGTERM),
    (BY_HAND, "steps build_pipeline_wrapper", signal.SIGINT),
    (BY_HAND, "steps build_pipeline_wrapper", signal.SIGTERM),
    (BY_HAND, "steps build_pipeline_wrapper", signal.SIGKILL),
]
"""Who is sent what."""


def runs(condition: str = "") -> list[Run]:
    return list(MlflowClient().search_runs(["0"], condition))


def is_logging(store: str) -> bool:
    """Whether a run is logging a model: half a second, so its database is asked, which answers in a millisecond."""
    at_work = """SELECT count(*) FROM logged_models JOIN runs ON source_run_id = run_uuid
                 WHERE logged_models.status = ? AND runs.status = 'RUNNING'"""
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database:
        return bool(database.execute(at_work, (LoggedModelStatus.PENDING.to_int(),)).fetchone()[0])


def test_after_each_signal_nothing_lives_on_and_the_same_command_completes(store: str) -> None:
    for command, victim, sent in KILLS:
        case = f"{sent.name} to {victim}"
        print(case)
        flow = Started(*command)
        flow.wait_until(lambda: is_logging(store))
        flow.send(victim, sent)
        flow.wait_for_silence()
        assert flow.outer.returncode != 0, case
        # Each has closed its own, or `mlflow run` has: nobody has started since who would.
        assert not runs("attributes.status = 'RUNNING'"), case
        (latest,) = MlflowClient().search_runs(["0"], "tags.step = 'build_pipeline_wrapper'", max_results=1)
        assert latest.info.status in ("KILLED", "FAILED"), case

    done = run(*COMMAND)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fetch_model             REUSED" in done.stdout
    assert "build_pipeline_wrapper  FINISHED" in done.stdout
    assert "was abandoned" not in done.stdout
    assert len(runs("tags.step = 'main'")) == len(KILLS) + 1


def test_a_chain_whose_launcher_is_killed_while_it_imports_starts_nothing(store: str) -> None:
    flow = Started(*COMMAND)
    flow.wait_until(lambda: bool(flow.named("steps.main")))
    flow.send("mlflow run", signal.SIGKILL)
    flow.wait_for_silence()
    (given,) = runs()
    assert given.info.status == "KILLED"
    assert "step" not in given.data.tags, "nothing has opened it"
