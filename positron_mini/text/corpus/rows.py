"""Rows with fields from a file, each with its first line: JSON Lines, JSON arrays and indented JSON, CSV, Parquet, also as .gz.

The kinds of files are those of pretraining (`corpus/files.py`). A file with any other name is read as JSON. An unreadable row is returned
too, with its fault, so that the others can be used without it.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from positron_mini.errors import DataError
from positron_mini.text.corpus import reading
from positron_mini.text.corpus.files import FilePiece, ReadStats, jq_command, kind_of, opened, refusals
from positron_mini.text.corpus.parquet import row_batches

MAX_LINE_BYTES = 1 << 24
MAX_WHOLE_BYTES = 1 << 28  # JSON that spans lines is held in memory
_SPACE = re.compile(r"[ \t\r\n]*")


class Row(NamedTuple):
    """A row of a file: its line number, in Parquet its row number, from 1. `wrong` says why there is no value."""

    line: int
    value: Any
    wrong: str = ""
    is_item: bool = False  # of an array of rows


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file. Errors: DataError for an unreadable or missing file."""
    try:
        path.stat()
    except FileNotFoundError as error:
        sample = Path(__file__).parents[3] / "tiny_instruct_sample.jsonl"  # in the project's folder, which need not be this one
        name = shlex.quote(str(sample)) if sample.is_file() else "FILE.jsonl"
        raise DataError(f"{path}: no such file", f"name a file of conversations: --sft_data {name}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{path}: cannot be read ({error})", f"ls -l '{path}' shows who may read it") from error
    if path.is_dir():
        raise DataError(f"{path}: a folder, a file of rows is expected", f"ls '{path}' shows its files; join JSON Lines with cat")
    if not path.is_file():
        raise DataError(f"{path}: not a file, and rows have to be read twice", f"cat '{path}' > rows.jsonl, then give rows.jsonl")
    with refusals(path):
        yield from {"csv": _csv_rows, "parquet": _parquet_rows}.get(kind_of(path) or "", _json_rows)(path)


def is_message(value: Any) -> bool:
    """Whether a JSON value is one turn of a conversation; a list of turns is one row, every other list holds rows."""
    return isinstance(value, dict) and ("role" in value or "from" in value)


def way_to_convert(path: Path, program: str, row: Row) -> str:
    """Command that converts a file to rows by a jq program for one of its rows; empty for a table."""
    if not program or kind_of(path) in ("csv", "parquet"):
        return ""
    return jq_command(path, f".[] | {program}" if row.is_item else program)


def kind_of_value(value: Any) -> str:
    """JSON's name for the type of this value."""
    return {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}.get(type(value), "a number")


# --- JSON --------------------------------------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[Row]:
    return _whole_rows(path) if _spans_lines(path) else (row for number, line in _lines(path) for row in _rows_of_line(number, line))


def _spans_lines(path: Path) -> bool:
    """Whether a JSON value of the file spans several lines: the second line continues the first, and is no row by itself."""
    with opened(FilePiece(path), ReadStats()) as (stream, _):
        reading.check_is_text(path, stream.read(reading.SAMPLE_BYTES))
        stream.seek(0)
        lines = (line for line in iter(lambda: stream.readline(MAX_LINE_BYTES), b"") if line.strip())
        first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
        if not _parsed(first).wrong:
            return False
        if len(first) >= MAX_LINE_BYTES:
            return first.lstrip().startswith(b"[")  # an array of rows in one line may be longer than any row
        second = next(lines, b"")
    is_row = isinstance(_parsed(second).value, dict | list)
    return _goes_on(first.strip(), second.strip()) and (first.strip() == b"[" or not is_row)


