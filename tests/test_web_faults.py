"""The server's promises about faults and hostile input, one test or more per row of the fault matrix; names carry the row's id."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.chats import write_model
from helpers.models import lively_model, shape
from helpers.project import ROOT
from helpers.runs import positron, spawn, wait_for
from helpers.server import Reply, Script, TinyServer, read_reply, speaker_of, tiny_server
from positron_mini import generate
from positron_mini.fast.decoder import Decoder
from positron_mini.generate import Token
from positron_mini.text.chat_format import Message, encode_chat
from positron_mini.text.tokenizer import Tokenizer
from positron_mini.web import guard
from positron_mini.web.prompts import chat_prompt
from positron_mini.web.schemas import ChatRequest
from positron_mini.web.state import Served

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Who?"}]}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server(tiny_tokenizer: Tokenizer) -> Iterator[TinyServer]:
    """A server of a tiny chat model with a context of 128 tokens."""
    with tiny_server(speaker_of(lively_model(shape(context_len=128)), tiny_tokenizer)) as made:
        yield made


@pytest.fixture(autouse=True)
def idle_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did, nothing is computed soon after it."""
    yield
    if "server" in request.fixturenames:
        wait_for(request.getfixturevalue("server").is_idle, PATIENCE_S)


PATIENCE_S = 30  # what is promised within a second or ten ends by itself or never; how soon: benchmarks/server.py, on a quiet machine


def within(seconds: float, condition: Callable[[], bool]) -> None:
    """Nothing, once `condition` holds. Fails when that takes longer."""
    wait_for(condition, seconds)


# --- S1, S2, S3, S10, S11: who may ask, and for what ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (["localhost"], 200), (["LOCALHOST"], 200), (["localhost:8000"], 200), (["127.0.0.1"], 200), (["127.0.0.1:1"], 200),
        (["[::1]"], 200), (["[::1]:8000"], 200),
        (["evil.com"], 403), (["evil.com:8000"], 403), (["localhost.evil.com"], 403), (["127.0.0.1.evil.com"], 403),
        ([], 403), (["localhost", "evil.com"], 403), (["localhost", "localhost"], 403), (["192.168.0.7"], 403), (["127.0.0.1:x"], 403),
        (["localhost."], 403), (["user@localhost"], 403), (["localhost evil.com"], 403), (["2130706433"], 403),
        (["[::ffff:127.0.0.1]"], 403),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_S1_only_loopback_names_are_answered(server: TinyServer, hosts: list[str], status: int, version: str) -> None:
    lines = "".join(f"Host: {host}\r\n" for host in hosts)
    reply = server.exchange(f"GET /health HTTP/{version}\r\n{lines}\r\n".encode())
    assert reply.status == status
    assert reply.status == 200 or reply.json["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/static/app.mjs", "/openapi.json", "/nothing"])
def test_S1_no_path_is_exempt(server: TinyServer, path: str) -> None:
    assert server.exchange(f"GET {path} HTTP/1.1\r\nHost: evil.com\r\n\r\n".encode()).status == 403


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.com", "null", "http://localhost:1", "https://127.0.0.1.evil.com", "file://", "", "http://127.0.0.1", "http://[",
        "http://[x]",
    ],
)  # fmt: skip
def test_S2_foreign_origins_are_refused_and_never_allowed(server: TinyServer, origin: str) -> None:
    with server.client() as http:
        replies = [
            http.post("/v1/chat/completions", json=QUESTION, headers={"origin": origin}),
            http.get("/v1/models", headers={"origin": origin}),
            http.options("/v1/chat/completions", headers={"origin": origin, "access-control-request-method": "POST"}),
        ]
    assert [reply.status_code for reply in replies] == [403, 403, 403]
    assert not any(name.startswith("access-control") for reply in replies for name in reply.headers)


