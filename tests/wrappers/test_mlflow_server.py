"""The model behind `mlflow models serve`."""

import concurrent.futures
import contextlib
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow.pyfunc import scoring_server

from .asking import ask, text_of


@pytest.fixture
def server(chat: Any) -> Iterator[str]:
    """Serve the model as `mlflow models serve` does, and return the address."""
    import uvicorn

    uvicorn_server = uvicorn.Server(uvicorn.Config(scoring_server.init(chat), port=0, log_level="error"))
    thread = threading.Thread(target=uvicorn_server.run)
    thread.start()
    while not uvicorn_server.started:
        time.sleep(0.01)
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/invocations"
    uvicorn_server.should_exit = True
    thread.join()


@contextlib.contextmanager
def halted(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_server_answers_ping_while_it_generates(server: str, chat: Any) -> None:
    headers = {"Content-Type": "application/json"}
    body = json.dumps(ask("hello", max_tokens=40, n=8)).encode()
    engine = chat.unwrap_python_model().engine
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with halted(engine.pid):  # as if a step took for ever
            answer = pool.submit(urllib.request.urlopen, urllib.request.Request(server, body, headers))
            while not engine.unfinished and not answer.done():
                time.sleep(0.001)
            with urllib.request.urlopen(server.replace("invocations", "ping"), timeout=600) as response:
                assert response.status == 200
            assert not answer.done()
        assert answer.result().status == 200


def test_a_server_answers_refuses_and_goes_on(server: str, chat: Any) -> None:
    def post(body: dict[str, Any]) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["message"]

    expected = text_of(chat.predict(ask("hello"))[0])
    status, answers = post(ask("hello", temperature=0, stop="\x00"))
    assert (status, text_of(answers[0])) == (200, expected)
    for row, message in ((ask("x", max_token=5), "max_token=5 is not supported"), (ask("x", n=0), "n=0 is outside")):
        status, error = post(row)
        assert status == 400
        assert message in error
    for form in ("dataframe_split", "dataframe_records", "instances"):
        status, error = post({form: [ask("hello")]})
        assert status == 400
        assert "must be a dictionary with 'inputs' key" in error
        assert "\n" not in error
    status, answers = post({"inputs": [ask("hello"), ask("hello", max_tokens=1)]})
    assert (status, text_of(answers["predictions"][0])) == (200, expected)
