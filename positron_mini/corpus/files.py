"""Documents from files of the user, which are only ever read: .txt, .jsonl, .csv (each also as .gz), .parquet, and folders of them."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from positron_mini.corpus import reading
from positron_mini.corpus.reading import SEPARATOR, ReadStats
from positron_mini.errors import DataError

__all__ = ["SEPARATOR", "ReadStats", "list_files", "read_documents"]

FIELDS = ("text", "story", "content")
_CHUNK_BYTES = 1 << 20
_BATCH_ROWS = 512


def read_documents(path: Path, *, stats: ReadStats, text_field: str = "text") -> Iterator[str]:
    """The documents of a file, or of all text files in a folder in sorted order, one at a time, without outer newlines.

    `stats` counts while they are taken. Rows of .jsonl, .csv and .parquet give their field `text_field`, else `text`, `story` or `content`.
    Errors: DataError for a path that is missing, empty, unreadable or not text, with the line number where there is one.
    """
    path = Path(path)
    files = list_files(path)
    if path.is_dir():
        stats.other_files += sum(1 for _ in _all_files(path)) - len(files)
    elif not path.stat().st_size:
        raise DataError(f"{path}: the file is empty", f"give a text with stories separated by a line {SEPARATOR}")
    return (text for file in files for text in _read_file(file, stats, text_field))


def list_files(path: Path) -> list[Path]:
    """The files that `read_documents` reads, in its order. Errors: DataError when there is none."""
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
            f"{path}: neither a file nor a folder, and a text is read twice", f"cat '{path}' > stories.txt, then give stories.txt"
        )
    everything = list(_all_files(path))
    files = [file for file in everything if _kind(file) is not None]
    if not files:
        raise DataError(
            f"{path}: no .txt, .jsonl, .csv or .parquet file in this folder ({len(everything)} other files)",
            "give a text file, or a folder that holds some",
        )
    return files


def _all_files(folder: Path) -> Iterator[Path]:
    """The regular files below a folder, sorted by their path, hidden ones and those in hidden folders left out."""

    def refuse(error: OSError) -> None:
        raise _unreadable(Path(error.filename or folder), error) from error

    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return iter(sorted((file for file in found if file.is_file()), key=lambda file: file.relative_to(folder).parts))


def _kind(path: Path) -> str | None:
    """The format by the file's name: "txt", "jsonl", "csv", "parquet", or None for another one."""
    name = path.name.lower().removesuffix(".gz")
    kind = {".txt": "txt", ".text": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}.get(Path(name).suffix)
    return "parquet" if path.suffix.lower() == ".parquet" else kind


def _read_file(path: Path, stats: ReadStats, text_field: str) -> Iterator[str]:
    if path.suffix.lower() == ".json":
        raise DataError(f"{path}: .json is read one object a line only", f"jq -c '.[]' '{path}' > '{path.stem}.jsonl'")
    stats.files += 1
    reader = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}.get(_kind(path) or "txt", _read_txt)
    try:
        yield from reader(path, stats, text_field)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut-off gzip file ({error})", f"gzip -t '{path}'; copy or download it again") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror or error})", f"ls -l '{path}' shows who may read it")


# --- bytes -------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path, stats: ReadStats) -> Iterator[tuple[BinaryIO, Callable[[], None]]]:
    """The file's bytes, unpacked, and a function that brings `stats.source_bytes` up to date with the place on the disk."""
    with open(path, "rb") as raw:
        before = stats.source_bytes
        stream: Any = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw

        def update() -> None:
            stats.source_bytes = before + raw.tell()

        yield stream, update


def _chunks(path: Path, stats: ReadStats) -> Iterator[bytes]:
    with _opened(path, stats) as (stream, update):
        while chunk := stream.read(_CHUNK_BYTES):
            update()
            yield chunk


def _lines(path: Path, stats: ReadStats) -> Iterator[tuple[int, bytes]]:
    """The numbered lines of a file, from 1, the byte-order mark dropped."""
    with _opened(path, stats) as (stream, update):
        number = 0
        while line := stream.readline(reading.MAX_DOCUMENT_CHARS):
            number += 1
            if len(line) == reading.MAX_DOCUMENT_CHARS:
                raise reading.too_long(path)
            update()
            if number == 1:
                reading.check_is_text(path, line)
                if line.startswith(b"\xef\xbb\xbf"):
                    stats.bom += 1
                    line = line[3:]
            yield number, line


