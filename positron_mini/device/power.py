"""Sleep and heat: keep a Mac awake on request, and notice when training slows down."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

BUCKET_S = 10.0  # speeds are averaged over this much training, so that one slow step does not count
WINDOW = 3  # buckets whose median is the speed
SLOW = 0.75  # share of the usual speed below which to report


def keep_awake_command(system: str, pid: int) -> list[str] | None:
    """The command that prevents sleep while process `pid` lives; None on a system without such a program.

    -i: no idle sleep; -m: the disks stay awake; -s: no system sleep on mains power. A Mac with a closed lid still sleeps, which only pauses
    the training.
    """
    return ["/usr/bin/caffeinate", "-i", "-m", "-s", "-w", str(pid)] if system == "Darwin" else None


@contextlib.contextmanager
def awake(wanted: bool, say: Callable[[str], None], system: str | None = None) -> Iterator[None]:
    """A context in which the computer does not sleep, if that is `wanted` and possible; `say` reports if it is not."""
    command = keep_awake_command(system or platform.system(), os.getpid()) if wanted else None
    process = None
    if command is not None:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError as error:
            say(f"warning: --keep_awake: {command[0]} cannot be started ({error.strerror}); this computer may fall asleep")
    elif wanted:
        say("warning: --keep_awake: only macOS has caffeinate; here it is the system's settings that prevent sleep")
    try:
        yield
    finally:
        if process is not None:
            process.terminate()
            process.wait()


def share_of_usual_speed(speeds: Sequence[float]) -> float | None:
    """Recent speed as a share of the best sustained one: the median of the last three speeds over the best median of three before them.

    None while there are fewer than six.
    """
    if len(speeds) < 2 * WINDOW:
        return None
    before = speeds[:-WINDOW]
    usual = max(statistics.median(before[i : i + WINDOW]) for i in range(len(before) - WINDOW + 1))
    return statistics.median(speeds[-WINDOW:]) / usual


@dataclass
class SpeedWatch:
    """Notices when training becomes much slower, and when it recovers. It uses the measured speeds only, never a clock."""

    speeds: list[float] = field(default_factory=list)  # tokens a second, one for every BUCKET_S of training
    is_slow: bool = False
    _tokens: int = 0
    _seconds: float = 0.0

    def look(self, tokens: int, tok_per_s: float) -> str:
        """Add a step's tokens and speed; return a sentence when the speed has changed, else an empty string."""
        if tokens <= 0 or tok_per_s <= 0:
            return ""
        self._tokens += tokens
        self._seconds += tokens / tok_per_s
        if self._seconds < BUCKET_S:
            return ""
        self.speeds = [*self.speeds[-999:], self._tokens / self._seconds]
        self._tokens, self._seconds = 0, 0.0
        share = share_of_usual_speed(self.speeds)
        if share is None or (share < SLOW) == self.is_slow or (self.is_slow and share < (1 + SLOW) / 2):
            return ""
        self.is_slow = not self.is_slow
        now = f"{statistics.median(self.speeds[-WINDOW:]):,.0f} tokens a second"
        if not self.is_slow:
            return f"training is back to its usual speed: {now}"
        return (
            f"training has slowed down to {share:.0%} of its usual speed, {now}: the computer is hot, on battery or busy with "
            "something else; results do not change, only the time they take"
        )
