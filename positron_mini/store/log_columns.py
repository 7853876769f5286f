"""Metrics of a run as columns of numbers: 40 bytes a report instead of a thousand, and only new lines are read again."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

from positron_mini.store.run_logs import MAX_LINE_BYTES, parse_row

WHOLE, FRACTIONS = ("step", "tokens"), ("loss", "tok_per_s", "val_loss")
NEEDED = ("step", "tokens", "loss", "tok_per_s")


class Columns(Sequence[Mapping[str, Any]]):
    """Rows with step, tokens, loss, tok_per_s and, after a validation, val_loss. Each row is built when asked for."""

    def __init__(self, columns: dict[str, array[Any]] | None = None) -> None:
        self._columns = columns or {**{name: array("q") for name in WHOLE}, **{name: array("d") for name in FRACTIONS}}

    def __len__(self) -> int:
        return len(self._columns["step"])

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Columns: ...
    def __getitem__(self, place: int | slice) -> Mapping[str, Any] | Columns:
        if isinstance(place, slice):
            return Columns({name: column[place] for name, column in self._columns.items()})
        row = {name: column[place] for name, column in self._columns.items()}
        if math.isnan(row["val_loss"]):
            del row["val_loss"]
        return row

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[place] for place in range(len(self)))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a report; ignore anything else, and reports with a non-finite number."""
        if not all(_is_number(row.get(name)) for name in NEEDED) or any(type(row[name]) is not int for name in WHOLE):
            return
        for name in NEEDED:
            self._columns[name].append(row[name])
        self._columns["val_loss"].append(row["val_loss"] if _is_number(row.get("val_loss")) else math.nan)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


class GrowingLog:
    """A metrics.jsonl that is read while it grows. `rows` are its reports up to byte `offset`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.rows, self.offset, self._inode, self._mark = Columns(), 0, -1, b""

    @property
    def version(self) -> tuple[int, int, bytes]:
        """A value that changes when the content does."""
        return self._inode, self.offset, self._mark

    def refresh(self) -> Columns:
        """Read the new lines and return all rows; start over if the log was rewritten. Lines that are no report are ignored."""
        if not self.path.is_file():
            self._forget()
            return self.rows
        with open(self.path, "rb") as handle:
            if not self._goes_on(handle):
                self._forget()
            self._inode = os.fstat(handle.fileno()).st_ino
            handle.seek(self.offset)
            while line := handle.readline(MAX_LINE_BYTES):
                if not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
                    break  # still being written
                self.offset, self._mark = self.offset + len(line), line
                try:
                    self.rows.add(parse_row(line))
                except (ValueError, RecursionError):
                    continue
        return self.rows

    def _goes_on(self, handle: BinaryIO) -> bool:
        """Whether the file is the one read before, only longer: a rewritten log has other bytes before the offset."""
        if os.fstat(handle.fileno()).st_ino != self._inode:
            return False
        handle.seek(self.offset - len(self._mark))
        return handle.read(len(self._mark)) == self._mark
