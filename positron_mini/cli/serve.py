"""`positron serve`: a checkpoint behind OpenAI's HTTP interface, and the lab page at the same address."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from positron_mini.cli.flags import note, parse
from positron_mini.cli.terminal import print
from positron_mini.cli.which import open_model
from positron_mini.config import Weights, check_ranges
from positron_mini.errors import PositronError, UsageError

if TYPE_CHECKING:
    from positron_mini.store.checkpoint import Checkpoint
    from positron_mini.web.state import Models, Served

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
KEY_VARIABLE = "POSITRON_API_KEY"
NEW_KEY = "(umask 077; openssl rand -hex 16 > api.key), then add --api_key_file api.key"
MAX_KEY_BYTES = 1024


@dataclass(frozen=True)
class NetworkFlags:
    """Where a server listens and whom it answers."""

    host: str = "127.0.0.1"
    """address to listen on; any but this machine's own needs --api_key"""
    port: int = 8000
    """port to listen on (0: any free one)"""
    api_key: str | None = None
    """secret that clients must send; others on this machine can see it in the list of processes, unlike the two ways below"""
    api_key_file: str | None = None
    """file that holds this secret (default: the environment variable POSITRON_API_KEY, if there is one)"""
    allow_host: tuple[str, ...] = ()
    """name of this machine that clients on the network may use, besides its IP addresses"""
    allow_origin: tuple[str, ...] = ()
    """site whose pages may ask this server from a browser, exactly as browsers name it: https://app.example.com"""
    when_full: Literal["error", "drop_oldest"] = "error"
    """what happens to a conversation or text that the context does not hold, unless a request says `truncation` itself:
    error: it is refused; drop_oldest: the oldest turns, or the beginning of the text, are left out"""
    weights: Weights = "f32"
    """f32, or int8: rounded to 8 bits to write sooner; scores and what the lab shows are of f32"""
    threads: int | None = None
    """CPU threads (default: all cores)"""

    def __post_init__(self) -> None:
        check_ranges(self, {"port": 0, "threads": 1})
        if self.port > 65_535:
            raise UsageError(f"--port {self.port:,} does not exist", "--port 8000, or --port 0 for any free one")
        key = self.key
        if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
            raise UsageError("the API key must be of visible ASCII characters", NEW_KEY)
        if key is None and self.host not in LOOPBACK_HOSTS:
            raise UsageError(f"--host {self.host} lets other machines in, so clients must prove who they are", NEW_KEY)

        self._check_origins()

    def _check_origins(self) -> None:
        """Raise UsageError if an --allow_origin is not an Origin as browsers send it."""
        from positron_mini.web.cors import is_origin

        wrong = next((origin for origin in self.allow_origin if not is_origin(origin)), None)
        if wrong is not None:
            raise UsageError(f"--allow_origin {wrong} is not the address of a site alone", "--allow_origin https://app.example.com")

    @cached_property
    def key(self) -> str | None:
        """The API key, from a flag or the environment. Errors: UsageError."""
        if self.api_key is not None and self.api_key_file is not None:
            raise UsageError("--api_key and --api_key_file both give the key", "leave one of them out")
        if self.api_key_file is not None:
            return _key_in(self.api_key_file)
        return self.api_key if self.api_key is not None else os.environ.get(KEY_VARIABLE) or None

    @property
    def hosts(self) -> frozenset[str] | None:
        """Allowed host names besides loopback's; None if the network cannot reach the server."""
        if self.host in LOOPBACK_HOSTS and not self.allow_host:
            return None
        return frozenset(name.lower() for name in (self.host, *self.allow_host))


def _key_in(path: str) -> str:
    """The key in a file, without surrounding white space. Errors: UsageError."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--api_key_file {path}: {error.strerror or error}", NEW_KEY) from error
    if len(data) > MAX_KEY_BYTES:
        raise UsageError(f"--api_key_file {path}: more than {MAX_KEY_BYTES:,} bytes, so it is no key", NEW_KEY)
    return data.decode("utf-8", "replace").strip()


@dataclass(frozen=True)
class ServeFlags(NetworkFlags):
    """Serve a checkpoint to OpenAI's clients (base URL http://127.0.0.1:8000/v1), with the lab page at http://127.0.0.1:8000."""

    ckpt: str | None = None
    """checkpoint: a step folder, a run folder or runs/x/latest (default: the newest finished run, fine-tuned if there is one)"""
    model_name: str | None = None
    """what clients call the model (default: the name of its run)"""


def run(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C, then return 0."""
    flags = parse(ServeFlags, argv, "serve")
    check_extra()
    from positron_mini.web.state import Models, load_served

    def run_of(checkpoint: Checkpoint) -> Path | None:
        folder = checkpoint.folder.resolve().parent
        return folder if (folder / "run.json").is_file() else None

    def read(checkpoint: Checkpoint) -> tuple[Checkpoint, Served]:
        name = flags.model_name or (run_of(checkpoint) or checkpoint.folder.resolve()).name
        return checkpoint, load_served(name, checkpoint, flags.weights)

    def models() -> Models:
        checkpoint, served = open_model(flags.ckpt, read, talks=True)
        run_folder = run_of(checkpoint)
        _ = served.writer  # built now rather than at the first request
        kind = "a chat model" if checkpoint.is_chat else "a base model, which continues texts"
        what = f"{kind} of {checkpoint.config.parameters:,} parameters, called {served.id!r}"
        note(f"{checkpoint.folder}: {what}; it writes with {served.speaker.weights} weights")
        return Models([served], lambda: [run_folder] if run_folder is not None else [], flags.weights)

    return serve(flags, models)


def check_extra() -> None:
    """Raise PositronError if the libraries of the extra `web` are missing."""
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise PositronError(
            f"the server needs {' and '.join(missing)}",
            'pip install "fastapi>=0.115" "uvicorn>=0.34"  (part of positron-mini[web])',
        )


def serve(flags: NetworkFlags, make_models: Callable[[], Models], opened: Callable[[str], None] = lambda _: None) -> int:
    """Serve until Ctrl-C, then return 0. The port is bound before the models are read; `opened` gets the page's address at the start."""
    from positron_mini.device import set_threads
    from positron_mini.web.server import Server, address_of, bind
    from positron_mini.web.state import ServerState

    with bind(flags.host, flags.port) as listener:
        set_threads(flags.threads)
        origins, drops_oldest = frozenset(flags.allow_origin), flags.when_full == "drop_oldest"
        state = ServerState(make_models(), api_key=flags.key, hosts=flags.hosts, origins=origins, drops_oldest=drops_oldest)

        def started() -> None:
            address = address_of(listener)
            print(address, flush=True)
            note(f"API for OpenAI's clients: {address}/v1{'  (with the API key)' if flags.key else ''}; stop with Ctrl-C")
            # other users see a browser's command line: put a key into the address only if our own command line holds it already
            opened(address + (f"/#api_key={quote(flags.api_key, safe='')}" if flags.api_key else ""))

        with suppress(KeyboardInterrupt):  # uvicorn closes everything and then mostly raises the signal again
            Server(state, started).run_on(listener)
        note("stopped")
    return 0
