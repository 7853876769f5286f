"""What is ours: which names this program made, and how files are opened so that nothing else is touched.

What is replaced, cut or removed has a name that this program made, stands in the folder itself and is no link. `made`, where a function
takes it, says of a name whether it is one of those. Only regular files are read, up to a limit; nothing waits for a pipe.
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
_TEMPORARY = re.compile(r"\.tmp-(?:old-)?(.+)-[0-9]+|\.tmp-old-(step_[0-9]+)")  # the second as earlier versions left it
_BROWSERS_FILES = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini")  # that file browsers leave in every folder they show
_NO_LINK, _NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def temporary_name(path: Path, *, kind: str = "") -> Path:
    """The name beside `path` under which this process builds it, or with the kind "old-" takes it away."""
    return path.with_name(f".tmp-{kind}{path.name}-{os.getpid()}")


def open_new(path: str, flags: int) -> int:
    """Open a file that is not there yet: neither what somebody else put there nor what a link points to is written."""
    return os.open(path, flags | os.O_EXCL, 0o666)


def open_own(path: str, flags: int) -> int:
    """Open a file of ours to change it in place. Errors: OSError for a link, and for a pipe at once."""
    handle = os.open(path, flags | _NO_LINK | _NO_WAIT, 0o666)
    try:
        _check_regular(os.fstat(handle).st_mode)
    except OSError:
        os.close(handle)
        raise
    return handle


def _check_regular(mode: int) -> None:
    """Raise OSError if the mode is not that of a regular file."""
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
    """The regular file at `path`, open for reading. Errors: OSError, for a pipe or a device at once: nothing waits for it or reads it."""
    _check_regular(os.stat(path).st_mode)  # before it is opened: to open a device can already do something
    handle: BinaryIO = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT))  # noqa: SIM115
    try:
        _check_regular(os.fstat(handle.fileno()).st_mode)
    except OSError:
        handle.close()
        raise
    return handle


def read_small(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes. Errors: OSError."""
    with open_regular(path) as handle:
        check_size(os.fstat(handle.fileno()).st_size, limit)
        data = handle.read(limit + 1)  # some files tell no size
    check_size(len(data), limit)
    return data


def check_size(size: int, limit: int) -> None:
    """Raise OSError if a file is larger than what is read of its kind."""
    if size > limit:
        raise OSError(errno.EINVAL, f"{size:,} bytes; at most {limit:,} are read")


def move_away(path: Path) -> str:
    """The command that moves what stands at `path` out of the way, a link itself and not what it points to."""
    return f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}-moved')}"


def refuse_link(path: Path) -> None:
    """Raise PositronError if `path` is a link: this program writes into its own folders, not through links out of them."""
    if path.is_symlink():
        raise PositronError(f"{path} is a link, and nothing is written through it", move_away(path))


def foreign(folder: Path, made: Made) -> list[str]:
    """Files and links below `folder` that this program did not make there, by relative name, sorted; empty where there is no folder.

    What file browsers leave everywhere is nobody's. A file that our writer left half written counts as the one it was to become.
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
    """Whether a file browser leaves a file of this name in every folder that it shows."""
    return _BROWSERS_FILES.fullmatch(name) is not None


def leftovers(folder: Path, made: Made) -> list[Path]:
    """What killed processes left half written or half removed in `folder`, of names that are `made` there; sorted."""
    return sorted(entry for entry in folder.glob(".tmp-*") if (name := _target(entry.name)) and made(name))


def _target(name: str) -> str:
    """The name that a temporary one was to become or was taken from, empty for another name."""
    match = _TEMPORARY.fullmatch(name)
    return (match[1] or match[2]) if match is not None else ""


def size_of(path: Path) -> int:
    """Bytes of a file, or of everything below a folder; links, and what vanishes meanwhile, count nothing."""
    paths = [os.path.join(place, name) for place, _, names in os.walk(path) for name in names] or [str(path)]
    total = 0
    for each in paths:
        with contextlib.suppress(OSError):
            status = os.lstat(each)
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
