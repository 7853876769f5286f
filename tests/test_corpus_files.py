"""Laws of reading documents and of the split into training and validation."""

from __future__ import annotations

import csv
import gzip
import json
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from positron_mini.errors import DataError
from positron_mini.text.corpus import cuts, reading, split
from positron_mini.text.corpus import files as corpus_files
from positron_mini.text.corpus.files import ReadStats, list_files, list_pieces, read_documents, read_piece
from positron_mini.text.corpus.split import (
    KeyBlock,
    KeyTable,
    exact_key,
    first_of_each,
    normalised_key,
    sample_of,
    split_by_file,
    split_documents,
    validation_share,
)

SEP = "<|endoftext|>"


def read(path: Path, **options: str) -> tuple[list[str], ReadStats]:
    stats = ReadStats()
    return list(read_documents(path, stats=stats, **options)), stats


def stories_in(folder: Path, data: bytes | str, name: str = "stories.txt") -> tuple[list[str], ReadStats]:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read(path)


# --- documents of a text -----------------------------------------------------------------------------------------------------------

SEPARATIONS = {
    "separator lines win over blank lines": (f"a\n\nb\n{SEP}\nc\n", ["a\n\nb", "c"]),
    "a separator at the end adds nothing": (f"a\n{SEP}\nb\n{SEP}\n", ["a", "b"]),
    "a separator at the start adds nothing": (f"{SEP}\na\n{SEP}\nb", ["a", "b"]),
    "spaces around a separator": (f"a\n {SEP}\t\nb", ["a", "b"]),
    "no newline at the end": (f"a\n{SEP}\nb", ["a", "b"]),
    "a separator inside a line is text": (f"a {SEP} b\n{SEP}\nc{SEP}\nd", [f"a {SEP} b", f"c{SEP}\nd"]),
    "blank lines": ("\n\na\nb\n\n\n \t\nc\n", ["a\nb", "c"]),
    "inner spaces stay": (f"  a  b \n{SEP}\n\n\n c\n\n", ["  a  b ", " c"]),
    "line separators of Unicode stay": ("a\u2028b\x0bc\x85d\n\ne", ["a\u2028b\x0bc\x85d", "e"]),
    "carriage returns": (f"a\r\nb\r\n\r\nc\rd\r\n{SEP}\r\ne\r\n", ["a\nb\n\nc\nd", "e"]),
    "carriage returns and blank lines": ("a\r\nb\r\n\r\nc\rd\r\re", ["a\nb", "c\nd", "e"]),
    "one story": ("a\nb\n", ["a\nb"]),
}


@pytest.mark.parametrize("name", SEPARATIONS)
@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_stories_end_at_separators_however_the_file_is_cut_into_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int
) -> None:
    monkeypatch.setattr(corpus_files, "_CHUNK_BYTES", chunk)
    text, expected = SEPARATIONS[name]
    texts, stats = stories_in(tmp_path, text)
    assert texts == expected
    assert (stats.documents, stats.empty) == (len(expected), 0)


def naive_clean(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").replace("\u2581", " ")


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(
            [b"a", b"\r", b"\n", b"\0", b"\xef\xbb\xbf", b"\xe2\x96\x81", b"\xe2", b"\x96", b"\xff", b"\xf0\x9f\x98\x80", b"\xf0\x9f", b" "]
        )
        | st.text(max_size=3).map(lambda text: text.encode("utf-8", "replace"))
        | st.binary(max_size=3),
        max_size=20,
    ),
    size=st.integers(1, 7),
)
def test_cleaning_by_chunks_equals_cleaning_the_whole(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    chunks, whole = ReadStats(), ReadStats()
    text = "".join(reading.clean_blocks([data[at : at + size] for at in range(0, len(data), size)], chunks))
    assert text == naive_clean(data) == "".join(reading.clean_blocks([data], whole))
    assert chunks == whole


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(st.sampled_from(["a", "b c", "", " ", SEP, SEP + " ", SEP + "x", "ünï"]), max_size=14), size=st.integers(1, 9))
def test_streamed_splitting_equals_a_naive_split_of_the_lines(lines: list[str], size: int) -> None:
    text = "\n".join(lines)
    is_separator = [line.strip(" \t") == SEP for line in lines]
    documents: list[list[str]] = [[]]
    for line, ends in zip(lines, is_separator if any(is_separator) else [not line.strip(" \t") for line in lines], strict=True):
        documents.append([]) if ends else documents[-1].append(line)
    naive = [story for story in ("\n".join(document).strip("\n") for document in documents) if story.strip()]
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    assert list(reading.split_documents(Path("x"), blocks, ReadStats(), has_separator=any(is_separator))) == naive


