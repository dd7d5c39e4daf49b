"""What fails around a step has a line that says whose fault it is, and what to do."""

import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import OperationalError

from steps.records.errors import StepError
from steps.safety.outages import explained, explanation


def an_answer(status: int, reason: str) -> requests.Response:
    response = requests.Response()
    response.status_code, response.reason, response.url = status, reason, "http://me:s3cret@127.0.0.1:9/artifacts/x"
    return response


def test_a_server_that_refuses_is_not_said_to_be_away() -> None:
    try:
        an_answer(413, "Content Too Large").raise_for_status()
    except requests.HTTPError as error:
        line = explanation(error) or ""
    assert "refuses: 413 Client Error: Content Too Large" in line
    assert "s3cret" not in line


def test_a_server_without_an_answer_is_away() -> None:
    line = explanation(requests.ConnectionError("refused")) or ""
    assert "does not answer: start it" in line


def test_a_database_that_others_lock_is_named_with_the_reason(tmp_path: Path) -> None:
    others = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    others.execute("BEGIN EXCLUSIVE")
    engine = create_engine(f"sqlite:///{tmp_path}/store.db", connect_args={"timeout": 0})
    with pytest.raises(OperationalError) as raised:
        inspect(engine).get_table_names()
    assert "cannot be used ((sqlite3.OperationalError) database is locked): fix that" in str(explanation(raised.value))


def test_a_bug_has_no_line() -> None:
    assert explanation(KeyError("x")) is None


class Failing(BaseHTTPRequestHandler):
    """Answers every request as `mlflow server` does when its disk is full: it failed."""

    def do_GET(self) -> None:
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def failing_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the URL of the tracking server, which answers and fails."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
        yield url
        server.shutdown()


def test_a_server_that_answers_and_fails_is_not_said_to_be_away(failing_server: str) -> None:
    with pytest.raises(StepError) as raised, explained():
        MlflowClient().get_run("x")
    said = str(raised.value)
    assert said.startswith(f"the tracking server {failing_server} answers with error 500 each time: its log says why")
