"""Signals to a flow at work: every process ends, no run stays RUNNING, and the same command then completes."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import ROOT, run

pytestmark = pytest.mark.slow

MARK = "TEST_FLOW"
"""An environment variable by which every process of a flow is known, whoever its parent is now."""

CASES = [
    ("mlflow run", signal.SIGINT),
    ("mlflow run", signal.SIGTERM),
    ("mlflow run", signal.SIGKILL),
    ("steps.main", signal.SIGTERM),
    ("steps.main", signal.SIGKILL),
    ("steps.build_pipeline_wrapper", signal.SIGKILL),
]


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with a finished run of fetch_model."""
    folder = tmp_path_factory.mktemp("status")
    uri = f"sqlite:///{folder}/store.db"
    done = run("mlflow", "run", str(ROOT), "--env-manager", "local", "-e", "fetch_model", MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 0, done.stderr
    return uri


def command(tokens: int) -> list[str]:
    parameters = ["steps=[fetch_model,build_pipeline_wrapper]", f"build_pipeline_wrapper.max_new_tokens={tokens}"]
    return ["mlflow", "run", str(ROOT), "--env-manager", "local", *(x for each in parameters for x in ("-P", each))]


def processes_of(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def running(store: str) -> list[Run]:
    return list(MlflowClient(store).search_runs(["0"], "attributes.status = 'RUNNING'"))


def wait_until_logging(store: str, flow: "subprocess.Popen[bytes]") -> None:
    """Return when a run is logging a model: the model is there, and PENDING. AssertionError when *flow* ends first."""
    client = MlflowClient(store)
    while flow.poll() is None:
        at_work = {one.info.run_id for one in running(store)}
        models = client.search_logged_models(["0"])
        if [each for each in models if str(each.status) == "PENDING" and each.source_run_id in at_work]:
            return
        time.sleep(0.02)
    msg = f"the flow ended with {flow.returncode} before it was seen to log a model"
    raise AssertionError(msg)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{name} {sent.name}" for name, sent in CASES])
def test_after_a_signal_nothing_lives_on_and_the_same_command_completes(store: str, number: int) -> None:
    victim, sent = CASES[number]
    mark = uuid.uuid4().hex
    environment = os.environ | {
        MARK: mark,
        "MLFLOW_TRACKING_URI": store,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def as_from_a_terminal() -> None:
        # A shell starts what it runs in the background with SIGINT ignored, and so everything below it.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        command(100 + number), env=environment, start_new_session=True, preexec_fn=as_from_a_terminal
    ) as outer:
        wait_until_logging(store, outer)
        targets = [one for one in processes_of(mark) if victim in " ".join(one.cmdline()) and one.name() != "bash"]
        for target in targets:
            target.send_signal(sent)
    # They have 3 s to end by themselves; a busy machine needs longer to see to it.
    psutil.wait_procs(list(processes_of(mark)), timeout=30)
    assert not list(processes_of(mark))
    assert outer.returncode != 0

    done = run(*command(100 + number), MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "build_pipeline_wrapper  FINISHED" in done.stdout
    assert not running(store)