def test_D3_every_class_of_bad_characters_is_mended_and_counted(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfone\r\ntwo\rthree\x00 \xe2\x96\x81four \xff\xfe five \xef\xbf\xbd"
    data += b"\n<|endoftext|>\r\n\r\n<|endoftext|>\nsix \xf0\x9f\x98\x80 e\xcc\x81"
    texts, stats = stories_in(tmp_path, data)
    assert texts == ["one\ntwo\nthree  four \ufffd\ufffd five \ufffd", "six 😀 e\u0301"]
    counts = (stats.bom, stats.carriage_returns, stats.nul, stats.lower_blocks, stats.invalid_utf8)
    assert counts == (1, 4, 1, 1, 2)
    assert (stats.documents, stats.empty, stats.files, stats.source_bytes) == (2, 1, 1, len(data))


def test_a_text_without_separator_lines_is_remembered(tmp_path: Path) -> None:
    _, stats = stories_in(tmp_path, f"a {SEP} b\n\nc")
    assert (stats.blank_line_files, stats.inner_separators) == (1, 1)


def test_D3_a_line_of_many_megabytes_is_read_in_linear_time_and_bounded_memory(tmp_path: Path) -> None:
    line = b"many words and no end " * 400_000  # 8.8 MB
    path = tmp_path / "long.txt"
    path.write_bytes(line + b"\n\nshort\n")
    (long, short), _ = read(path)
    assert (len(long), short) == (len(line), "short")


def test_D3_a_file_without_any_end_of_a_story_is_refused_before_memory_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_DOCUMENT_CHARS", 50)
    monkeypatch.setattr(corpus_files, "_CHUNK_BYTES", 16)
    for text in ("a" * 100, "a b\n" * 30):
        with pytest.raises(DataError, match="more than 50 characters") as caught:
            stories_in(tmp_path, text)
        assert SEP in caught.value.hint


# --- other formats -----------------------------------------------------------------------------------------------------------------


def test_jsonl_gives_its_text_field_and_skips_blank_lines(tmp_path: Path) -> None:
    lines = [
        '{"text": "a\\r\\nb", "id": 1}',
        "",
        '{"story": "c\\u2581d\\u0000"}',
        ' {"content": "\\ud83d e \\ud83d\\ude00"} ',
        '{"text": ""}',
    ]
    texts, stats = stories_in(tmp_path, "\ufeff" + "\r\n".join(lines), "x.jsonl")
    assert texts == ["a\nb", "c d", "\ufffd e 😀"]
    assert (stats.bom, stats.carriage_returns, stats.lower_blocks, stats.nul, stats.invalid_utf8, stats.empty) == (1, 1, 1, 1, 1, 1)


def test_a_named_field_comes_before_the_usual_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "body": "b"}')
    assert read(path, text_field="body")[0] == ["b"]


BAD_LINES = {
    "no field": ('{"title": "x", "body": "y"}', 'line 2: no field "text"; the fields are "title", "body"'),
    "number": ('{"text": 3}', 'line 2: field "text" holds int'),
    "null": ('{"text": null}', 'line 2: field "text" holds NoneType'),
    "list": ("[1]", "line 2: a JSON object with a text field is expected, not list"),
    "cut off": ('{"text": "a', "line 2: not JSON"),
    "too deep": ("[" * 100_000, "line 2: not JSON"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_D5_a_bad_line_is_named_by_number_with_a_way_out(tmp_path: Path, name: str) -> None:
    line, message = BAD_LINES[name]
    with pytest.raises(DataError) as caught:
        stories_in(tmp_path, '{"text": "fine"}\n' + line, "x.jsonl")
    assert message in caught.value.message
    assert caught.value.hint


def test_csv_parquet_and_gzip_give_the_same_stories(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    stories = ['He said: "Hi,\n\nyou."', "two\u2581 three", "x" * 200_000]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["id", "story"], *enumerate(stories)])
    pq.write_table(pa.table({"id": [1, 2, 3], "text": pa.array(stories).dictionary_encode()}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(json.dumps({"text": story}) for story in stories).encode()))
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(f"\n{SEP}\n".join(stories).encode()))
    expected = [stories[0], "two  three", stories[2]]
    for path in list_files(tmp_path):
        texts, stats = read(path)
        assert texts == expected, path
        assert (stats.lower_blocks, stats.source_bytes) == (1, path.stat().st_size), path


