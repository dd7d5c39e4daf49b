"""A sweep on a real Ray cluster of two nodes, with a tracking server that both reach; one node dies in the middle."""

import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import FEW_QUESTIONS, PROGRAMS, committed, run
from tests.marked_processes import ON_A_BUSY_MACHINE, Started
from tests.servers import NO_JOBS, free_port, process, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.in"),
]

RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a busy machine Ray's own processes take longer to find each other than the 30 s that they are given.
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "600",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a git repository with the project as it is in the working tree, all of it committed."""
    return committed(tmp_path_factory.mktemp("project"))


@contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """Yield the URL of a tracking server that keeps everything, artifacts too, in *folder*."""
    port = str(free_port())
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    with process(
        "mlflow", "server", "--serve-artifacts", *store, "--workers", "1", "--port", port, **NO_JOBS
    ) as server:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def node(place: str, cluster: str, number: int, *options: str) -> Iterator[Started]:
    """Yield a Ray node with one CPU at *place*, which has joined *cluster* as the last of *number* nodes."""
    small = ["--num-cpus", "1", "--object-store-memory", "80000000", "--disable-usage-stats"]
    for _attempt in range(3):
        started = Started("ray", "start", "--node-ip-address", place, *small, *options, **RAY)
        try:
            # On a busy machine `ray start` gives up after 30 s; the processes that it started may join all the same.
            started.outer.wait()
            if has_nodes(cluster, number):
                yield started
                return
        finally:
            started.kill()
    pytest.fail("Ray does not come up on this machine: `ray start` was tried three times, five minutes each")


def has_nodes(cluster: str, number: int) -> bool:
    """Whether *number* nodes of *cluster* are alive, five minutes from now at the latest."""
    deadline = time.monotonic() + 300
    while nodes_of(cluster) < number:
        if time.monotonic() > deadline:
            return False
    return True


def nodes_of(cluster: str) -> int:
    """Return how many nodes of *cluster* are alive; 0 as long as it cannot be asked."""
    done = run("python", str(PROGRAMS / "ray_nodes.py"), cluster, **RAY)
    return int(done.stdout) if done.returncode == 0 else 0


def in_process_of(started: Started, runs: list[Run]) -> list[Run]:
    """Return those of *runs* whose process is one of *started*."""
    numbers = {str(each.pid) for each in started.processes()}
    return [
        one
        for one in runs
        if one.data.tags.get("process", " ").split()[1:2] and one.data.tags["process"].split()[1] in numbers
    ]


def at_work(one: Run) -> bool:
    """Whether the process of the step has begun; until then it is its chain's."""
    return "code.commit" in one.data.tags


@dataclass(frozen=True)
class Cluster:
    """Two nodes at `address`, the second of which may die, and the tracking server at `store`."""

    address: str
    mortal: Started
    both: tuple[Started, Started]
    store: str

    def runs(self, condition: str) -> list[Run]:
        return list(MlflowClient(self.store).search_runs(["0"], condition))

    def running(self, step: str) -> list[Run]:
        return self.runs(f"attributes.status = 'RUNNING' and tags.step = '{step}'")

    def sweep(self, project: Path) -> Started:
        parameters = ["build_onnx_wrapper.block_size=32,128", "sweep.jobs=2", f"sweep.ray={self.address}"]
        given = shlex.join([*parameters, *FEW_QUESTIONS, "sweep.objective=onnx.cost.size_bytes"])
        command = ["mlflow", "run", str(project), "--env-manager", "local", "-e", "sweep", "-P", f"overrides={given}"]
        return Started(*command, MLFLOW_TRACKING_URI=self.store, **RAY)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    address = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        store = stack.enter_context(tracking_server(tmp_path_factory.mktemp("server")))
        head = ["--head", "--port", address.partition(":")[2], "--include-dashboard", "false"]
        first = stack.enter_context(node("127.0.0.1", address, 1, *head))
        mortal = stack.enter_context(node("127.0.0.2", address, 2, "--address", address))
        yield Cluster(address, mortal, (first, mortal), store)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_sweep_that_is_killed_leaves_nothing_on_the_nodes(project: Path, cluster: Cluster, number: int) -> None:
    sweep = cluster.sweep(project)
    sweep.wait_until(lambda: all(in_process_of(node, cluster.running("main")) for node in cluster.both))
    sweep.send("steps.sweep", number)
    sweep.wait_for_silence()
    trials = [one for started in cluster.both for one in started.processes() if "-m steps" in " ".join(one.cmdline())]
    psutil.wait_procs(trials, timeout=ON_A_BUSY_MACHINE)
    assert not [one for one in trials if one.is_running()]
    assert not cluster.runs("attributes.status = 'RUNNING'")


def test_a_node_that_dies_loses_its_trial_to_another_and_the_sweep_completes(project: Path, cluster: Cluster) -> None:
    earlier = {one.info.run_id for one in cluster.runs("")}
    sweep = cluster.sweep(project)
    sweep.wait_until(lambda: any(map(at_work, in_process_of(cluster.mortal, cluster.running("build_onnx_wrapper")))))
    lost = in_process_of(cluster.mortal, cluster.runs("attributes.status = 'RUNNING'"))
    cluster.mortal.kill()  # all at once and without a word, as when a machine loses its power
    assert sweep.outer.wait() == 0
    sweep.wait_for_silence()

    client = MlflowClient(cluster.store)
    assert {one.data.tags["step"] for one in lost} == {"main", "build_onnx_wrapper"}
    assert {client.get_run(one.info.run_id).info.status for one in lost} == {"KILLED"}
    assert not cluster.runs("attributes.status = 'RUNNING'")
    runs = [one for one in cluster.runs("") if one.info.run_id not in earlier]
    (parent,) = [one for one in runs if one.data.tags["step"] == "sweep"]
    chains = [one for one in runs if one.data.tags["step"] == "main"]
    assert sorted(one.info.status for one in chains) == ["FINISHED", "FINISHED", "KILLED"]
    assert {one.data.tags["mlflow.parentRunId"] for one in chains} == {parent.info.run_id}
    commit = run("git", "rev-parse", "HEAD", cwd=project).stdout.strip()
    assert {(one.data.tags["code.commit"], one.data.tags["code.dirty"]) for one in runs} == {(commit, "false")}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["trials.finished"] == 2
    assert parent.data.tags["best.run_id"] in {one.info.run_id for one in chains if one.info.status == "FINISHED"}
    assert {"sweep.csv", "sweep.html"} <= {each.path for each in client.list_artifacts(parent.info.run_id)}
    assert not client.search_registered_models(), "trials do not register"


def refused(project: Path, store: str, address: str = "auto") -> str:
    """Return what a sweep on Ray says that is refused before anything is opened."""
    done = run(
        "python", "-m", "steps.sweep", "seed=1,2", f"sweep.ray={address}", cwd=project, MLFLOW_TRACKING_URI=store
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_store_on_this_machines_disk_is_refused(project: Path, tmp_path: Path) -> None:
    assert "needs a tracking server that every node reaches" in refused(project, f"sqlite:///{tmp_path}/store.db")


def test_a_project_that_differs_from_its_commit_is_refused(project: Path) -> None:
    (project / "conf" / "onnx" / "mine.yaml").touch()
    try:
        assert "differs from it: commit or stash what `git status` shows" in refused(project, "http://127.0.0.1:9")
    finally:
        (project / "conf" / "onnx" / "mine.yaml").unlink()


def test_an_address_without_a_cluster_is_refused(project: Path) -> None:
    said = refused(project, "http://127.0.0.1:9", f"127.0.0.1:{free_port()}")
    assert "cannot be joined" in said
