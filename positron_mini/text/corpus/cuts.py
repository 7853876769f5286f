"""Places where a large file can be cut so that its pieces, read one by one, give the documents of the whole."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_WINDOW_BYTES = 1 << 20
_OVERLAP_BYTES = 1 << 10
# Only cuts that are safe on the raw bytes: cleaning may turn other characters into separators and blank lines; those are not cut at.
# Each needs the byte that follows, because a carriage return may be the first half of a line end.
_ENDS = {
    "separators": re.compile(rb"[\r\n][ \t]*<\|endoftext\|>[ \t]*(?:\r?\n|\r(?=[^\n]))"),
    "blank lines": re.compile(rb"(?:\n[ \t\r]*\n|\r[ \t]*\r)(?=[!-~])"),
    "lines": re.compile(rb"\n"),
}


@dataclass(frozen=True)
class FilePiece:
    """A file, or a part of it with whole documents. `start` and `end` count bytes, in a .parquet file row groups."""

    path: Path
    start: int = 0
    end: int | None = None  # None: the end of the file
    has_separator: bool | None = None  # of a text: whether separator lines divide its documents; None: not known yet


def cut_points(path: Path, after: str, piece_bytes: int) -> list[int]:
    """Ends of pieces of at least `piece_bytes` bytes (the last may be smaller), ascending; the last one is the file size.

    `after`: "separators", "blank lines" or "lines".
    """
    size = path.stat().st_size
    ends: list[int] = []
    with open(path, "rb") as handle:
        while (start := ends[-1] if ends else 0) < size:
            ends.append(_next_end(handle, _ENDS[after], start + piece_bytes) or size)
    return ends


def _next_end(handle: BinaryIO, end: re.Pattern[bytes], at: int) -> int | None:
    """End of the first match that begins at byte `at` or later, None if there is none."""
    while True:
        handle.seek(at)
        window = handle.read(_WINDOW_BYTES)
        found = end.search(window)
        if found:
            return at + found.end()
        if len(window) < _WINDOW_BYTES:
            return None
        at += _WINDOW_BYTES - _OVERLAP_BYTES


def lines_before(piece: FilePiece) -> int:
    """Lines of the file before the piece. Reads them, so it is for error messages only."""
    count, left = 0, piece.start
    with open(piece.path, "rb") as handle:
        while left and (chunk := handle.read(min(left, _WINDOW_BYTES))):
            count += chunk.count(b"\n")
            left -= len(chunk)
    return count
