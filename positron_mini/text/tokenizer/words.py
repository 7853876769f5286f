"""Many texts to ids at once, many times faster than one by one, because a language reuses few words again and again.

A byte-pair tokenizer joins two neighbours only if they are adjacent in some piece. So a text may be cut between two bytes that are
adjacent in no piece: the ids of the parts, joined, are the ids of the whole. Cut at all such places, a text falls into words, each of
which is encoded once and then looked up. Every tokenizer has its own cuts, read from its vocabulary, so the result is that of
`Tokenizer.encode` for any vocabulary and any text; only the speed depends on the cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from positron_mini.text.tokenizer.model_file import FIRST_NORMAL, SPACE
from positron_mini.text.tokenizer.spm import Tokenizer, to_utf8

_MAX_WORDS = 1 << 18  # at most: about 40 MB
_MAX_WORD_BYTES = 1 << 24
_STEP_BYTES = 1 << 20


class WordEncoder:
    """Encodes many texts with one tokenizer and caches their words. For one thread; takes at most some 40 MB."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self._is_cut = _cuts(tokenizer)
        self._forget()

    def _forget(self) -> None:
        self._row: dict[bytes, int] = {}  # word -> its index in _starts and _lengths
        self._starts: NDArray[np.int64] = np.empty(0, np.int64)
        self._lengths: NDArray[np.int64] = np.empty(0, np.int64)
        self._ids: NDArray[np.uint32] = np.empty(0, np.uint32)  # of all words, concatenated
        self._word_bytes = 0

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids of all texts, concatenated, and the number of each text; equal to `Tokenizer.encode`. Errors: its own."""
        data = [to_utf8(text) for text in texts]
        ends = np.cumsum([len(part) for part in data], dtype=np.int64)
        joined = b"".join(data)
        if not joined:
            return np.empty(0, np.uint32), np.zeros(len(texts), np.int64)
        edges = self._edges(joined, ends)
        rows = self._rows(joined, edges)
        lengths = self._lengths[rows]
        id_ends = np.cumsum(lengths)
        place = np.arange(id_ends[-1]) + np.repeat(self._starts[rows] - (id_ends - lengths), lengths)
        after = np.append(0, id_ends)[np.searchsorted(edges, ends)]  # ids up to the end of each text
        return self._ids[place], np.diff(after, prepend=0)

    def _edges(self, joined: bytes, ends: NDArray[np.int64]) -> NDArray[np.int32]:
        """Offsets where words begin, and the end of the last: 0, every cut, and every end of a text; ascending."""
        codes = np.frombuffer(joined, np.uint8)
        is_edge = np.zeros(len(codes) + 1, bool)
        is_edge[1:-1] = self._is_cut[(codes[:-1].astype(np.uint16) << 8) | codes[1:]]
        is_edge[0] = True
        is_edge[ends] = True
        return np.flatnonzero(is_edge).astype(np.int32)

    def _rows(self, joined: bytes, edges: NDArray[np.int32]) -> NDArray[np.int64]:
        """Index of each word in `_starts` and `_lengths`, (words,), after encoding the new ones."""
        import pyarrow as pa  # its hash table of strings takes a tenth of a second where sorting in numpy takes many

        buffers = [None, pa.py_buffer(edges), pa.py_buffer(joined)]
        found = pa.Array.from_buffers(pa.binary(), len(edges) - 1, buffers).dictionary_encode()
        words: list[bytes] = found.dictionary.to_pylist()
        if len(self._row) > _MAX_WORDS or self._word_bytes > _MAX_WORD_BYTES:
            self._forget()
        self._learn([word for word in words if word not in self._row])
        rows = np.fromiter(map(self._row.__getitem__, words), np.int64, len(words))
        places: NDArray[np.int64] = rows[found.indices.to_numpy()]
        return places

    def _learn(self, words: list[bytes]) -> None:
        if not words:
            return
        encoded = self._tokenizer.encode_many([word.decode("utf-8") for word in words], threads=1)
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        self._row.update(zip(words, range(len(self._row), len(self._row) + len(words)), strict=True))
        self._starts = np.append(self._starts, len(self._ids) + np.cumsum(lengths) - lengths)
        self._lengths = np.append(self._lengths, lengths)
        self._ids = np.append(self._ids, np.array([i for ids in encoded for i in ids], np.uint32))
        self._word_bytes += sum(map(len, words))

    def parts(self, text: str) -> Iterator[str]:
        """Parts of `text` of about a megabyte whose ids, joined, are its ids: a long text need not be held as ids at once."""
        data = to_utf8(text)
        start = 0
        while start < len(data):
            end = self._cut_after(data, start + _STEP_BYTES)
            yield data[start:end].decode("utf-8")
            start = end

    def _cut_after(self, data: bytes, at: int) -> int:
        """First place after byte `at` where `data` may be cut, or its end."""
        while at < len(data):
            codes = np.frombuffer(data, np.uint8, min(_STEP_BYTES, len(data) - at) + 1, at - 1).astype(np.uint16)
            found = np.flatnonzero(self._is_cut[(codes[:-1] << 8) | codes[1:]])
            if len(found):
                return at + int(found[0])
            at += _STEP_BYTES
        return len(data)


def _cuts(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Whether a text may be cut between two bytes, at index 256 x first + second: they are adjacent in no piece and no character."""
    together = np.zeros((256, 256), bool)
    together[:, 0x80:0xC0] = True  # the second is not the first byte of a character
    for piece in tokenizer.pieces()[FIRST_NORMAL:]:
        codes = np.frombuffer(piece.text.replace(SPACE, " ").encode("utf-8"), np.uint8)
        together[codes[:-1], codes[1:]] = True
    return ~together.ravel()
