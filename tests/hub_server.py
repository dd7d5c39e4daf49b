"""A hub on loopback: it speaks the real one's protocol to huggingface_hub, and misbehaves on demand.

What it speaks: /api/models/.../revision/..., /api/models/.../tree/..., and /.../resolve/... for files. A small file is
named by the sha1 of its git blob and comes after a redirect on the same host; a file of LARGE bytes is in LFS, named by
its sha256, and comes from a second host, which must not see the token. Ranges, ETags, error codes as the real one's.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Thread
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

LARGE = 1000
"""Bytes from which a file is in LFS."""


@dataclass
class Repository:
    """The files of each commit by path, the commit of each branch, and who may read them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    listed: dict[str, int] = field(default_factory=dict)
    """Files that the listing names and nobody can download, with the size it states."""
    hidden: set[str] = field(default_factory=set)
    """Files that the tree leaves out."""

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Make *files* the newest commit of *branch*; return its 40 digits."""
        commit = hashlib.sha1(repr((sorted(files.items()), branch)).encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


@dataclass
class Fault:
    """What happens to requests whose `METHOD path` matches `on`, to as many as `times` says."""

    on: str
    times: float = float("inf")
    status: int | None = None
    """Answer with this status, and nothing else."""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Close the connection after so many bytes of the body."""
    short: int | None = None
    """Announce and send only so many bytes of the body."""
    flip: bool = False
    """Send the body with one bit wrong."""
    pieces: int = 1
    """Send the body in so many pieces."""
    before: Callable[[], object] = lambda: None
    """Called before the answer."""
    underway: Callable[[], object] = lambda: None
    """Called when the first piece has been sent."""


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    line: str
    host: str
    token: str | None
    range: str | None


class Hub:
    """The hub's repositories, faults and log; `url` is what HF_ENDPOINT has to be."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.cdn = f"http://localhost:{port}"
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.arrival = Condition()

    def repository(self, name: str) -> Repository:
        """Return the repository *name*, made if there is none."""
        return self.repositories.setdefault(name, Repository())

    def asked(self, pattern: str) -> list[Request]:
        """Return the requests whose `METHOD path` matches *pattern* somewhere."""
        return [request for request in self.log if re.search(pattern, request.line)]

    def wait_for(self, pattern: str, count: int) -> None:
        """Return when *count* requests that match *pattern* have come."""
        with self.arrival:
            self.arrival.wait_for(lambda: len(self.asked(pattern)) >= count)

    def arrived(self, request: Request) -> Fault:
        """Log *request*, and return what is to happen to it."""
        with self.arrival:
            self.log.append(request)
            self.arrival.notify_all()
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.on, request.line):
                    fault.times -= 1
                    return fault
        return Fault("")


def is_large(content: bytes) -> bool:
    """Return whether *content* is in LFS."""
    return len(content) >= LARGE


def blob_id(content: bytes) -> str:
    """Return the name that git gives to *content*."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def sha256(content: bytes) -> str:
    """Return the name that LFS gives to *content*."""
    return hashlib.sha256(content).hexdigest()