def test_S2_options_without_an_origin_allow_nothing(server: TinyServer) -> None:
    with server.client() as http:
        reply = http.options("/v1/chat/completions")
    assert reply.status_code == 405 and not any(name.startswith("access-control") for name in reply.headers)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", "", None, "text/json"]
)
def test_S2_a_post_must_say_that_it_is_json(server: TinyServer, kind: str | None) -> None:
    with server.client() as http:
        reply = http.post("/v1/chat/completions", content=json.dumps(QUESTION), headers={} if kind is None else {"content-type": kind})
        good = http.post("/tokenize", content=b'{"content": "x"}', headers={"content-type": "Application/JSON; charset=utf-8"})
    assert (reply.status_code, reply.json()["error"]["code"], good.status_code) == (415, "unsupported_content_type", 200)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.com"])
def test_S3_the_network_is_not_served_without_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSITRON_API_KEY", raising=False)
    for command in ("serve", "lab"):
        result = positron(command, "--host", host)
        assert result.code == 2 and f"--host {host} lets other machines in" in result.sentence and "--api_key" in result.hint


@pytest.mark.parametrize("key", ["", " ", "with space ", "schlüssel"])
def test_S3_a_key_must_be_sendable(key: str) -> None:
    assert positron("serve", "--api_key", key).code == 2


def test_S3_every_route_but_the_page_and_health_needs_the_key(tiny_tokenizer: Tokenizer) -> None:
    speaker = speaker_of(lively_model(shape()), tiny_tokenizer)
    with tiny_server(speaker, api_key="secret-1") as made, made.client() as http:
        right = {"authorization": "Bearer secret-1"}
        routes = http.get("/openapi.json", headers=right).json()["paths"]
        asked = [(method, path) for path, operations in routes.items() for method in operations]
        assert len(asked) >= 7
        for method, path in [*asked, ("get", "/openapi.json"), ("get", "/nothing")]:
            body = {"content": b"{}", "headers": JSON} if method == "post" else {}
            for authorization in (None, "Bearer secret-2", "Bearer secret-1x", "Bearer", "Basic secret-1", "secret-1", "Bearer sécret"):
                headers = {**body.get("headers", {}), **({"authorization": authorization.encode()} if authorization else {})}
                reply = http.request(method, path.replace("{id}", "tiny"), **{**body, "headers": headers})
                assert reply.status_code == (200 if path == "/health" else 401), (method, path, authorization)
                if reply.status_code == 401:
                    assert reply.json()["error"]["code"] == "invalid_api_key" and reply.headers["www-authenticate"] == "Bearer"
        assert http.get("/").status_code == 200
        assert http.get("/v1/models", headers=right).status_code == 200
        assert http.post("/v1/chat/completions", json={**QUESTION, "max_tokens": 2}, headers=right).status_code == 200


