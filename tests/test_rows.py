"""Laws of reading rows: a file of any layout gives the same rows, each with its line, and what is damaged costs no more than itself."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.faults import cost
from helpers.runs import needs_fork
from positron_mini.chat.conversations import read_conversations
from positron_mini.errors import DataError
from positron_mini.text.corpus import rows
from positron_mini.text.corpus.rows import Row, read_rows

ROWS = [{"question": f'Q{i}\n"é"', "answer": f"A{i}"} for i in range(3)]
LINES = "\n".join(map(json.dumps, ROWS))
LAYOUTS = {
    "lines": (LINES, [1, 2, 3]),
    "lines after blank ones": ("\n \n" + LINES, [3, 4, 5]),
    "lines of Windows": (LINES.replace("\n", "\r\n"), [1, 2, 3]),
    "array in one line": (json.dumps(ROWS), [1, 1, 1]),
    "array, a row a line": ("[" + ",\n".join(map(json.dumps, ROWS)) + "]\n", [1, 2, 3]),
    "array, brackets by themselves": ("[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n", [2, 3, 4]),
    "indented array": (json.dumps(ROWS, indent=2), [2, 6, 10]),
    "indented array of Windows": (json.dumps(ROWS, indent="\t").replace("\n", "\r\n"), [2, 6, 10]),
    "indented objects": ("\n".join(json.dumps(row, indent=2) for row in ROWS), [1, 5, 9]),
    "one row in brackets": ("[\n" + json.dumps(ROWS[0]) + "\n]", [2]),
}


def values(path: Path) -> list[Any]:
    found = list(read_rows(path))
    assert not any(row.wrong for row in found), found
    return [row.value for row in found]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.txt", "x", "x.jsonl.gz", "x.json.gz"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_json_gives_the_same_rows_with_their_lines(tmp_path: Path, layout: str, name: str, mark: str) -> None:
    text, lines = LAYOUTS[layout]
    data = (mark + text).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert values(tmp_path / name) == ROWS[: len(lines)]
    assert [row.line for row in read_rows(tmp_path / name)] == lines


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_a_list_of_turns_is_one_row_however_it_is_written(tmp_path: Path, indent: int | None, count: int) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    path = tmp_path / "x.json"
    path.write_text("\n".join(json.dumps(turns, indent=indent) for _ in range(count)))
    assert values(path) == [turns] * count
    path.write_text(json.dumps([turns] * count, indent=indent))
    assert values(path) == [turns] * count
    assert read_conversations(path).report.shapes == {"messages": count}


def test_csv_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(ROWS)
    (tmp_path / "x.csv").write_text("\ufeff" + text.getvalue(), encoding="utf-8", newline="")
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))
    pq.write_table(pa.table({name: [row[name] for row in ROWS] for name in ROWS[0]}), tmp_path / "x.parquet")
    for name in ("x.csv", "x.csv.gz", "x.parquet"):
        assert values(tmp_path / name) == ROWS, name
    assert [row.line for row in read_rows(tmp_path / "x.csv")] == [2, 4, 6]  # a question goes over two lines
    assert [row.line for row in read_rows(tmp_path / "x.parquet")] == [1, 2, 3]


def test_turns_in_parquet_where_every_turn_has_every_field_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q", "weight": None}, {"role": "assistant", "content": "A", "weight": 1}]
    pq.write_table(pa.table({"messages": [turns], "prompt": [None]}), tmp_path / "x.parquet")
    read = read_conversations(tmp_path / "x.parquet")
    assert [m.content for m in read.conversations[0].messages] == ["Q", "A"] and read.report.left_out == {}
    pq.write_table(pa.table({"question": ["Q", "Q"], "answer": ["A", ""]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet, row 2: field .answer. is empty"):
        read_conversations(tmp_path / "x.parquet")


# --- damage ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
def test_of_an_array_that_breaks_off_the_rows_before_the_break_are_used(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "x.json"
    whole = json.dumps(ROWS, indent=indent) if indent else "[" + ",\n".join(map(json.dumps, ROWS)) + "]"
    for cut in (whole[:-5], whole[:-1]):
        path.write_text(cut)
        with pytest.raises(DataError, match=r"line \d+: the JSON is cut off .*nothing after it can be read"):
            read_conversations(path)
        assert len(read_conversations(path, skip_bad=True).conversations) == (2 if cut == whole[:-5] else 3)


def test_a_missing_comma_ends_the_array_where_it_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[\n" + "\n".join(map(json.dumps, ROWS)) + "\n]")
    found = list(read_rows(path))
    assert found[0] == Row(2, ROWS[0], is_item=True) and len(found) == 2
    assert found[1].line == 3 and "Expecting ',' delimiter, line 3, column 1" in found[1].wrong


@pytest.mark.parametrize(
    "first", ["{", '{"question": "Q', '{"messages": [', '[{"role": "user", "content": "Q"},', "[" * 100_000, "'", "\0", "[\ud800"]
)
def test_a_first_line_that_is_damaged_costs_no_more_than_itself(tmp_path: Path, first: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(first + "\n" + LINES, errors="surrogatepass")
    found = list(read_rows(path))
    assert found[0].wrong and [row.value for row in found[1:]] == ROWS
    assert [row.line for row in found] == [1, 2, 3, 4]


def test_a_csv_row_with_a_column_too_few_is_named_and_a_quote_that_stays_open_ends_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('question,answer\nQ,A\nQ\n\nQ,A\nQ,"A')
    found = list(read_rows(path))
    assert [row.line for row in found if not row.wrong] == [2, 5]
    assert found[1].line == 3 and found[1].wrong == "1 columns, the first line has 2"
    assert "not CSV" in found[-1].wrong


def test_utf_16_and_what_is_no_text_are_refused_as_in_pretraining(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.json", "x.csv"):
        (tmp_path / name).write_bytes(LINES.encode("utf-16"))
        with pytest.raises(DataError, match="looks like UTF-16") as error:
            list(read_rows(tmp_path / name))
        assert "iconv -f UTF-16 -t UTF-8" in error.value.hint
    (tmp_path / "x.jsonl").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="a PNG picture"):
        list(read_rows(tmp_path / "x.jsonl"))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(LINES.encode())[:-9])
    with pytest.raises(DataError, match="damaged or cut-off gzip"):
        list(read_rows(tmp_path / "x.jsonl.gz"))
    (tmp_path / "x.parquet").write_bytes(b"hello")
    with pytest.raises(DataError, match="not a Parquet file"):
        list(read_rows(tmp_path / "x.parquet"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a file"):
        list(read_rows(tmp_path / "pipe"))


@needs_fork
@pytest.mark.parametrize("name", ["a text many times", "a turn many times"])
def test_O3_a_small_parquet_file_that_unpacks_to_gigabytes_is_refused_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.parquet"
    if name == "a text many times":
        column = pa.DictionaryArray.from_arrays(pa.array([0] * 512, pa.int32()), pa.array(["a " * 4_000_000]))
    else:
        turns = pa.DictionaryArray.from_arrays(pa.nulls(10_000_000, pa.int32()).fill_null(0), pa.array(["x"]))
        column = pa.ListArray.from_arrays(pa.array([0, 10_000_000], pa.int32()), turns)
    pq.write_table(pa.table({"question": column}), path, compression="zstd")
    assert path.stat().st_size < 100_000

    def read() -> None:
        with pytest.raises(DataError, match="unpack to"):
            for _ in read_rows(path):
                pass

    _, memory = cost(read)
    assert memory < 600 << 20, f"{memory >> 20} MB"


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 60)
    path.write_text(json.dumps(ROWS))  # an array in one line may be longer than a row
    assert values(path) == ROWS
    path.write_text(json.dumps({"question": "Q" * 60, "answer": "A"}))
    with pytest.raises(DataError, match="line 1: longer than 60 bytes"):
        list(read_rows(path))
    monkeypatch.setattr(rows, "MAX_WHOLE_BYTES", 60)
    path.write_text(json.dumps(ROWS, indent=1))
    with pytest.raises(DataError, match="JSON of more than 60 bytes that is not one object a line"):
        list(read_rows(path))
