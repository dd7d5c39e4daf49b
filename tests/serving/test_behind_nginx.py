"""Servers behind nginx with the configuration of deploy/nginx: streams, a replica that ends, one without a model."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT
from tests.servers import free_port, process

from .conftest import LONG, QUESTION, Server, Store, serving, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
]

KEY = {"Authorization": "Bearer sesame"}
OPTIONS = ("serve.model=models:/tiny/1", "serve.api_key_env=SERVE_KEY")


@pytest.fixture(scope="module")
def replica(models: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(models, tmp_path_factory.mktemp("replica") / "log", *OPTIONS, SERVE_KEY="sesame") as running:
        yield running


@contextmanager
def site(folder: Path, first: str, second: str) -> Iterator[str]:
    """Yield the URL of nginx before the servers at two URLs."""
    text, port = (ROOT / "deploy" / "nginx" / "slm.conf").read_text(), free_port()
    changes = {
        "listen 8000": f"listen 127.0.0.1:{port}",
        "127.0.0.1:8001": first.removeprefix("http://"),
        "127.0.0.1:8002": second.removeprefix("http://"),
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    own = " ".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    main = f"daemon off; pid {folder}/pid; error_log stderr; events {{}}"
    (folder / "nginx.conf").write_text(f"{main} http {{ access_log off; {own} {text} }}")
    with process("nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"):
        wait_until(lambda: is_up(f"http://127.0.0.1:{port}"))
        yield f"http://127.0.0.1:{port}"


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/metrics", timeout=600).status_code == 404
    except httpx.TransportError:
        return False


def ask(url: str) -> int:
    body = {"messages": QUESTION, "max_tokens": 8}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=KEY, timeout=600).status_code


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Yield the URL of a server that answers with *handler*."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def without_model() -> Iterator[tuple[str, list[str]]]:
    """Yield the URL of a server that answers 503, and the paths that it was asked for."""
    asked: list[str] = []

    class Empty(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(503)

        def log_message(self, *_arguments: object) -> None:
            pass

    with answering(Empty) as url:
        yield url, asked


def test_a_replica_without_a_model_gets_few_requests_and_none_is_lost(
    replica: Server, without_model: tuple[str, list[str]], tmp_path: Path
) -> None:
    empty, asked = without_model
    with site(tmp_path, empty, replica.url) as url:
        assert [ask(url) for _ in range(6)] == [200] * 6
    assert asked


@pytest.fixture
def waiting() -> Iterator[tuple[str, threading.Event]]:
    """Yield the URL of a server that writes one piece of its answer and, once the event is set, the rest."""
    go_on = threading.Event()

    class Waiting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"data: first\n\n")
            self.wfile.write(b"data: last\n\n" if go_on.wait(60) else b"data: the first was held back\n\n")

        def log_message(self, *_arguments: object) -> None:
            pass

    with answering(Waiting) as url:
        yield url, go_on


def test_a_piece_of_a_stream_arrives_before_the_next_is_written(
    waiting: tuple[str, threading.Event], tmp_path: Path
) -> None:
    with (
        site(tmp_path, waiting[0], waiting[0]) as url,
        httpx.stream("POST", f"{url}/v1/chat/completions", json=LONG, timeout=600) as stream,
    ):
        pieces = stream.iter_raw()
        assert next(pieces) == b"data: first\n\n"
        waiting[1].set()
        assert b"".join(pieces) == b"data: last\n\n"


def test_a_stream_is_given_under_the_servers_key(replica: Server, tmp_path: Path) -> None:
    with site(tmp_path, replica.url, replica.url) as url:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=LONG, headers=KEY, timeout=600) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["transfer-encoding"] == "chunked"
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert httpx.get(f"{url}/v1/models", timeout=600).status_code == 401
        assert httpx.get(f"{url}/metrics", headers=KEY, timeout=600).status_code == 404  # it would be one replica's
        assert httpx.get(f"{replica.url}/metrics", headers=KEY, timeout=600).status_code == 200


def test_when_a_replica_ends_no_request_is_lost(models: Store, replica: Server, tmp_path: Path) -> None:
    with ExitStack() as stack:
        leaving = stack.enter_context(serving(models, tmp_path / "log", *OPTIONS, SERVE_KEY="sesame"))
        url = stack.enter_context(site(tmp_path, leaving.url, replica.url))
        assert [ask(url) for _ in range(4)] == [200] * 4
        leaving.process.terminate()
        statuses = [ask(url) for _ in range(10)]
        assert leaving.process.wait() == 0
        assert statuses + [ask(url) for _ in range(10)] == [200] * 20
