"""Documents from the user's files, which are only read: .txt, .jsonl, .csv (each also as .gz), .parquet, and folders of them."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from positron_mini.errors import DataError
from positron_mini.text.corpus import reading
from positron_mini.text.corpus.cuts import FilePiece, cut_points, lines_before
from positron_mini.text.corpus.parquet import column_batches
from positron_mini.text.corpus.reading import SEPARATOR, ReadStats

__all__ = [
    "SEPARATOR",
    "FilePiece",
    "ReadStats",
    "jq_command",
    "kind_of",
    "list_files",
    "list_pieces",
    "opened",
    "read_documents",
    "read_piece",
    "refusals",
]

FIELDS = ("text", "story", "content")
_CHUNK_BYTES = 1 << 20
_MAX_COMMAS = 1 << 22  # in a line of JSON or CSV: 4 MB of prose hold 80,000, and every value takes up to 200 bytes of memory


def read_documents(path: Path, *, stats: ReadStats, text_field: str = "text") -> Iterator[str]:
    """Yield the documents of a file, or of all text files in a folder in sorted order, without outer newlines.

    `stats` is updated on the way. Rows of .jsonl, .csv and .parquet give their field `text_field`, else `text`, `story` or `content`.
    Errors: DataError for a path that is missing, empty, unreadable or not text, with the line number if there is one.
    """
    files = _files_to_read(Path(path), stats)
    return (text for file in files for text in read_piece(FilePiece(file), stats, text_field))


def list_pieces(path: Path, *, stats: ReadStats, piece_bytes: int) -> list[FilePiece]:
    """Pieces of about `piece_bytes` that together give the documents of `read_documents`, in its order. Errors: as there."""
    return [piece for file in _files_to_read(Path(path), stats) for piece in _cut(file, piece_bytes)]


def _files_to_read(path: Path, stats: ReadStats) -> list[Path]:
    files = list_files(path)
    if path.is_dir():
        stats.other_files += sum(1 for _ in _all_files(path)) - len(files)
    elif not path.stat().st_size:
        raise DataError(f"{path}: the file is empty", f"give a text with stories separated by a line {SEPARATOR}")
    return files


def _cut(path: Path, piece_bytes: int) -> list[FilePiece]:
    """Pieces of one file: cut at ends of stories, lines or row groups; CSV (whose quotes may span lines) and gzip are never cut."""
    kind, size = _read_as(path), path.stat().st_size
    if size <= piece_bytes or kind == "csv" or path.suffix.lower() == ".gz":
        return [FilePiece(path)]
    with refusals(path):
        if kind == "parquet":
            return _cut_parquet(path, piece_bytes)
        has_separator = kind == "txt" and _check_txt(FilePiece(path))
        ends = cut_points(path, {"jsonl": "lines"}.get(kind, "separators" if has_separator else "blank lines"), piece_bytes)
        return [FilePiece(path, start, end, has_separator) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _cut_parquet(path: Path, piece_bytes: int) -> list[FilePiece]:
    import pyarrow.parquet as pq

    pieces, start, held = [], 0, 0
    with pq.ParquetFile(path) as file:
        groups = file.metadata.num_row_groups
        for group in range(groups):
            held += file.metadata.row_group(group).total_byte_size
            if held >= piece_bytes or group == groups - 1:
                pieces.append(FilePiece(path, start, group + 1))
                start, held = group + 1, 0
    return pieces or [FilePiece(path)]


def list_files(path: Path) -> list[Path]:
    """Files that `read_documents` reads, in its order. Errors: DataError when there is none."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder",
            "give a text of your own, or get one: positron prepare --dataset tinystories",
        )
    if not path.is_dir():
        raise DataError(
            f"{path}: neither a file nor a folder, and a text has to be read twice", f"cat '{path}' > stories.txt, then give stories.txt"
        )
    everything = list(_all_files(path))
    files = [file for file in everything if kind_of(file) is not None]
    if not files:
        raise DataError(
            f"{path}: no .txt, .jsonl, .csv or .parquet file in this folder ({len(everything)} other files)",
            "give a text file, or a folder that holds some",
        )
    return files


def _all_files(folder: Path) -> Iterator[Path]:
    """Regular files below a folder, sorted by path, without hidden ones and those in hidden folders."""

    def refuse(error: OSError) -> None:
        raise _unreadable(Path(error.filename or folder), error) from error

    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return iter(sorted((file for file in found if file.is_file()), key=lambda file: file.relative_to(folder).parts))


