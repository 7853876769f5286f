"""Token files, memory-mapped, and batches as a pure function of (seed, step).

A token file is a header of 256 bytes and the ids, little endian, two bytes each where the vocabulary allows it. A batch is chosen by
arithmetic alone: no state is kept, so a resumed run, an evaluation or another micro-batch size cannot disturb the order of the data.

Legend: T context length in tokens; a window is T inputs and their T targets, T + 1 ids, so neighbours share one id.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from positron_mini.errors import DataError, from_os_error
from positron_mini.own_files import open_regular

Ids = NDArray[np.unsignedinteger[Any]]
Indices = NDArray[np.int64]

MAGIC = b"PMTOKENS"
FORMAT_VERSION = 1
HEADER_BYTES = 256
# magic, format version, bytes per id, count, vocabulary size, SHA-256 of the tokenizer, SHA-256 of the ids
_FIELDS = struct.Struct("<8sIIQQ32s32s")
_CHECKSUM = struct.Struct("<I")
_SCAN_TOKENS = 1 << 22


# --- the file ----------------------------------------------------------------------------------------------------------------------


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Type of an id on disk: two bytes up to 65,536 pieces, four beyond."""
    return np.dtype("<u2") if vocab_size <= 65_536 else np.dtype("<u4")


class TokenWriter:
    """Writes ids, chunk after chunk, to an open binary handle; `finish` goes back and fills in the header."""

    def __init__(self, handle: BinaryIO, *, vocab_size: int, fingerprint: str) -> None:
        self.count = 0
        self._handle = handle
        self._vocab_size = vocab_size
        self._fingerprint = bytes.fromhex(fingerprint)
        assert len(self._fingerprint) == 32, fingerprint
        self._dtype = token_dtype(vocab_size)
        self._hash = hashlib.sha256()
        handle.write(bytes(HEADER_BYTES))

    def write(self, ids: NDArray[np.integer[Any]]) -> None:
        """Append a 1-D array of ids. Errors: DataError for an id outside the vocabulary, before any of the chunk is written."""
        if not len(ids):
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self._vocab_size:
            wrong = low if low < 0 else high
            raise DataError(
                f"token id {wrong:,} is outside the vocabulary of {self._vocab_size:,} pieces", "use the tokenizer that made the ids"
            )
        data = np.ascontiguousarray(ids, dtype=self._dtype).tobytes()
        self._hash.update(data)
        self._handle.write(data)
        self.count += len(ids)

    def finish(self) -> None:
        """Fill in the header; nothing may be written after it."""
        packed = _FIELDS.pack(
            MAGIC, FORMAT_VERSION, self._dtype.itemsize, self.count, self._vocab_size, self._fingerprint, self._hash.digest()
        ).ljust(HEADER_BYTES - _CHECKSUM.size, b"\0")
        self._handle.seek(0)
        self._handle.write(packed + _CHECKSUM.pack(zlib.crc32(packed)))
        self._handle.seek(0, os.SEEK_END)


