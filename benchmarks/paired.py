"""Side by side: every competitor in a process of its own, all of them taking turns, so that what disturbs the machine disturbs all alike.

A benchmark script is also its own worker: `start` runs it again with `--worker JOB`, where it calls `work(turn)`. A turn is one line of
JSON to the worker and one line back. While one computes, the others sleep.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from positron_mini import files
from positron_mini.device import peak_memory, this_machine

Row = dict[str, Any]


# --- workers ----------------------------------------------------------------------------------------------------------------------------


class Competitor:
    """A worker process. `turn` makes it do one piece of work; `close` ends it and gives its peak memory in bytes."""

    def __init__(self, script: str, name: str, job: Row, threads: int) -> None:
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, script, "--worker", json.dumps(job)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self._read()  # it is ready

    def _read(self) -> Row:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the worker ended with code {self.process.wait()}; its messages are above")
        answer: Row = json.loads(line)
        return answer

    def turn(self, **request: Any) -> Row:
        """What the worker measured in one turn."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> int:
        """End the worker; the most memory it held, in bytes."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        peak = int(self._read()["peak_rss_bytes"])
        self.process.wait()
        return peak


def work(turn: Callable[..., Row]) -> None:
    """Serve turns until stdin ends. What libraries print goes to stderr. Call it when everything is loaded and warm."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(row: Row) -> None:
        answers.write(json.dumps(row) + "\n")
        answers.flush()

    answer({})
    for line in sys.stdin:
        answer(turn(**json.loads(line)))
    answer({"peak_rss_bytes": peak_memory()})
    answers.close()
    os._exit(0)  # some runtimes hang when their threads are torn down


@contextlib.contextmanager
def started(script: str, jobs: dict[str, Row], threads: int) -> Iterator[list[Competitor]]:
    """The competitors by name, all ready; what is left of them is ended at the end."""
    competitors: list[Competitor] = []
    try:
        for name, job in jobs.items():
            say(f"starting {name}")
            competitors.append(Competitor(script, name, job, threads))
        yield competitors
    finally:
        for competitor in competitors:
            if competitor.process.poll() is None:
                competitor.process.kill()
                competitor.process.wait()


def take_turns(competitors: Sequence[Competitor], rounds: int, *, warm_up: int = 1, **request: Any) -> dict[str, list[Row]]:
    """What each competitor measured in `rounds` turns, after `warm_up` unmeasured ones; another one begins each round."""
    rows: dict[str, list[Row]] = {competitor.name: [] for competitor in competitors}
    for number in range(-warm_up, rounds):
        first = number % len(competitors)
        for competitor in (*competitors[first:], *competitors[:first]):
            row = competitor.turn(**request)
            if number >= 0:
                rows[competitor.name].append(row)
            when = f"round {number + 1}/{rounds}" if number >= 0 else "warm-up"
            say(f"{when}  {competitor.name:<28} {row.get('tok_per_s', 0):,.1f} tok/s")
    return rows


# --- results ----------------------------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """A line of progress on stderr; results alone go to stdout."""
    print(text, file=sys.stderr, flush=True)


def median(rows: Sequence[Row], key: str = "tok_per_s") -> float:
    """The median of one figure over the rounds."""
    return statistics.median(float(row[key]) for row in rows)


def spread(rows: Sequence[Row], key: str = "tok_per_s") -> str:
    """Least and most over the rounds, so that a reader sees how quiet the machine was."""
    values = [float(row[key]) for row in rows]
    return f"{min(values):,.0f} - {max(values):,.0f}"


def circumstances(threads: int, packages: Sequence[str] = ("torch",)) -> Row:
    """Date, machine, versions and threads, without which a figure is worth nothing."""
    versions = {"python": platform.python_version()}
    for name in ("positron-mini", *packages):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    machine = this_machine()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{machine.chip}, {machine.cores} cores, {machine.memory_bytes / 1e9:.0f} GB",
        "system": f"{machine.system} {machine.os_version}",
        "threads": threads,
        "versions": versions,
    }


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def bench(*words: str) -> Row:
    """The record of a `positron bench` command, run in a process of its own. Errors: SystemExit with what it said when it failed."""
    done = subprocess.run([sys.executable, "-m", "positron_mini", "bench", *words, "--json"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    record: Row = json.loads(done.stdout)
    return record


def write(record: Row, out: Path) -> None:
    """Write the figures as JSON, saying where."""
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(out, record)
    say(f"written: {out}")


def verdict(value: float, target: float) -> str:
    """Whether a ratio reaches its target."""
    return f"{value:.2f} (target {target:g}: {'met' if value >= target else 'MISSED'})"
