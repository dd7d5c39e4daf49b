"""A tracking server that goes away in the middle of a flow: waited for, and after a while given up in good order."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.logged_models.logged_model import checked_model, model_damage
from steps.records.errors import StepError
from steps.records.tags import FINGERPRINT
from tests.conftest import ROOT, run
from tests.marked_processes import MARK, ON_A_BUSY_MACHINE, processes_of
from tests.registry.models import built
from tests.servers import NO_JOBS, free_port, wait_for

pytestmark = pytest.mark.slow


@dataclass
class Server:
    """An `mlflow server` on one port, with a database and artifacts in *folder*, that goes and comes."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def come(self) -> None:
        """Start, and return when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/store.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)],
            env=os.environ | NO_JOBS,
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        wait_for(f"{self.url}/health", self.process)

    def go(self) -> None:
        """Vanish, without a farewell to those that are connected."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server that is up."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "store.db")
    with sqlite3.connect(folder / "store.db") as database:
        database.execute("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/0'")
    server = Server(folder)
    server.come()
    yield server
    server.go()


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    if server.process is None:
        server.come()  # the test before has failed
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    return MlflowClient()


def flow(*parameters: str) -> list[str]:
    return ["mlflow", "run", str(ROOT), "--env-manager", "local", *(x for each in parameters for x in ("-P", each))]


@contextmanager
def started(server: Server, step: str, command: list[str], **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """Yield the flow *command*, in which *step* has just been started."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": server.url, MARK: f"{server.port} {step}"} | environment
    out = subprocess.PIPE
    with subprocess.Popen(command, env=env, text=True, stdout=out, stderr=out) as process:
        assert process.stdout is not None
        assert any(f"{step:<23} STARTED" in line for line in process.stdout)
        yield process


def wait_for_process(mark: str, module: str, flow: "subprocess.Popen[str]") -> None:
    """Return when *module* runs, still importing, in a process of *mark*. AssertionError when *flow* ends first."""
    while flow.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended between the two questions
            if any(f" {module} " in " ".join(one.cmdline()) and one.name() != "bash" for one in processes_of(mark)):
                return
        time.sleep(0.05)
    raise AssertionError(flow.returncode)


def running(client: MlflowClient) -> list[Run]:
    return list(client.search_runs(["0"], "attributes.status = 'RUNNING'"))


def test_a_flow_waits_for_a_server_that_is_away_for_ten_seconds(server: Server, client: MlflowClient) -> None:
    command = ["python", "-m", "steps.main", "steps=[fetch_model]", "fetch_model.log_files_mb=6"]
    with started(server, "fetch_model", command) as process:
        server.go()
        time.sleep(10)
        server.come()
        output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    assert f"WAITING for the tracking server {server.url}: it does not answer" in errors
    assert "Retrying (" not in errors
    assert "fetch_model             FINISHED" in output
    assert not running(client)


def test_a_flow_whose_server_stays_away_ends_and_the_next_closes_and_completes_it(
    server: Server, client: MlflowClient
) -> None:
    parameters = ("steps=[fetch_model]", "fetch_model.log_files_mb=5")
    # Fewer tries than usual: three processes wait one after the other, MLflow's own among them.
    with started(server, "fetch_model", flow(*parameters), MLFLOW_HTTP_REQUEST_MAX_RETRIES="2") as process:
        wait_for_process(f"{server.port} fetch_model", "steps fetch_model", process)
        server.go()
        _output, errors = process.communicate()
    assert process.returncode == 1
    psutil.wait_procs(list(processes_of(f"{server.port} fetch_model")), timeout=ON_A_BUSY_MACHINE)
    assert not list(processes_of(f"{server.port} fetch_model"))
    line = f"the tracking server {server.url} does not answer: start it, and give the same command again"
    assert f"fetch_model: {line}" in errors
    assert f"main: {line}" in errors
    # What MLflow itself says about its own run comes after.
    assert "Traceback" not in errors[: errors.index(f"main: {line}")]

    server.come()
    assert len(running(client)) == 2
    done = run(*flow(*parameters), MLFLOW_TRACKING_URI=server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("was abandoned by its process: marked KILLED") == 2
    assert "fetch_model             FINISHED" in done.stdout
    assert not running(client)


def test_a_model_on_a_server_is_known_to_be_whole_without_fetching_it(
    server: Server, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = built(tmp_path, "yes")
    with monkeypatch.context() as patched:
        patched.delattr("steps.logged_models.logged_model.as_folder")
        assert model_damage(build) is None
        (weights,) = (server.folder / "artifacts").rglob("echo.py")
        content = weights.read_bytes()
        weights.write_bytes(content[:-1])
        assert str(model_damage(build)).endswith("has changed since it was logged")
        weights.unlink()
        assert str(model_damage(build)).endswith("is missing")
        weights.write_bytes(content[::-1])
        assert model_damage(build) is None, "no server tells more than sizes"
    client.set_tag(build.info.run_id, FINGERPRINT, "f" * 64)
    with pytest.raises(StepError, match="has changed since it was logged"), checked_model(build):
        pass
    assert FINGERPRINT not in client.get_run(build.info.run_id).data.tags, "so the same command makes it again"


def test_a_run_that_holds_a_secret_is_marked_deleted_where_a_server_keeps_it(
    server: Server, client: MlflowClient
) -> None:
    token = "hf_" + "abcdefGHIJKL0123456789"
    done = run(*flow(f"question=use {token}"), MLFLOW_TRACKING_URI=server.url)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("main: question=*** looks like a secret")]
    run_id = line.rpartition("--run-ids ")[2].split()[0]
    assert "is marked deleted: on the server, mlflow gc --run-ids" in line
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"
