"""The one place that writes files: atomically, and flushed to the disk before they get their name. Also reads our own small files.

A file is written beside its final name, flushed to the disk and renamed over it; a folder is filled as `.tmp-*` and renamed when complete.
A reader therefore sees the old state or the new one, never half of it. `own_files` says which files may be touched and how they are opened.

`FAULT=point[:n]` in the environment makes the n-th passing of a fault point fail or kill the process, and `watch` is called at every fault
point: the tests use both.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from positron_mini.errors import FULL_DISK, PositronError, from_os_error
from positron_mini.own_files import (
    MAX_JSON_BYTES,
    Made,
    check_size,
    foreign,
    leftovers,
    move_away,
    open_new,
    open_own,
    open_regular,
    read_small,
    refuse_device,
    temporary_name,
)

MAX_LOG_BYTES = 1 << 30
watch: Callable[[str], None] | None = None  # set by tests only
_passed: dict[str, int] = {}


def fault_point(name: str) -> None:
    """Fail here if `FAULT` names this point: `NAME[:n][:kill|exit|raise]` acts on its n-th passing (default 1, kill)."""
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
    path.unlink(missing_ok=True)  # left by a killed process of the same number
    with open(path, "wb", opener=open_new) as handle:
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
    """Replace the file at `path` by `data`, atomically. Errors: DiskFullError, PositronError; the old file then remains."""
    stream_file(path, lambda handle: handle.write(data))


def stream_file(path: Path, fill: Callable[[Any], Any]) -> None:
    """Replace the file at `path` by what `fill(handle)` writes into an open binary handle, atomically."""
    path = Path(path)
    temporary = temporary_name(path)
    with translate_os_errors(f"writing {path}"):
        refuse_device(path)
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
    """Indented JSON with a final newline, the form of all our JSON files."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(value: Any, *, is_compact: bool = False) -> str:
    """JSON on one line, the form of our logs and of what commands print. Lone surrogates, which stand for the bytes of a path that is not
    UTF-8, are escaped in ASCII.

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
    with translate_os_errors(f"writing {path}"), open(path, "ab", opener=open_own) as handle:
        handle.write(line)


def sync_lines(paths: Iterable[Path]) -> None:
    """Flush the line files that exist to the disk. Appending does not: a flush takes longer than many a training step."""
    for path in paths:
        with translate_os_errors(f"writing {path}"), contextlib.suppress(FileNotFoundError), open(path, "r+b", opener=open_own) as handle:
            os.fsync(handle.fileno())


def own_lines(path: Path) -> None:
    """Prepare a line file, if it exists, for appending: it ends with a whole line, and no other name shares its content.

    A last line cut off by a crash is removed. A link of either kind is replaced by a copy, so the other file stays as it is.
    """
    if not os.path.lexists(path):
        return
    with translate_os_errors(f"writing {path}"), open_regular(path) as handle:
        check_size(os.fstat(handle.fileno()).st_size, MAX_LOG_BYTES)
        status, end = os.lstat(path), _end_of_lines(handle)
        if stat.S_ISLNK(status.st_mode) or status.st_nlink > 1:
            handle.seek(0)
            stream_file(path, lambda copy: _copy(handle, copy, end))
        elif end < status.st_size:
            with open(path, "r+b", opener=open_own) as own:
                own.truncate(end)


def _end_of_lines(handle: BinaryIO) -> int:
    """Offset after the last newline of an open file."""
    end = handle.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - (1 << 16))
        handle.seek(start)
        found = handle.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count > 0 and (data := source.read(min(count, 1 << 20))):
        target.write(data)
        count -= len(data)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON objects of a line file, in order; empty for a missing file. An unfinished or damaged last line is dropped."""
    if not os.path.lexists(path):
        return []
    rows = []
    with translate_os_errors(f"reading {path}"):
        lines = read_small(path, MAX_LOG_BYTES).decode("utf-8", "replace").split("\n")
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


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """JSON value of a regular file of at most `limit` bytes. Errors: PositronError with the path when it is missing, larger, not a regular
    file, not UTF-8 or not JSON.
    """
    try:
        return json.loads(read_small(path, limit).decode("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise PositronError(f"{path}: cannot be read as JSON ({why})", "restore the file, or use another checkpoint") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of the file, as 64 hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_folder(path: Path, made: Made) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block succeeds, and is removed when it fails.

    Write the files in it with `write_bytes` and the like, so that each is on the disk before the rename. An existing folder is replaced if
    everything in it was `made` by this program. Errors: PositronError when it was not, or when `path` is something else than a folder.
    """
    path = Path(path)
    _check_replaceable(path, made)
    with translate_os_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        yield temporary
        with translate_os_errors(f"writing {path}"):
            _sync_folder(temporary)
            fault_point("before_rename")
            if path.exists():
                _check_replaceable(path, made)
                old = temporary_name(path, kind="old-")
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


def _check_replaceable(path: Path, made: Made) -> None:
    """Raise PositronError if `path` holds something that this program did not make."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise PositronError(f"{path} is {'a link' if path.is_symlink() else 'no folder'}, which is not replaced", move_away(path))
    if names := foreign(path, made):
        raise PositronError(f"{path} holds {names[0]}, which this program did not make, and is not replaced", move_away(path))


def discard(folder: Path) -> None:
    """Delete a folder, renaming it first so that nobody sees it half deleted; if the disk is too full to rename it, delete it in place.

    Call it only for folders in which `foreign` finds nothing. Links in it are deleted and not followed.
    """
    doomed = temporary_name(folder, kind="old-")
    with translate_os_errors(f"removing {folder}"):
        try:
            os.replace(folder, doomed)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            doomed = folder
        shutil.rmtree(doomed, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Raise PositronError if `folder` cannot be created or written. Creates nothing: the nearest existing parent is checked."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise PositronError(f"{folder}: {existing} is a file, not a folder", "choose another folder, for example --out_dir runs/new")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PositronError(f"{folder}: {existing} may not be written to", "choose a folder that you may write to")


def remove_leftovers(folder: Path, made: Made) -> None:
    """Delete the `leftovers`. Call it only while holding the folder's lock."""
    for entry in leftovers(folder, made):
        remove_entry(entry)


def remove_entry(path: Path) -> None:
    """Delete a file, a link or a folder with its content, if it exists; links are not followed."""
    if path.is_dir() and not path.is_symlink():  # an interrupted move of a pointer leaves a link to a folder
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