def kind_of(path: Path) -> str | None:
    """Format by the file's name: "txt", "jsonl", "csv", "parquet", or None for another one."""
    name = path.name.lower().removesuffix(".gz")
    kind = {".txt": "txt", ".text": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}.get(Path(name).suffix)
    return "parquet" if path.suffix.lower() == ".parquet" else kind


def _read_as(path: Path) -> str:
    """Format in which to read a named file. JSON is read as JSON Lines; in a folder, .json files are ignored."""
    return "jsonl" if path.name.lower().removesuffix(".gz").endswith(".json") else kind_of(path) or "txt"


def read_piece(piece: FilePiece, stats: ReadStats, text_field: str = "text") -> Iterator[str]:
    """Yield the documents of a piece, as `read_documents` does. All pieces of a file in turn give the documents of the file."""
    path, kind = piece.path, _read_as(piece.path)
    stats.files += piece.start == 0
    reader = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}.get(kind, _read_txt)
    with refusals(path):
        yield from reader(piece, stats, text_field)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged or unreadable file into a DataError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut-off gzip file ({error})", f"gzip -t '{path}'; copy or download it again") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror or error})", f"ls -l '{path}' shows who may read it")


# --- bytes -------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(piece: FilePiece, stats: ReadStats) -> Iterator[tuple[BinaryIO, Callable[[], None]]]:
    """Open the file at the piece's start, uncompressed; also return a function that brings `stats.source_bytes` up to date."""
    with open(piece.path, "rb") as raw:
        raw.seek(piece.start)
        before = stats.source_bytes - piece.start
        stream: Any = gzip.GzipFile(fileobj=raw) if piece.path.suffix.lower() == ".gz" else raw

        def update() -> None:
            stats.source_bytes = before + raw.tell()

        yield stream, update


def _chunks(piece: FilePiece, stats: ReadStats) -> Iterator[bytes]:
    left = piece.end - piece.start if piece.end is not None else None
    with opened(piece, stats) as (stream, update):
        while chunk := stream.read(_CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES)):
            left = None if left is None else left - len(chunk)
            update()
            yield chunk


def _lines(piece: FilePiece, stats: ReadStats) -> Iterator[tuple[int, bytes]]:
    """Lines of a piece, numbered from 1, without the byte-order mark of the file."""
    with opened(piece, stats) as (stream, update):
        number = 0
        while (piece.end is None or stream.tell() < piece.end) and (line := stream.readline(reading.MAX_DOCUMENT_CHARS)):
            number += 1
            if len(line) == reading.MAX_DOCUMENT_CHARS:
                raise reading.too_long(piece.path)
            _check_commas(piece.path, line.count(b","))
            update()
            if number == 1 and piece.start == 0:
                reading.check_is_text(piece.path, line)
                if line.startswith(b"\xef\xbb\xbf"):
                    stats.bom += 1
                    line = line[3:]
            yield number, line


def _check_commas(path: Path, commas: int) -> None:
    """Raise DataError for a line with more commas than a text has."""
    if commas > _MAX_COMMAS:
        raise DataError(
            f"{path}: a line with {commas:,} commas, which is no text but millions of values",
            "keep the field with the text, drop the others",
        )


# --- formats -----------------------------------------------------------------------------------------------------------------------


def _read_txt(piece: FilePiece, stats: ReadStats, _text_field: str) -> Iterator[str]:
    has_separator = _check_txt(piece) if piece.has_separator is None else piece.has_separator
    is_start = piece.start == 0
    stats.blank_line_files += is_start and not has_separator
    blocks = reading.clean_blocks(_chunks(piece, stats), stats, is_start=is_start)
    return reading.split_documents(piece.path, blocks, stats, has_separator=has_separator, is_start=is_start)


def _check_txt(piece: FilePiece) -> bool:
    """Whether a line of the text is a separator; reads no further than the first one. Errors: DataError if the file is no text."""
    unused = ReadStats()
    with opened(piece, unused) as (stream, _):
        reading.check_is_text(piece.path, stream.read(reading.SAMPLE_BYTES))
    blocks = reading.recut(piece.path, reading.clean_blocks(_chunks(piece, unused), unused), reading.after_last_line)
    return any(len(reading.split_at_separators(block)) > 1 for block in blocks)


