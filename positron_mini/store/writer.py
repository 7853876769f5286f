"""Is somebody training here? One answer, by the lock that a training holds and that no dead process can hold."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from positron_mini import files
from positron_mini.errors import PositronError

LOCK, OWNER = ".lock", ".lock.json"


def writer_of(run: Path) -> str | None:
    """The number of the process that trains in a run folder, as text, or None when nobody does. Nothing is written."""
    if not (run / OWNER).is_file() or not _is_held(run / LOCK):
        return None  # nobody, or one that was killed
    return owner_of(run)


def owner_of(run: Path) -> str:
    """The process that took the run last, by its own word."""
    try:
        pid = files.read_json(run / OWNER)["pid"]
    except (PositronError, TypeError, KeyError):
        return "unknown"
    return str(pid) if type(pid) is int and 0 < pid < 2**31 else "unknown"


def _is_held(lock: Path) -> bool:
    """Whether another holds the lock. It is asked for a share, so that those who only look are never taken for a training."""
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