PATHS = [
    "/../etc/passwd", "/static/../../../etc/passwd", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/static/..%2f..%2f..%2fetc%2fpasswd",
    "/static//etc/passwd", "/static/....//etc/passwd",
    "/static/..\\..\\etc\\passwd", "/static/%5c..%5c..", "/static/", "/static", "/vendor/",
    "/vendor/../app.py", "/app.py", "/%2e%2e/", "/static/../app.py", "/static/%00", "/static/app.mjs%00.html", "//etc/passwd",
    "/static/%c0%ae%c0%ae/app.py", "/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "http://localhost/../etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_S10_no_path_leads_out_of_the_page(server: TinyServer, path: str) -> None:
    reply = server.exchange(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert reply.status == 404 and b"root:" not in reply.body and b"import" not in reply.body


watched: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if watched is not None and event in ("open", "socket.connect", "socket.getaddrinfo", "os.listdir", "os.scandir", "subprocess.Popen"):
        watched.append(f"{event} {arguments[0]!r}")


@pytest.mark.parametrize(
    "name", ["other", "../../etc/passwd", "/etc/passwd", "runs/x", "tiny@1", "https://evil.com/m", "", "t\x00", "x" * 256]
)
def test_S11_an_unknown_model_touches_neither_disk_nor_network(server: TinyServer, name: str) -> None:
    global watched
    if not getattr(sys, "_positron_audit", False):
        sys.addaudithook(_audit)  # it stays for the life of the process, and looks only while `watched` is a list
        sys._positron_audit = True  # type: ignore[attr-defined]
    with server.client() as http:
        http.get("/health")  # the connection stands from here on
        watched = []
        try:
            chat = http.post("/v1/chat/completions", json={**QUESTION, "model": name})
            found = watched
        finally:
            watched = None
    assert (chat.status_code, chat.json()["error"]["code"]) == (404, "model_not_found") and found == []


# --- S5: input beyond all measure -------------------------------------------------------------------------------------------------------

HUGE: dict[str, bytes] = {
    "n": json.dumps({**QUESTION, "n": 10**9}).encode(),
    "max_tokens": json.dumps({**QUESTION, "max_tokens": 10**9}).encode(),
    "max_tokens_negative": json.dumps({**QUESTION, "max_tokens": -1}).encode(),
    "prompt": json.dumps({"messages": [{"role": "user", "content": "x" * 10**6}]}).encode(),
    "words": json.dumps({"messages": [{"role": "user", "content": "the cat " * 10**5}]}).encode(),
    "messages": json.dumps({"messages": QUESTION["messages"] * 10**4}).encode(),
    "wrong_messages": b'{"messages": [' + b"0," * 400_000 + b"0]}",
    "wrong_parts": b'{"messages": [{"role": "user", "content": [' + b"{}," * 300_000 + b"{}]}]}",
    "keys": b'{"messages": [], ' + b",".join(b'"%d":0' % i for i in range(90_000)) + b"}",
    "depth": b'{"messages": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "open_depth": b"[" * 10**6,
    "integer": b'{"messages": [], "seed": ' + b"9" * 5_000 + b"}",
    "long_integer": b'{"messages": [], "seed": ' + b"9" * 10**6 + b"}",
    "float": b'{"messages": [], "temperature": 1e999999}',
    "nan": b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "infinity": b'{"messages": [{"role": "user", "content": "x"}], "temperature": Infinity}',
    "surrogate": rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
    "surrogate_key": rb'{"messages": [{"role": "user", "content": "x"}], "\udc00": 1}',
    "nul": rb'{"messages": [{"role": "user", "content": "a\u0000b"}]}',
    "raw_nul": b'{"messages": [{"role": "user", "content": "a\0b"}]}',
    "bad_utf8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "utf16": json.dumps(QUESTION).encode("utf-16"),
    "nothing": b"",
    "word": b"null",
    "cut": b'{"messages": [{"role": "user", "con',
    "stops": json.dumps({**QUESTION, "stop": ["a"] * 10**5}).encode(),
    "long_stop": json.dumps({**QUESTION, "stop": "a" * 10**6}).encode(),
    "bias": json.dumps({**QUESTION, "logit_bias": {str(i): 1 for i in range(10**4)}}).encode(),
    "model": json.dumps({**QUESTION, "model": "x" * 10**6}).encode(),
}


BUSY_S = 0.2  # the promise is 0.1 s, which benchmarks/server.py measures; beside other programs a processor computes more slowly


def answered_in(server: TinyServer, path: str, body: bytes) -> tuple[httpx.Response, float]:
    """The answer, and the seconds of computing that it took in this process, client and server together: a busy machine adds none."""
    with server.client() as http:
        http.get("/health")
        began = time.process_time()
        reply = http.post(path, content=body, headers=JSON)
        return reply, time.process_time() - began


@pytest.mark.parametrize("name", HUGE)
def test_S5_what_is_beyond_measure_is_refused_at_once(server: TinyServer, name: str) -> None:
    process = psutil.Process()
    answered_in(server, "/v1/chat/completions", HUGE[name])  # what is loaded or allocated once
    gc.collect()
    before = process.memory_info().rss
    times = []
    for _ in range(3):
        reply, seconds = answered_in(server, "/v1/chat/completions", HUGE[name])
        times.append(seconds)
        error = reply.json()["error"]
        assert 400 <= reply.status_code < 500 and error["message"] and len(reply.content) < 1_000
    assert min(times) < BUSY_S, times
    assert process.memory_info().rss - before < 50 << 20
    with server.client() as http:
        assert http.post("/v1/chat/completions", json={**QUESTION, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", b'{"prompt": [' + b"5," * 400_000 + b"5]}"),
        ("/v1/completions", b'{"prompt": [' + b'"",' * 300_000 + b'""]}'),
        ("/v1/completions", b'{"prompt": [[' + b"5," * 400_000 + b"5]]}"),
        ("/v1/completions", b'{"prompt": [' + b"[]," * 300_000 + b"[]]}"),
        ("/v1/completions", b'{"prompt": [' + b"[]," * 99_000 + b"[]]}"),
        ("/v1/completions", json.dumps({"prompt": "a b " * 250_000}).encode()),
        ("/v1/completions", b'{"prompt": "x", "max_tokens": 0}'),
        ("/tokenize", json.dumps({"content": "x" * 10**6}).encode()),
        ("/detokenize", b'{"tokens": [' + b"5," * 500_000 + b"5]}"),
        ("/detokenize", b'{"tokens": [-1]}'),
        ("/detokenize", b'{"tokens": [99999999999999999999]}'),
        ("/detokenize", b'{"tokens": [1.5]}'),
    ],
)  # fmt: skip
def test_S5_the_other_routes_have_limits_too(server: TinyServer, path: str, body: bytes) -> None:
    reply, seconds = min((answered_in(server, path, body) for _ in range(3)), key=lambda found: found[1])
    assert reply.status_code == 400 and seconds < BUSY_S and len(reply.content) < 1_000


