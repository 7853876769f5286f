"""Whether a speed measurement is reliable: this process's share of the CPU, the load of other programs, and agreement of pairs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

QUIET = 0.6  # least share of the CPU that this process gets on a quiet machine
OTHERS = 0.1  # share of all cores above which other programs explain a smaller share
PAIRS, MOST_PAIRS = 3, 7


@dataclass(frozen=True)
class Usage:
    """Counters at one moment, in seconds: wall clock, CPU time of this process, CPU time of all programs and other guests of the host.

    Where the system has no `all_s`, `load` is the load average of the last minute; both are None on some systems.
    """

    wall_s: float
    own_s: float
    all_s: float | None = None
    load: float | None = None


def usage(stat: Path = Path("/proc/stat")) -> Usage:
    """The current counters."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Usage(time.perf_counter(), time.process_time(), _busy_s(stat), load)


def _busy_s(stat: Path) -> float | None:
    """CPU seconds of all programs, with those taken by the host (steal), as counted by Linux; None elsewhere."""
    try:
        ticks = [int(word) for word in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _waiting, irq, softirq, steal = ticks
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def share_had(before: Usage, after: Usage, threads: int) -> float:
    """The share of `threads` cores that this process got."""
    return min(1.0, (after.own_s - before.own_s) / max((after.wall_s - before.wall_s) * threads, 1e-9))


def disturbance(before: Usage, after: Usage, threads: int, cores: int) -> str:
    """Why a measurement with that many threads is unreliable: it got too little of the CPU, and other programs used it.

    Empty if it is reliable. A process that waits for its own threads has a small share too, which does no harm.
    """
    share, wall_s = share_had(before, after, threads), max(after.wall_s - before.wall_s, 1e-9)
    others: float | None = None  # cores
    if before.all_s is not None and after.all_s is not None:
        others = (after.all_s - before.all_s - (after.own_s - before.own_s)) / wall_s
    elif after.load is not None:
        others = after.load - threads
    if share >= QUIET or (others is not None and others <= OTHERS * cores):
        return ""
    return f"only {share:.0%} of the processor was free for the measurement"


@dataclass(frozen=True)
class Ratio:
    """The ratio of two measurements: the median over pairs. `is_clear`: nearly all pairs lie on one side of the line."""

    median: float
    is_clear: bool


def paired(one: Callable[[], float], other: Callable[[], float], line: float) -> Ratio:
    """The ratio `other()` / `one()`, measured in alternation, so that a disturbance affects both and one pair decides nothing.

    Three pairs; up to seven until they agree on which side of `line` they lie.
    """
    ratios: list[float] = []
    while len(ratios) < MOST_PAIRS and (len(ratios) < PAIRS or not _is_clear(ratios, line)):
        if len(ratios) % 2:
            second = other()
            ratios.append(second / one())
        else:
            first = one()
            ratios.append(other() / first)
    return Ratio(median(ratios), _is_clear(ratios, line))


def _is_clear(ratios: list[float], line: float) -> bool:
    """Whether all pairs lie on one side, or all but one of five and more."""
    minority = min(sum(ratio > line for ratio in ratios), sum(ratio <= line for ratio in ratios))
    return minority <= (1 if len(ratios) >= 5 else 0)