def pointer(content: bytes) -> bytes:
    """Return what git holds in the place of *content* in LFS."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n".encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    fault: Fault

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def _handle(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        host = (self.headers.get("Host") or "").partition(":")[0]
        request = Request(f"{self.command} {path}", host, self.token, self.headers.get("Range"))
        self.fault = self.hub.arrived(request)
        self.fault.before()
        if self.fault.status:
            self._send(self.fault.status, b"no", self.fault.headers)
        elif found := re.fullmatch(r"/cdn/(\w+)", path):
            self._send_file(self._in_lfs(found[1]), {"ETag": f'"{found[1]}"'})
        elif self.token is not None and self.token not in self.hub.tokens:
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._with(found[1], found[2], lambda commit: self._describe(found[1], commit))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._with(found[1], found[2], lambda commit: self._list(found[1], commit, url.query))
        elif found := re.fullmatch(r"/api/resolve-cache/models/([^/]+/[^/]+)/(\w+)/(.+)", path):
            content = self.hub.repositories[found[1]].commits[found[2]][found[3]]
            self._send_file(content, {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": found[2]})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._with(found[1], found[2], lambda commit: self._resolve(found[1], commit, found[3]))
        else:
            self._refuse(404, "EntryNotFound", "Not found")

    def _with(self, name: str, revision: str, answer: Callable[[str], None]) -> None:
        """Answer for the commit that *revision* is, to those who may see the repository."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.token not in repository.readers):
            if self.token is None:
                self._refuse(401, "RepoNotFound", "Invalid username or password.")
            else:
                self._refuse(404, "RepoNotFound", "Repository not found")
            return
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        answer(commit)

    def _describe(self, name: str, commit: str) -> None:
        repository = self.hub.repositories[name]
        siblings: list[dict[str, object]] = []
        for path, content in repository.commits[commit].items():
            entry = {"rfilename": path, "size": len(content), "blobId": blob_id(content)}
            if is_large(content):
                lfs = {"sha256": sha256(content), "size": len(content), "pointerSize": len(pointer(content))}
                entry |= {"blobId": blob_id(pointer(content)), "lfs": lfs}
            siblings.append(entry)
        for path, size in repository.listed.items():
            lfs = {"sha256": "0" * 64, "size": size, "pointerSize": 130}
            siblings.append({"rfilename": path, "size": size, "blobId": "0" * 40, "lfs": lfs})
        self._send_json({"id": name, "sha": commit, "private": repository.private, "siblings": siblings})

    def _list(self, name: str, commit: str, query: str) -> None:
        """Send the tree, two entries a page."""
        repository = self.hub.repositories[name]
        entries: list[dict[str, object]] = []
        for path, content in repository.commits[commit].items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
            if is_large(content):
                lfs = {"oid": sha256(content), "size": len(content), "pointerSize": len(pointer(content))}
                entry |= {"oid": blob_id(pointer(content)), "lfs": lfs}
            if path not in repository.hidden:
                entries.append(entry)
        for path, size in repository.listed.items():
            lfs = {"oid": "0" * 64, "size": size, "pointerSize": 130}
            entries.append({"type": "file", "path": path, "size": size, "oid": "0" * 40, "lfs": lfs})
        start = int(parse_qs(query).get("cursor", ["0"])[0])
        more = f'<{self.hub.url}{self.path.partition("?")[0]}?recursive=True&cursor={start + 2}>; rel="next"'
        self._send_json(entries[start : start + 2], {"Link": more} if start + 2 < len(entries) else {})

    def _resolve(self, name: str, commit: str, path: str) -> None:
        repository = self.hub.repositories[name]
        if repository.gated and self.token not in repository.readers:
            self._refuse(401 if self.token is None else 403, "GatedRepo", f"Access to model {name} is restricted.")
            return
        content = repository.commits[commit].get(path)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(content))}
        if is_large(content):
            headers["X-Linked-ETag"] = f'"{sha256(content)}"'
            headers["Location"] = f"{self.hub.cdn}/cdn/{sha256(content)}?Signature=secret"
            self._send(302, b"", headers)
        else:
            headers["X-Linked-ETag"] = f'"{blob_id(content)}"'
            headers["Location"] = f"/api/resolve-cache/models/{name}/{commit}/{quote(path)}"
            self._send(307, b"", headers)

    def _in_lfs(self, digest: str) -> bytes:
        contents = (
            content for repo in self.hub.repositories.values() for files in repo.commits.values()
            for content in files.values()
        )  # fmt: skip
        return next(content for content in contents if sha256(content) == digest)

    def _send_file(self, content: bytes, headers: dict[str, str]) -> None:
        if self.fault.flip:
            content = bytes([content[0] ^ 1]) + content[1:]
        if self.fault.short is not None:
            content = content[: self.fault.short]
        headers |= {"Accept-Ranges": "bytes"}
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(found[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, content[start:], headers)
        else:
            self._send(200, content, headers)

    def _refuse(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._send_json({"error": message}, headers, status)

    def _send_json(self, value: object, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault.cut is not None:
            self.wfile.write(body[: self.fault.cut])
            self.close_connection = True
            return
        step = max(1, -(-len(body) // self.fault.pieces))
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            if start == 0:
                self.fault.underway()

    def log_message(self, *_: object) -> None:
        """Say nothing: `Hub.log` has every request."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that was killed hangs up."""


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """Return the environment in which a new process talks to *hub* and keeps its cache in *home*."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "", "HF_TOKEN": "", "NO_PROXY": "*"}


@contextmanager
def serving_hub(home: Path) -> Iterator[Hub]:
    """Yield a hub that answers until the body ends, and to which this process talks, with its cache in *home*."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        hub = Hub(server.server_address[1])
        _Handler.hub = hub
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment(hub, home).items():
                patch.setenv(key, value)
            # What huggingface_hub made of these variables when it was imported.
            patch.setattr(constants, "ENDPOINT", hub.url)
            patch.setattr(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
            )
            patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
            patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
            close_session()
            try:
                yield hub
            finally:
                close_session()
                server.shutdown()