# --- S6: connections that misbehave -----------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """The seconds after which a request must be there; the promise is 10, which would make the tests long."""
    assert guard.REQUEST_S <= 10 and guard.STALLED_S <= 1
    monkeypatch.setattr(guard, "REQUEST_S", 0.5)
    return 0.5


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lines, "", ""]).encode()


def ends_well(raw: socket.socket) -> Reply:
    """The answer that a connection ends with, a 4xx or none. Fails when it stays open."""
    raw.settimeout(PATIENCE_S)
    reply = read_reply(raw)
    assert reply.status == 0 or 400 <= reply.status < 500
    return reply


def sent_before_the_end(raw: socket.socket, data: bytes) -> int:
    """How many bytes a connection takes, the same ones again and again, until the server cuts it; at the most a gibibyte."""
    sent = 0
    with contextlib.suppress(OSError):
        while sent < 1 << 30:
            sent += raw.send(data)
    return sent


def test_S6_a_gibibyte_is_refused_before_it_is_sent(server: TinyServer) -> None:
    with server.connect() as raw:
        raw.sendall(head("/v1/completions", f"Content-Length: {1 << 30}"))
        reply = ends_well(raw)
        assert (reply.status, reply.json["error"]["code"]) == (413, "body_too_large")
        assert sent_before_the_end(raw, b"x" * 65_536) < 64 << 20  # our limit and what the system buffers


@pytest.mark.parametrize("kind", ["lying", "nothing", "half_head", "open_chunk", "no_head"])
def test_S6_a_request_that_does_not_end_is_ended(server: TinyServer, impatient: float, kind: str) -> None:
    data = {
        "lying": head("/v1/completions", "Content-Length: 100") + b'{"prompt":',
        "nothing": b"",
        "half_head": b"POST /v1/completions HTTP/1.1\r\nHost: loc",
        "open_chunk": head("/v1/completions", "Transfer-Encoding: chunked") + b"5\r\n{    \r\n",
        "no_head": b"\r\n",
    }[kind]
    with server.connect() as raw:
        raw.sendall(data)
        assert ends_well(raw).status in ((0, 408) if kind != "no_head" else (0, 400, 408))  # empty lines are no request


