"""Find duplicate stories and choose the validation stories: by hashes of their texts alone, never by their order.

Of every story 36 bytes are kept, in blocks that may be files: a 128-bit hash of the text, one of the text without differences of case
and white space, and its size. Equal hashes are found bucket by bucket, so the memory for that does not grow with the stories.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from positron_mini.errors import DataError

KEY_BYTES = 16
ROW_BYTES = 2 * KEY_BYTES + 4
_BUCKET_KEYS = 1 << 20  # compared at once: about 100 MB, sorting included
_PIECE_CHARS = 1 << 20
_LOW, _HIGH, _WANTED = 0.01, 0.10, 200  # validation share: least, most, and the number of stories that is enough
Keys = NDArray[np.uint64]  # (documents, 2): upper and lower half of each key

# lower case, and every ASCII white space a space: the effect of `str.lower` and `str.split` on ASCII text
_FOLDED_ASCII = bytes(32 if code in b"\t\n\v\f\r\x1c\x1d\x1e\x1f" else code + 32 if 65 <= code <= 90 else code for code in range(256))


def exact_key(data: bytes) -> bytes:
    """16 bytes that are equal for equal texts, given in UTF-8."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def normalised_key(text: str) -> bytes:
    """16 bytes that are equal for texts that differ only in letter case, white space or compatible forms of characters (NFKC)."""
    if text.isascii():
        folded = text.encode("ascii").translate(_FOLDED_ASCII)
        while b"  " in folded:
            folded = folded.replace(b"  ", b" ")
        return exact_key(folded.strip(b" "))
    if len(text) <= _PIECE_CHARS:
        return exact_key(" ".join(_folded(text).split()).encode("utf-8", "surrogatepass"))
    digest, glue = hashlib.blake2b(digest_size=KEY_BYTES), b""
    for piece in _pieces(text):
        # a list of all words of a 50 MB book would take ten times its size
        words = " ".join(_folded(piece).split()).encode("utf-8", "surrogatepass")
        if words:
            digest.update(glue + words)
            glue = b" "
    return digest.digest()


def _folded(text: str) -> str:
    # folding can undo the composed form, so it is normalised on both sides
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


_EDGE = re.compile("[ \n]")  # nothing composes with the character before a space


def _pieces(text: str) -> Iterator[str]:
    """Parts of about a million characters, cut before white space, which changes neither folding nor the words."""
    start = 0
    while start < len(text):
        edge = _EDGE.search(text, start + _PIECE_CHARS)
        end = edge.start() if edge else len(text)
        yield text[start:end]
        start = end


class KeyBlock:
    """Keys and sizes of some documents, collected while they are read."""

    def __init__(self) -> None:
        self._columns = (bytearray(), bytearray(), bytearray())

    def add(self, text: str) -> int:
        """Append a document; return its size in UTF-8 bytes."""
        data = text.encode("utf-8", "surrogatepass")
        exact, normalised, sizes = self._columns
        exact += exact_key(data)
        normalised += normalised_key(text)
        sizes += len(data).to_bytes(4, "little")
        return len(data)

    def pack(self) -> bytes:
        """The block as KeyTable expects it: all exact keys, then all normalised ones, then all sizes."""
        return b"".join(self._columns)