# --- formats -----------------------------------------------------------------------------------------------------------------------


def _read_txt(path: Path, stats: ReadStats, _text_field: str) -> Iterator[str]:
    with _opened(path, ReadStats()) as (stream, _):
        reading.check_is_text(path, stream.read(reading.SAMPLE_BYTES))
    has_separator = _has_separator(path)
    stats.blank_line_files += not has_separator
    return reading.split_documents(path, reading.clean_blocks(_chunks(path, stats), stats), stats, has_separator=has_separator)


def _has_separator(path: Path) -> bool:
    """Whether a line of the text holds the separator alone; reads no further than the first one."""
    unused = ReadStats()
    blocks = reading.recut(path, reading.clean_blocks(_chunks(path, unused), unused), reading.after_last_line)
    return any(len(reading.split_at_separators(block)) > 1 for block in blocks)


def _read_jsonl(path: Path, stats: ReadStats, text_field: str) -> Iterator[str]:
    for number, line in _lines(path, stats):
        if line.isspace():
            continue
        try:
            row = json.loads(reading.decode(line, stats))
        except (ValueError, RecursionError) as error:
            raise _bad_line(path, number, f"not JSON ({error})") from error
        if not isinstance(row, dict):
            raise _bad_line(path, number, f"a JSON object with a text field is expected, not {type(row).__name__}")
        field = _text_field(path, number, list(row), text_field)
        value = row[field]
        if not isinstance(value, str):
            raise _bad_line(path, number, f'field "{field}" holds {type(value).__name__}, a string is expected')
        yield from reading.finished([reading.clean_text(value, stats)], stats)


def _bad_line(path: Path, number: int, what: str) -> DataError:
    fixed = f"{path.name.split('.')[0]}-fixed.jsonl"
    return DataError(f"{path}, line {number}: {what}", f"correct the line, or leave it out: sed '{number}d' '{path}' > '{fixed}'")


def _text_field(path: Path, number: int | None, names: list[str], wanted: str) -> str:
    """The first of `wanted`, text, story, content that the row has."""
    for field in (wanted, *FIELDS):
        if field in names:
            return field
    line = "" if number is None else f", line {number}"
    have = ", ".join(f'"{name}"' for name in names[:12]) or "none"
    raise DataError(
        f'{path}{line}: no field "{wanted}"; the fields are {have}', 'name the field with the stories "text", "story" or "content"'
    )


def _read_csv(path: Path, stats: ReadStats, text_field: str) -> Iterator[str]:
    with _opened(path, ReadStats()) as (stream, _):
        reading.check_is_text(path, stream.read(reading.SAMPLE_BYTES))
    csv.field_size_limit(reading.MAX_DOCUMENT_CHARS)  # the library's default refuses a story of 128 KiB
    blocks = reading.recut(path, reading.clean_blocks(_chunks(path, stats), stats), reading.after_last_line)
    rows = csv.reader((line for block in blocks for line in io.StringIO(block, newline="\n")), strict=True)
    try:
        names = next(rows, [])
        column = names.index(_text_field(path, 1, names, text_field))
        for row in rows:
            if row and len(row) <= column:
                raise _bad_row(path, rows.line_num, f'{len(row)} columns, the field "{names[column]}" is column {column + 1}')
            if row:
                yield from reading.finished([row[column]], stats)
    except csv.Error as error:
        raise _bad_row(path, rows.line_num, f"not CSV ({error})") from error


def _bad_row(path: Path, number: int, what: str) -> DataError:
    return DataError(
        f"{path}, line {number}: {what}", "correct the row (commas between columns, double quotes around texts) or export it anew"
    )


def _read_parquet(path: Path, stats: ReadStats, text_field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size, before = path.stat().st_size, stats.source_bytes
    try:
        with pq.ParquetFile(path) as file:
            field = _text_field(path, None, file.schema_arrow.names, text_field)
            rows = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=[field]):
                rows += batch.num_rows
                stats.source_bytes = before + size * rows // file.metadata.num_rows
                # as bytes, because a damaged string must be counted and mended, not raise
                for value in _as_strings(path, field, batch.column(0)).cast(pa.large_binary()).to_pylist():
                    yield from reading.finished([reading.clean_text(reading.decode(value or b"", stats), stats)], stats)
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error})", "copy or download the file again") from error


def _as_strings(path: Path, field: str, column: Any) -> Any:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f'{path}: field "{field}" holds {kind}, strings are expected', "give a file with a column of texts")
    return column
