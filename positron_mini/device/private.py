"""A private folder for compiled code: only this user can write to it, so no code of others is run from it."""

from __future__ import annotations

import atexit
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from positron_mini import files
from positron_mini.device.machine import compiler
from positron_mini.device.verdict import cache_folder
from positron_mini.errors import PositronError


def private_folder(name: str) -> Path:
    """Return the folder `name` in the user's cache folder; make it if needed. Errors: PositronError if others may write to it, or it
    cannot be made."""
    try:
        folder = cache_folder(platform.system(), os.environ, Path.home()).absolute() / name
    except RuntimeError as error:
        raise PositronError(f"there is no cache folder ({error})", "set POSITRON_CACHE to a folder of your own") from error
    with files.translate_os_errors(f"making {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        problem = _problem(folder)
    if problem:
        raise PositronError(f"{folder} {problem}", "remove it, or set POSITRON_CACHE to a folder of your own")
    return folder


def _problem(folder: Path) -> str:
    """Why a folder is unsafe for code, as the rest of a sentence; Windows protects a user's folders itself."""
    there = folder.lstat()
    if not stat.S_ISDIR(there.st_mode):
        return "is a link, or no folder"
    if os.name == "nt":
        return ""
    if there.st_uid != os.geteuid():
        return "belongs to another user"
    if there.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "may be written to by others"
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:  # anybody may replace the folders in such a parent
            return f"lies in {parent}, where others may replace it"
    return ""


def own_file(path: Path) -> bytes | None:
    """The content of a file of a private folder; None if it is not a regular file of this user's, or cannot be read."""
    try:
        there = path.lstat()
        is_own = stat.S_ISREG(there.st_mode) and (os.name == "nt" or there.st_uid == os.geteuid())
        return path.read_bytes() if is_own else None
    except OSError:
        return None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of `function`, for fixed shapes. Compiled code is cached in a private folder, not under a known name in /tmp."""
    import torch

    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(_inductor_folder())
    found = compiler()
    if found is not None:
        os.environ["CXX"] = str(found)
    result: Callable[..., Any] = torch.compile(function, dynamic=False)
    return result


def _inductor_folder() -> Path:
    """torch.compile's cache folder: in the user's cache or, if that is not private, a temporary one for this process."""
    try:
        return private_folder("inductor")
    except PositronError:
        folder = Path(tempfile.mkdtemp(prefix="positron-inductor-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
