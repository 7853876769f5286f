"""Messages to a person while a text is prepared, and afterwards."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from positron_mini.config.units import spell_time
from positron_mini.errors import Say
from positron_mini.text.corpus.reading import SEPARATOR, ReadStats

_INTERVAL_S = 5.0
_SENTENCE = re.compile(r"""[.!?]["')\]]*(?=\s|$)""")
_MAX_SAMPLE_CHARS = 160


class Progress:
    """A line every five seconds: how much of the text is done, how fast, and how long the rest takes.

    `before`: bytes that were already done at the start.
    """

    def __init__(self, say: Say, what: str, total_bytes: int, *, before: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._what, self._total, self._before, self._clock = say, what, total_bytes, before, clock
        self._start = self._last = clock()

    def update(self, new_bytes: int) -> None:
        """Report progress, `new_bytes` done since the start, if five seconds have passed since the last report."""
        now = self._clock()
        if now - self._last < _INTERVAL_S or not new_bytes:
            return
        self._last = now
        done_bytes, rate = self._before + new_bytes, new_bytes / (now - self._start)
        left = spell_time(max(0.0, (self._total - done_bytes) / rate))
        percent = min(100, 100 * done_bytes // max(1, self._total))
        self._say(f"{self._what}: {done_bytes / 1e6:,.0f} of {self._total / 1e6:,.0f} MB ({percent} %), {rate / 1e6:.1f} MB/s, {left} left")

    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start


def first_sentence(text: str) -> str:
    """Beginning of a story, as one line of at most 160 characters."""
    found = _SENTENCE.search(text, 0, 4 * _MAX_SAMPLE_CHARS)
    line = " ".join(text[: found.end() if found else 4 * _MAX_SAMPLE_CHARS].split())
    return line if len(line) <= _MAX_SAMPLE_CHARS else line[: _MAX_SAMPLE_CHARS - 1] + "…"


def reading_report(stats: ReadStats) -> dict[str, Any]:
    """Findings of the reading, as JSON; they are about the files, not only about their stories."""
    report = asdict(stats)
    bad = ("bom", "carriage_returns", "invalid_utf8", "nul", "lower_blocks")
    return {
        "files": stats.files,
        "other_files": stats.other_files,
        "source_bytes": stats.source_bytes,
        "documents": stats.documents,
        "empty": stats.empty,
        "bad_characters": {name: report[name] for name in bad},
        "inner_separators": stats.inner_separators,
        "blank_line_files": stats.blank_line_files,
    }


_BAD_NAMES = {
    "bom": "byte-order marks dropped",
    "carriage_returns": "carriage returns made newlines",
    "invalid_utf8": "invalid UTF-8 made U+FFFD",
    "nul": "NUL removed",
    "lower_blocks": "U+2581 made spaces",
}


def report_lines(report: dict[str, Any]) -> list[str]:
    """Preparation report as lines for a person."""
    read = report["reading"]
    lines = [
        f"stories:     {report['stories']:,} ({report['train_stories']:,} for training, {report['validation_stories']:,} for validation), "
        f"{report['bytes'] / 1e6:,.1f} MB",
        _left_out(report, read),
        f"characters:  {_bad_characters(read['bad_characters'])}",
        f"tokens:      {report['tokens']:,} ({report['train_tokens']:,} for training), vocabulary {report['vocab_size']:,}, "
        f"{report['bytes_per_token']:.2f} bytes per token",
        f"longest:     {report['longest_bytes']:,} bytes, {report['longest_tokens']:,} tokens",
        *(f"sample:      {sample}" for sample in report["samples"]),
        *_remarks(read),
    ]
    if "seconds" in report:
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["seconds"].items())
        lines.append(f"time:        {spent}")
    return lines


def _left_out(report: dict[str, Any], read: dict[str, Any]) -> str:
    parts = [f"{report['duplicates']:,} exact copies", f"{read['empty']:,} empty"]
    if report["shared_with_validation"]:
        parts.append(f"{report['shared_with_validation']:,} that the validation text holds")
    kept = f"; kept: {report['variants']:,} copies that differ in case or spaces" if report["variants"] else ""
    return f"left out:    {', '.join(parts)}{kept}"


def _bad_characters(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {_BAD_NAMES[name]}" for name, count in counts.items() if count) or "nothing to mend"


def _remarks(read: dict[str, Any]) -> list[str]:
    lines = []
    if read["blank_line_files"]:
        lines.append(
            f"note:        no line {SEPARATOR} in {read['blank_line_files']:,} of {read['files']:,} files: their stories end at blank lines"
        )
    if read["inner_separators"]:
        lines.append(
            f"note:        {SEPARATOR} inside a line {read['inner_separators']:,} times, kept as text: it separates only alone on a line"
        )
    if read["other_files"]:
        lines.append(f"note:        {read['other_files']:,} files of other kinds in the folder were not read")
    return lines
