"""Starting other programs, so that no program or Python module is taken from the current folder.

Python looks for modules in the current folder first, and a search path may name it too: a `queue.py` or a `g++` downloaded with a text
would be run. `tests/test_children.py` checks that no other module starts Python or looks for a program.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# The folder of this package comes last: it may hold other files of the user's.
_RUN_MODULE = (
    "import runpy, sys; root, module = sys.argv[1:3]; del sys.argv[1:3]; sys.path.append(root); "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def python(module: str, *words: str) -> list[str]:
    """The command `python -m MODULE WORDS` for a module of this package, wherever it is started. PYTHONPATH is obeyed."""
    return [sys.executable, "-P", "-c", _RUN_MODULE, str(ROOT), module, *words]


def safe_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment settings that keep the current folder out of the search, also for programs that libraries start."""
    return {"PYTHONSAFEPATH": "1", "PATH": _absolute(environ.get("PATH", os.defpath)) or os.defpath}


def spawn(work: Callable[..., None], *arguments: Any) -> SpawnProcess:
    """Start a process that calls `work` (a function of a module) and ends with this one; return it."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments, daemon=True)
    before = dict(os.environ)
    os.environ.update(safe_settings(before))
    try:
        process.start()
    finally:
        for name in safe_settings(before):
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
    return process


def _absolute(path: str) -> str:
    """The absolute folders of a search path (an empty entry means the current folder)."""
    return os.pathsep.join(folder for folder in path.split(os.pathsep) if os.path.isabs(folder))


def find_program(names: Iterable[str]) -> Path | None:
    """The absolute path of the first of these programs on the search path; a name with a folder is used as it is."""
    path = safe_settings(os.environ)["PATH"]
    for name in names:
        found = shutil.which(name, path=path)
        if found and (os.path.isabs(found) or os.path.dirname(name)):  # Windows always searches the current folder too
            return Path(os.path.abspath(found))
    return None


def finish(command: Sequence[str], folder: Path, seconds: float) -> tuple[int | None, str]:
    """Run `command` in `folder`; return its exit code (None if it ran out of time) and the end of its output.

    It and its child processes are ended together, also when this process is interrupted. Errors: OSError if it cannot be started.
    """
    environment = {**os.environ, **safe_settings(os.environ)}
    with open(folder / "said", "w+b") as said:  # not a pipe: a grandchild that escapes would hold it open
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.returncode is None:  # the number of an ended process may belong to another group by now
                _end_group(process)
        said.seek(max(0, said.seek(0, os.SEEK_END) - 2_000))
        return code, said.read().decode("utf-8", "replace").strip()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and its process group, which it leads."""
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
