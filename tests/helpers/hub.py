"""A server on 127.0.0.1 that plays the Hugging Face hub, well-behaved or not: listing with checksums, resolve with redirect, ranges."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "f" * 40
HTML = b"<!DOCTYPE html><html><body>Please log in to Cafe WLAN</body></html>"


@dataclass
class Repository:
    files: dict[str, bytes]
    licence: str | None
    uses_lfs: bool


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None
    sent_bytes: int = 0


@dataclass
class FakeHub:
    """`next_data` and `next_listing` hold what the next answers do wrong, one entry an answer; `always` is done when they are used up.

    Entries: "cut:N" (connection closed after N bytes of the body), "short:N" (an honest answer of N bytes too few), "long:N",
    "flip" (one byte changed), "html", "html_of_size" (a page as long as the file), "silent_html" (a page without type or length), "hang",
    "no_range" (200 with everything), "wrong_range", a status such as "503", "503:7" (with Retry-After), "gated" (401).
    """

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    next_data: deque[str] = field(default_factory=deque)
    next_listing: deque[str] = field(default_factory=deque)
    always_data: str = ""
    always_listing: str = ""

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes],
        *,
        licence: str | None = "cdla-sharing-1.0",
        revision: str = "main",
        uses_lfs: bool = True,
    ) -> None:
        self.repositories[repo, revision] = Repository(dict(files), licence, uses_lfs)

    def __enter__(self) -> FakeHub:
        self.is_closing = threading.Event()
        hub = self

        class Handler(_Handler):
            fake = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.is_closing.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def data_requests(self) -> list[Request]:
        """The requests that reached the storage, behind the redirect."""
        return [request for request in self.requests if request.path.startswith("/cdn/")]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Nothing: the test's output stays its own."""

    def do_GET(self) -> None:
        request = Request("GET", unquote(urlsplit(self.path).path), self.headers.get("range"), self.headers.get("authorization"))
        self.fake.requests.append(request)
        parts = request.path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            self._listing("/".join(parts[2:4]), "/".join(parts[5:]) or "main")
        elif parts[0] == "datasets":
            self._resolve("/".join(parts[1:3]), self.path)
        elif parts[0] == "cdn":
            self._data(request, "/".join(parts[1:3]), "/".join(parts[4:]))
        else:
            self._send(404, b"not here")

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _misbehave(self, what: str) -> bool:
        """Whether an answer that needs no knowledge of the file was given."""
        name, _, value = what.partition(":")
        if name.isdigit():
            self._send(int(name), b"busy", **({"retry_after": value} if value else {}))
        elif name == "gated":
            self._send(401, b"gated", x_error_code="GatedRepo")
        elif name == "html":
            self._send(200, HTML, content_type="text/html; charset=utf-8")
        elif name == "silent_html":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(HTML)
            self.close_connection = True
        elif name == "hang":
            self.fake.is_closing.wait(60)
            self.close_connection = True
        else:
            return False
        return True

    def _listing(self, repo: str, revision: str) -> None:
        if self._misbehave(self.fake.next_listing.popleft() if self.fake.next_listing else self.fake.always_listing):
            return
        repository = self.fake.repositories.get((repo, revision))
        if repository is None:
            self._send(404, b'{"error": "Repository not found"}', content_type="application/json")
            return
        siblings = []
        for name, data in repository.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if repository.uses_lfs:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
            siblings.append(entry)
        card = {"license": repository.licence} if repository.licence else {}
        value = {"id": repo, "sha": COMMIT, "siblings": siblings, "cardData": card}
        self._send(200, json.dumps(value).encode(), content_type="application/json")

    def _resolve(self, repo: str, path: str) -> None:
        """Redirect to another origin, as the hub does for large files."""
        _, _, rest = path.partition("/resolve/")
        self._send(302, b"", location=f"http://localhost:{self.fake.port}/cdn/{repo}/{rest}", x_repo_commit=COMMIT)

    def _data(self, request: Request, repo: str, name: str) -> None:
        what = self.fake.next_data.popleft() if self.fake.next_data else self.fake.always_data
        if self._misbehave(what):
            return
        found = [r.files[name] for (at, _), r in self.fake.repositories.items() if at == repo and name in r.files]
        if not found:
            self._send(404, b"no such file")
            return
        self._send_file(request, found[0], what)

    def _send_file(self, request: Request, data: bytes, what: str) -> None:
        name, _, value = what.partition(":")
        amount = int(value or 0)
        start, stop, status = 0, len(data), 200
        headers = {"etag": f'"{hashlib.sha256(data).hexdigest()}"', "content-type": "text/plain", "accept-ranges": "bytes"}
        if request.range and name != "no_range":
            first, _, last = request.range.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), int(last) + 1 if last else len(data), 206
            shown = start + 1 if name == "wrong_range" else start
            headers["content-range"] = f"bytes {shown}-{stop - 1}/{len(data)}"
        if name == "html_of_size":
            data, start, stop, status = HTML.ljust(len(data)), 0, len(data), 200
            headers = {"content-type": "text/html"}
        body = data[start:stop]
        if name == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        body = {"short": body[: len(body) - amount], "long": body + b"x" * amount}.get(name, body)
        headers["content-length"] = str(len(body))
        self.send_response(status)
        for key, text in headers.items():
            self.send_header(key, text)
        self.end_headers()
        sent = body[:amount] if name == "cut" else body
        request.sent_bytes = len(sent)
        self.wfile.write(sent)
        if name == "cut":
            self.close_connection = True


def git_sha1(data: bytes) -> str:
    """Git's name for a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