class KeyTable:
    """Keys and sizes of all documents in order, made of packed blocks, each in memory or in a file."""

    def __init__(self, blocks: Sequence[bytes | Path]) -> None:
        self._blocks = blocks
        self.counts = [(len(block) if isinstance(block, bytes) else block.stat().st_size) // ROW_BYTES for block in blocks]

    def __len__(self) -> int:
        return sum(self.counts)

    def _column(self, start: int, width: int) -> Iterator[bytes]:
        """Bytes of one column, block by block; `start` and `width` count bytes in a row."""
        for block, count in zip(self._blocks, self.counts, strict=True):
            if isinstance(block, bytes):
                yield block[start * count : (start + width) * count]
            else:
                with open(block, "rb") as handle:
                    handle.seek(start * count)
                    yield handle.read(width * count)

    def exact_bytes(self) -> Iterator[bytes]:
        """Exact keys in order, independent of the division into blocks."""
        return self._column(0, KEY_BYTES)

    def exact(self) -> Iterator[Keys]:
        """Exact keys, block by block."""
        return map(_as_numbers, self._column(0, KEY_BYTES))

    def normalised(self) -> Iterator[Keys]:
        """Normalised keys, block by block."""
        return map(_as_numbers, self._column(KEY_BYTES, KEY_BYTES))

    @property
    def sizes(self) -> NDArray[np.uint32]:
        """UTF-8 bytes of each document."""
        return np.frombuffer(b"".join(self._column(2 * KEY_BYTES, 4)), "<u4")


def _as_numbers(keys: bytes) -> Keys:
    return np.frombuffer(keys, ">u8").reshape(-1, 2).astype(np.uint64)


@dataclass(frozen=True)
class Split:
    """Use of each document, in reading order: boolean arrays of shape (documents,). A document in neither was dropped."""

    train: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    duplicates: int  # exact copies, dropped
    variants: int  # kept, but equal to an earlier one up to case and white space
    shared: int = 0  # not trained on because the user's validation file has them


def _buckets(columns: Sequence[Callable[[], Iterator[Keys]]], count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Sort the `count` keys of all columns, one bucket at a time; equal keys are always in one bucket. Yield for each bucket the positions
    in key order, equal keys by ascending position, and the index of the distinct key at each.
    """
    bits = max(0, (count - 1) // _BUCKET_KEYS).bit_length()
    for bucket in range(1 << bits):
        held_keys, held_places, start = [], [], 0
        for column in columns:
            for keys in column():
                chosen = np.flatnonzero(keys[:, 0] >> np.uint64(64 - bits) == bucket) if bits else np.arange(len(keys))
                held_keys.append(keys[chosen])
                held_places.append(chosen + start)
                start += len(keys)
        keys, places = np.concatenate(held_keys or [np.empty((0, 2), np.uint64)]), np.concatenate(held_places or [np.empty(0, np.int64)])
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal keys keep their order
        ordered = keys[order]
        is_new = np.ones(len(keys), bool)
        is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        yield places[order], np.cumsum(is_new) - 1


def first_of_each(column: Callable[[], Iterator[Keys]], count: int) -> NDArray[np.bool_]:
    """True at the first occurrence of each key, shape (count,)."""
    first = np.zeros(count, bool)
    for places, numbers in _buckets([column], count):
        first[places[np.diff(numbers, prepend=-1) > 0]] = True
    return first


def validation_share(documents: int) -> float:
    """Share of documents kept for validation: 200 of them, but at least 1 % and at most 10 %."""
    return min(_HIGH, max(_LOW, _WANTED / documents))


def split_documents(table: KeyTable, name: str) -> Split:
    """Split into training and validation by the normalised key alone, so that copies and variants of a story stay on one side.

    Errors: DataError when there are not two different stories.
    """
    count = len(table)
    kept = first_of_each(table.exact, count)
    leaders = kept & first_of_each(table.normalised, count)
    if leaders.sum() < 2:
        raise _one_story(name, count)
    # by the upper half; a tie needs 2**32 stories
    side = np.concatenate([keys[:, 0] for keys in table.normalised()])
    limit = np.uint64(int(validation_share(int(kept.sum())) * 2**64))
    groups = side[leaders]
    if not (groups < limit).any():
        limit = groups.min() + np.uint64(1)
    elif (groups < limit).all():
        limit = groups.max()
    validation = kept & (side < limit)
    return Split(kept & ~validation, validation, count - int(kept.sum()), int(kept.sum() - leaders.sum()))


def _one_story(name: str, documents: int) -> DataError:
    found = "no story" if not documents else "only one story" if documents == 1 else f"only one story, {documents:,} times,"
    return DataError(
        f"{name}: {found} was found; training needs one and validation another",
        "separate the stories by a line <|endoftext|> or by blank lines, or give a text with more of them",
    )


def split_by_file(train: KeyTable, validation: KeyTable, name: str) -> tuple[Split, NDArray[np.bool_]]:
    """Split with the user's validation text: its stories are left out of training; also return which of them are kept."""
    count = len(train)
    kept, wanted = first_of_each(train.exact, count), first_of_each(validation.exact, len(validation))
    is_shared = _also_in(validation, train)
    ours = kept & ~is_shared
    leaders = kept & first_of_each(train.normalised, count)
    if not ours.any():
        raise DataError(f"{name}: every story is in the validation text too", "give a validation text with other stories")
    if not wanted.any():
        raise DataError("the validation text holds no story", f"leave it out, and some stories of {name} are kept for validation")
    nothing = np.zeros(count, bool)
    split = Split(ours, nothing, count - int(kept.sum()), int(kept.sum() - leaders.sum()), int((kept & is_shared).sum()))
    return split, wanted


def _also_in(other: KeyTable, table: KeyTable) -> NDArray[np.bool_]:
    """Whether `other` has the normalised key, for every document of `table`."""
    ahead, count = len(other), len(other) + len(table)
    seen = np.zeros(count, bool)
    for places, numbers in _buckets([other.normalised, table.normalised], count):
        is_known = np.zeros(int(numbers[-1]) + 1 if len(numbers) else 0, bool)
        is_known[numbers[places < ahead]] = True
        seen[places] = is_known[numbers]
    return seen[ahead:]


def sample_of(chosen: NDArray[np.bool_], table: KeyTable, *, seed: int, max_bytes: int) -> NDArray[np.bool_]:
    """A seeded sample of `chosen` with at most `max_bytes` bytes, as booleans (documents,); depends on keys, not on their order.

    Everything if it fits; else the documents with the smallest scrambled keys.
    """
    sizes = table.sizes
    if int(sizes[chosen].sum(dtype=np.int64)) <= max_bytes:
        return chosen
    lower = np.concatenate([keys[:, 1] for keys in table.exact()])
    at = np.flatnonzero(chosen)
    order = at[np.argsort(_scrambled(lower[at], seed), kind="stable")]
    sampled = np.zeros(len(chosen), bool)
    sampled[order[np.cumsum(sizes[order], dtype=np.int64) <= max_bytes]] = True
    return sampled


def _scrambled(keys: NDArray[np.uint64], seed: int) -> NDArray[Any]:
    """Each key hashed together with the seed (the finaliser of splitmix64; sums and products wrap)."""
    x = keys ^ np.uint64(int.from_bytes(hashlib.blake2b(seed.to_bytes(8, "little", signed=True), digest_size=8).digest(), "little"))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