@dataclass(frozen=True)
class TokenFile:
    """A memory-mapped token file. `ids` is read-only; `fingerprint` is the SHA-256 of the tokenizer that made it, in hexadecimal."""

    path: Path
    ids: Ids = field(repr=False)  # (count,)
    count: int
    vocab_size: int
    fingerprint: str
    payload_sha256: str
    _stat: tuple[int, int] = field(repr=False)

    @classmethod
    def open(cls, path: Path, *, expected_fingerprint: str | None = None, verify: bool = False) -> TokenFile:
        """Open the token file at `path` and check header and size; with `verify` read and check every id too.

        Errors: DataError when it is missing, damaged, of another version, or made by another tokenizer than `expected_fingerprint`.
        """
        path = Path(path)
        try:
            with open_regular(path) as handle:
                header = handle.read(HEADER_BYTES)
                status = os.fstat(handle.fileno())
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such token file", "positron prepare --dataset FILE makes one from a text") from error
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from error
        width, count, vocab_size, tokenizer, payload = _read_header(path, header, status.st_size)
        if expected_fingerprint is not None and tokenizer.hex() != expected_fingerprint:
            raise _unusable(path, f"made by another tokenizer ({tokenizer.hex()[:12]}, expected {expected_fingerprint[:12]})")
        dtype = np.dtype(f"<u{width}")
        # numpy refuses to map zero bytes
        ids: Ids = np.memmap(path, dtype, "r", HEADER_BYTES, (count,)) if count else np.empty(0, dtype)
        opened = cls(path, ids, count, vocab_size, tokenizer.hex(), payload.hex(), (status.st_size, status.st_mtime_ns))
        if verify:
            opened._verify()
        return opened

    def _verify(self) -> None:
        digest, highest = hashlib.sha256(), 0
        for start in range(0, self.count, _SCAN_TOKENS):
            part = np.asarray(self.ids[start : start + _SCAN_TOKENS])
            digest.update(part.data)
            highest = max(highest, int(part.max()))
        if digest.hexdigest() != self.payload_sha256:
            raise _unusable(self.path, f"the ids are damaged (SHA-256 {digest.hexdigest()[:12]}, recorded {self.payload_sha256[:12]})")
        if self.count and highest >= self.vocab_size:
            raise _unusable(self.path, f"token id {highest:,} is outside its vocabulary of {self.vocab_size:,} pieces")

    def check_unchanged(self) -> None:
        """Raise DataError if the file was changed or deleted since it was opened."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise _unusable(self.path, "removed while it was in use") from error
        if (status.st_size, status.st_mtime_ns) != self._stat:
            raise _unusable(self.path, "changed while it was in use")

    def documents(self, bos_id: int = 1) -> Indices:
        """(start, end) of every document as an array of shape (documents, 2); a document begins at each `bos_id`."""
        parts = [
            np.flatnonzero(np.asarray(self.ids[start : start + _SCAN_TOKENS]) == bos_id) + start
            for start in range(0, self.count, _SCAN_TOKENS)
        ]
        starts = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return np.stack([starts, np.append(starts[1:], self.count)[: len(starts)]], axis=1).astype(np.int64)


def _read_header(path: Path, header: bytes, size: int) -> tuple[int, int, int, bytes, bytes]:
    """Bytes per id, count, vocabulary size, tokenizer and payload SHA-256. Errors: DataError naming the fault in the file."""
    if header[: len(MAGIC)] != MAGIC:
        raise _unusable(path, f"not a token file (it begins with {header[:8]!r}, expected {MAGIC!r})")
    if len(header) < HEADER_BYTES:
        raise _unusable(path, f"cut off inside its header ({len(header)} of {HEADER_BYTES} bytes)")
    _, version, width, count, vocab_size, tokenizer, payload = _FIELDS.unpack_from(header)
    if version != FORMAT_VERSION:
        raise _unusable(path, f"token file format {version}, this program reads {FORMAT_VERSION}")
    body = header[: -_CHECKSUM.size]
    if zlib.crc32(body) != _CHECKSUM.unpack(header[-_CHECKSUM.size :])[0] or width != token_dtype(vocab_size).itemsize:
        raise _unusable(path, "its header is damaged")
    expected = HEADER_BYTES + count * width
    if size != expected:
        word = "cut off" if size < expected else "followed by foreign bytes"
        raise _unusable(path, f"{word} ({size:,} bytes, the header says {expected:,})")
    return width, count, vocab_size, tokenizer, payload


def _unusable(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}", f"delete the folder {path.parent} and start the same command again; positron prepare makes it anew")


# --- batches -----------------------------------------------------------------------------------------------------------------------


def window_count(n_tokens: int, context_len: int) -> int:
    """Number of whole windows in `n_tokens` ids; 0 for less than one context and its last target."""
    return max(0, (n_tokens - 1) // context_len)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, n_windows: int) -> Indices:
    """Windows 0 .. n_windows - 1 in the order of this epoch, read-only, shape (n_windows,).

    The order is that of raw PCG64 numbers, which NumPy keeps for ever; `Generator.permutation` may change between its versions and
    would then change the data order of a run that is resumed after an update. Two are cached because a batch may cross an epoch's edge.
    """
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n_windows)
    order = np.argsort(keys, kind="stable").astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


def step_windows(seed: int, step: int, rows: int, n_windows: int) -> Indices:
    """Window of each row of the batch for `step` (0-based), shape (rows,).

    Row r of the whole run takes position r % n_windows in the order of epoch r // n_windows, so every window comes once an epoch
    and a batch may cross from one epoch into the next.
    """
    assert n_windows > 0, f"{n_windows} windows: the text is shorter than one context"
    row = np.arange(step * rows, (step + 1) * rows, dtype=np.int64)
    epochs, positions = np.divmod(row, n_windows)
    windows = np.empty(rows, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        windows[here] = epoch_order(seed, int(epoch), n_windows)[positions[here]]
    return windows


def gather(ids: Ids, windows: Indices, context_len: int) -> Indices:
    """Ids of the windows, shape (rows, T + 1): window w is ids[w * T : w * T + T + 1]; inputs are [:, :-1], targets [:, 1:]."""
    return rows_at(ids, windows * context_len, context_len)


def rows_at(ids: Ids, starts: Indices, context_len: int) -> Indices:
    """Ids of rows that begin at `starts`, shape (rows, T + 1)."""
    index = starts[:, None] + np.arange(context_len + 1, dtype=np.int64)  # (rows, T + 1)
    rows: Indices = ids[index].astype(np.int64)
    return rows


def document_rows(first_ids: Indices, n_tokens: int, context_len: int) -> Indices:
    """Starts of rows of T inputs that each begin with a document: what a text says early stays in context.

    `first_ids` holds where each document begins. A document that a row cuts off is read again from its beginning by the next row; only
    one that is longer than a row continues where it was cut. Shape (rows,), ascending; every row has all of its T + 1 ids.
    """
    starts: list[int] = []
    start = int(first_ids[0])
    while start + context_len + 1 <= n_tokens:
        starts.append(start)
        end = start + context_len
        cut = int(first_ids[np.searchsorted(first_ids, end, side="right") - 1])  # the document in which the next row would begin
        start = cut if cut > start else end
    return np.array(starts, np.int64)
