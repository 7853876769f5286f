"""A server of a tiny model on loopback, in a thread of this process, and a raw client for what no HTTP library would send."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from positron_mini.chat.model import Model
from positron_mini.config import SampleConfig
from positron_mini.generate import Token
from positron_mini.model import GPT
from positron_mini.text.tokenizer import Tokenizer
from positron_mini.web.engine import Engine
from positron_mini.web.server import Server, bind
from positron_mini.web.state import Models, Served, ServerState


def speaker_of(model: GPT, tokenizer: Tokenizer, *, is_chat: bool = True) -> Model:
    """A speaker that no checkpoint stands behind."""
    return Model("tiny", model, tokenizer, is_chat, frozenset({2, tokenizer.im_end_id}) if is_chat else frozenset({2}))


@dataclass
class TinyServer:
    """A running server and where it listens."""

    state: ServerState
    server: Server
    port: int
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, **settings: Any) -> httpx.Client:
        """An HTTP client of this server."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=60, headers=self.headers, **settings)

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """A raw connection."""
        raw = socket.socket()
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.settimeout(60)
        raw.connect(("127.0.0.1", self.port))
        return raw

    def exchange(self, data: bytes) -> Reply:
        """What a connection answers to some bytes, after which the client sends nothing more."""
        with self.connect() as raw:
            raw.sendall(data)
            return read_reply(raw)

    def post(self, path: str, body: Any, host: str = "localhost") -> bytes:
        """The bytes of a POST request with a JSON body."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        return head.encode() + content

    def is_idle(self) -> bool:
        """Whether nothing is computed and nothing waits."""
        return not self.state.engine.running and not self.state.engine.waiting


@dataclass(frozen=True)
class Reply:
    """An answer taken apart; status 0 when the connection closed without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def read_reply(raw: socket.socket) -> Reply:
    """One answer with a Content-Length from a raw connection, or one that ends with it."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in data and (part := raw.recv(65_536)):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    if not head:
        return Reply(0, {}, b"")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    wanted = int(headers.get("content-length", 1 << 40))
    with contextlib.suppress(ConnectionError):
        while len(body) < wanted and (part := raw.recv(65_536)):
            body += part
    return Reply(int(lines[0].split()[1]), headers, body[:wanted])


def events_of(text: str) -> list[Any]:
    """The events of a stream, the last one by its word."""
    blocks = text.split("\n\n")
    assert blocks.pop() == "" and all(block.startswith("data: ") and "\n" not in block for block in blocks)
    words = [block.removeprefix("data: ") for block in blocks]
    return [word if word == "[DONE]" else json.loads(word) for word in words]


class Script:
    """A stand-in for `generate.stream`: writes `pieces`, one token each and `seconds` apart, however many were asked for."""

    def __init__(self, pieces: Iterable[str], *, seconds: float = 0.0) -> None:
        self._pieces, self._seconds = pieces, seconds
        self.calls: list[tuple[list[int], SampleConfig]] = []
        self.steps = 0

    def __call__(self, model: GPT, tokenizer: Tokenizer, ids: Sequence[int], config: SampleConfig, **_: Any) -> Iterator[Token]:
        self.calls.append((list(ids), config))
        pieces = list(self._pieces) if isinstance(self._pieces, Sized) else None
        for i, piece in enumerate(pieces if pieces is not None else self._pieces):
            time.sleep(self._seconds)
            self.steps += 1
            yield Token(10 + i % 100, piece, -0.5, 0, "stop" if pieces is not None and i == len(pieces) - 1 else None)


@contextlib.contextmanager
def running(state: ServerState) -> Iterator[TinyServer]:
    """A server of `state` until the end of the block."""
    listener = bind("127.0.0.1", 0)
    server = Server(state)
    thread = threading.Thread(target=server.run_on, args=(listener,), daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < end, "the server did not start"
            time.sleep(0.005)
        yield TinyServer(state, server, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"


@contextlib.contextmanager
def tiny_server(speaker: Model, *, api_key: str | None = None, folder: Path | None = None, **more: Any) -> Iterator[TinyServer]:
    """A server of one model, called `tiny`. `more`: other fields of its ServerState."""
    state = ServerState(Models([Served("tiny", speaker, 1_700_000_000, folder)]), Engine(), api_key, **more)
    with running(state) as server:
        yield server