def test_S6_a_body_longer_than_it_says_is_another_request(server: TinyServer) -> None:
    reply = server.exchange(head("/tokenize", "Content-Length: 16") + b'{"content": "x"}' + b"GARBAGE\r\n\r\n")
    assert reply.status == 200
    with server.client() as http:
        assert http.get("/health").status_code == 200


def test_S6_chunks_without_end_are_refused(server: TinyServer) -> None:
    with server.connect() as raw:
        raw.sendall(head("/v1/completions", "Transfer-Encoding: chunked"))
        assert sent_before_the_end(raw, b"10000\r\n" + b" " * 65_536 + b"\r\n") < 64 << 20
        assert ends_well(raw).status in (0, 413)


@pytest.mark.parametrize("kind", ["one", "many", "target", "line"])
def test_S6_a_megabyte_of_headers_is_refused(server: TinyServer, kind: str) -> None:
    start = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    data = {
        "one": start + b"X: " + b"a" * 10**6 + b"\r\n\r\n",
        "many": start + b"".join(b"X-%d: a\r\n" % i for i in range(100_000)) + b"\r\n",
        "target": b"GET /" + b"a" * 10**6 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "line": b"G" * 10**6,
    }[kind]
    with server.connect() as raw:
        try:
            raw.sendall(data)
        except OSError:
            return  # closed while it was sent
        assert ends_well(raw).status in (0, 400, 431)


def test_S6_fifty_slow_clients_are_cut_off_and_hurt_nobody(server: TinyServer, impatient: float) -> None:
    request = head("/v1/completions", "Content-Length: 100000")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(50)]
        open_ones, began, served = set(range(50)), time.monotonic(), 0
        with server.client() as http:
            for byte in itertools.cycle(request):
                for i in list(open_ones):
                    try:
                        slow[i].send(bytes([byte]))
                    except OSError:
                        open_ones.discard(i)
                assert http.get("/health").status_code == 200
                served += bool(open_ones)  # while the slow ones are still there
                if not open_ones or time.monotonic() - began > impatient + PATIENCE_S:
                    break
                time.sleep(0.02)
        assert not open_ones and served > 0
        assert all(ends_well(raw).status in (0, 408) for raw in slow)


def test_S6_an_idle_connection_is_closed_and_a_busy_one_is_not(
    server: TinyServer, impatient: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "stream", Script(["a", "b", "c", "d"], seconds=0.3))  # longer than a request may take to arrive
    with server.connect() as raw:
        for _ in range(2):
            raw.sendall(server.post("/v1/chat/completions", QUESTION))
            assert read_reply(raw).status == 200
    monkeypatch.setattr(server.server.config, "timeout_keep_alive", 0.2)
    with server.connect() as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_reply(raw).status == 200
        raw.settimeout(PATIENCE_S)
        assert raw.recv(1) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        head("/tokenize", "Transfer-Encoding: chunked") + b"zz\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\rc\r\n\r\n",
    ],
)
def test_S6_what_is_not_http_is_refused_in_the_shape_of_an_error(server: TinyServer, data: bytes) -> None:
    with server.connect() as raw:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        reply = read_reply(raw)
    assert reply.status == 0 or (400 <= reply.status < 600 and reply.json["error"]["message"])


# --- S7, S8: the queue ------------------------------------------------------------------------------------------------------------------


def endless(monkeypatch: pytest.MonkeyPatch, *, piece: str = "word ", seconds: float = 0.01) -> Script:
    """A stand-in for the model that never stops writing."""
    script = Script(itertools.repeat(piece), seconds=seconds)
    monkeypatch.setattr(generate, "stream", script)
    return script


