"""One computation at a time: a worker thread, a short queue, and a way to cancel what nobody waits for.

Everything but `Job._work` runs on the event loop, so no locks are needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from positron_mini.errors import PositronError

QUEUE = 8  # computations that may wait while one runs

T = TypeVar("T")
R = TypeVar("R")


class Busy(PositronError):
    """The queue is full. `retry_after_s` is when a place is likely to be free."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"one request is being answered and {waiting} wait", f"try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Stopped(PositronError):
    """The computation was cancelled, or the server is shutting down."""


class _End:
    """The last item of a job's results: how it ended."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Job(Generic[T]):
    """An admitted computation. Iterate to get its results in order; call `cancel` when you stop early."""

    def __init__(self, engine: Engine, work: Callable[[Job[T]], Iterable[T]]) -> None:
        self._engine, self._make = engine, work
        self._results: asyncio.Queue[T | _End] = asyncio.Queue()
        self._peeked: list[T | _End] = []  # taken from the queue of results by `first`, not yet read
        self._cancelled = threading.Event()
        self.submitted = time.perf_counter()
        self.began = math.nan  # when it left the queue

    async def first(self) -> None:
        """Wait until there is a result to read, or the end. Errors: what the computation raised before its first result, Stopped."""
        result = await self._results.get()
        if isinstance(result, _End) and result.error is not None:
            raise result.error
        self._peeked.append(result)

    def cancel(self) -> None:
        """Stop as soon as possible: at the next result, or within the computation where it calls `check`."""
        self._cancelled.set()
        self._engine._forget(self)

    def check(self) -> None:
        """Raise Stopped if the job is cancelled. Called by the thread that computes."""
        if self._cancelled.is_set():
            raise Stopped("the request was cancelled")

    async def __aiter__(self) -> AsyncIterator[T]:
        """Yield the results as they come. Errors: what the computation raised, Stopped."""
        while True:
            result = self._peeked.pop() if self._peeked else await self._results.get()
            if not isinstance(result, _End):
                yield result
            elif result.error is None:
                return
            else:
                raise result.error

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Compute, in the engine's thread."""
        error: BaseException | None = None
        self.began = time.perf_counter()
        try:
            self.check()
            results = iter(self._make(self))
            with contextlib.closing(results) if isinstance(results, Generator) else contextlib.nullcontext():
                for result in results:
                    loop.call_soon_threadsafe(self._results.put_nowait, result)
                    self.check()
        except BaseException as caught:
            error = caught
        loop.call_soon_threadsafe(self._engine._finished, self, error)


class Engine:
    """Runs computations one after the other in the order they came; refuses one when the queue is full."""

    def __init__(self, queue: int = QUEUE) -> None:
        self._queue = queue
        self._waiting: deque[Job[Any]] = deque()
        self._running: Job[Any] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._closed = False
        self._typical_s = 1.0  # a moving average of the seconds a computation takes

    @property
    def running(self) -> bool:
        """Whether something is being computed."""
        return self._running is not None

    @property
    def waiting(self) -> int:
        """Computations in the queue."""
        return len(self._waiting)

    def submit(self, work: Callable[[Job[T]], Iterable[T]]) -> Job[T]:
        """A job that iterates over `work(job)` in the engine's thread. Errors: Busy, Stopped during shutdown."""
        if self._closed:
            raise Stopped("the server is shutting down")
        if self._running is not None and len(self._waiting) >= self._queue:
            raise Busy(self.waiting, min(60, max(1, math.ceil(self._typical_s * (1 + self.waiting)))))
        job = Job(self, work)
        self._waiting.append(job)
        self._next()
        return job

    async def run(self, work: Callable[[], R]) -> R:
        """Run `work` in the engine's thread when its turn comes, and return its result. Errors: its own, Busy, Stopped."""
        job = self.submit(lambda _: [work()])
        try:
            async for result in job:
                return result
            raise AssertionError("a job of one result ended without it")
        finally:
            job.cancel()

    def close(self) -> None:
        """Cancel everything and admit nothing more, without waiting."""
        self._closed = True
        for job in [*self._waiting, *([self._running] if self._running else [])]:
            job.cancel()
        self._thread.shutdown(wait=False)

    def _next(self) -> None:
        """Start the oldest waiting job if the thread is free."""
        if self._running is None and self._waiting:
            self._running = self._waiting.popleft()
            self._thread.submit(self._running._work, asyncio.get_running_loop())

    def _finished(self, job: Job[Any], error: BaseException | None) -> None:
        if error is None:
            self._typical_s += 0.2 * (time.perf_counter() - job.began - self._typical_s)
        job._results.put_nowait(_End(error))
        self._running = None
        self._next()

    def _forget(self, job: Job[Any]) -> None:
        """Take a cancelled job out of the queue, so that its place is free at once."""
        if job in self._waiting:
            self._waiting.remove(job)
            job._results.put_nowait(_End(Stopped("the request was cancelled")))
