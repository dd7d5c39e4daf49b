"""A server follows the alias: another version takes over without a lost request."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import mlflow
import pytest
from mlflow import MlflowClient

from steps.config.command_line import compose_config
from steps.records.errors import StepError
from steps.serving import models as models_module
from steps.serving import server as server_module
from steps.serving.generation import Generation
from steps.serving.models import Files, Models, Served, Target, find
from steps.serving.server import Follower

from .conftest import ANSWER, QUESTION, Server, Store, serving, wait_until

pytestmark = pytest.mark.slow

FAST = "serve.follow_seconds=0.2"


def version_of(server: Server) -> str:
    response = server.post({"messages": QUESTION})
    assert response.status_code == 200
    assert response.headers["x-model-version"] == response.json()["system_fingerprint"]
    return response.headers["x-model-version"]


def test_another_champion_takes_over_and_no_request_is_lost(models: Store, tmp_path: Path) -> None:
    versions, stop = [], threading.Event()
    with serving(models, tmp_path / "log", "serve.model=models:/tiny@champion", FAST) as server:

        def ask() -> None:
            while not stop.wait(0.02):
                versions.append(version_of(server))

        clients = [threading.Thread(target=ask) for _ in range(2)]
        for client in clients:
            client.start()
        for version in (2, 1):
            models.point(version)
            wait_until(lambda version=version: f"tiny/{version}" in versions[-4:])
        stop.set()
        for client in clients:
            client.join()
        assert set(versions) == {"tiny/1", "tiny/2"}
        wait_until(lambda: server.metric("slm:version_switches_total") == 2)
        assert "Serving tiny/2 in place of tiny/1" in server.said()
        assert "Serving tiny/1 in place of tiny/2" in server.said()


def other_kind(models: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return a version of `tiny` that can be fetched, but not be served."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", models.uri)
    code = folder / "other.py"
    code.write_text(
        "import mlflow\nclass M(mlflow.pyfunc.PythonModel):\n def predict(self, model_input): return []\n"
        "mlflow.models.set_model(M())\n"
    )
    with mlflow.start_run(experiment_id=MlflowClient().get_experiment_by_name("serving").experiment_id):
        other = mlflow.pyfunc.log_model(name="other", python_model=str(code), pip_requirements=["mlflow"])
    return int(MlflowClient().create_model_version("tiny", other.model_uri, model_id=other.model_id).version)


def test_a_version_that_cannot_be_served_changes_nothing(models: Store, tmp_path: Path, monkeypatch) -> None:
    version = other_kind(models, tmp_path, monkeypatch)
    with serving(models, tmp_path / "log", "serve.model=models:/tiny@champion", FAST) as server:
        models.point(version)
        wait_until(lambda: "serve: goes on as it is: " in server.said())
        assert version_of(server) == "tiny/1"
        models.point(1)
        assert server.said().count("neither of the transformers flavour nor an ONNX wrapper") == 1
    with pytest.raises(StepError, match="neither of the transformers flavour"):
        Served(Files(find(f"models:/tiny/{version}")), "x")


@pytest.mark.parametrize("uri", ["models:/tiny@nobody", "models:/nothing@champion", "models:/tiny/99", "models:/tiny"])
def test_a_model_that_is_not_there_is_said_in_one_line(models: Store, monkeypatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", models.uri)
    with pytest.raises(StepError, match="is not there"):
        find(uri)


@pytest.mark.parametrize("memory", [0, 2**60])
def test_requests_in_flight_end_on_the_old_version_with_and_without_memory_for_both(
    models: Store, monkeypatch, memory: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", models.uri)
    monkeypatch.setattr(models_module, "available_memory", lambda: memory)

    async def answer(models: Models, begun: asyncio.Event) -> tuple[str, str]:
        async with models.use(60) as served:
            (request,) = served.model.read_requests([{"messages": QUESTION}], None, streaming=False)
            begun.set()
            async with Generation(served, [request], streaming=False) as generation:
                await asyncio.sleep(0.2)
                assert [piece async for piece in generation.pieces()] == [(0, "")]
                return served.target.label, generation.outputs[0].text

    async def switch() -> list[tuple[str, str]]:
        models = Models(Served(Files(find("models:/tiny/1")), "hello"), "hello")
        begun = asyncio.Event()
        early = asyncio.create_task(answer(models, begun))
        await begun.wait()
        replacing = asyncio.create_task(models.replace(find("models:/tiny/2")))
        while models.is_ready and not replacing.done():
            await asyncio.sleep(0.001)
        assert replacing.done() == (memory > 0)
        answers = [await early]
        await replacing
        answers.append(await answer(models, begun))
        await models.close()
        return answers

    assert asyncio.run(switch()) == [("tiny/1", ANSWER), ("tiny/2", ANSWER)]


LAST = Target("models:/tiny/1", "tiny", "1")
NEXT = Target("models:/tiny/2", "tiny", "2")


class Loading:
    """Stands for Models, whose loads of a version fail as long as `errors` has a reason."""

    def __init__(self, current: Target | None, errors: list[str]) -> None:
        self.current = SimpleNamespace(target=current) if current else None
        self.errors, self.looks, self.tried_at = errors, 0, []

    def find(self, _uri: str) -> Target:
        """Count a look."""
        self.looks += 1
        return NEXT

    async def replace(self, target: Target) -> None:
        """Load *target*, or fail."""
        self.tried_at.append(self.looks)
        if self.errors:
            raise StepError(self.errors.pop(0))
        self.current = SimpleNamespace(target=target)


def follow(loading: Loading, monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow the alias until the version has taken over."""
    monkeypatch.setattr(server_module, "find", loading.find)
    options = compose_config(["serve.model=models:/tiny@champion", "serve.follow_seconds=0.001"]).serve

    async def run() -> None:
        follower = Follower(options, cast("Models", loading), Mock())
        follower.start()
        while not loading.current or loading.current.target != NEXT:
            await asyncio.sleep(0.001)
        follower.ended.set()
        await asyncio.to_thread(follower.join)

    asyncio.run(run())


