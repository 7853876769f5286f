"""Faults made on purpose: what a kill leaves at every point of the writer, a disk that fills up at a byte, bits that flip, signals.

A SIGKILL leaves exactly what the system has been told so far, so a copy of the folder made at a point of the writer is what a kill there
would leave: one training gives the outcome of every kill. Real kills at random moments, in forked children, prove the same of the process.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from helpers.runs import timeless
from positron_mini import files
from positron_mini.store.run_folder import RunFolder

JUNK = (".tmp-", ".lock")  # leftovers and locks, which the next writer removes or takes over


def visible(run: Path) -> dict[str, str]:
    """SHA-256 of every file of a run that a reader looks at, and where each link points, by relative name."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if name.startswith(JUNK):
            continue
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def steps_again(run: Path) -> int:
    """What an interruption cost: finished steps, by the log, that no whole checkpoint holds, so that they are computed again."""
    newest = RunFolder(run).newest(training=True, say=lambda _: None)
    done = max((row["step"] for row in files.read_lines(run / "metrics.jsonl")), default=0)
    return done - ((newest.step or 0) if newest is not None else 0)


def differences(one: Path, other: Path) -> list[str]:
    """What is not equal in two runs, apart from times: files, links, log lines. Leftovers count where a run has ended."""
    logs = {"metrics.jsonl", "run.json"}
    first, second = ({k: v for k, v in visible(each).items() if k not in logs} for each in (one, other))
    found = [name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]
    found += [entry.name for entry in other.iterdir() if entry.name.startswith(".tmp-")]
    return found + (["metrics.jsonl"] if timeless(one) != timeless(other) else [])


@contextmanager
def watched(watch: Callable[[str], None]) -> Iterator[None]:
    """Inside, `watch` is told every point of the writer that is passed."""
    with mock.patch.object(files, "watch", watch):
        yield


def every_kill(run: Path, store: Path, act: Callable[[], object]) -> tuple[int, list[Path]]:
    """The number of points of the writer that `act` passes, and a copy of `run` for each different state that a kill at one would leave."""
    states: dict[str, Path] = {}
    points: list[str] = []

    def keep(name: str) -> None:
        points.append(name)
        if not run.exists():
            return
        state = repr(sorted(visible(run).items()))
        if state not in states:
            states[state] = store / f"{len(states):03d}" / run.name
            shutil.copytree(run, states[state], symlinks=True)

    with watched(keep):
        act()
    return len(points), list(states.values())


def kill_after(seconds: float, act: Callable[[], int]) -> bool:
    """Whether a forked child that runs `act` was killed after that time; False as soon as it has ended before."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            code = act()
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, status
            return False
        time.sleep(min(left, 0.005))
    os.kill(pid, signal.SIGKILL)  # it has not been waited for, so the number is still its own
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended in (-signal.SIGKILL, 0), ended
    return ended == -signal.SIGKILL


class _ShortFile(io.FileIO):
    """A file on a disk that has `room` bytes left for all of its kind: it takes what fits, as a real one does, then says ENOSPC."""

    room = 0

    def write(self, data: Any) -> int:
        left = type(self).room
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = super().write(memoryview(data)[:left])
        type(self).room -= taken
        return taken


@contextmanager
def disk_with_room(room: int) -> Iterator[type[_ShortFile]]:
    """Inside, the writer's files are on a disk that is full after `room` more bytes. Yields the class, whose `room` counts down."""
    kind = type("ShortFile", (_ShortFile,), {"room": room})

    def open_short(path: Any, mode: str = "r", **options: Any) -> Any:
        if mode in ("wb", "ab"):
            return io.BufferedWriter(kind(path, mode))
        return open(path, mode, **options)

    with mock.patch.object(files, "open", open_short, create=True):
        yield kind


class Canary:
    """Unpickling this makes the folder `ran`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.folder),))


def flip(path: Path, place: float, bit: int) -> bytes:
    """The file's content before one of its bits was flipped, at `place` (a share of its length below 1)."""
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(broken)
    return whole


def cost(act: Callable[[], object]) -> tuple[float, int]:
    """Seconds of CPU time and bytes of memory that `act` takes, in a forked child. Fails with what `act` raises."""
    import resource

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = "0 0 died"
        try:
            os.close(reading)
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            act()
            answer = f"{time.process_time() - began} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before} ok"
        except BaseException as error:
            answer = f"0 0 {type(error).__name__}: {error}"
        finally:
            os.write(writing, answer.encode()[:4_000])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        seconds, kilobytes, outcome = pipe.read().split(" ", 2)
    os.waitpid(pid, 0)
    assert outcome == "ok", outcome
    return float(seconds), int(kilobytes) * 1024
