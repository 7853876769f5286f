"""Laws of who may ask, what is sent with every answer, and how the page's files are served."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.models import lively_model, shape
from helpers.server import Script, TinyServer, running, speaker_of, tiny_server
from positron_mini import generate
from positron_mini.text.tokenizer import Tokenizer
from positron_mini.web import app as web_app
from positron_mini.web.engine import Engine
from positron_mini.web.guard import host_name, is_address
from positron_mini.web.state import Models, Served, ServerState

QUESTION = {"messages": [{"role": "user", "content": "Who?"}]}


@pytest.fixture(scope="module")
def server(tiny_tokenizer: Tokenizer) -> Iterator[TinyServer]:
    with tiny_server(speaker_of(lively_model(shape()), tiny_tokenizer)) as made:
        yield made


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"), ("LOCALHOST:8000", "localhost"), ("127.0.0.1:1", "127.0.0.1"), ("[::1]", "[::1]"),
        ("[::1]:80", "[::1]"), ("", None), (":80", None), ("localhost:", None), ("localhost:x", None), ("localhost:123456", None),
        ("evil.com:80:80", "evil.com:80"), ("localhost.", "localhost."), ("a@localhost", "a@localhost"), ("localhost:٣", None),
    ],
)  # fmt: skip
def test_a_host_header_is_a_name_with_an_optional_port(header: str, name: str | None) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("name", "is_one"), [("192.168.0.7", True), ("[fe80::1]", True), ("10.1", False), ("evil.com", False), ("0x7f.1", False), ("[", False)]
)
def test_an_address_is_told_from_a_name(name: str, is_one: bool) -> None:
    assert is_address(name) is is_one


def test_every_answer_has_the_security_headers(server: TinyServer) -> None:
    with server.client() as http:
        replies = [http.get("/"), http.get("/health"), http.get("/nothing"), http.put("/health"), http.post("/v1/completions", json={})]
        replies += [http.get("/v1/models", headers={"host": "evil.com"}), http.post("/tokenize", json={"content": "x"})]
    for reply in replies:
        policy = reply.headers["content-security-policy"]
        assert (
            "default-src 'none'" in policy
            and "script-src 'self'" in policy
            and "unsafe" not in policy
            and "frame-ancestors 'none'" in policy
        )
        assert reply.headers["x-content-type-options"] == "nosniff" and reply.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in reply.headers and "server" not in reply.headers
        assert reply.headers["cache-control"] in ("no-store", "no-cache")
    assert [reply.status_code for reply in replies] == [200, 200, 404, 405, 400, 403, 200]


def test_the_page_is_sent_compressed_and_once(server: TinyServer) -> None:
    index = Path(web_app.__file__).parent / "static" / "index.html"
    with server.client() as http:
        plain = http.get("/", headers={"accept-encoding": "identity"})
        packed = http.get("/", headers={"accept-encoding": "gzip"})
        again = http.get("/", headers={"if-none-match": plain.headers["etag"]})
        head = http.head("/")
    assert plain.content == packed.content == index.read_bytes() and plain.headers["content-type"] == "text/html; charset=utf-8"
    assert packed.headers["content-encoding"] == "gzip" and int(packed.headers["content-length"]) < len(plain.content)
    assert (again.status_code, again.content) == (304, b"") and (head.status_code, head.content) == (200, b"")


def test_page_files_have_the_types_that_browsers_ask_for(tmp_path: Path) -> None:
    for name in ("a.mjs", "a.js", "a.css", "a.svg", "a.html", "deep/b.mjs"):
        path = tmp_path / "static" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 500)
    (tmp_path / "vendor").mkdir()
    (tmp_path / "secret.txt").write_text("no")
    files = web_app.page_files(tmp_path)
    types = {name: page.media_type for name, page in files.items()}
    assert types == {
        "static/a.mjs": "text/javascript", "static/a.js": "text/javascript", "static/a.css": "text/css", "static/a.svg": "image/svg+xml",
        "static/a.html": "text/html", "static/deep/b.mjs": "text/javascript",
    }  # fmt: skip
    assert all(gzip.decompress(page.compressed or b"") == page.content for page in files.values())


def test_a_request_that_a_page_of_another_site_started_is_refused(server: TinyServer) -> None:
    with server.client() as http:
        for kind, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            assert http.get("/v1/models", headers={"sec-fetch-site": kind}).status_code == status
        assert http.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200  # a link to the page may be followed
        own = f"http://127.0.0.1:{server.port}"
        assert http.post("/v1/completions", json={"prompt": "x"}, headers={"origin": own}).status_code == 200


def test_a_server_on_the_network_answers_addresses_and_named_hosts_only(tiny_tokenizer: Tokenizer) -> None:
    served = Served("tiny", speaker_of(lively_model(shape()), tiny_tokenizer), 0)
    state = ServerState(Models([served]), Engine(), "secret", frozenset({"mini.local"}))
    with running(state) as made, made.client() as http:
        found = {
            host: http.get("/health", headers={"host": host}).status_code
            for host in ("192.168.0.7:1", "mini.local", "evil.com", "localhost")
        }
    assert found == {"192.168.0.7:1": 200, "mini.local": 200, "evil.com": 403, "localhost": 200}


def test_an_unexpected_error_is_a_500_that_quotes_nobody(
    server: TinyServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("my secret prompt")

    monkeypatch.setattr(generate, "stream", fails)
    with server.client() as http:
        whole = http.post("/v1/chat/completions", json=QUESTION)
        stream = http.post("/v1/chat/completions", json={**QUESTION, "stream": True})
    assert {whole.status_code, stream.status_code} == {500}
    assert whole.json()["error"]["type"] == stream.json()["error"]["type"] == "server_error"
    said = capsys.readouterr()
    assert "ZeroDivisionError in" in said.err and "secret" not in said.err + said.out + whole.text + stream.text


def test_an_error_in_the_middle_of_a_stream_is_an_event(server: TinyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> Iterator[str]:
        yield "one"
        raise ZeroDivisionError

    monkeypatch.setattr(generate, "stream", Script(breaks()))
    with server.client() as http:
        text = http.post("/v1/chat/completions", json={**QUESTION, "stream": True}).text
        assert http.get("/health").json()["running"] is False
    assert '"content":"one"' in text and text.split("\n\n")[-2].startswith('data: {"error":') and "[DONE]" not in text


def test_nothing_that_users_write_is_logged(server: TinyServer, capsys: pytest.CaptureFixture[str]) -> None:
    with server.client() as http:
        http.post("/v1/completions", json={"prompt": "wombat", "max_tokens": 3})
        http.post("/v1/completions", json={"prompt": "wombat", "stop": "wombat", "temperature": "wombat"})
        http.post("/v1/completions", content=b'{"prompt": "wombat"', headers={"content-type": "application/json"})
        http.get("/wombat?wombat=wombat")
    server.exchange(b"wombat\r\n\r\n")
    said = capsys.readouterr()
    assert said.out == said.err == ""
