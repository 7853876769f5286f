"""Listing of a hub data set: its files with sizes and checksums at one commit, with short timeouts and clear errors.

`HF_ENDPOINT`, `HF_HUB_OFFLINE` and the user's token are read when a function is called, never at import. The library's own listing call is
not used because it may first send a second request of its own, which doubles the wait without a network.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from positron_mini import __version__
from positron_mini.errors import DataError, UsageError

RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class HubError(DataError):
    """The hub cannot provide what was asked for; no wrong data was kept."""


class HubUnreachableError(HubError):
    """The hub cannot be reached: no network, no answer in time, a login page in between, or HF_HUB_OFFLINE."""


class WrongAnswerError(Exception):
    """An answer that is not the file's bytes. `wait_s` is the delay that the server asked for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Patience:
    """Timeouts and retries for the hub. `attempts` counts failures in a row without a single new byte."""

    attempts: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    connect_s: float = 8.0
    read_s: float = 30.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def wait_s(self, failures: int, asked_s: float = 0.0) -> float:
        """Seconds before the next attempt: doubling, or what the server asked for, but at most `longest_wait_s`."""
        return min(self.longest_wait_s, max(asked_s, self.first_wait_s * 2.0 ** (failures - 1)))


@dataclass(frozen=True)
class HubFile:
    """One file of a listing. `sha256` is known for large files, `git_sha1` (of git's blob header and the content) for the others."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Listing:
    """Files of a data set at one commit, so that two versions of a file are never mixed."""

    repo: str
    commit: str
    licence: str
    files: tuple[HubFile, ...]

    def file(self, name: str) -> HubFile:
        """The entry called `name`. Errors: HubError, naming the existing files."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise HubError(f"{self.repo} has no file {name}", f"see what it has: {page_of(self.repo)}")


def endpoint() -> str:
    """Address of the hub without a final slash: HF_ENDPOINT, or huggingface.co. Errors: UsageError when it is no address."""
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    with contextlib.suppress(ValueError):
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname:
            return address
    raise UsageError(f"HF_ENDPOINT is {address!r}, not the address of a hub", "export HF_ENDPOINT=https://huggingface.co")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network now."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def page_of(repo: str) -> str:
    """Web page that lists the data set's files."""
    return f"{endpoint()}/datasets/{repo}/tree/main"


def address_of(repo: str, name: str, revision: str = "main") -> str:
    """Web address of one file."""
    return f"{endpoint()}/datasets/{repo}/resolve/{quote(revision, safe='')}/{quote(name)}"


def http_errors() -> tuple[type[BaseException], ...]:
    """Error types of the library's HTTP client. The base class comes from httpx or httpx2, depending on the library's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, OSError)


def request_headers(**more: str) -> dict[str, str]:
    """Our name, the user's token if there is one, and no compression (sizes and ranges must count the file's bytes)."""
    from huggingface_hub import get_token

    headers = {"user-agent": f"positron-mini/{__version__}", "accept-encoding": "identity", **more}
    token = get_token()
    if token:
        headers["authorization"] = f"Bearer {token}"
    return headers


def _within(limit_s: float, work: Callable[[], Any]) -> Any:
    """Return or raise what `work()` does; TimeoutError after `limit_s` (looking up a host name has no timeout of its own)."""
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = outcome.get(timeout=limit_s)
    except queue.Empty:
        raise TimeoutError(f"no answer within {limit_s:g} s") from None
    if error is not None:
        raise error
    return value


def list_files(repo: str, *, revision: str = "main", patience: Patience | None = None, hint: str = "") -> Listing:
    """Fetch the list of the data set's files with sizes and checksums.

    Errors: HubUnreachableError within `connect_s` (8 s) when nothing answers, HubError when the data set is missing or not public.
    """
    patience = patience or Patience()
    if is_offline():
        raise HubUnreachableError(f"HF_HUB_OFFLINE is set, so {repo} cannot be fetched", hint or "unset HF_HUB_OFFLINE")
    url = f"{endpoint()}/api/datasets/{repo}/revision/{quote(revision, safe='')}?blobs=true"
    for failure in range(1, patience.attempts + 1):
        try:
            response = _within(patience.connect_s, lambda: _get(url, patience))
            check_status(response, repo, url)
            return _parse_listing(repo, revision, response.json())
        except WrongAnswerError as error:
            last = error
        except ValueError as error:
            message = f"{endpoint()} answers with something other than a hub's JSON (a login page of this network?)"
            raise HubUnreachableError(message, hint or "open a page in a browser, log in to the network, then start again") from error
        except http_errors() as error:
            reason = str(error) or type(error).__name__
            message = f"no connection to {endpoint()} ({reason})"
            raise HubUnreachableError(message, hint or "check the network, then start the same command again") from error
        if failure < patience.attempts:
            patience.sleep(patience.wait_s(failure, last.wait_s))
    raise HubUnreachableError(f"{endpoint()} {last}, {patience.attempts} times in a row", hint or "try again later")


def _get(url: str, patience: Patience) -> Any:
    from huggingface_hub import get_session

    return get_session().get(url, headers=request_headers(), timeout=patience.connect_s)


def check_status(response: Any, repo: str, what: str) -> None:
    """Raise WrongAnswerError for an answer that a retry may cure, HubError for any other bad one."""
    status = response.status_code
    if status in RETRY_STATUS:
        asked = response.headers.get("retry-after", "")
        raise WrongAnswerError(f"answered {status} for {what}", float(asked) if asked.isdigit() else 0.0)
    if status in (401, 403):
        message = f"{repo} is gated, private or does not exist (the hub answers {status})"
        raise HubError(message, f"accept its terms at {endpoint()}/datasets/{repo}, then export HF_TOKEN=hf_... (your token)")
    if status == 404:
        raise HubError(f"the hub has no {what} (404)", f"check the name: {endpoint()}/datasets?search={quote(repo.split('/')[-1])}")
    if status not in (200, 206, 416):
        raise HubError(f"the hub answers {status} for {what}", "check HF_ENDPOINT and the name, then start the same command again")


def _parse_listing(repo: str, revision: str, value: Any) -> Listing:
    """Parse the hub's JSON. Errors: ValueError when it is invalid. Names that would leave the folder are left out."""
    try:
        files = []
        for entry in value["siblings"]:
            name, lfs = str(entry["rfilename"]), entry.get("lfs") or {}
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
                continue
            files.append(HubFile(name, int(lfs.get("size") or entry["size"]), lfs.get("sha256"), None if lfs else entry.get("blobId")))
        licence = (value.get("cardData") or {}).get("license") or "not stated"
        licence = ", ".join(licence) if isinstance(licence, list) else str(licence)
        return Listing(repo, str(value.get("sha") or revision), licence, tuple(files))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a listing: {error!r}") from error
