"""Texts of a Parquet column in bounded memory, whatever the file claims about itself.

A page is decompressed whole, and a few bits can repeat each of its values; so the sizes of all pages are read first, from the pages
themselves, and a batch has as many rows as fit if each were as long as the largest page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from positron_mini.errors import DataError
from positron_mini.text.corpus.reading import MAX_DOCUMENT_CHARS, too_long

_BATCH_ROWS = 512
_BATCH_BYTES = 1 << 26  # of decompressed text at once
_PAGE_BYTES = 1 << 29  # a page holds 1,024 rows or more, which is that many bytes for books
_GROWTH = 1_000  # the limit of gzip; no real text compresses that well
_FREE_BYTES = 1 << 26  # below this size the growth is not checked
_BUFFER_BYTES = 1 << 20
_FREE_VALUES = 1 << 23  # in a column of a row group: below this number the growth is not checked
# types of the Thrift compact protocol: how to skip them; 1 and 2 are true and false, which take no bytes
_VARINTS, _DOUBLE, _BINARY, _STRUCT = (4, 5, 6), 7, 8, 12
_DEEPEST = 8


def column_batches(path: Path, field: str, groups: Iterable[int]) -> Iterator[list[bytes]]:
    """Values of a column in UTF-8, a few rows at a time, from the row groups with these numbers; b"" for a missing value.

    Errors: DataError for a column without strings, for a value that is too long, and for one that decompresses to far more than the file;
    pyarrow's own.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    unpacked = 0
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file, open(path, "rb") as raw:
        _check_strings(path, field, file.schema_arrow.field(field).type)
        for group in groups:
            largest = _largest_page(path, raw, _chunk(file.metadata.row_group(group), field))
            batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))
            for batch in file.iter_batches(batch_rows, columns=[field], row_groups=[group]):
                column = batch.column(0)
                column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
                values = [value or b"" for value in column.cast(pa.large_binary()).to_pylist()]
                unpacked += sum(map(len, values)) + len(values)
                if unpacked > max(_FREE_BYTES, _GROWTH * size):
                    raise _grows(path, unpacked, size)
                if any(len(value) > MAX_DOCUMENT_CHARS for value in values):
                    raise too_long(path)
                yield values


def row_batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Rows with all of their fields, lists and structs too, a few at a time. Errors: DataError for a file that decompresses to far more
    than its size; pyarrow's own.
    """
    import pyarrow.parquet as pq

    size, unpacked = path.stat().st_size, 0
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file, open(path, "rb") as raw:
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            chunks = [group.column(i) for i in range(group.num_columns)]
            for chunk in chunks:
                if chunk.num_values > max(_FREE_VALUES, _GROWTH * chunk.total_compressed_size):  # a list may repeat a value in no bytes
                    raise _grows(path, chunk.num_values, chunk.total_compressed_size)
            largest = sum(_largest_page(path, raw, chunk) for chunk in chunks)
            batch_rows = max(1, min(_BATCH_ROWS // 8, _BATCH_BYTES // max(1, largest)))
            for batch in file.iter_batches(batch_rows, row_groups=[number]):
                rows = batch.to_pylist()
                unpacked += sum(map(_size, rows))
                if unpacked > max(_FREE_BYTES, _GROWTH * size):
                    raise _grows(path, unpacked, size)
                yield rows


def _size(value: Any) -> int:
    """Characters of the texts in a value."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return len(value) if isinstance(value, str | bytes) else sum(map(_size, parts))


def _check_strings(path: Path, field: str, kind: Any) -> None:
    """Raise DataError unless a column of this type holds strings."""
    import pyarrow as pa

    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise DataError(f'{path}: field "{field}" holds {kind}, strings are expected', "give a file with a column of texts")


def _chunk(group: Any, field: str) -> Any:
    """Metadata of the column in a row group."""
    return next(column for column in map(group.column, range(group.num_columns)) if column.path_in_schema == field)


def _largest_page(path: Path, raw: BinaryIO, chunk: Any) -> int:
    """Decompressed bytes of the largest page of a column chunk. Errors: DataError for one that is too large, or an invalid header."""
    starts = [chunk.data_page_offset, *([chunk.dictionary_page_offset] if chunk.dictionary_page_offset else [])]
    at = min(starts)
    end = at + chunk.total_compressed_size
    largest = 0
    try:
        while at < end:
            raw.seek(at)
            sizes = _struct(raw)
            unpacked, packed = sizes[2], sizes[3]
            if packed < 0 or unpacked > _PAGE_BYTES or unpacked > max(_FREE_BYTES, _GROWTH * packed):
                raise _grows(path, unpacked, packed)
            largest = max(largest, unpacked)
            at = raw.tell() + packed
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read (a damaged page)", "copy or download the file again") from error
    return largest


def _grows(path: Path, unpacked: int, packed: int) -> DataError:
    return DataError(
        f"{path}: {packed:,} bytes of it unpack to {unpacked:,} or more, so it is damaged or made to fill the memory",
        "write it anew with smaller pages (data_page_size=1048576), or give the text as .txt or .jsonl",
    )


# --- page headers -----------------------------------------------------------------------------------------------------------------------


def _struct(raw: BinaryIO, depth: int = 0) -> dict[int, int]:
    """Integers of a Thrift compact struct by field number; everything else in it is skipped. Errors: ValueError, IndexError."""
    found: dict[int, int] = {}
    number = 0
    while head := raw.read(1)[0]:
        number = number + (head >> 4) if head >> 4 else _zigzag(raw)
        kind = head & 15
        if kind in _VARINTS:
            found[number] = _zigzag(raw)
        elif kind == _DOUBLE:
            raw.seek(8, 1)
        elif kind == _BINARY:
            raw.seek(_varint(raw), 1)
        elif kind == _STRUCT and depth < _DEEPEST:
            _struct(raw, depth + 1)
        elif kind not in (1, 2):
            raise ValueError(f"type {kind} in a page header")
    return found


def _zigzag(raw: BinaryIO) -> int:
    value = _varint(raw)
    return (value >> 1) ^ -(value & 1)


def _varint(raw: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = raw.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise ValueError("a number longer than 10 bytes")
