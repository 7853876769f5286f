"""Do the parts in this process, or in several that receive them over a pipe. Both directions carry lines of JSON only.

A worker is a program of its own (`python -m positron_mini.text.prepare`), so it does not depend on how this process was started.
It ends when its pipe closes: no worker survives when this process is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from positron_mini import errors, files
from positron_mini.device import children
from positron_mini.errors import PositronError
from positron_mini.text.corpus.reading import ReadStats
from positron_mini.text.corpus.report import Progress
from positron_mini.text.prepare.parts import Part, Sides, Tell, encode_part, routed, scan_part
from positron_mini.text.tokenizer import Tokenizer, WordEncoder, train_tokenizer

_TELL_EVERY_S = 0.25
# for glibc, where a tokenizer is trained: threads share freed memory and return it to the system (300 MB, not 430)
_FRUGAL = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
TOKENIZER_FILE = "tokenizer.model"


@dataclass(frozen=True)
class Job:
    """Work on every part of a text. Results are in `folder`, the `.json` of a part written last.

    scan: NNNNN.keys. train, which takes the whole text as one part: the tokenizer, from the documents that NNNNN.sides selects.
    encode, which needs NNNNN.sides and the tokenizer there: NNNNN.train and NNNNN.validation.
    """

    stage: Literal["scan", "train", "encode"]
    folder: Path
    vocab_size: int = 0  # vocabulary and threads of a tokenizer to train
    threads: int = 0

    def file(self, index: int, ending: str) -> Path:
        """Path of a file of a part."""
        return self.folder / f"{index:05d}.{ending}"

    def result(self, index: int) -> dict[str, Any] | None:
        """Result of a finished part; None if it is still to be done."""
        path = self.file(index, "json")
        with contextlib.suppress(PositronError):
            result = files.read_json(path) if path.is_file() else None
            return result if isinstance(result, dict) else None
        return None

    def do(self, index: int, part: Part, tell: Tell) -> int:
        """Do one part; return the bytes read. Errors: those of reading and writing."""
        result = {"scan": self._scan, "train": self._train, "encode": self._encode}[self.stage](index, part, tell)
        files.write_json(self.file(index, "json"), result)
        return int(result["source_bytes"])

    def _scan(self, index: int, part: Part, tell: Tell) -> dict[str, Any]:
        keys, result = scan_part(part, tell)
        files.write_bytes(self.file(index, "keys"), keys)
        return result

    def _train(self, index: int, part: Part, tell: Tell) -> dict[str, Any]:
        stats = ReadStats()

        def write(sample: Any) -> None:
            for _, text in routed(part, self._sides(index), stats):
                tell(stats.source_bytes)
                data = text.encode("utf-8")
                sample.write(len(data).to_bytes(8, "little") + data)

        # first copied to a file: reading while the trainer gathers millions of strings would fragment the heap and double the memory
        path = self.folder / "sample"
        files.stream_file(path, write)
        try:
            with open(path, "rb") as sample:
                tokenizer = train_tokenizer(_texts_in(sample), self.vocab_size, threads=self.threads)
        finally:
            path.unlink()
        tokenizer.save(self.folder / TOKENIZER_FILE)
        return asdict(stats)

    def _sides(self, index: int) -> Sides:
        return np.fromfile(self.file(index, "sides"), np.uint8)

    def _encode(self, index: int, part: Part, tell: Tell) -> dict[str, Any]:
        sides = self._sides(index)
        result: dict[str, Any] = {}

        def fill_both(train: Any) -> None:
            def fill(validation: Any) -> None:
                result.update(asdict(encode_part(part, sides, self._encoder, (train, validation), tell)))

            files.stream_file(self.file(index, "validation"), fill)

        files.stream_file(self.file(index, "train"), fill_both)
        return result

    @cached_property
    def _encoder(self) -> WordEncoder:
        return WordEncoder(Tokenizer.load(self.folder / TOKENIZER_FILE))


def _texts_in(sample: BinaryIO) -> Iterator[str]:
    """Texts of a file in which each is preceded by its size."""
    while size := sample.read(8):
        yield sample.read(int.from_bytes(size, "little")).decode("utf-8")


def run(job: Job, parts: dict[int, Part], processes: int, progress: Progress, *, apart: bool = False) -> None:
    """Do the parts, by number, in this process if one is enough (`apart`: never, so that its memory does not grow).

    Errors: those of the work, after all of it has stopped.
    """
    done = _Done(progress)
    if min(processes, len(parts)) <= 1 and not apart:
        for index, part in parts.items():
            done.tell(index, job.do(index, part, _seldom(partial(done.tell, index))))
        return
    queue = deque(parts.items())
    workers = [_Worker(job) for _ in range(min(processes, len(parts)))]
    with contextlib.ExitStack() as afterwards, ThreadPoolExecutor(len(workers)) as pool:
        for worker in workers:
            afterwards.callback(worker.release)
        try:
            for waiting in [pool.submit(_drain, worker, queue, done) for worker in workers]:
                waiting.result()
        except BaseException:
            queue.clear()
            for worker in workers:
                worker.kill()
            raise


class _Done:
    """Bytes read of each part, summed for the progress line; workers report from threads."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._read, self._lock = progress, dict[int, int](), threading.Lock()

    def tell(self, index: int, read: int) -> None:
        with self._lock:
            self._read[index] = read
            self._progress.update(sum(self._read.values()))


def _seldom(tell: Tell) -> Tell:
    """`tell`, at most four times a second."""
    last = time.monotonic()

    def told(read: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _TELL_EVERY_S:
            last = now
            tell(read)

    return told


class _Worker:
    """A process that does parts of one job."""

    def __init__(self, job: Job) -> None:
        environment = {**os.environ, **(_FRUGAL if job.stage == "train" else {})}
        command = children.python(__package__, job.stage, str(job.folder), str(job.vocab_size), str(job.threads))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment)

    def do(self, index: int, part: Part, tell: Tell) -> None:
        """Do one part. Errors: those of the work; PositronError when the process ends instead of answering."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{index} {part.to_json()}\n")
            self._process.stdin.flush()
        except OSError:
            pass  # the process has ended; reading will fail too
        for line in self._process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                kind, message, hint = answer["error"]
                raise getattr(errors, kind)(message, hint)
            tell(answer["read"])
            if answer["is_done"]:
                return
        raise PositronError(
            f"a worker process ended with code {self._process.wait()} in the middle of its work",
            "start the same command again to go on; positron prepare with --workers 1 needs the least memory",
        )

    def close(self) -> None:
        """Let the process end, as no work is left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()

    def release(self) -> None:
        """Close the pipes to an ended process, once no thread reads them."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # unsent lines
                assert pipe is not None
                pipe.close()


def _drain(worker: _Worker, queue: deque[tuple[int, Part]], done: _Done) -> None:
    """Give the worker parts until none is left."""
    while True:
        try:
            index, part = queue.popleft()
        except IndexError:
            worker.close()
            return
        worker.do(index, part, partial(done.tell, index))


def serve(job: Job) -> None:
    """Run as a worker: do the parts named on stdin until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(**row: Any) -> None:
        answers.write(json.dumps(row) + "\n")
        answers.flush()

    def answer(is_done: bool, read: int) -> None:
        send(is_done=is_done, read=read)

    for line in sys.stdin:
        index, _, part = line.partition(" ")
        try:
            read = job.do(int(index), Part.from_json(part), _seldom(partial(answer, False)))
        except PositronError as error:
            send(error=[type(error).__name__, error.message, error.hint])
        else:
            answer(True, read)
