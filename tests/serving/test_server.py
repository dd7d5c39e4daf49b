"""What a server does with clients that hang up, too many of them, an engine that dies, and a signal."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from mlflow import MlflowClient

from .conftest import ANSWER, QUESTION, Server, Store, serving, wait_until

MANY = {"messages": QUESTION, "n": 8, "temperature": 2, "max_tokens": 200}


@contextlib.contextmanager
def halted(server: Server) -> Iterator[None]:
    """Stop the engine meanwhile, as if a step took that long."""
    engine = server.engine()
    engine.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            engine.send_signal(signal.SIGCONT)


def unfinished(server: Server) -> float:
    return server.metric("slm:answers_unfinished")


def in_engine(server: Server) -> float:
    return server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_leaves_nothing_in_the_engine(server: Server, stream: bool) -> None:
    before = server.metric("vllm:request_success_total", finished_reason="abort")
    with halted(server), pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json={**MANY, "stream": stream}, timeout=5)
    wait_until(lambda: unfinished(server) == 0 and in_engine(server) == 0)
    assert server.metric("vllm:request_success_total", finished_reason="abort") == before + 8
    assert server.post({"messages": QUESTION}).status_code == 200


def test_a_client_that_aborts_its_upload_is_cancelled_and_no_error_of_the_server(server: Server) -> None:
    statuses = {status: server.metric("slm:responses_total", status=status) for status in ("499", "500")}
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        time.sleep(0.5)
    wait_until(lambda: server.metric("slm:responses_total", status="499") == statuses["499"] + 1, seconds=20)
    assert server.metric("slm:responses_total", status="500") == statuses["500"]
    assert "ClientDisconnect" not in server.said()


def test_a_stream_that_is_left_in_the_middle_is_cancelled(server: Server) -> None:
    before = server.metric("vllm:request_success_total", finished_reason="abort")
    url, body = f"{server.url}/v1/chat/completions", {**MANY, "stream": True, "max_tokens": 450}
    for _ in range(5):  # on a busy machine the answer may be complete before its first line is read here
        with httpx.stream("POST", url, json=body, timeout=600) as response:
            lines = response.iter_lines()
            assert next(lines)
            server.engine().send_signal(signal.SIGSTOP)  # so that it has not finished when the client is gone
        server.engine().send_signal(signal.SIGCONT)
        wait_until(lambda: unfinished(server) == 0 and in_engine(server) == 0)
        if server.metric("vllm:request_success_total", finished_reason="abort") > before:
            break
    assert server.metric("vllm:request_success_total", finished_reason="abort") > before


def test_more_than_may_wait_are_sent_away_and_health_answers_meanwhile(server: Server) -> None:
    with ThreadPoolExecutor() as pool:
        with halted(server):
            asked = [pool.submit(server.post, MANY) for _ in range(2)]
            wait_until(lambda: unfinished(server) == 16)
            refused = server.post({"messages": QUESTION})
            began = time.monotonic()
            assert httpx.get(f"{server.url}/health", timeout=600).status_code == 200
            assert time.monotonic() - began < 1
        assert [each.result().status_code for each in asked] == [200, 200]
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert server.post({"messages": QUESTION}).status_code == 200


def test_an_engine_that_dies_costs_its_requests_and_no_others(server: Server) -> None:
    with ThreadPoolExecutor() as pool, halted(server):
        lost = pool.submit(server.post, MANY)
        wait_until(lambda: unfinished(server) == 8)
        os.kill(server.engine().pid, signal.SIGKILL)
        response = lost.result()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_ended"
    assert server.post({"messages": QUESTION}).json()["choices"][0]["message"]["content"] == ANSWER


def test_a_stream_whose_engine_dies_ends_with_an_error(server: Server) -> None:
    url, body = f"{server.url}/v1/chat/completions", {**MANY, "stream": True}
    with httpx.stream("POST", url, json=body, timeout=600) as response:
        lines = response.iter_lines()
        assert next(lines)
        server.engine().send_signal(signal.SIGSTOP)
        server.engine().kill()
        *_, last = [line for line in lines if line]
    assert '"code": "engine_ended"' in last
    wait_until(lambda: server.post({"messages": QUESTION}).status_code == 200)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'{"messages": NaN}', 400, "invalid_json"),
        (b'{"a":' * 3000, 400, "invalid_json"),
        (b"\xff", 400, "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "a\\ud83d"}]}', 400, "invalid_value"),
        (b'{"messages": [], "\\ud83d": 1}', 400, "invalid_value"),
        (b" " * 1048577, 413, "body_too_large"),
    ],
)
def test_a_body_that_is_no_request_is_refused(server: Server, body: bytes, status: int, code: str) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=600)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


@pytest.mark.parametrize("host", ["127.0.0.1", "LocalHost:1", "[::1]:8000"])
def test_this_machine_may_be_named_in_any_way(server: Server, host: str) -> None:
    assert httpx.get(f"{server.url}/v1/models", headers={"host": host}, timeout=600).status_code == 200


def test_a_large_body_in_chunks_is_refused_before_its_end(server: Server) -> None:
    headers = {"content-type": "application/json"}
    chunks = (b" " * 65536 for _ in range(64))
    with contextlib.suppress(httpx.WriteError):
        response = httpx.post(f"{server.url}/v1/completions", content=chunks, headers=headers, timeout=600)
        assert response.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"), [({"content-type": "text/plain"}, 415), ({"host": "evil.example"}, 400)]
)
def test_a_page_of_another_site_cannot_have_the_engine_compute(server: Server, headers: dict, status: int) -> None:
    headers = {"content-type": "application/json"} | headers
    response = httpx.post(
        f"{server.url}/v1/chat/completions", json={"messages": QUESTION}, headers=headers, timeout=600
    )
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2", 404), ("GET", "/v1/completions", 405)])
def test_a_path_that_is_not_there_has_an_error_in_the_same_shape(
    server: Server, method: str, path: str, status: int
) -> None:
    response = httpx.request(method, f"{server.url}{path}", timeout=600)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_metrics_count_what_was_answered(server: Server) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_count")
    before = [server.metric(name, version="1") for name in names]
    usage = server.post({"messages": QUESTION}).json()["usage"]
    server.post({"messages": QUESTION, "stream": True})
    after = [server.metric(name, version="1") for name in names]
    expected = [2 * usage["prompt_tokens"], 2 * usage["completion_tokens"], 1]
    assert [new - old for new, old in zip(after, before, strict=True)] == expected


def test_a_prompt_that_begins_like_the_last_is_found_in_the_prefix_cache(server: Server) -> None:
    before = server.metric("vllm:prefix_cache_hits_total")
    for end in ("Spain", "France"):
        server.post({"messages": [{"role": "user", "content": f"{'What is it? ' * 20}{end}"}], "max_tokens": 2})
    assert server.metric("vllm:prefix_cache_hits_total") > before


def test_the_log_has_no_text_of_requests(server: Server) -> None:
    server.post({"messages": [{"role": "user", "content": "xyzzy"}], "chat_template_kwargs": {"a": "xyzzy"}})
    server.post({"messages": [{"role": "user", "content": "xyzzy"}], "top_q": "xyzzy"})
    assert "xyzzy" not in server.said()


def test_sigterm_lets_answers_end_takes_no_more_and_exits_with_0(models: Store, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "serve.model=models:/tiny/1") as server, ThreadPoolExecutor() as pool:
        with halted(server):
            asked = pool.submit(server.post, MANY)
            wait_until(lambda: unfinished(server) == 8)
            server.process.terminate()
            wait_until(lambda: not listens(server))
        assert asked.result().status_code == 200
        assert server.process.wait(20) == 0
    assert "Traceback" not in server.said()


def test_answers_that_outlast_the_grace_are_given_up(models: Store, tmp_path: Path) -> None:
    overrides = ("serve.model=models:/tiny/1", "serve.grace=1")
    with serving(models, tmp_path / "log", *overrides) as server, ThreadPoolExecutor() as pool:
        engine = server.engine()
        engine.send_signal(signal.SIGSTOP)
        asked = pool.submit(server.post, MANY)
        wait_until(lambda: unfinished(server) == 8)
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert not engine.is_running()
        response = asked.result()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")


def listens(server: Server) -> bool:
    try:
        httpx.get(f"{server.url}/health", timeout=600)
    except httpx.TransportError:  # refused, or closed while it shuts down
        return False
    return True


def test_the_run_that_mlflow_run_made_is_named_and_after_a_signal_finished(models: Store, tmp_path: Path) -> None:
    client = MlflowClient(models.uri)
    made = client.create_run("0", run_name="a name that MLflow drew").info.run_id
    with serving(models, tmp_path / "log", "serve.model=models:/tiny/1", MLFLOW_RUN_ID=made):
        assert (client.get_run(made).info.run_name, client.get_run(made).info.status) == ("serve", "RUNNING")
    assert client.get_run(made).info.status == "FINISHED"
