"""Download one file of a hub data set, whole or not at all: ranges, retries, resume, checks of size and hash.

Bytes go to `NAME.<hash>.part`, renamed when size and hash match the hub's listing; the next call asks for the missing bytes only.
(huggingface_hub 2 checks no hash and discards an interrupted download, so it is used here only for addresses, tokens, the HTTP client
and locks.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from positron_mini.config.units import spell_bytes, spell_time
from positron_mini.errors import DiskFullError, Say, from_os_error
from positron_mini.files import sha256_of, translate_os_errors
from positron_mini.own_files import refuse_link
from positron_mini.text.corpus.listing import (
    HubError,
    HubFile,
    Listing,
    Patience,
    WrongAnswerError,
    check_status,
    endpoint,
    http_errors,
    request_headers,
)

CHUNK_BYTES = 1 << 20
SAY_EVERY_S = 10.0
TYPICAL_BYTES_PER_S = 12_500_000  # 100 Mbit/s, for the estimate before anything is measured


def plan(files: list[tuple[HubFile, int]], folder: Path, *, extra_bytes: int, say: Say) -> int:
    """Bytes still to download for (file, wanted bytes) pairs; says size, time and disk space. Errors: DiskFullError."""
    missing = sum(max(0, wanted - _bytes_here(folder, entry)) for entry, wanted in files)
    with translate_os_errors(f"creating {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    needed = missing + extra_bytes
    if needed > free:
        message = f"{folder} needs {spell_bytes(needed)} of disk space, {spell_bytes(free)} are free"
        raise DiskFullError(message, "free some space, or fetch less of it: positron bootstrap --dataset storyworld needs no download")
    if missing:
        time_ = spell_time(missing / TYPICAL_BYTES_PER_S)
        say(f"to fetch: {spell_bytes(missing)}, about {time_} at 100 Mbit/s; disk: {spell_bytes(needed)} needed, {spell_bytes(free)} free")
    return missing


def _part_of(folder: Path, entry: HubFile) -> Path:
    """Path of the unfinished file; its name contains the content's hash, so two versions never mix."""
    return folder / f"{entry.name}.{(entry.sha256 or entry.git_sha1 or str(entry.size))[:12]}.part"


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _bytes_here(folder: Path, entry: HubFile) -> int:
    return max(_size_of(folder / entry.name), _size_of(_part_of(folder, entry)))


def is_whole(path: Path, entry: HubFile) -> bool:
    """Whether the file has the size and, if the hub gave one, the hash of the entry."""
    if _size_of(path) != entry.size or not path.is_file():
        return False
    if entry.sha256:
        return sha256_of(path) == entry.sha256
    if entry.git_sha1:
        digest = hashlib.sha1(b"blob %d\0" % entry.size)
        with open(path, "rb") as handle:
            while chunk := handle.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest() == entry.git_sha1
    return True


def fetch_file(
    listing: Listing, entry: HubFile, folder: Path, *, first_bytes: int | None = None, patience: Patience | None = None, say: Say
) -> Path:
    """Download a file, check it and return its path; with `first_bytes` below its size, that of a `.part` with at least these first bytes.

    A part cannot be checked by hash: its bytes come only from answers that state this range and size. A later call continues it.
    """
    patience = patience or Patience()
    target, part = folder / entry.name, _part_of(folder, entry)
    wanted = entry.size if first_bytes is None else min(first_bytes, entry.size)
    with translate_os_errors(f"creating {target.parent}"):
        target.parent.mkdir(parents=True, exist_ok=True)
    for path in (part, part.with_suffix(".lock")):
        refuse_link(path)
    with _only_one(part.with_suffix(".lock"), entry.name, say):
        if is_whole(target, entry):
            return target
        for round_ in (1, 2):
            if _size_of(part) > entry.size:
                part.unlink()
            _fill(listing, entry, part, wanted, patience, say)
            if wanted < entry.size:
                return part
            if is_whole(part, entry):
                return _give_name(part, target)
            part.unlink(missing_ok=True)
            say(f"{entry.name} arrived damaged (not the hash that the hub promised)" + ("; fetching it again" if round_ == 1 else ""))
    message = f"{entry.name} of {listing.repo} arrived twice without the hash that the hub promises; nothing was kept"
    raise HubError(message, "try again later, or from another network")


@contextlib.contextmanager
def _only_one(lock_file: Path, name: str, say: Say) -> Iterator[None]:
    """Hold the file's lock: two processes appending to one `.part` would corrupt it. A process that waited finds the file downloaded."""
    from filelock import FileLock, Timeout  # comes with huggingface_hub and torch

    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{name}: another process is fetching it; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _give_name(part: Path, target: Path) -> Path:
    with translate_os_errors(f"writing {target}"):
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(part, target)
        part.with_suffix(".lock").unlink(missing_ok=True)
    return target