def stops(script: Script, server: TinyServer) -> None:
    """Nothing, once nothing is computed any more. Fails when the work, which has no end of its own, goes on."""
    within(PATIENCE_S, server.is_idle)
    steps = script.steps
    time.sleep(0.05)
    assert script.steps == steps


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_S7_who_hangs_up_during_the_answer_stops_it(server: TinyServer, monkeypatch: pytest.MonkeyPatch, stream: bool, path: str) -> None:
    script = endless(monkeypatch)
    body = {**(QUESTION if "chat" in path else {"prompt": "x"}), "stream": stream}
    with server.connect() as raw:
        raw.sendall(server.post(path, body))
        if stream:
            assert b"HTTP/1.1 200" in raw.recv(65_536)
        within(PATIENCE_S, lambda: script.steps > 2)
    stops(script, server)


def test_S7_who_hangs_up_in_the_queue_frees_the_place(server: TinyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    script = endless(monkeypatch)
    with server.connect() as first:
        first.sendall(server.post("/v1/chat/completions", {**QUESTION, "stream": True}))
        within(PATIENCE_S, lambda: script.steps > 0)
        for stream in (False, True):
            with server.connect() as second:
                second.sendall(server.post("/v1/chat/completions", {**QUESTION, "stream": stream}))
                within(PATIENCE_S, lambda: server.state.engine.waiting == 1)
            within(PATIENCE_S, lambda: server.state.engine.waiting == 0)
        assert len(script.calls) == 1 and server.state.engine.running  # the first one goes on
    stops(script, server)


def test_S7_who_hangs_up_while_the_prompt_is_read_stops_it(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(shape(n_layer=40, context_len=128))
    layers = []
    monkeypatch.setattr(Decoder, "_attend", lambda *_: (time.sleep(0.25), layers.append(1))[0])  # slow: reading takes ten seconds
    with tiny_server(speaker_of(model, tiny_tokenizer)) as made:
        for stream in (False, True):
            layers.clear()
            with made.connect() as raw:
                raw.sendall(made.post("/v1/chat/completions", {**QUESTION, "stream": stream}))
                within(PATIENCE_S, lambda: len(layers) > 2)
            within(PATIENCE_S, made.is_idle)
            assert len(layers) < 30


def test_S7_a_reader_that_takes_nothing_is_cut_off(server: TinyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    script = endless(monkeypatch, piece="word " * 2_000, seconds=0.0005)
    with server.connect(receive_buffer=4_096) as raw:
        raw.sendall(server.post("/v1/chat/completions", {**QUESTION, "stream": True}))
        within(PATIENCE_S, lambda: script.steps > 0)
        before = script.steps
        within(PATIENCE_S, server.is_idle)  # the system's buffers take a while to fill; then one second
        assert script.steps > before
    stops(script, server)


def test_S7_a_reader_that_pauses_briefly_is_not_cut_off(server: TinyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "stream", Script(["word " * 2_000] * 300))
    with server.connect(receive_buffer=4_096) as raw:
        raw.sendall(server.post("/v1/chat/completions", {**QUESTION, "stream": True}))
        data = b""
        while not data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            if len(data) < 100_000:
                time.sleep(0.05)
            part = raw.recv(65_536)
            assert part, "cut off"
            data += part
    assert data.count(b"word ") == 600_000


def test_S8_one_runs_eight_wait_and_the_rest_come_again_later(server: TinyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    class Held(Script):
        def __call__(self, *words: Any, **settings: Any) -> Iterator[Token]:
            assert gate.wait(PATIENCE_S)  # nothing is written before all the others know that they wait or come again later
            yield from super().__call__(*words, **settings)

    monkeypatch.setattr(generate, "stream", Held(["a"] * 20))
    order: list[int] = []
    healthy: list[int] = []  # how many waited, each time that /health answered while the first one ran

    async def ask(http: httpx.AsyncClient, number: int) -> httpx.Response:
        reply = await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": f"{number}"}]})
        if reply.status_code == 200:
            order.append(number)
        return reply

    async def main() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60, limits=limits) as http:
            tasks = []
            for number in range(64):
                tasks.append(asyncio.create_task(ask(http, number)))
                if number < 9:  # the order in which they arrive is known
                    await asyncio.to_thread(within, PATIENCE_S, lambda number=number: server.state.engine.waiting >= number)
            while len([task for task in tasks if task.done()]) < 55 or len(healthy) < 6:
                health = (await http.get("/health")).json()
                assert health["running"]
                healthy.append(health["waiting"])
            gate.set()
            return await asyncio.gather(*tasks)

    try:
        replies = asyncio.run(asyncio.wait_for(main(), 2 * PATIENCE_S))
    finally:
        gate.set()
    refused = [reply for reply in replies if reply.status_code == 429]
    assert [reply.status_code for reply in replies[:9]] == [200] * 9 and len(refused) == 55
    assert set(healthy) == {8}
    assert all(1 <= int(reply.headers["retry-after"]) <= 60 and reply.json()["error"]["code"] == "queue_full" for reply in refused)
    assert order == list(range(9)), "first come, first served"


# --- S9, S12: what texts contain --------------------------------------------------------------------------------------------------------

DANGEROUS = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "[x](javascript:alert(1))",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egnp.exe",
    "\u2028",
]


@pytest.mark.parametrize("text", DANGEROUS)
@pytest.mark.parametrize("stream", [False, True])
def test_S9_dangerous_letters_are_passed_as_letters_in_json(
    server: TinyServer, monkeypatch: pytest.MonkeyPatch, text: str, stream: bool
) -> None:
    monkeypatch.setattr(generate, "stream", Script([*text[:3], text[3:]]))
    with server.client() as http:
        reply = http.post("/v1/chat/completions", json={**QUESTION, "stream": stream})
    assert reply.headers["x-content-type-options"] == "nosniff"
    if not stream:
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["choices"][0]["message"]["content"] == text
        return
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in reply.text.split("\n") if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == text


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    parts=st.lists(
        st.sampled_from(["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>", "<unk>", "assistant\n", "system", "\n", "a", " ", "🐈"]),
        max_size=8,
    )
)
def test_S12_role_markers_in_a_text_are_letters(tiny_tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    served = Served("tiny", speaker_of(lively_model(shape(context_len=256)), tiny_tokenizer), 0)
    ids = chat_prompt(served, ChatRequest.model_validate({"messages": [{"role": "user", "content": text}]})).ids
    assert ids == encode_chat(tiny_tokenizer, [Message("user", text)], add_generation_prompt=True).ids
    control = [index for index in ids if index in tiny_tokenizer.control_ids]
    assert control == [1, tiny_tokenizer.im_start_id, tiny_tokenizer.im_end_id, tiny_tokenizer.im_start_id]
    assert not tiny_tokenizer.control_ids & set(tiny_tokenizer.encode(text))
    inside = ids[2 : ids.index(tiny_tokenizer.im_end_id)]
    assert tiny_tokenizer.decode(inside) == f"user\n{text}"


# --- S13: a long life and a clean end ---------------------------------------------------------------------------------------------------


def test_S13_memory_and_descriptors_stay_flat(server: TinyServer) -> None:
    process = psutil.Process()

    def some(count: int) -> None:
        with server.client() as http:
            for i in range(count):
                body = {**QUESTION, "max_tokens": 2, "stream": i % 2 == 0, "logprobs": True, "top_logprobs": 5}
                assert http.post("/v1/chat/completions", json=body).status_code == 200
                with server.connect() as raw:  # and some that hang up
                    raw.sendall(server.post("/v1/completions", {"prompt": "x"}) if i % 3 else b"POST /")
        within(PATIENCE_S, server.is_idle)
        gc.collect()

    some(30)
    memory, descriptors = process.memory_info().rss, process.num_fds()
    some(60)  # thousands of them: benchmarks/server.py
    assert process.memory_info().rss - memory < 8 << 20
    assert process.num_fds() <= descriptors + 2
    assert not server.server.server_state.tasks or within(PATIENCE_S, lambda: not server.server.server_state.tasks) is None
    assert not [task for task in threading.enumerate() if task.name.startswith("engine") and not task.is_alive()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_S13_a_stopped_server_drains_and_frees_its_port(tiny_tokenizer: Tokenizer, tmp_path: Path, number: int) -> None:
    folder = write_model(tmp_path / "model", lively_model(shape(n_layer=8, context_len=65_536)), tiny_tokenizer, is_chat=False)
    process = spawn("serve", "--ckpt", str(folder), "--port", "0", "--threads", "1")
    try:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        port = int(url.rpartition(":")[2])
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            body = {"prompt": "x", "stream": True, "max_tokens": 60_000, "temperature": 1.5, "stop": "never"}
            with http.stream("POST", "/v1/completions", json=body) as reply:
                lines = reply.iter_lines()
                next(lines)
                began = time.monotonic()
                process.send_signal(number)
                last = [line for line in lines if line][-1]
        code = process.wait(60)
        assert time.monotonic() - began < 30  # three seconds are given to the answer, which would take minutes
        assert last == "data: [DONE]" or json.loads(last.removeprefix("data: "))["error"]["code"] == "stopped"
        assert code == (0 if number == signal.SIGINT else -signal.SIGTERM) and "Traceback" not in process.stderr.read()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
    finally:
        process.kill()
        process.communicate()


# --- the commands -----------------------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = positron("serve", "--ckpt", tmp_path, "--port", str(taken.getsockname()[1]))
    assert result.code == 2 and "cannot listen on 127.0.0.1" in result.sentence and "--port 0" in result.hint


@pytest.mark.parametrize("command", ["serve", "lab"])
def test_a_missing_library_is_one_sentence_with_the_command_that_helps(command: str) -> None:
    hide = "import sys, importlib.util as u; real = u.find_spec; u.find_spec = lambda n, *a: None if n == 'uvicorn' else real(n, *a)\n"
    code = f"{hide}from positron_mini.cli import main\nsys.exit(main(['{command}']))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == "error: the server needs uvicorn" and "pip install" in done.stderr.splitlines()[1]


def test_the_lab_serves_every_run_and_follows_new_ones(workshop: Path) -> None:
    process = spawn("lab", "--no_browser", "--port", "0", "--threads", "1")
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["base"]
            for name in ("base", "base@30", "base@20"):
                reply = http.post("/v1/completions", json={"model": name, "prompt": "Once", "max_tokens": 2})
                assert (reply.status_code, reply.json()["model"]) == (200, name)
            assert http.post("/v1/completions", json={"model": "base@21", "prompt": "Once"}).status_code == 404
            os.rename(workshop / "runs" / "base", workshop / "runs" / "other")
            assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["other"]
            assert http.post("/v1/completions", json={"model": "other", "prompt": "Once", "max_tokens": 2}).status_code == 200
            (workshop / "runs" / "other" / "step_000030" / "model.safetensors").write_bytes(b"damaged")
            damaged = http.post("/v1/completions", json={"model": "other@30", "prompt": "Once"})
            assert (damaged.status_code, damaged.json()["error"]["code"]) == (503, "model_unavailable")
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err.splitlines()[-1] == "stopped" and "1 run in runs" in err


def test_requests_side_by_side_get_their_own_answers(server: TinyServer) -> None:
    def ask(seed: int) -> str:
        with server.client() as http:
            for _ in range(200):
                reply = http.post("/v1/completions", json={"prompt": "Once", "seed": seed, "temperature": 1.5, "max_tokens": 8})
                if reply.status_code == 200:
                    return str(reply.json()["choices"][0]["text"])
                time.sleep(0.02)
        raise AssertionError("never admitted")

    alone = [ask(seed) for seed in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone
    assert len(set(alone)) > 6