def test_a_folder_is_read_in_sorted_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    contents = {
        "b/2.txt": "three",
        "b/10.TXT": "two",
        "a.txt": "one",
        ".hidden.txt": "no",
        ".git/x.txt": "no",
        "c.txt": "",
        "note.md": "no",
        "p.png": "no",
    }
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    texts, stats = read(tmp_path)
    assert texts == ["one", "two", "three"]
    assert (stats.files, stats.other_files) == (4, 2)


# --- pieces ------------------------------------------------------------------------------------------------------------------------


def assert_pieces_give_the_file(path: Path, piece_bytes: int, *, at_least: int = 1) -> None:
    """The documents and everything that is counted are the same, read whole or in pieces."""
    texts, whole = read(path)
    counted = ReadStats()
    pieces = list_pieces(path, stats=counted, piece_bytes=piece_bytes)
    assert [text for piece in pieces for text in read_piece(piece, counted)] == texts
    if path.suffix != ".parquet":
        assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    assert counted == whole
    assert len(pieces) >= at_least, pieces


LINES = ["a", "b c", "", " ", "\t", SEP, f" {SEP}\t", f"{SEP}x", "ünï", "\0", "\u2581", "\ufeff"]


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(["\n", "\n", "\r\n", "\r"])), min_size=1, max_size=25),
    piece_bytes=st.integers(1, 40),
    window=st.integers(8, 60),
)
def test_a_text_read_in_pieces_is_the_text(lines: list[tuple[str, str]], piece_bytes: int, window: int) -> None:
    data = "".join(line + end for line, end in lines).encode()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "_WINDOW_BYTES", window)
        patch.setattr(cuts, "_OVERLAP_BYTES", 4)
        patch.setattr(reading, "check_is_text", lambda *_: None)  # a few lines may be mostly NUL
        path = Path(folder, "x.txt")
        path.write_bytes(data)
        assert_pieces_give_the_file(path, piece_bytes)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("between", [f"{SEP}", f"\n{SEP}\n", "", " \n\t"])
def test_a_text_is_cut_wherever_a_story_ends(tmp_path: Path, end: str, between: str) -> None:
    text = f"\n{between}\n".join(f"Story {n}.\nIt was good." for n in range(50)).replace("\n", end)
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert_pieces_give_the_file(path, 100, at_least=9)


def test_jsonl_and_parquet_are_cut_and_other_files_are_not(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    stories = [f"Story {n}\u2581." for n in range(60)]
    lines = "\ufeff" + "".join(json.dumps({"text": story}) + "\r\n\n" for story in stories)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    pq.write_table(pa.table({"text": stories}), tmp_path / "b.parquet", row_group_size=7)
    with open(tmp_path / "c.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["text"], *([story] for story in stories)])
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(f"\n{SEP}\n".join(stories).encode()))
    for name, at_least in {"a.jsonl": 10, "b.parquet": 5, "c.csv": 1, "d.txt.gz": 1}.items():
        assert_pieces_give_the_file(tmp_path / name, 150, at_least=at_least)
    pieces = list_pieces(tmp_path, stats=ReadStats(), piece_bytes=150)
    assert [path.name for path in dict.fromkeys(piece.path for piece in pieces)] == ["a.jsonl", "b.parquet", "c.csv", "d.txt.gz"]


def test_D5_a_bad_line_in_a_later_piece_has_its_number_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "fine"}\n' * 40 + '{"text": 3}\n' + '{"text": "fine"}\n' * 5)
    data = path.read_bytes()
    (bad,) = [piece for piece in list_pieces(path, stats=ReadStats(), piece_bytes=60) if b"3}" in data[piece.start : piece.end]]
    assert bad.start > 0
    with pytest.raises(DataError, match="line 41"):
        list(read_piece(bad, ReadStats()))


# --- refusals ----------------------------------------------------------------------------------------------------------------------

