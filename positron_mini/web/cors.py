"""CORS: lets pages of the sites named by --allow_origin use this server. Source: the Fetch standard."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.datastructures import Headers

_HEADER_NAMES = re.compile("[A-Za-z0-9, -]{1,1000}")
PREFLIGHT_S = 600  # how long a browser may remember what a preflight said


def is_origin(text: str) -> bool:
    """Whether a text is an Origin as browsers send it: scheme, host and perhaps a port, nothing after it, no wildcard."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    host = re.fullmatch(r"[a-z0-9.-]+|\[[0-9a-f:]+\]", parts.netloc.rpartition(":")[0] if parts.port is not None else parts.netloc)
    return host is not None and re.fullmatch("[a-z][a-z0-9+.-]*", parts.scheme) is not None and text == f"{parts.scheme}://{parts.netloc}"


def permission(origin: str) -> dict[str, str]:
    """The headers that let a page of `origin` read an answer."""
    return {"access-control-allow-origin": origin, "access-control-expose-headers": "retry-after", "vary": "origin"}


def preflight(headers: Headers) -> dict[str, str]:
    """The headers that answer a preflight: the page may send the headers it asks for, Authorization and those of OpenAI's client."""
    answer = {"access-control-allow-methods": "GET, POST", "access-control-max-age": str(PREFLIGHT_S)}
    wanted = headers.get("access-control-request-headers", "")
    if _HEADER_NAMES.fullmatch(wanted):
        answer["access-control-allow-headers"] = wanted
    if headers.get("access-control-request-private-network") == "true":  # a public page asks a server on a private address
        answer["access-control-allow-private-network"] = "true"
    return answer


def is_preflight(method: str, headers: Headers) -> bool:
    """Whether a request is a CORS preflight."""
    return method == "OPTIONS" and "access-control-request-method" in headers


def advice(what: str, given: Sequence[str], name_of: Callable[[str], str | None]) -> str:
    """The flag that would allow the one name `given`; empty if it is not a name, or too long to be pasted."""
    name = name_of(given[0]) if len(given) == 1 else None
    is_plain = name is not None and re.fullmatch("[a-z0-9.:/-]{1,253}", name)
    return f"; if it is yours, start the server with --allow_{what} {name}" if is_plain else ""
