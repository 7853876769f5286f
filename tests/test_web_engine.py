"""Laws of the engine: one computation at a time, in order, a short queue, and nothing computed for nobody."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from positron_mini.web.engine import Busy, Engine, Job, Stopped


@asynccontextmanager
async def engine(queue: int = 8) -> AsyncIterator[Engine]:
    made = Engine(queue)
    try:
        yield made
    finally:
        made.close()


def held(gate: threading.Event, results: int = 1) -> Callable[[Job[Any]], Iterator[int]]:
    """Work that gives results 0, 1, ... once the gate is open."""

    def work(_: Job[Any]) -> Iterator[int]:
        assert gate.wait(60)
        yield from range(results)

    return work


async def all_of(job: Job[Any]) -> list[Any]:
    return [result async for result in job]


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.001)


def test_results_come_in_order_and_jobs_one_after_the_other() -> None:
    running: list[str] = []

    def work(name: str) -> Callable[[Job[Any]], Iterator[str]]:
        def steps(_: Job[Any]) -> Iterator[str]:
            running.append(name)
            for i in range(3):
                assert running[-1] == name
                yield f"{name}{i}"

        return steps

    async def main() -> None:
        async with engine() as made:
            jobs = [made.submit(work(name)) for name in "abcde"]
            assert await asyncio.gather(*map(all_of, jobs)) == [[f"{name}{i}" for i in range(3)] for name in "abcde"]
            assert running == list("abcde")

    asyncio.run(main())


def test_the_queue_holds_so_many_and_says_when_to_come_again() -> None:
    async def main() -> None:
        gate = threading.Event()
        async with engine(queue=2) as made:
            jobs = [made.submit(held(gate)) for _ in range(3)]
            assert (made.running, made.waiting) == (True, 2)
            with pytest.raises(Busy) as busy:
                made.submit(held(gate))
            assert 1 <= busy.value.retry_after_s <= 60
            assert busy.value.message == "one request is being answered and 2 wait"
            jobs[1].cancel()  # its place is free at once
            assert made.waiting == 1
            made.submit(held(gate))
            gate.set()
            assert await all_of(jobs[2]) == [0]
            with pytest.raises(Stopped):
                await all_of(jobs[1])

    asyncio.run(main())


def test_a_cancelled_computation_stops_at_its_next_result_and_frees_the_thread() -> None:
    async def main() -> None:
        steps: list[int] = []
        closed = threading.Event()

        def endless(_: Job[Any]) -> Iterator[int]:
            try:
                while True:
                    time.sleep(0.001)
                    steps.append(1)
                    yield 1
            finally:
                closed.set()

        async with engine() as made:
            job, following = made.submit(endless), made.submit(lambda _: ["next"])
            await until(lambda: len(steps) > 3)
            job.cancel()
            assert await all_of(following) == ["next"]
            assert closed.is_set() and not made.running

    asyncio.run(main())


def test_work_that_asks_can_be_stopped_between_results() -> None:
    async def main() -> None:
        begun = threading.Event()

        def long(job: Job[Any]) -> Iterator[int]:
            begun.set()
            while True:
                job.check()
                time.sleep(0.001)
            yield 1

        async with engine() as made:
            job = made.submit(long)
            await until(begun.is_set)
            job.cancel()
            with pytest.raises(Stopped):
                await all_of(job)

    asyncio.run(main())


def test_an_error_reaches_who_waits_and_leaves_the_engine_whole() -> None:
    async def main() -> None:
        async with engine() as made:
            with pytest.raises(ZeroDivisionError):
                await made.run(lambda: 1 // 0)
            assert await made.run(lambda: 41 + 1) == 42
            failing = made.submit(lambda _: (1 // i for i in (1, 0)))
            await failing.first()
            results = aiter(failing)
            assert await anext(results) == 1
            with pytest.raises(ZeroDivisionError):
                await anext(results)

    asyncio.run(main())


def test_first_waits_for_a_result_and_leaves_it_to_be_read() -> None:
    async def main() -> None:
        async with engine() as made:
            for results in (0, 1, 3):
                gate = threading.Event()
                job = made.submit(held(gate, results))
                waiting = asyncio.create_task(job.first())
                await asyncio.sleep(0.01)
                assert not waiting.done()
                gate.set()
                await waiting
                assert await all_of(job) == list(range(results))

    asyncio.run(main())


def test_a_closed_engine_ends_everything_and_admits_nothing() -> None:
    async def main() -> None:
        gate = threading.Event()
        made = Engine()
        jobs = [made.submit(held(gate)) for _ in range(3)]
        made.close()
        gate.set()
        for job in jobs:
            with pytest.raises(Stopped):
                await all_of(job)
        with pytest.raises(Stopped):
            made.submit(held(gate))

    asyncio.run(main())
