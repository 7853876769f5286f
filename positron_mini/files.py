"""The one place that writes files: whole or not at all, on disk before it is named.

A file is written beside its final name, flushed to the disk and renamed over it; a folder is filled as `.tmp-*` and renamed when complete.
A reader therefore sees the old state or the new one, never half of it. `FAULT=point[:n]` in the environment makes the n-th passing
of a point fail or kill the process, and `watch` is told of every point that is passed: this is how the tests prove it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from positron_mini.errors import PositronError, from_os_error

watch: Callable[[str], None] | None = None  # set by tests only
_passed: dict[str, int] = {}


def fault_point(name: str) -> None:
    """Nothing, unless `FAULT` names this point: `NAME[:n][:kill|exit|raise]` acts on its n-th passing (default 1, kill)."""
    if watch is not None:
        watch(name)
    wanted = os.environ.get("FAULT")
    if not wanted:
        return
    point, _, rest = wanted.partition(":")
    if point != name:
        return
    count, _, action = rest.partition(":")
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] != int(count or 1):
        return
    if action == "raise":
        raise OSError(28, "No space left on device (injected)")
    if action == "exit":
        os._exit(137)
    os.kill(os.getpid(), signal.SIGKILL)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's list of names, so that a rename in it survives a power cut. Windows cannot open folders, and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(path: Path, fill: Callable[[Any], None]) -> None:
    with open(path, "wb") as handle:
        fill(handle)
        handle.flush()
        fault_point("before_fsync")
        os.fsync(handle.fileno())


@contextlib.contextmanager
def translate_os_errors(doing: str) -> Iterator[None]:
    """Turn an operating-system error into a PositronError that says what was being done."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from error


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace the file at `path` by `data`, atomically. Errors: DiskFullError, PositronError; the old file then still stands."""
    stream_file(path, lambda handle: handle.write(data))


def stream_file(path: Path, fill: Callable[[Any], Any]) -> None:
    """Replace the file at `path` by what `fill(handle)` writes into an open binary handle, atomically."""
    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with translate_os_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fault_point("before_write")
            _write_synced(temporary, fill)
            fault_point("before_replace")
            os.replace(temporary, path)
            fault_point("after_replace")
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text` as UTF-8 with \\n line ends, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace the file at `path` by indented JSON, atomically. Non-finite numbers are refused."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON with a final newline, the form in which all our JSON files stand."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(value: Any, *, is_compact: bool = False) -> str:
    """JSON on one line, the form of our logs and of what commands print. Halves of surrogate pairs, which stand for the bytes of a path
    that is not UTF-8, are written in ASCII.

    Errors: PositronError for NaN and infinity, which are not JSON.
    """
    separators = (",", ":") if is_compact else None
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=separators)
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=separators)
    except ValueError:
        sentence = "a result is not a finite number, which JSON cannot hold"
        raise PositronError(sentence, "run it again with --debug and report what it prints") from None
    return text


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line. A line cut off by a crash is recognised by its missing newline and dropped by readers."""
    line = (json_line(record) + "\n").encode("utf-8")
    with translate_os_errors(f"writing {path}"), open(path, "ab") as handle:
        handle.write(line)


def sync_lines(folder: Path) -> None:
    """Flush the line files of `folder` to the disk. Appending does not, because that takes longer than many a training step."""
    for path in folder.glob("*.jsonl"):
        with translate_os_errors(f"writing {path}"), open(path, "r+b") as handle:
            os.fsync(handle.fileno())


def cut_unfinished_lines(folder: Path) -> None:
    """Cut off what a crash left of a last line in the line files of `folder`, so that the next line does not continue it."""
    for path in folder.glob("*.jsonl"):
        with translate_os_errors(f"writing {path}"), open(path, "r+b") as handle:
            data = handle.read()
            if not data.endswith(b"\n"):
                handle.truncate(data.rfind(b"\n") + 1)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a line file, in order; a missing file has none, an unfinished or damaged last line is dropped."""
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__} where an object is expected")
        except (ValueError, RecursionError) as error:
            if number < len(lines) - 1:
                raise PositronError(f"{path}, line {number}: not JSON ({error})", f"remove that line from {path}") from error
        else:
            rows.append(row)
    return rows


def read_json(path: Path) -> Any:
    """The JSON value of a file. Errors: PositronError with the path when it is missing, not UTF-8 or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise PositronError(f"{path}: cannot be read as JSON ({error})", "restore the file, or use another checkpoint") from error


def sha256_of(path: Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    Files inside are to be written with `write_bytes` and its kin, so each is on the disk before the rename. An existing `path` is replaced.
    """
    path = Path(path)
    with translate_os_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        yield temporary
        with translate_os_errors(f"writing {path}"):
            _sync_folder(temporary)
            fault_point("before_rename")
            if path.exists():
                old = path.with_name(f".tmp-old-{path.name}-{os.getpid()}")
                os.rename(path, old)
                try:
                    os.rename(temporary, path)
                except BaseException:
                    os.rename(old, path)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(temporary, path)
            fault_point("after_rename")
            _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_writable(folder: Path) -> None:
    """Nothing, or PositronError when `folder` cannot be written or made. It creates nothing: the nearest existing parent is looked at."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise PositronError(f"{folder}: {existing} is a file, not a folder", "choose another folder, for example --out_dir runs/new")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PositronError(f"{folder}: {existing} may not be written to", "choose a folder that you may write to")


def remove_leftovers(folder: Path) -> None:
    """Remove the `.tmp-*` entries that a killed process left in `folder`. Call it only while holding the folder's lock."""
    for entry in folder.glob(".tmp-*"):
        if entry.is_dir() and not entry.is_symlink():  # a pointer that was being moved is a link to a folder
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
