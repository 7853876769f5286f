"""Checks between the network and the routes: who may send requests, what they may hold, how long they may take.

`Guard` checks the headers and reads the body; `GuardedProtocol` enforces the deadlines and limits of a connection, which ASGI cannot see. A
page of another site can make a browser send requests here. The exact list of Host names stops a site whose name resolves to this machine
(DNS rebinding); the checks of Origin and content type stop the others before anything is done.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import sys
import traceback
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import h11
from pydantic_core import from_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from positron_mini.files import json_line
from positron_mini.web.cors import advice, is_origin, is_preflight, permission, preflight
from positron_mini.web.schemas import error_body

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS = frozenset({"/", "/health"})
PAGE_PREFIXES = ("/static/", "/vendor/")  # the files of `/`; they hold no secret
HTTP_VERSIONS = frozenset({"1.0", "1.1"})
MAX_BODY_BYTES = 1 << 20
MAX_BRACKETS = 100_000  # lists and objects, more than any request needs; parsing a million of them would take a second
MAX_HEADER_BYTES = 16 << 10
MAX_IGNORED_BYTES = 8 << 20  # what a refused client may still send before the connection is closed
MAX_CONNECTIONS = 512
REQUEST_S = 10.0  # from the first byte of a request to its last
STALLED_S = 1.0  # a client that reads nothing for this long, with the system's buffers full, is given up

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Refusal(Exception):
    """A request that is not passed on."""

    def __init__(self, status: int, message: str, *, type: str = "invalid_request_error", code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.code = status, message, type, code


class _Gone(Exception):
    """The client hung up before its request was complete."""


class Guard:
    """ASGI middleware that refuses such requests, and adds security headers to every answer.

    `hosts`: None for a server on loopback; else the host names allowed besides loopback's and IP addresses.
    `origins`: the other sites whose pages may send requests.
    """

    def __init__(
        self, app: ASGIApp, *, api_key: str | None = None, hosts: frozenset[str] | None = None, origins: frozenset[str] = frozenset()
    ) -> None:
        self._app, self._hosts, self._origins = app, hosts, origins
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refused request, pass any other on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        allowed = headers.get("origin") if headers.get("origin") in self._origins else None
        answering = _Answering(send, {} if allowed is None else permission(allowed))
        try:
            if scope["http_version"] not in HTTP_VERSIONS:
                raise Refusal(505, f"this server does not speak HTTP/{scope['http_version']}", code="http_version_not_supported")
            self._check_sender(scope["path"], headers)
            if allowed is not None and is_preflight(scope["method"], headers):  # a preflight carries no key
                await Response(status_code=204, headers=preflight(headers))(scope, receive, answering.send)
                return
            self._check(scope["method"], scope["path"], headers)
            body = await _whole_body(headers, receive)
            if scope["method"] == "POST":
                _check_json(body)
            await self._app(scope, _replay(body, receive), answering.send)
        except _Gone:
            return
        except Refusal as refusal:
            body_json = error_body(refusal.message, refusal.type, code=refusal.code)
            more = {401: {"www-authenticate": "Bearer"}, 505: {"connection": "close"}}.get(refusal.status, {})
            await JSONResponse(body_json, refusal.status, more)(scope, receive, answering.send)
        except Exception as error:
            report(error)
            if answering.has_begun:
                raise  # uvicorn closes the connection: half an answer must not look complete
            message = "the server met an unexpected error; its log says where"
            await JSONResponse(error_body(message, "server_error", code="internal_error"), 500)(scope, receive, answering.send)

    def _check_sender(self, path: str, headers: Headers) -> None:
        """Raise Refusal if the request names another host, or comes from a page of another site."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self._is_own_host(hosts[0]):
            raise Refusal(403, f"the Host header does not name this server{advice('host', hosts, host_name)}", code="host_not_allowed")
        foreign = [origin for origin in origins if origin_host(origin) != hosts[0].lower()]
        is_foreign = bool(foreign) or (path != "/" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"))
        if is_foreign and not (len(origins) == 1 and origins[0] in self._origins):
            told = advice("origin", origins, lambda origin: origin if is_origin(origin) else None)
            raise Refusal(403, f"requests from other sites are not answered{told}", code="origin_not_allowed")

    def _check(self, method: str, path: str, headers: Headers) -> None:
        """Raise Refusal for a wrong key or a POST that is not JSON."""
        if self._key is not None and path not in OPEN_PATHS and not path.startswith(PAGE_PREFIXES):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
                raise Refusal(401, "the API key is missing or wrong", type="authentication_error", code="invalid_api_key")
        if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "the content type must be application/json", code="unsupported_content_type")

    def _is_own_host(self, host: str) -> bool:
        name = host_name(host)
        if name is None or name in LOOPBACK_NAMES:
            return name is not None
        return self._hosts is not None and (name in self._hosts or is_address(name))