def test_a_version_that_could_not_be_loaded_is_tried_again_after_pauses_that_grow(monkeypatch, capsys) -> None:
    loading = Loading(LAST, [*["the disk is full"] * 3, "no memory", *["the disk is full"] * 5])
    follow(loading, monkeypatch)
    assert loading.tried_at == [1, 2, 4, 8, 16, 32, 64, 124, 184, 244]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"serve: goes on as it is: StepError: {why}" for why in ("the disk is full", "no memory", "the disk is full")
    ]


def test_without_any_model_each_look_tries_again(monkeypatch, capsys) -> None:
    loading = Loading(None, ["the disk is full"] * 5)
    follow(loading, monkeypatch)
    assert loading.tried_at == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().err.count("the disk is full") == 1


def test_the_last_good_version_comes_back_where_neither_could_be_loaded_for_a_moment(
    models: Store, monkeypatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", models.uri)
    monkeypatch.setattr(models_module, "available_memory", lambda: 0)

    async def switch() -> list[str | None]:
        models = Models(Served(Files(find("models:/tiny/1")), "hello"), "hello")
        found = []
        for has_none in (True, False):
            with monkeypatch.context() as patch:
                if has_none:
                    patch.setattr(models_module, "_load", Mock(side_effect=OSError("no memory")))
                with pytest.raises(StepError):
                    await models.replace(find("models:/tiny/2") if has_none else Target("", "tiny", "99"))
            found.append(models.current.target.label if models.current else None)
        await models.close()
        return found

    assert asyncio.run(switch()) == [None, "tiny/1"]


def test_without_memory_for_both_a_version_takes_a_good_one_down_at_most_once(
    models: Store, tmp_path: Path, monkeypatch
) -> None:
    broken = find(f"models:/tiny/{other_kind(models, tmp_path, monkeypatch)}")
    missing = Target("models:/tiny/99", "tiny", "99")

    async def tries() -> list[tuple[str, bool]]:
        models = Models(Served(Files(find("models:/tiny/1")), "hello"), "hello")
        found = []
        for target, memory in ((missing, 0), (broken, 0), (broken, 0), (broken, 2**60), (None, 0), (broken, 0)):
            before = models.current
            monkeypatch.setattr(models_module, "available_memory", lambda memory=memory: memory)
            if target is None:
                models.failed = None  # as the follower does when the alias names the one that answers
                continue
            with pytest.raises(StepError) as raised:
                await models.replace(target)
            assert models.current and models.current.target.label == "tiny/1"
            found.append((str(raised.value), models.current is before))
        await models.close()
        return found

    why, stayed = zip(*asyncio.run(tries()), strict=True)
    assert stayed == (True, False, True, True, False)
    assert "tiny/99 cannot be fetched" in why[0]
    assert "does not go again" in why[2]
    assert all("neither of the transformers flavour" in why[at] for at in (1, 3, 4))
