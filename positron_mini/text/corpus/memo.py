"""A memory of texts that were read, in the cache folder, and the lock of that folder."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from positron_mini import files
from positron_mini.errors import PositronError, Say
from positron_mini.own_files import open_own
from positron_mini.text.corpus.files import list_files

_FORMAT = 1
_ENTRIES = 200
_OWN_NAMES = re.compile(r"index\.json|parts|[0-9a-f]{16}-[0-9a-f]{16}")


def signature_of(path: Path, validation: Path | None) -> str:
    """A hash of names, sizes and times of the files, which stands for their content as long as it does not change."""
    digest = hashlib.sha256(f"{_FORMAT}".encode())
    for place in (path,) if validation is None else (path, validation):
        for file in list_files(place):
            status = file.stat()
            digest.update(f"{file.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        digest.update(b"\0\0")
    return digest.hexdigest()


def read_memo(cache_dir: Path) -> dict[str, dict[str, Any]]:
    """Content fingerprints and reading reports by signature; empty when missing or unreadable."""
    try:
        memo = files.read_json(Path(cache_dir) / "index.json")
        sources = memo["sources"] if memo["format"] == _FORMAT else {}
        return {name: entry for name, entry in sources.items() if isinstance(entry["content"], str) and isinstance(entry["reading"], dict)}
    except (PositronError, KeyError, TypeError, AttributeError):
        return {}  # it only saves time


def remember(cache_dir: Path, signature: str, content: str, reading: dict[str, Any]) -> None:
    """Record the content of the files with this signature. Call it only inside `locked`."""
    sources = read_memo(cache_dir)
    sources.pop(signature, None)
    sources[signature] = {"content": content, "reading": reading}
    files.write_json(Path(cache_dir) / "index.json", {"format": _FORMAT, "sources": dict(list(sources.items())[-_ENTRIES:])})


@contextlib.contextmanager
def locked(cache_dir: Path, say: Say) -> Iterator[None]:
    """Lock the cache for this process; the system releases the lock of a killed one, and its leftovers are deleted."""
    with files.translate_os_errors(f"writing {cache_dir}"):
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        handle = open(Path(cache_dir) / ".lock", "ab", opener=open_own)  # noqa: SIM115
    with handle:
        if sys.platform != "win32":  # without fcntl two processes do the work twice, with the same result
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process is preparing a text in {cache_dir}: waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            files.remove_leftovers(Path(cache_dir), lambda name: _OWN_NAMES.fullmatch(name) is not None)
        yield