def _goes_on(first: bytes, second: bytes) -> bool:
    """Whether the second line continues the JSON of the first: parsing both together does not fail up to its first character."""
    try:
        json.loads(f"{first.decode()}\n{second.decode()}")
    except json.JSONDecodeError as error:
        return error.pos > len(first.decode()) + 1
    except (ValueError, RecursionError):  # not UTF-8, too deep
        return False
    return bool(second)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, without a byte-order mark. Errors: DataError for one that is too long."""
    with opened(FilePiece(path), ReadStats()) as (stream, _):
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES), b""), 1):
            if len(line) == MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes", "put one JSON object on each line")
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield number, text


def _rows_of_line(number: int, line: bytes) -> Iterator[Row]:
    row = _parsed(line)._replace(line=number)
    is_list_of_rows = isinstance(row.value, list) and bool(row.value) and all(isinstance(item, dict | list) for item in row.value)
    if is_list_of_rows and not is_message(row.value[0]):
        yield from (Row(number, item, is_item=True) for item in row.value)
    else:
        yield row


def _parsed(line: bytes) -> Row:
    """JSON value of one line."""
    try:
        return Row(1, json.loads(line.rstrip(b"\r\n").decode("utf-8"), parse_constant=_no_constant))
    except UnicodeDecodeError as error:
        return Row(1, None, f"byte {error.start + 1:,} is not UTF-8; UTF-8 is expected")
    except (ValueError, RecursionError) as error:
        return Row(1, None, _why_not(error))


def _why_not(error: ValueError | RecursionError) -> str:
    """Why a text is not JSON."""
    if isinstance(error, RecursionError):
        return "brackets nested too deeply; texts are expected, not nested values"
    if not isinstance(error, json.JSONDecodeError):  # an absurd number, NaN
        return f"not JSON ({str(error)[:80]})"
    is_cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
    what = "the JSON is cut off" if is_cut else "not JSON"
    return f"{what} ({error.msg}, column {error.colno}); one whole object on one line is expected"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _whole_rows(path: Path) -> Iterator[Row]:
    with opened(FilePiece(path), ReadStats()) as (stream, _):
        data = stream.read(MAX_WHOLE_BYTES + 1).removeprefix(b"\xef\xbb\xbf")
    if len(data) > MAX_WHOLE_BYTES:
        raise DataError(f"{path}: JSON of more than {MAX_WHOLE_BYTES:,} bytes that is not one object a line", jq_command(path, ".[]"))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: a byte that is not UTF-8; UTF-8 is expected", f"iconv -f UTF-8 '{path}' shows it") from None
    return _Values(text).rows()


class _Values:
    """A parser for the JSON values of a text, which may span lines: objects one after another, or an array of them."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.line = text, 0, 1
        self.decoder = json.JSONDecoder(parse_constant=_no_constant)

    def rows(self) -> Iterator[Row]:
        """Yield the values up to the end, or to the first invalid one: there is no telling where the next begins."""
        is_inside = False  # an array of rows
        try:
            while self._skip():
                if not is_inside and self._opens_rows():
                    self._move(self.at + 1)
                    is_inside = True
                    continue
                if is_inside and self.text[self.at] == "]":
                    self._move(self.at + 1)
                    is_inside = False
                    continue
                value, end = self.decoder.raw_decode(self.text, self.at)
                yield Row(self.line, value, is_item=is_inside)
                self._move(end)
                is_more = self._skip() and self.text[self.at] == ","
                if is_inside and not is_more and self.text[self.at : self.at + 1] != "]":
                    raise json.JSONDecodeError("Expecting ',' delimiter", self.text, self.at)
                self._move(self.at + (is_inside and is_more))
            if is_inside:
                raise json.JSONDecodeError("Expecting ']'", self.text, self.at)
        except json.JSONDecodeError as error:
            is_cut = error.pos >= len(self.text.rstrip()) or error.msg.startswith("Unterminated")
            what = "the JSON is cut off" if is_cut else "not JSON"
            yield Row(self.line, None, f"{what} ({error.msg}, line {error.lineno}, column {error.colno}); nothing after it can be read")
        except (ValueError, RecursionError) as error:
            yield Row(self.line, None, f"{_why_not(error)}; nothing after it can be read")

    def _opens_rows(self) -> bool:
        """Whether an array of rows begins here, and not one that is a conversation."""
        if self.text[self.at] != "[":
            return False
        inner = _SPACE.match(self.text, self.at + 1)
        assert inner is not None
        if not self.text.startswith("{", inner.end()):
            return True
        return not is_message(self.decoder.raw_decode(self.text, inner.end())[0])

    def _skip(self) -> bool:
        """Skip white space; return whether anything follows."""
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self._move(found.end())
        return self.at < len(self.text)

    def _move(self, at: int) -> None:
        self.line += self.text.count("\n", self.at, at)
        self.at = at


# --- tables ------------------------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path) -> Iterator[Row]:
    with opened(FilePiece(path), ReadStats()) as (stream, _):
        reading.check_is_text(path, stream.read(reading.SAMPLE_BYTES))
        stream.seek(0)
        csv.field_size_limit(MAX_LINE_BYTES)
        chunks = iter(lambda: stream.read(1 << 20), b"")
        blocks = reading.recut(path, reading.clean_blocks(chunks, ReadStats()), reading.after_last_line)
        lines = csv.reader((line for block in blocks for line in io.StringIO(block, newline="\n")), strict=True)
        try:
            names, before = next(lines, []), lines.line_num
            for cells in lines:
                if len(cells) == len(names):
                    yield Row(before + 1, dict(zip(names, cells, strict=True)))
                elif cells:
                    yield Row(before + 1, None, f"{len(cells)} columns, the first line has {len(names)}")
                before = lines.line_num
        except csv.Error as error:
            yield Row(lines.line_num, None, f"not CSV ({error}); nothing after it can be read")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa

    try:
        values = (value for batch in row_batches(path) for value in batch)
        yield from (Row(number, value) for number, value in enumerate(values, 1))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error})", "copy or download the file again") from error
