"""A small reverse proxy on loopback, as stands before many servers: with a path of its own, and headers changed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP = {"connection", "transfer-encoding", "date", "server", "content-length"}


@contextmanager
def reverse_proxy(url: str, path: str = "", host: str | None = None, date: str | None = None) -> Iterator[str]:
    """Yield the URL of a proxy that serves *url* below *path*, asks it as *host*, and dates its answers *date*."""

    class Handler(BaseHTTPRequestHandler):
        def forward(self) -> None:
            if not self.path.startswith(path + "/"):
                self.send_error(404)
                return
            upstream = HTTPConnection(urlsplit(url).netloc)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = dict(self.headers) | {"Host": host or urlsplit(url).netloc}
            upstream.request(self.command, self.path.removeprefix(path), body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            self.send_header("Date", date or self.date_time_string())
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            upstream.close()

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = forward  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{path}"
    finally:
        server.shutdown()
        server.server_close()