def _read_jsonl(piece: FilePiece, stats: ReadStats, text_field: str) -> Iterator[str]:
    is_first = piece.start == 0
    for number, line in _lines(piece, stats):
        if line.isspace():
            continue
        if is_first and (program := _program_to_lines(line)):
            raise DataError(f"{piece.path}: JSON that is not one object a line", jq_command(piece.path, program))
        is_first = False
        try:
            row = json.loads(reading.decode(line, stats))
        except (ValueError, RecursionError) as error:
            raise _bad_line(piece, number, f"not JSON ({error})") from error
        if not isinstance(row, dict):
            raise _bad_line(piece, number, f"a JSON object with a text field is expected, not {type(row).__name__}")
        field = _text_field(list(row), text_field)
        if field is None:
            raise _no_field(f"{piece.path}, line {lines_before(piece) + number}", list(row), text_field)
        value = row[field]
        if not isinstance(value, str):
            raise _bad_line(piece, number, f'field "{field}" holds {type(value).__name__}, a string is expected')
        yield from reading.finished([reading.clean_text(value, stats)], stats)


def _program_to_lines(line: bytes) -> str:
    """A jq program that turns the JSON which begins with this line into JSON Lines; empty if it is JSON Lines."""
    start = line.strip()
    return ".[]" if start.startswith(b"[") else "." if start == b"{" else ""


def jq_command(path: Path, program: str) -> str:
    """Command that writes the output of a jq program for a JSON file as JSON Lines beside it."""
    made = shlex.quote(f"{path.name.split('.')[0]}-lines.jsonl")
    file = shlex.quote(str(path))
    return f"gzip -dc {file} | jq -c '{program}' > {made}" if path.suffix.lower() == ".gz" else f"jq -c '{program}' {file} > {made}"


def _bad_line(piece: FilePiece, number: int, what: str) -> DataError:
    path, number = piece.path, lines_before(piece) + number
    fixed = f"{path.name.split('.')[0]}-fixed.jsonl"
    return DataError(f"{path}, line {number}: {what}", f"correct the line, or leave it out: sed '{number}d' '{path}' > '{fixed}'")


def _text_field(names: list[str], wanted: str) -> str | None:
    """First of `wanted`, text, story, content that is among `names`."""
    return next((field for field in (wanted, *FIELDS) if field in names), None)


def _no_field(where: str, names: list[str], wanted: str) -> DataError:
    have = ", ".join(f'"{name}"' for name in names[:12]) or "none"
    return DataError(f'{where}: no field "{wanted}"; the fields are {have}', 'name the field with the stories "text", "story" or "content"')


def _read_csv(piece: FilePiece, stats: ReadStats, text_field: str) -> Iterator[str]:
    path = piece.path
    with opened(piece, ReadStats()) as (stream, _):
        reading.check_is_text(path, stream.read(reading.SAMPLE_BYTES))
    csv.field_size_limit(reading.MAX_DOCUMENT_CHARS)  # the library's default refuses a story of 128 KiB
    blocks = reading.recut(path, reading.clean_blocks(_chunks(piece, stats), stats), reading.after_last_line)
    rows = csv.reader(_csv_lines(path, blocks), strict=True)
    try:
        names = next(rows, [])
        field = _text_field(names, text_field)
        if field is None:
            raise _no_field(f"{path}, line 1", names, text_field)
        column = names.index(field)
        for row in rows:
            if row and len(row) <= column:
                raise _bad_row(path, rows.line_num, f'{len(row)} columns, the field "{names[column]}" is column {column + 1}')
            if row:
                yield from reading.finished([row[column]], stats)
    except csv.Error as error:
        raise _bad_row(path, rows.line_num, f"not CSV ({error})") from error


def _csv_lines(path: Path, blocks: Iterable[str]) -> Iterator[str]:
    for block in blocks:
        for line in io.StringIO(block, newline="\n"):
            _check_commas(path, line.count(","))
            yield line


def _bad_row(path: Path, number: int, what: str) -> DataError:
    return DataError(
        f"{path}, line {number}: {what}", "correct the row (commas between columns, double quotes around texts) or export it anew"
    )


def _read_parquet(piece: FilePiece, stats: ReadStats, text_field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, size, before = piece.path, piece.path.stat().st_size, stats.source_bytes
    try:
        with pq.ParquetFile(path) as file:
            names, total = file.schema_arrow.names, max(1, file.metadata.num_rows)
            field = _text_field(names, text_field)
            if field is None:
                raise _no_field(str(path), names, text_field)
            groups = range(piece.start, file.metadata.num_row_groups if piece.end is None else piece.end)
            rows = sum(file.metadata.row_group(group).num_rows for group in range(piece.start))
        start = size * rows // total
        for values in column_batches(path, field, groups):
            rows += len(values)
            stats.source_bytes = before + size * rows // total - start
            # as bytes: damaged strings are counted and repaired instead of raising
            for value in values:
                yield from reading.finished([reading.clean_text(reading.decode(value, stats), stats)], stats)
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error})", "copy or download the file again") from error
