"""One training process per run folder: a lock, which the system releases when its process dies.

A lock file that is a link is not opened: older versions of filelock empty the file that it points to.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from positron_mini import files
from positron_mini.errors import FULL_DISK, PositronError, RunError
from positron_mini.own_files import refuse_link

LOCK, OWNER = ".lock", ".lock.json"
LOOKS_S = 0.3  # a program that only checks for a training process holds the lock for less


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Lock a run folder against other processes; change nothing in it. Errors: RunError naming the process that has it.

    On a disk too full for even an empty lock file, nobody can lock the folder: the lock file does not exist.
    """
    from filelock import FileLock, Timeout

    path = run / LOCK
    refuse_link(path)
    with files.translate_os_errors(f"writing {run}"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=LOOKS_S)
        except Timeout:
            raise _busy(run) from None
        except OSError as error:
            if error.errno not in FULL_DISK or path.exists():
                raise
    try:
        yield
    finally:
        lock.release()


def _busy(run: Path) -> RunError:
    pid = owner_of(run)
    if pid == "unknown":
        return RunError(f"{run}: another process is at work in this folder", "wait for it, or choose another --out_dir")
    return RunError(
        f"{run}: process {pid} is training in this folder", f"wait for it, stop it with: kill -INT {pid}, or choose another --out_dir"
    )


@contextlib.contextmanager
def signed(run: Path) -> Iterator[None]:
    """Write this process's id into a run folder that it has locked, for `writer_of`."""
    owner = run / OWNER
    try:
        files.write_json(owner, {"pid": os.getpid()})
        yield
    finally:
        owner.unlink(missing_ok=True)


def writer_of(run: Path) -> str | None:
    """Id of the process that trains in a run folder, as text; None without one. Writes nothing."""
    if not (run / OWNER).is_file() or not _is_held(run / LOCK):
        return None  # nobody, or a process that was killed
    return owner_of(run)


def owner_of(run: Path) -> str:
    """Id of the last process that locked the run, as it wrote it."""
    try:
        pid = files.read_json(run / OWNER)["pid"]
    except (PositronError, TypeError, KeyError):
        return "unknown"
    return str(pid) if type(pid) is int and 0 < pid < 2**31 else "unknown"


def _is_held(lock: Path) -> bool:
    """Whether another process holds the lock. Asks for a shared lock, so that two programs that only check never see each other."""
    if sys.platform == "win32":
        from filelock import FileLock, Timeout

        try:
            with FileLock(lock, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return False
    import fcntl

    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
