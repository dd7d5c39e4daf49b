"""`mlflow run <git URL>` from a real git server: by branch, tag and commit, with a relative store, from elsewhere."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import QUICK, ROOT, committed, run
from tests.servers import free_port, process

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bare repository with the project as it is in the working tree, on branch main, tagged v1."""
    work = committed(tmp_path_factory.mktemp("work"))
    assert run("git", "tag", "v1", cwd=work).returncode == 0
    bare = tmp_path_factory.mktemp("server") / "project.git"
    run("git", "clone", "-q", "--bare", str(work), str(bare))
    return bare


@pytest.fixture(scope="module")
def url(repository: Path) -> Iterator[str]:
    """Yield the URL at which `git daemon` serves the repository."""
    port = free_port()
    base = f"--base-path={repository.parent}"
    with process("git", "daemon", "--export-all", "--listen=127.0.0.1", f"--port={port}", base, str(repository.parent)):
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionError:
                time.sleep(0.05)
        yield f"git://127.0.0.1:{port}/project.git"


def commit_of(repository: Path) -> str:
    return run("git", "rev-parse", "main", cwd=repository).stdout.strip()


def own_task(folder: Path) -> Path:
    """Write a task file outside the project: half of it questions to answer, half of it multiple choice."""
    halves = [(ROOT / "data" / name).read_text().splitlines() for name in ("capitals.jsonl", "capitals_choice.jsonl")]
    examples = [
        {**json.loads(line), "id": f"{half}-{number}"}
        for half, lines in enumerate(halves)
        for number, line in enumerate(lines[:30])
    ]
    (folder / "mine.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    return folder / "mine.jsonl"


def test_the_whole_flow_runs_from_a_commit_with_a_relative_store_and_a_task_of_the_users_own(
    url: str, repository: Path, tmp_path: Path
) -> None:
    commit = commit_of(repository)
    parameters = [word for each in (f"evaluate.task={own_task(tmp_path)}", *QUICK) for word in ("-P", each)]
    command = ["mlflow", "run", url, "-v", commit, "--env-manager", "local", *parameters]
    done = run(*command, cwd=tmp_path, MLFLOW_TRACKING_URI="sqlite:///x.db")
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/x.db")
    runs = client.search_runs(["0"])
    assert len(runs) == 6
    assert {one.info.status for one in runs} == {"FINISHED"}
    (evaluated,) = (one for one in runs if one.data.tags["step"] == "evaluate")
    assert (evaluated.data.metrics["onnx.task.examples"], evaluated.data.metrics["onnx.task.accuracy"]) == (60, 1)
    assert {one.data.tags["mlflow.source.git.commit"] for one in runs} == {commit}
    assert {(one.data.tags["code.commit"], one.data.tags["code.dirty"]) for one in runs} == {(commit, "false")}
    assert client.get_model_version_by_alias("tiny_phi3", "champion").tags["code.commit"] == commit


@pytest.mark.parametrize("version", ["main", "v1"])
def test_a_branch_and_a_tag_run_too(url: str, repository: Path, tmp_path: Path, version: str) -> None:
    command = ["mlflow", "run", url, "-v", version, "--env-manager", "local", "-e", "fetch_model"]
    done = run(*command, cwd=tmp_path, MLFLOW_TRACKING_URI="sqlite:///x.db")
    assert done.returncode == 0, done.stdout + done.stderr
    (one,) = MlflowClient(f"sqlite:///{tmp_path}/x.db").search_runs(["0"])
    assert one.data.tags["code.commit"] == commit_of(repository)