REFUSED = {
    "empty": ("a.txt", b"", "is empty"),
    "png": ("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "PNG picture"),
    "zeros": ("a.txt", bytes(5000), "mostly not text"),
    "random": ("a.txt", np.random.default_rng(0).bytes(5000), "mostly not text"),
    "random csv": ("a.csv", np.random.default_rng(0).bytes(5000), "mostly not text"),
    "random jsonl": ("a.jsonl", np.random.default_rng(0).bytes(5000), "mostly not text"),
    "utf-16": ("a.txt", "hello you".encode("utf-16"), "looks like UTF-16"),
    "cyrillic": ("a.txt", "Жила была девочка".encode("cp1251"), "WINDOWS-1251"),
    "gzip without its name": ("a.txt", gzip.compress(b"hello", mtime=0), "gzip file without"),
    "cut gzip": ("a.txt.gz", gzip.compress(b"hello" * 99, mtime=0)[:-9], "damaged or cut-off gzip"),
    "no gzip": ("a.txt.gz", b"hello", "damaged or cut-off gzip"),
    "no parquet": ("a.parquet", b"hello", "not a Parquet file"),
    "json": ("a.json", b"[]", "one object a line"),
    "csv without field": ("a.csv", b"id,title\n1,x\n", 'the fields are "id", "title"'),
    "csv short row": ("a.csv", b"id,text\n1,x\n2\n", "line 3: 1 columns"),
    "csv open quote": ("a.csv", b'text\n"x', "not CSV"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_D3_what_is_no_text_is_refused_with_one_sentence_and_a_hint(tmp_path: Path, name: str) -> None:
    file, data, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as caught:
        stories_in(tmp_path, data, file)
    assert str(tmp_path / file) in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_few_wrong_bytes_do_not_make_a_text_binary(tmp_path: Path) -> None:
    assert stories_in(tmp_path, "Élise a été très fière".encode("latin-1"))[0] == ["\ufffdlise a \ufffdt\ufffd tr\ufffds fi\ufffdre"]


def test_a_missing_path_and_a_folder_without_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        read(tmp_path / "nothing.txt")
    assert "positron prepare --dataset tinystories" in caught.value.hint
    (tmp_path / "x.png").touch()
    with pytest.raises(DataError, match=r"no .txt.*1 other files"):
        read(tmp_path)


def test_an_unreadable_file_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match="cannot be read \\(Permission denied\\)"):
        list(read_documents(path, stats=ReadStats()))


# --- split -------------------------------------------------------------------------------------------------------------------------


def table_of(texts: list[str]) -> KeyTable:
    """A table of several blocks, some of them empty."""
    blocks = [KeyBlock() for _ in range(4)]
    for number, text in enumerate(texts):
        assert blocks[1 + 2 * number // max(1, len(texts))].add(text) == len(text.encode())
    return KeyTable([block.pack() for block in blocks])


@pytest.mark.parametrize("variant", ["ONCE  upon\n\na time, é!", " Once upon a time, e\u0301! ", "Once\u00a0upon a ｔｉｍｅ, É!"])
def test_D4_case_space_and_compatible_forms_share_a_key(variant: str) -> None:
    assert normalised_key(variant) == normalised_key("Once upon a time, é!")
    assert exact_key(variant.encode()) != exact_key("Once upon a time, é!".encode())
    assert len(normalised_key(variant)) == len(exact_key(variant.encode())) == 16


@pytest.mark.parametrize("other", ["Once upon a time é!", "Once upona time, é!", "Once upon a time, e!"])
def test_punctuation_words_and_accents_are_kept_apart(other: str) -> None:
    assert normalised_key(other) != normalised_key("Once upon a time, é!")


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from(" \n\t aBßİﬃé\u0301\u0327\u00a0Å가\u1100\u1161"), max_size=40))
def test_the_key_of_a_long_text_is_that_of_the_whole(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole = normalised_key(text)
        patch.setattr("positron_mini.text.corpus.split._PIECE_CHARS", 3)
        assert normalised_key(text) == whole
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    assert whole == exact_key(" ".join(folded.split()).encode())


def test_D4_copies_are_dropped_and_variants_stay_on_one_side() -> None:
    texts = [f"Story number {n}." for n in range(400)]
    variants = [text.upper() for text in texts[:200]]
    documents = [*texts, *variants, *texts[100:150]]
    split = split_documents(table_of(documents), "x")
    assert (split.duplicates, split.variants) == (50, 200)
    assert not (split.train & split.validation).any()
    assert int((split.train | split.validation).sum()) == 600
    assert split.validation[:200].tolist() == split.validation[400:600].tolist()
    assert not (split.train | split.validation)[600:].any()
    assert 20 <= int(split.validation.sum()) <= 110


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.sampled_from([f"{letter} {n}" for letter in "aAbB" for n in range(9)]), min_size=2, max_size=40), data=st.data())
def test_D4_the_split_does_not_depend_on_the_order(texts: list[str], data: st.DataObject) -> None:
    if len({text.lower() for text in texts}) < 2:
        return
    shuffled = data.draw(st.permutations(texts))
    sides = []
    for documents in (texts, shuffled):
        split = split_documents(table_of(documents), "x")
        train = {text for text, chosen in zip(documents, split.train, strict=True) if chosen}
        validation = {text for text, chosen in zip(documents, split.validation, strict=True) if chosen}
        assert train
        assert validation
        assert not {text.lower() for text in train} & {text.lower() for text in validation}
        assert train | validation == set(documents)
        sides.append((train, validation))
    assert sides[0] == sides[1]


