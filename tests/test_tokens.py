"""Laws of token files and of the order of batches."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.models import write_tokens
from positron_mini.errors import DataError
from positron_mini.text.tokens import HEADER_BYTES, TokenFile, document_rows, epoch_order, gather, rows_at, step_windows, window_count

FINGERPRINT = "ab" * 32
SMALL = [1, 5, 6, 2, 1, 7, 2]


def token_file(folder: Path, ids: list[int], vocab_size: int = 100) -> Path:
    path = folder / "cache" / "train.tokens"
    write_tokens(path, [np.array(ids)], vocab_size=vocab_size, fingerprint=FINGERPRINT)
    return path


# --- the file ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(65_535, 2), (65_536, 2), (65_537, 4), (70_000, 4)])
def test_D2_the_highest_id_of_a_vocabulary_round_trips_in_the_narrowest_type(tmp_path: Path, vocab_size: int, itemsize: int) -> None:
    ids = [0, 1, vocab_size - 1, 2]
    path = token_file(tmp_path, ids, vocab_size)
    opened = TokenFile.open(path, expected_fingerprint=FINGERPRINT, verify=True)
    assert opened.ids.tolist() == ids
    assert (opened.ids.itemsize, opened.count, opened.vocab_size, opened.fingerprint) == (itemsize, 4, vocab_size, FINGERPRINT)
    assert path.stat().st_size == 256 + 4 * itemsize


@pytest.mark.parametrize("wrong", [100, -1, 65_536 + 5])
def test_D7_an_id_outside_the_vocabulary_is_refused_and_nothing_is_written(tmp_path: Path, wrong: int) -> None:
    path = tmp_path / "x.tokens"
    with pytest.raises(DataError, match="outside the vocabulary of 100"):
        write_tokens(path, [np.array([1, 2]), np.array([3, wrong])], vocab_size=100, fingerprint=FINGERPRINT)
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_of_a_file_do_not_depend_on_its_chunks(tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    assert write_tokens(one, [np.array(SMALL)], vocab_size=9, fingerprint=FINGERPRINT) == 7
    chunks = [np.array([], np.int64), np.array(SMALL[:2], np.uint8), np.array(SMALL[2:], np.uint32)]
    assert write_tokens(many, chunks, vocab_size=9, fingerprint=FINGERPRINT) == 7
    assert one.read_bytes() == many.read_bytes()


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    data = token_file(tmp_path, [1, 258, 2], vocab_size=300).read_bytes()
    assert data[:8] == b"PMTOKENS"
    assert data[8:32] == bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 44, 1, 0, 0, 0, 0, 0, 0])
    assert data[32:64] == b"\xab" * 32
    assert data[256:] == bytes([1, 0, 2, 1, 2, 0])


def test_an_empty_file_has_no_ids_and_no_documents(tmp_path: Path) -> None:
    opened = TokenFile.open(token_file(tmp_path, []), verify=True)
    assert (opened.count, opened.ids.tolist(), opened.documents().shape) == (0, [], (0, 2))


def test_documents_begin_at_bos_and_end_at_the_next(tmp_path: Path) -> None:
    assert TokenFile.open(token_file(tmp_path, SMALL)).documents().tolist() == [[0, 4], [4, 7]]


def test_documents_are_found_across_the_parts_of_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("positron_mini.text.tokens._SCAN_TOKENS", 4)
    opened = TokenFile.open(token_file(tmp_path, [1, 5, 2, 1, 1, 2, 1, 9, 9, 9, 9, 2]), verify=True)
    assert opened.documents().tolist() == [[0, 3], [3, 4], [4, 6], [6, 12]]


def test_ids_cannot_be_written_through_the_map(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        TokenFile.open(token_file(tmp_path, SMALL)).ids[0] = 3


def resealed(data: bytes, offset: int, new: bytes) -> bytes:
    """The file with changed header bytes and a header checksum that is right again."""
    body = (data[:offset] + new + data[offset + len(new) :])[: HEADER_BYTES - 4]
    return body + struct.pack("<I", zlib.crc32(body)) + data[HEADER_BYTES:]


DAMAGES = {
    "cut by one id": (lambda d: d[:-2], "cut off"),
    "odd bytes": (lambda d: d[:-1], "cut off"),
    "trailing bytes": (lambda d: d + b"\0\0", "foreign bytes"),
    "cut in the header": (lambda d: d[:100], "inside its header"),
    "header only": (lambda d: d[:256], "cut off"),
    "empty": (lambda d: b"", "not a token file"),
    "another kind": (lambda d: b"PK\x03\x04" + d[4:], "not a token file"),
    "later version": (lambda d: resealed(d, 8, b"\x02"), "format 2, this program reads 1"),
    "flipped fingerprint": (lambda d: d[:40] + b"\x00" + d[41:], "header is damaged"),
    "wrong width": (lambda d: resealed(d, 12, b"\x04"), "header is damaged"),
    "absurd count": (lambda d: resealed(d, 16, b"\xff" * 8), "cut off"),
    "flipped id": (lambda d: d[:-1] + b"\x01", "ids are damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_D7_a_damaged_file_is_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    path = token_file(tmp_path, SMALL)
    damage, message = DAMAGES[name]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        TokenFile.open(path, verify=True)
    assert str(path) in caught.value.message
    assert f"delete the folder {path.parent}" in caught.value.hint
    assert "positron prepare" in caught.value.hint


def test_D7_an_id_beyond_the_recorded_vocabulary_is_found_by_verification(tmp_path: Path) -> None:
    path = token_file(tmp_path, SMALL)
    path.write_bytes(resealed(path.read_bytes(), 24, struct.pack("<Q", 7)))
    TokenFile.open(path)
    with pytest.raises(DataError, match="token id 7 is outside its vocabulary of 7"):
        TokenFile.open(path, verify=True)


def test_D6_another_tokenizer_of_the_same_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another tokenizer"):
        TokenFile.open(token_file(tmp_path, SMALL), expected_fingerprint="cd" * 32)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such token file"):
        TokenFile.open(tmp_path / "nothing.tokens")


def test_D7_a_change_under_training_is_noticed(tmp_path: Path) -> None:
    path = token_file(tmp_path, SMALL)
    opened = TokenFile.open(path)
    opened.check_unchanged()
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="changed while"):
        opened.check_unchanged()
    path.unlink()
    with pytest.raises(DataError, match="removed while"):
        opened.check_unchanged()


# --- batches -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_tokens", "expected"), [(0, 0), (1, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
def test_a_window_needs_its_last_target(n_tokens: int, expected: int) -> None:
    assert window_count(n_tokens, 4) == expected


def naive_rows(seed: int, n_windows: int, total: int) -> list[int]:
    rows: list[int] = []
    epoch = 0
    while len(rows) < total:
        keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n_windows)
        rows += [window for _, window in sorted(zip(keys.tolist(), range(n_windows), strict=True))]
        epoch += 1
    return rows[:total]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**63), rows=st.integers(1, 12), n_windows=st.integers(1, 30), steps=st.integers(1, 8))
def test_batches_are_slices_of_one_endless_row_of_epochs(seed: int, rows: int, n_windows: int, steps: int) -> None:
    taken = [window for step in range(steps) for window in step_windows(seed, step, rows, n_windows).tolist()]
    assert taken == naive_rows(seed, n_windows, rows * steps)


@settings(max_examples=60, deadline=None)
@given(n_tokens=st.integers(2, 80), context_len=st.integers(1, 9), seed=st.integers(0, 9))
def test_every_token_is_a_target_exactly_once_an_epoch(n_tokens: int, context_len: int, seed: int) -> None:
    n_windows = window_count(n_tokens, context_len)
    if not n_windows:
        return
    ids = np.arange(n_tokens, dtype=np.uint16)
    batch = gather(ids, step_windows(seed, 0, n_windows, n_windows), context_len)
    assert sorted(batch[:, 1:].ravel().tolist()) == list(range(1, n_windows * context_len + 1))
    assert (batch[:, 1:] == batch[:, :-1] + 1).all()


def test_gather_gives_wide_integers_and_one_shared_id_between_neighbours() -> None:
    rows = gather(np.arange(100, 121, dtype=np.uint16), np.array([2, 0, 3]), 5)
    assert rows.dtype == np.int64
    assert rows.tolist() == [[110, 111, 112, 113, 114, 115], [100, 101, 102, 103, 104, 105], [115, 116, 117, 118, 119, 120]]


@settings(max_examples=80, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=20), context_len=st.integers(1, 9))
def test_rows_begin_with_documents_and_leave_no_token_out(lengths: list[int], context_len: int) -> None:
    first_ids = np.cumsum([0, *lengths[:-1]])
    n_tokens = sum(lengths)
    starts = document_rows(first_ids, n_tokens, context_len)
    rows = rows_at(np.arange(n_tokens, dtype=np.uint16), starts, context_len)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for i, start in enumerate(starts.tolist()):
        going_on = i > 0 and start == starts[i - 1] + context_len and owner[start] == owner[starts[i - 1]]
        assert start in first_ids or (going_on and lengths[owner[start]] > context_len)
    learned = set(rows[:, 1:].ravel().tolist())
    assert learned == set(range(1, max(learned, default=0) + 1))
    assert n_tokens - max(learned, default=0) <= context_len + max(lengths)  # only what is too short for a row is left over


def test_a_document_that_a_row_cuts_off_is_read_whole_by_the_next() -> None:
    assert document_rows(np.array([0, 5, 9]), 20, 7).tolist() == [0, 5, 9]
    assert document_rows(np.array([0, 5, 9]), 30, 7).tolist() == [0, 5, 9, 16]
    assert document_rows(np.array([0]), 5, 5).tolist() == []


def test_epochs_and_seeds_have_their_own_orders_which_nobody_can_change() -> None:
    orders = [epoch_order(seed, epoch, 50) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    with pytest.raises(ValueError, match="read-only"):
        orders[0][0] = 3


def test_the_order_is_the_same_on_every_machine_and_numpy() -> None:
    """PCG64 seeded by SeedSequence is fixed for ever by NumPy's compatibility policy; a change here would reorder resumed runs."""
    assert epoch_order(0, 0, 8).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert epoch_order(7, 3, 8).tolist() == [2, 4, 7, 3, 5, 1, 0, 6]
