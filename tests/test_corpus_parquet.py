"""Parquet files: the texts that pyarrow reads, in memory bounded by the file's size and not by what it says of itself."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.faults import cost
from helpers.runs import needs_fork
from helpers.texts import documents_of, made_stories
from positron_mini.errors import DataError
from positron_mini.text.corpus import parquet
from positron_mini.text.corpus.files import ReadStats, list_pieces, read_documents, read_piece

MB = 1 << 20


def a_value_many_times(path: Path, size: int, rows: int, **options: Any) -> Path:
    """One value of `size` bytes in the dictionary, and `rows` rows that name it: about a kilobyte on the disk."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a " * (size // 2)]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd", **options)
    return path


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("packed", [True, False])
def test_every_kind_of_page_gives_the_texts_that_were_written(tmp_path: Path, compression: str, version: str, packed: bool) -> None:
    stories = made_stories(300)
    table = pa.table({"id": range(300), "text": stories, "notes": [["a"]] * 300, "extra": [{"text": "not this one"}] * 300})
    path = tmp_path / "a.parquet"
    pq.write_table(
        table, path, compression=compression, data_page_version=version, use_dictionary=packed, data_page_size=2_000, row_group_size=70
    )
    assert documents_of(path) == stories
    assert [text for piece in list_pieces(path, stats=ReadStats(), piece_bytes=1) for text in read_piece(piece, ReadStats())] == stories


def test_the_size_of_the_largest_page_is_that_of_its_values(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = ["a" * 1_000, "b" * 50_000, "c" * 3_000]
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", use_dictionary=False, write_batch_size=1, data_page_size=1)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    with open(path, "rb") as raw:
        largest = parquet._largest_page(path, raw, chunk)
    assert 50_004 <= largest < 50_100  # a length of four bytes, then the levels


BOMBS = {
    "a value of 8 MB, 512 times": lambda path: a_value_many_times(path, 8 * MB, 512),
    "a value of 8 MB, 512 times, no schema of Arrow": lambda path: a_value_many_times(path, 8 * MB, 512, store_schema=False),
    "a value of 1 MB, 4,096 times": lambda path: a_value_many_times(path, MB, 4_096, store_schema=False),
    "a thousand characters, a million times": lambda path: a_value_many_times(path, 1_000, MB, store_schema=False),
    "pages that unpack to hundreds of megabytes": lambda path: pq.write_table(
        pa.table({"text": ["a" * (16 * MB)] * 40}), path, compression="zstd", use_dictionary=False
    ),
}


@needs_fork
@pytest.mark.parametrize("name", BOMBS)
def test_O3_a_small_parquet_file_that_unpacks_to_gigabytes_is_refused_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.parquet"
    BOMBS[name](path)
    assert path.stat().st_size < 150_000
    pq.read_schema(path)  # pyarrow is loaded before memory is counted

    def read() -> None:
        with pytest.raises(DataError, match="unpack to"):
            for _ in read_documents(path, stats=ReadStats()):
                pass

    _, memory = cost(read)
    assert memory < 600 * MB, f"{memory / MB:.0f} MB"


@needs_fork
@pytest.mark.parametrize("value", [[["a" * MB] * 10] * 5, [{"a": "a" * MB}] * 50], ids=["list", "struct"])
def test_O3_a_nested_column_is_refused_before_it_is_unpacked(tmp_path: Path, value: list[Any]) -> None:
    path = tmp_path / "nested.parquet"
    table = pa.table({"text": value})
    with pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(10):  # one after the other: what this process once held is not seen as the child's
            writer.write_table(table)

    def read() -> None:
        with pytest.raises(DataError, match="strings are expected"):
            documents_of(path)

    _, memory = cost(read)
    assert memory < 100 * MB, f"{memory / MB:.0f} MB"


def test_O3_other_columns_are_never_unpacked(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["short"] * 4, "big": ["a" * (70 * MB)] * 4}), tmp_path / "a.parquet", compression="zstd")
    assert documents_of(tmp_path / "a.parquet") == ["short"] * 4


def test_O3_a_text_repeated_often_is_read_as_often_while_it_stays_a_text(tmp_path: Path) -> None:
    path = a_value_many_times(tmp_path / "a.parquet", 1_000, 5_000)
    assert documents_of(path) == ["a " * 500] * 5_000  # 5 MB


@pytest.mark.parametrize("place", range(4, 80, 3))
def test_O3_a_damaged_page_header_is_one_sentence_or_text(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one story", "two stories"]}), path, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    for byte in (0x00, 0x1C, 0x3C, 0xFF):
        data[place] = byte
        path.write_bytes(data)
        with contextlib.suppress(DataError):  # anything else fails
            documents_of(path)


@needs_fork
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", b'{"text": "hi", "more": [' + b"{}," * 21_000_000 + b"{}]}\n"),
        ("b.csv.gz", b"text\n" + b"," * (60 * MB) + b"\n"),
        ("c.csv.gz", b"," * (60 * MB) + b"\n"),
    ],
    ids=["jsonl", "csv row", "csv header"],
)
def test_O3_a_line_of_millions_of_values_is_refused_before_it_is_taken_apart(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1))
    length, content = len(content), b""

    def read() -> None:
        with pytest.raises(DataError, match="commas"):
            documents_of(path)

    _, memory = cost(read)
    assert memory < 10 * length, f"{memory / MB:.0f} MB"


def test_O3_a_long_text_may_hold_commas(tmp_path: Path) -> None:
    text = "one, two, and three, " * 250_000  # 750,000 commas in 5 MB
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (tmp_path / "b.csv").write_text(f'text\n"{text}"\n')
    assert documents_of(tmp_path / "a.jsonl") == documents_of(tmp_path / "b.csv") == [text]
