"""The application: routes, the page's files, and errors in OpenAI's shape."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from positron_mini import __version__
from positron_mini.errors import PositronError
from positron_mini.web.failures import failure
from positron_mini.web.guard import Guard
from positron_mini.web.lab import lab_routes
from positron_mini.web.openai import openai_routes
from positron_mini.web.schemas import error_body, first_violation
from positron_mini.web.state import ServerState

PAGE_FOLDERS = ("static", "vendor")
READING = ["GET", "HEAD"]
mimetypes.add_type("text/javascript", ".mjs")  # missing on some systems; browsers refuse a module of another type


def create_app(state: ServerState) -> FastAPI:
    """The application that serves `state`. The files of `/`, `/static/...` and `/vendor/...` are read into memory now."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        state.engine.close()

    app = FastAPI(
        title="Positron Mini",
        version=__version__,
        description="Your own model behind the interface that OpenAI's clients speak.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.include_router(openai_routes(state))
    app.include_router(lab_routes(state))
    _serve_page(app, Path(__file__).parent)
    app.add_exception_handler(PositronError, _positron_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_middleware(Guard, api_key=state.api_key, hosts=state.hosts, origins=state.origins)
    return app


# --- errors -----------------------------------------------------------------------------------------------------------------------------


async def _positron_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, PositronError)
    found = failure(error)
    return JSONResponse(found.body, found.status, found.headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = error.detail if isinstance(error.detail, dict) else error_body(str(error.detail), "invalid_request_error")
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


async def _validation_error(_: Request, error: Exception) -> Response:
    """A 400 that names the first field that is wrong, without its value."""
    assert isinstance(error, RequestValidationError)
    message, param = first_violation(error.errors())
    return JSONResponse(error_body(message, "invalid_request_error", param=param), 400)


# --- the page ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PageFile:
    """A file of the page as it is sent: plain, and compressed where that is smaller."""

    content: bytes
    compressed: bytes | None
    media_type: str
    etag: str


def page_files(folder: Path) -> dict[str, PageFile]:
    """The files of the page by their path in the address, such as `static/app.mjs`."""
    found = {}
    for name in PAGE_FOLDERS:
        for path in sorted((folder / name).rglob("*")):
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = _page_file(path)
    return found


def _page_file(path: Path) -> PageFile:
    content = path.read_bytes()
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    compressed = gzip.compress(content, mtime=0)
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return PageFile(content, compressed if len(compressed) < len(content) else None, media_type, etag)


def _serve_page(app: FastAPI, folder: Path) -> None:
    """Answer `/` and the page's files. Only files found at the start are served, so no path leads out of the folder."""
    files = page_files(folder)

    def answer(name: str, request: Request) -> Response:
        page = files.get(name)
        if page is None:
            raise HTTPException(404, "Not Found")
        # no-cache: the browser asks each time and gets 304, so a newer version is never mixed with an old one
        headers = {"etag": page.etag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if page.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if page.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(page.compressed, headers={**headers, "content-encoding": "gzip"}, media_type=page.media_type)
        return Response(page.content, headers=headers, media_type=page.media_type)

    @app.api_route("/", methods=READING, include_in_schema=False)
    async def index(request: Request) -> Response:
        return answer("static/index.html", request)

    for name in PAGE_FOLDERS:

        @app.api_route(f"/{name}/{{path:path}}", methods=READING, include_in_schema=False)
        async def file(path: str, request: Request, name: str = name) -> Response:
            return answer(f"{name}/{path}", request)
