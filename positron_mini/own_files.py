"""Which files are ours, and how to open files so that no others are touched.

Only what this program named itself, directly in the folder and not through a link, is replaced, cut or deleted. The argument `made` tells
whether a name is one of ours. Only regular files are read, up to a size limit; nothing blocks on a pipe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from positron_mini.errors import PositronError

Made = Callable[[str], bool]
MAX_JSON_BYTES = 16 << 20
_TEMPORARY = re.compile(r"\.tmp-(?:old-)?(.+)-[0-9]+|\.tmp-old-(step_[0-9]+)")  # the second form is that of earlier versions
_BROWSERS_FILES = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini")  # left by file browsers in every folder they show
_NO_LINK, _NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def temporary_name(path: Path, *, kind: str = "") -> Path:
    """Name beside `path` under which this process builds it, or, with the kind "old-", moves it away."""
    return path.with_name(f".tmp-{kind}{path.name}-{os.getpid()}")


def open_new(path: str, flags: int) -> int:
    """Open a new file; fail if the name exists, so that neither a stranger's file nor the target of a link is written."""
    return os.open(path, flags | os.O_EXCL, 0o666)


def open_own(path: str, flags: int) -> int:
    """Open a file of ours for changing in place. Errors: OSError for a link or a pipe, without blocking."""
    handle = os.open(path, flags | _NO_LINK | _NO_WAIT, 0o666)
    try:
        _check_regular(os.fstat(handle).st_mode)
    except OSError:
        os.close(handle)
        raise
    return handle


def _check_regular(mode: int) -> None:
    """Raise OSError unless the mode is that of a regular file."""
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"{kind} where a regular file is expected")


def refuse_device(path: Path) -> None:
    """Raise OSError if a device stands at `path`, or at the end of a link there: the whole machine needs it, no file takes its place."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            _check_regular(mode)


def open_regular(path: Path) -> BinaryIO:
    """Open the regular file at `path` for reading. Errors: OSError for a pipe or a device, without blocking or reading it."""
    _check_regular(os.stat(path).st_mode)  # checked before opening: opening a device can have effects
    handle: BinaryIO = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT))  # noqa: SIM115
    try:
        _check_regular(os.fstat(handle.fileno()).st_mode)
    except OSError:
        handle.close()
        raise
    return handle


def read_small(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """Content of a regular file of at most `limit` bytes. Errors: OSError."""
    with open_regular(path) as handle:
        check_size(os.fstat(handle.fileno()).st_size, limit)
        data = handle.read(limit + 1)  # some special files report no size
    check_size(len(data), limit)
    return data


def check_size(size: int, limit: int) -> None:
    """Raise OSError if a file is larger than the limit for its kind."""
    if size > limit:
        raise OSError(errno.EINVAL, f"{size:,} bytes; at most {limit:,} are read")


def move_away(path: Path) -> str:
    """Shell command that moves `path` out of the way, a link itself and not its target."""
    return f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}-moved')}"


def refuse_link(path: Path) -> None:
    """Raise PositronError if `path` is a link: this program writes only inside its own folders."""
    if path.is_symlink():
        raise PositronError(f"{path} is a link, and nothing is written through it", move_away(path))


def foreign(folder: Path, made: Made) -> list[str]:
    """Files and links below `folder` that this program did not make, as sorted relative names; empty if there is no folder.

    Files of file browsers (.DS_Store, ...) do not count. A half-written file of ours counts under its final name.
    """
    found = []
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in [*names, *links]:
            target = Path(place, _target(name) or name).relative_to(folder).as_posix()
            is_link = os.path.islink(os.path.join(place, name))
            if is_link or not (made(target) or is_nobodys(name)):
                found.append(Path(place, name).relative_to(folder).as_posix())
    return sorted(found)


def is_nobodys(name: str) -> bool:
    """Whether file browsers create files of this name in every folder they show."""
    return _BROWSERS_FILES.fullmatch(name) is not None


def leftovers(folder: Path, made: Made) -> list[Path]:
    """Half-written and half-deleted files that killed processes left in `folder`, under names that are `made` there; sorted."""
    return sorted(entry for entry in folder.glob(".tmp-*") if (name := _target(entry.name)) and made(name))


def _target(name: str) -> str:
    """Final or original name behind a temporary one; empty for any other name."""
    match = _TEMPORARY.fullmatch(name)
    return (match[1] or match[2]) if match is not None else ""


def size_of(path: Path) -> int:
    """Size in bytes of a file, or of everything below a folder; links, and files deleted meanwhile, count as 0."""
    paths = [os.path.join(place, name) for place, _, names in os.walk(path) for name in names] or [str(path)]
    total = 0
    for each in paths:
        with contextlib.suppress(OSError):
            status = os.lstat(each)
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
