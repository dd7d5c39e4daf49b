"""What MLflow keeps of requests, and that a store that is away costs traces only."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace

from steps.records.traces import experiment_name
from tests.servers import NO_JOBS, free_port, process, wait_for

from .conftest import ANSWER, QUESTION, Server, Store, serving, wait_until

pytestmark = pytest.mark.slow

SPANISH = [{"role": "user", "content": "Какая столица Испании?"}]


def traces_of(store: str, name: str = "tiny") -> list[Trace]:
    """Return the traces of the model *name*, the oldest first."""
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(experiment_name(name))
    return list(client.search_traces(locations=[experiment.experiment_id], order_by=["timestamp_ms ASC"]))


def attributes(trace: Trace) -> dict[str, Any]:
    (span,) = trace.data.spans
    return dict(span.attributes)


def written(server: Server) -> float:
    return server.metric("slm:traces_written_total")


@pytest.fixture(scope="module")
def traces(models: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Trace]]:
    """Yield the traces of six requests: two answers, a stream, a refusal, one cut off, one in another script."""
    log = tmp_path_factory.mktemp("traces") / "log"
    with serving(models, log, "serve.model=models:/tiny/2") as server:
        for body in (
            {"messages": QUESTION},
            {"messages": QUESTION},
            {"messages": QUESTION, "stream": True},
            {"messages": QUESTION, "temperature": 3},
            {"messages": QUESTION, "max_tokens": 2},
            {"messages": SPANISH, "max_tokens": 1},
        ):
            server.post(body)
        wait_until(lambda: written(server) == 6)
        yield traces_of(models.uri)


def test_a_trace_says_who_answered_how_long_it_took_and_how_it_ended(traces: list[Trace]) -> None:
    first = traces[0]
    assert first.info.tags["version"] == "2"
    assert first.info.state.value == "OK"
    assert first.info.execution_duration > 0
    found = attributes(first)
    assert found["gen_ai.request.model"] == "tiny"
    assert found["gen_ai.usage.output_tokens"] > 3
    assert found["gen_ai.response.finish_reasons"] == ["stop"]
    assert "gen_ai.server.time_to_first_token" not in found
    assert 0 < attributes(traces[2])["gen_ai.server.time_to_first_token"] < first.info.execution_duration * 1000
    assert attributes(traces[4])["gen_ai.response.finish_reasons"] == ["length"]
    assert [attributes(trace).get("slm.prompt.script") for trace in (first, traces[5])] == ["latin", "cyrillic"]


def test_a_refusal_names_code_and_field(traces: list[Trace]) -> None:
    refused = traces[3]
    assert refused.info.state.value == "ERROR"
    found = attributes(refused)
    assert (found["error.type"], found["slm.refused.field"]) == ("invalid_value", "temperature")
    assert found["http.response.status_code"] == 400


def test_equal_texts_have_equal_hashes_and_no_text_is_written(traces: list[Trace]) -> None:
    one, two, other = (attributes(traces[number]) for number in (0, 1, 5))
    for name in ("slm.prompt.hash", "slm.answer.hashes"):
        assert one[name] == two[name] != other[name]
    everything = json.dumps([trace.to_dict() for trace in traces], ensure_ascii=False)
    assert "Spain" not in everything
    assert "Испании" not in everything


def test_texts_are_written_if_asked_for(models: Store, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "serve.model=models:/torch/1", "serve.trace_text=true") as server:
        server.post({"messages": QUESTION})
        wait_until(lambda: written(server) == 1)
    (trace,) = traces_of(models.uri, "torch")
    assert trace.info.request_preview == QUESTION[0]["content"]
    assert trace.info.response_preview == ANSWER


def test_a_writer_that_dies_costs_one_batch_and_no_answers(models: Store, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "serve.model=models:/tiny/2") as server:
        server.post({"messages": QUESTION})
        wait_until(lambda: written(server) == 1)
        (writer,) = [each for each in psutil.Process(server.process.pid).children() if each != server.engine()]
        writer.kill()
        assert server.post({"messages": QUESTION}).status_code == 200
        wait_until(lambda: server.metric("slm:traces_lost_total") == 1)
        assert server.post({"messages": QUESTION}).status_code == 200
        wait_until(lambda: written(server) == 2)


def test_clients_that_go_away_and_an_engine_that_dies_are_told_apart(models: Store, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "serve.model=models:/tiny/2") as server:
        server.engine().suspend()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json={"messages": QUESTION}, timeout=5)
        wait_until(lambda: server.metric("slm:answers_unfinished") == 0)
        with ThreadPoolExecutor() as pool:
            lost = pool.submit(server.post, {"messages": QUESTION})
            wait_until(lambda: server.metric("slm:answers_unfinished") == 1)
            server.engine().kill()
            assert lost.result().status_code == 503
        wait_until(lambda: written(server) == 2)
    found = [attributes(trace) for trace in traces_of(models.uri)[-2:]]
    assert [each["error.type"] for each in found] == ["cancelled", "engine_ended"]
    assert [each["http.response.status_code"] for each in found] == [499, 503]


def test_no_trace_is_kept_of_a_share_of_zero(models: Store, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "serve.model=models:/tiny/1", "serve.trace_share=0") as server:
        assert server.post({"messages": QUESTION}).status_code == 200
    assert [trace for trace in traces_of(models.uri) if trace.info.tags["version"] == "1"] == []


def test_a_store_that_goes_away_costs_traces_and_no_answers(models: Store, tmp_path: Path) -> None:
    port = str(free_port())
    command = ["mlflow", "server", "--backend-store-uri", models.uri, "--workers", "1", "--port", port]
    with process(*command, **NO_JOBS) as tracking:
        wait_for(f"http://127.0.0.1:{port}/health", tracking)
        store, log = Store(f"http://127.0.0.1:{port}"), tmp_path / "log"
        with serving(store, log, "serve.model=models:/tiny/1", MLFLOW_HTTP_REQUEST_MAX_RETRIES="1") as server:
            server.post({"messages": QUESTION})
            wait_until(lambda: written(server) == 1)
            os.killpg(tracking.pid, signal.SIGKILL)
            assert [server.post({"messages": QUESTION}).status_code for _ in range(5)] == [200] * 5
            wait_until(lambda: server.metric("slm:traces_lost_total") == 5)
            assert written(server) == 1
        assert server.process.returncode == 0
        assert "serve: traces are lost: " in server.said()
        assert [trace.info.tags["version"] for trace in traces_of(models.uri)][-1] == "1"