class _Answering:
    """A `send` that adds the security headers and those of `more`, and records whether the answer has begun."""

    def __init__(self, send: Send, more: dict[str, str]) -> None:
        self._send, self._more, self.has_begun = send, more, False

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = MutableHeaders(scope=message)
            headers.update({**SECURITY_HEADERS, **self._more})
            headers.setdefault("cache-control", "no-store")
        await self._send(message)


def host_name(host: str) -> str | None:
    """The name in a Host header, in lower case and without the port, or None if it is not a name with an optional port."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):  # no port, or the inside of an IPv6 address
        name, port = host, "0"
    is_port = port.isascii() and port.isdigit() and len(port) <= 5
    return name.lower() if name and is_port else None


def origin_host(origin: str) -> str:
    """Host and port in an Origin header, in lower case; empty for an origin that is not an address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # such as half of an IPv6 address
        return ""


def is_address(name: str) -> bool:
    """Whether a host name is an IP address, which no DNS entry can redirect."""
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


async def _whole_body(headers: Headers, receive: Receive) -> bytes:
    """The body of a request. Errors: Refusal if it is too large, _Gone."""
    declared = headers.get("content-length", "0")
    parts: list[bytes] = []
    size = int(declared) if declared.isdigit() and len(declared) < 20 else MAX_BODY_BYTES + 1
    more = True
    while more:
        if size > MAX_BODY_BYTES:
            raise Refusal(413, f"the body is larger than {MAX_BODY_BYTES:,} bytes", code="body_too_large")
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        parts.append(message.get("body", b""))
        size = sum(map(len, parts))
        more = message.get("more_body", False)
    return b"".join(parts)


def _check_json(body: bytes) -> None:
    """Raise Refusal if the body is not UTF-8 JSON of limited depth; NaN, lone surrogates and endless numbers are refused too."""
    if body.count(b"[") + body.count(b"{") > MAX_BRACKETS:
        raise Refusal(400, f"the body holds more than {MAX_BRACKETS:,} lists and objects", code="invalid_json")
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the body is not valid JSON: {error}", code="invalid_json") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` first, then what follows: the message that the client hung up."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


def report(error: Exception) -> None:
    """Write to stderr what failed and where, without the error's message, which may quote a user's text."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.name} ({frame.filename.rsplit('/', 1)[-1]}:{frame.lineno})" for frame in reversed(frames[-4:]))
    sys.stderr.write(f"error: unexpected {type(error).__name__} in {where}\n")


# --- the connection ---------------------------------------------------------------------------------------------------------------------


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with a deadline for each request, limits for refused or stalled clients, and JSON errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._ignored_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline for the first request of a new connection."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._set_deadline(True)

    def data_received(self, data: bytes) -> None:
        """Take more bytes from the client."""
        self._set_deadline(True)
        if self.conn.our_state is h11.DONE:  # already answered: it was refused before it was read completely
            self._ignored_bytes += len(data)
            if self._ignored_bytes > MAX_IGNORED_BYTES:
                self.transport.abort()
                return
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            self.transport.abort()
        self._set_deadline(self.conn.their_state in (h11.IDLE, h11.SEND_BODY))  # until the request is complete

    def on_response_complete(self) -> None:
        """Go on after an answer; the next request may have arrived already."""
        self._ignored_bytes = 0
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._set_deadline(True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after a closed connection."""
        self._set_deadline(False)
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the clock for a client that does not read while the buffers are full."""
        self._stall = self.loop.call_later(STALLED_S, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Stop that clock: the client reads again."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or is too large."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if "Host: header" in str(error):
            status = 403  # Host missing or given twice: as for one that does not name this server
        self._refuse(status, "the request cannot be read as HTTP/1.1" if status == 400 else str(error))

    def _set_deadline(self, wanted: bool) -> None:
        """Start the clock unless it runs, or stop it."""
        if wanted and self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_S, self._too_slow)
        elif not wanted and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        self._refuse(408, f"the request was not complete after {REQUEST_S:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error if no answer has begun, and close the connection."""
        body = json_line(error_body(message, "invalid_request_error")).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        parts: Iterable[Any] = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        try:
            for part in parts:
                self.transport.write(self.conn.send(part) or b"")
        except h11.LocalProtocolError:  # an answer is on its way, or was sent
            self.transport.abort()
            return
        self.transport.close()