def _fill(listing: Listing, entry: HubFile, part: Path, wanted: int, patience: Patience, say: Say) -> None:
    """Append to `part` until it holds `wanted` bytes, asking again after each failure as long as there is progress or patience."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(listing.repo, entry.name, repo_type="dataset", revision=listing.commit, endpoint=endpoint())
    report = _progress(entry.name, wanted, patience, say)
    failures = 0
    part.touch()
    while (have := _size_of(part)) < wanted:
        asked_s = 0.0
        try:
            for total in _stream(listing.repo, entry, url, part, wanted, patience):
                report(total)
            problem = f"the connection ended after {spell_bytes(_size_of(part))}"
        except WrongAnswerError as error:
            problem, asked_s = str(error), error.wait_s
        except http_errors() as error:
            problem = str(error) or type(error).__name__
        if _size_of(part) >= wanted:
            return
        failures = 1 if _size_of(part) > have else failures + 1
        if failures >= patience.attempts:
            kept = f"{spell_bytes(_size_of(part))} of {spell_bytes(wanted)} are kept; " if _size_of(part) else ""
            message = f"{entry.name} of {listing.repo} could not be fetched: {problem}"
            raise HubError(message, f"{kept}start the same command again to go on")
        say(f"{entry.name}: {problem}; asking again")
        patience.sleep(patience.wait_s(failures, asked_s))


def _stream(repo: str, entry: HubFile, url: str, part: Path, wanted: int, patience: Patience) -> Iterator[int]:
    """Size of `part` after each chunk that one request appends. Errors: WrongAnswerError, HubError, the client's errors, full disk."""
    from huggingface_hub import get_session

    have = _size_of(part)
    headers = request_headers(range=f"bytes={have}-{wanted - 1}") if have or wanted < entry.size else request_headers()
    timeout = (patience.connect_s, patience.read_s, patience.read_s, patience.connect_s)
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        check_status(response, repo, f"{entry.name} of {repo}")
        have = _start_of(response, entry, have)
        with translate_os_errors(f"opening {part}"):
            handle = open(part, "r+b")  # noqa: SIM115 (closed below; only its own errors may be translated)
        with handle:
            handle.seek(have)
            for chunk in response.iter_bytes():  # of any size: larger chunks would delay bytes, and lose them if the connection breaks
                try:
                    handle.write(chunk[: wanted - have])
                    handle.flush()
                except OSError as error:  # of the disk, not the network: asking again is no use
                    raise from_os_error(error, f"writing {part}") from error
                have = min(wanted, have + len(chunk))
                yield have
                if have == wanted:
                    return


def _start_of(response: Any, entry: HubFile, have: int) -> int:
    """Offset at which the answer's body begins: `have`, or 0 for the whole file. Errors: WrongAnswerError for any other."""
    headers = response.headers
    if response.status_code == 416:
        raise WrongAnswerError(f"the hub has no byte {have:,} of {entry.name}")
    if "html" in headers.get("content-type", "").lower() and not entry.name.endswith((".html", ".htm")):
        raise WrongAnswerError(f"a web page came instead of {entry.name} (a login page of this network?)")
    if response.status_code == 206:
        span, _, total = headers.get("content-range", "").removeprefix("bytes ").partition("/")
        if span.split("-")[0] != str(have) or total != str(entry.size):
            raise WrongAnswerError(f"the range {span or '?'} of {total or '?'} bytes came instead of {have}- of {entry.size}")
        return have
    length = headers.get("content-length", "an unknown number of")
    if length != str(entry.size):  # otherwise a login page could not be told from the file
        raise WrongAnswerError(f"{length} bytes came instead of {entry.size}")
    return 0


def _progress(name: str, wanted: int, patience: Patience, say: Say) -> Callable[[int], None]:
    """A function that reports the progress of the download, at most every `SAY_EVERY_S`."""
    first: list[float] = []
    state = {"said": patience.clock()}

    def report(total: int) -> None:
        now = patience.clock()
        if not first:
            first.extend((now, total))
        elif now - state["said"] >= SAY_EVERY_S and now > first[0] and total > first[1]:
            rate = (total - first[1]) / (now - first[0])
            state["said"] = now
            left = spell_time((wanted - total) / rate)
            say(f"{name}: {spell_bytes(total)} of {spell_bytes(wanted)}, {spell_bytes(rate)}/s, about {left} left")

    return report