def test_training_keeps_a_story_even_when_all_keys_are_low() -> None:
    low = [text for text in map(str, range(200)) if normalised_key(text)[0] < 25]  # below 10 % of the range of the first byte
    split = split_documents(table_of(low[:3]), "x")
    assert (int(split.train.sum()), int(split.validation.sum())) == (1, 2)


@pytest.mark.parametrize(("documents", "share"), [(2, 0.1), (2_000, 0.1), (4_000, 0.05), (20_000, 0.01), (10**7, 0.01)])
def test_the_share_is_200_stories_between_1_and_10_percent(documents: int, share: float) -> None:
    assert validation_share(documents) == share


@pytest.mark.parametrize(("texts", "message"), [([], "no story"), (["a"], "only one story"), (["a", "A", "a"], "only one story, 3 times")])
def test_D1_one_story_cannot_be_split(texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        split_documents(table_of(texts), "x.txt")
    assert SEP in caught.value.hint


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(0, 12), max_size=60), bucket=st.integers(1, 9))
def test_copies_are_found_bucket_by_bucket_as_by_a_set(numbers: list[int], bucket: int) -> None:
    table = table_of([f"story {number}" for number in numbers])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("positron_mini.text.corpus.split._BUCKET_KEYS", bucket)
        first = first_of_each(table.exact, len(table))
        shared = split._also_in(table_of(["Story 3", "story 5"]), table)
    assert first.tolist() == [number not in numbers[:place] for place, number in enumerate(numbers)]
    assert shared.tolist() == [number in (3, 5) for number in numbers]


def test_a_table_in_files_is_that_in_memory(tmp_path: Path) -> None:
    texts = [f"story {n % 7}" for n in range(20)]
    blocks: list[bytes | Path] = []
    for start in (0, 8, 16):
        block = KeyBlock()
        for text in texts[start : start + 8]:
            block.add(text)
        blocks.append(block.pack())
    (tmp_path / "keys").write_bytes(blocks[1])
    mixed, whole = KeyTable([blocks[0], tmp_path / "keys", blocks[2]]), table_of(texts)
    assert len(mixed) == len(whole) == 20 and mixed.counts == [8, 8, 4]
    assert mixed.sizes.tolist() == whole.sizes.tolist() == [7] * 20
    assert b"".join(mixed.exact_bytes()) == b"".join(whole.exact_bytes()) == b"".join(exact_key(text.encode()) for text in texts)
    assert np.concatenate(list(mixed.normalised())).tolist() == np.concatenate(list(whole.normalised())).tolist()


def test_stories_of_a_validation_file_are_left_out_of_training() -> None:
    split, kept = split_by_file(table_of(["a", "b", "B ", "c", "a"]), table_of(["b", "d", "d"]), "x")
    assert split.train.tolist() == [True, False, False, True, False]
    assert (split.duplicates, split.shared, kept.tolist()) == (1, 2, [True, True, False])
    with pytest.raises(DataError, match="every story is in the validation text"):
        split_by_file(table_of(["a"]), table_of(["A", "b"]), "x")


def test_the_sample_is_bounded_seeded_and_independent_of_the_order() -> None:
    texts = [f"{n:04d}" for n in range(1000)]

    def sample(documents: list[str], seed: int) -> set[str]:
        everything = np.ones(len(documents), bool)
        chosen = sample_of(everything, table_of(documents), seed=seed, max_bytes=1001)
        return {text for text, is_chosen in zip(documents, chosen, strict=True) if is_chosen}

    assert len(sample(texts, 0)) == 250
    assert sample(texts, 0) == sample(texts[::-1], 0)
    assert len(sample(texts, 0) & sample(texts, 1)) < 125
    assert sample_of(np.array([True, False]), table_of(["a", "b"]), seed=0, max_bytes=1).tolist() == [True, False]
