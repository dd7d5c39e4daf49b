"""A server follows the alias: another version takes over without a lost request."""

import asyncio
import threading
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from steps.records.errors import StepError
from steps.serving import models as models_module
from steps.serving.generation import Generation
from steps.serving.models import Models, Served, find

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


class Broken(mlflow.pyfunc.PythonModel):
    pass


def test_a_version_that_cannot_be_served_changes_nothing(models: Store, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", models.uri)
    code = tmp_path / "other.py"
    code.write_text(
        "import mlflow\nclass M(mlflow.pyfunc.PythonModel):\n def predict(self, model_input): return []\n"
        "mlflow.models.set_model(M())\n"
    )
    with mlflow.start_run(experiment_id=MlflowClient().get_experiment_by_name("serving").experiment_id):
        other = mlflow.pyfunc.log_model(name="other", python_model=str(code), pip_requirements=["mlflow"])
    client = MlflowClient()
    version = client.create_model_version("tiny", other.model_uri, model_id=other.model_id).version
    with serving(models, tmp_path / "log", "serve.model=models:/tiny@champion", FAST) as server:
        models.point(int(version))
        wait_until(lambda: "serve: goes on as it is: " in server.said())
        assert version_of(server) == "tiny/1"
        models.point(1)
        assert server.said().count("neither of the transformers flavour nor an ONNX wrapper") == 1
    with pytest.raises(StepError, match="neither of the transformers flavour"):
        Served(find(f"models:/tiny/{version}"), "x")


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
        models = Models(Served(find("models:/tiny/1"), "hello"), "hello")
        begun = asyncio.Event()
        early = asyncio.create_task(answer(models, begun))
        await begun.wait()
        replacing = asyncio.create_task(models.replace(find("models:/tiny/2")))
        await asyncio.sleep(0)
        assert models.is_ready == (memory > 0)
        answers = [await early]
        await replacing
        answers.append(await answer(models, begun))
        await models.close()
        return answers

    assert asyncio.run(switch()) == [("tiny/1", ANSWER), ("tiny/2", ANSWER)]
