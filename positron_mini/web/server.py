"""The listening socket, and a server that shuts down within seconds."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
from collections.abc import Callable

import uvicorn

from positron_mini.errors import UsageError
from positron_mini.web.app import create_app
from positron_mini.web.guard import MAX_HEADER_BYTES, GuardedProtocol
from positron_mini.web.state import ServerState

DRAIN_S = 3.0  # how long a running answer may go on during shutdown
BACKLOG = 128


def bind(host: str, port: int) -> socket.socket:
    """A socket on `host` and `port` (0: any free one) that does not listen yet. Errors: UsageError if the address is not available."""
    listener: socket.socket | None = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        if os.name == "posix":  # a stopped server leaves the port in use for a minute; on other systems this option would share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return listener
    except OSError as error:
        if listener is not None:
            listener.close()
        is_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        hint = "--port 0 takes any free port" if is_port else "--host 127.0.0.1 is this machine alone"
        raise UsageError(f"cannot listen on {host} port {port} ({error.strerror or error})", hint) from error


def address_of(listener: socket.socket) -> str:
    """The address of the page on a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """uvicorn with our guard and limits. `on_start` is called when it accepts connections."""

    def __init__(self, state: ServerState, on_start: Callable[[], None] = lambda: None) -> None:
        self._state, self._on_start = state, on_start
        super().__init__(
            uvicorn.Config(
                create_app(state),
                http=GuardedProtocol,
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_level="critical",  # the guard reports errors, without what users wrote
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=int(DRAIN_S) + 1,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            )
        )

    def run_on(self, listener: socket.socket) -> None:
        """Serve on a bound socket until a signal or `should_exit`, then close it. Errors: KeyboardInterrupt after Ctrl-C."""
        gc.collect()
        gc.freeze()  # else the garbage collector walks all of PyTorch's objects, again and again, while a large body is parsed
        try:
            self.run(sockets=[listener])
        finally:
            self._state.engine.close()  # a second Ctrl-C skips the orderly shutdown

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no new connections, cancel running answers after DRAIN_S, then close."""
        asyncio.get_running_loop().call_later(DRAIN_S, self._state.engine.close)
        await super().shutdown(sockets)
