"""Which stories are copies, and which are kept for validation: decided by hashes of their texts alone, never by their order."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from positron_mini.errors import DataError

KEY_BYTES = 16
_PIECE_CHARS = 1 << 20
_LOW, _HIGH, _WANTED = 0.01, 0.10, 200  # validation share: at least, at most, and the stories that are enough


def exact_key(text: str) -> bytes:
    """16 bytes that are equal for equal texts."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def normalised_key(text: str) -> bytes:
    """16 bytes that are equal for texts that differ only in letter case, white space or compatible forms of characters (NFKC)."""
    if len(text) <= _PIECE_CHARS:
        return hashlib.blake2b(" ".join(_folded(text).split()).encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()
    digest, glue = hashlib.blake2b(digest_size=KEY_BYTES), b""
    for piece in _pieces(text):
        # a list of all words of a book of 50 MB would take ten times its size
        words = " ".join(_folded(piece).split()).encode("utf-8", "surrogatepass")
        if words:
            digest.update(glue + words)
            glue = b" "
    return digest.digest()


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    # folding can undo the composed form, so it is normalised on both sides
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


_EDGE = re.compile("[ \n]")  # nothing composes with the character before a space


def _pieces(text: str) -> Iterator[str]:
    """The text in parts of about a million characters, cut before white space, where folding and counting words are not disturbed."""
    start = 0
    while start < len(text):
        edge = _EDGE.search(text, start + _PIECE_CHARS)
        end = edge.start() if edge else len(text)
        yield text[start:end]
        start = end


@dataclass
class KeyTable:
    """Both keys and the size of every document scanned, in order: 36 bytes a document, so 100 million fit in 3.6 GB."""

    _exact: bytearray = field(default_factory=bytearray)
    _normalised: bytearray = field(default_factory=bytearray)
    _sizes: bytearray = field(default_factory=bytearray)

    def add(self, text: str, n_bytes: int) -> None:
        """Append a document of `n_bytes` UTF-8 bytes."""
        self._exact += exact_key(text)
        self._normalised += normalised_key(text)
        self._sizes += n_bytes.to_bytes(4, "little")

    @property
    def sizes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each document."""
        return np.frombuffer(bytes(self._sizes), "<u4").astype(np.int64)

    @property
    def exact(self) -> NDArray[np.uint64]:
        """The exact keys, shape (documents, 2)."""
        return _as_numbers(self._exact)

    @property
    def normalised(self) -> NDArray[np.uint64]:
        """The normalised keys, shape (documents, 2)."""
        return _as_numbers(self._normalised)

    def __len__(self) -> int:
        return len(self._exact) // KEY_BYTES


def _as_numbers(keys: bytearray) -> NDArray[np.uint64]:
    return np.frombuffer(bytes(keys), ">u8").reshape(-1, 2).astype(np.uint64)


@dataclass(frozen=True)
class Split:
    """What becomes of each document, in reading order: boolean arrays of shape (documents,). A document in neither was dropped."""

    train: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    duplicates: int  # exact copies, dropped
    variants: int  # kept, but equal to an earlier one up to case and white space
    shared: int = 0  # left out of training because a validation file of the user's holds them


def first_of_each(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """True where a key is met for the first time, shape (documents,)."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal keys keep their order
    ordered = keys[order]
    is_new = np.ones(len(keys), bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.zeros(len(keys), bool)
    first[order[is_new]] = True
    return first


def validation_share(documents: int) -> float:
    """The share of documents kept for validation: 200 of them, but at least 1 % and at most 10 %."""
    return min(_HIGH, max(_LOW, _WANTED / documents))


def split_documents(table: KeyTable, name: str) -> Split:
    """Train and validation by the normalised key alone, so that copies and variants of a story always stand on one side.

    Errors: DataError when there are not two different stories.
    """
    kept = first_of_each(table.exact)
    keys = table.normalised
    leaders = kept & first_of_each(keys)
    if leaders.sum() < 2:
        raise _one_story(name, len(table))
    limit = np.uint64(int(validation_share(int(kept.sum())) * 2**64))
    # by the upper half; a tie needs 2**32 stories
    side = keys[:, 0]
    groups = side[leaders]
    if not (groups < limit).any():
        limit = groups.min() + np.uint64(1)
    elif (groups < limit).all():
        limit = groups.max()
    validation = kept & (side < limit)
    return Split(kept & ~validation, validation, len(table) - int(kept.sum()), int(kept.sum() - leaders.sum()))


def _one_story(name: str, documents: int) -> DataError:
    found = "no story" if not documents else "only one story" if documents == 1 else f"only one story, {documents:,} times,"
    return DataError(
        f"{name}: {found} was found; training needs one and validation another",
        "separate the stories by a line <|endoftext|> or by blank lines, or give a text with more of them",
    )


def split_by_file(train: KeyTable, validation: KeyTable, name: str) -> tuple[Split, NDArray[np.bool_]]:
    """The split of the training text, from which every story of the user's validation text is left out, and what is kept of the latter."""
    kept, wanted = first_of_each(train.exact), first_of_each(validation.exact)
    both = np.concatenate([validation.normalised, train.normalised])
    is_shared = _seen_before(both, len(validation))
    ours = kept & ~is_shared
    leaders = kept & first_of_each(train.normalised)
    if not ours.any():
        raise DataError(f"{name}: every story also stands in the validation text", "give a validation text with other stories")
    if not wanted.any():
        raise DataError("the validation text holds no story", f"leave it out, and some stories of {name} are kept for validation")
    nothing = np.zeros(len(train), bool)
    split = Split(ours, nothing, len(train) - int(kept.sum()), int(kept.sum() - leaders.sum()), int((kept & is_shared).sum()))
    return split, wanted


def _seen_before(keys: NDArray[np.uint64], n_first: int) -> NDArray[np.bool_]:
    """For the keys after the first `n_first`: whether one of those is equal."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    starts = np.ones(len(keys), bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    group = np.cumsum(starts) - 1
    has_first = np.zeros(int(group[-1]) + 1 if len(group) else 0, bool)
    has_first[group[order < n_first]] = True
    seen = np.empty(len(keys), bool)
    seen[order] = has_first[group]
    return seen[n_first:]


def sample_of(chosen: NDArray[np.bool_], table: KeyTable, *, seed: int, max_bytes: int) -> NDArray[np.bool_]:
    """The documents of a seeded sample of `chosen` with at most `max_bytes` bytes, shape (documents,): by key, whatever their order.

    Everything when it fits; else the documents of the smallest scrambled keys.
    """
    sizes = table.sizes
    if int(sizes[chosen].sum()) <= max_bytes:
        return chosen
    at = np.flatnonzero(chosen)
    order = at[np.argsort(_scrambled(table.exact[at, 1], seed), kind="stable")]
    sampled = np.zeros(len(chosen), bool)
    sampled[order[np.cumsum(sizes[order]) <= max_bytes]] = True
    return sampled


def _scrambled(keys: NDArray[np.uint64], seed: int) -> NDArray[Any]:
    """Each key and the seed mixed to a number (the finaliser of splitmix64; sums and products wrap)."""
    x = keys ^ np.uint64(int.from_bytes(hashlib.blake2b(seed.to_bytes(8, "little", signed=True), digest_size=8).digest(), "little"))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
