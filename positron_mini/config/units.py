"""Sizes and times for people."""

from __future__ import annotations


def spell_bytes(count: float) -> str:
    """A size for people, in powers of 1,000: "812 kB", "22.5 MB", "2.23 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 99.95 else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError(count)


def spell_time(seconds: float) -> str:
    """"35 s", "12 min", "1.6 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
