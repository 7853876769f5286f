"""Work on one part of a text: hash its documents, or encode them. The result depends on the part alone.

A part is about 32 MB of files: some pieces of one, or many small ones. Parts depend on the files, never on the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from positron_mini.errors import DataError
from positron_mini.text.corpus.files import FilePiece, ReadStats, list_files, list_pieces, read_piece
from positron_mini.text.corpus.report import first_sentence
from positron_mini.text.corpus.split import KeyBlock
from positron_mini.text.tokenizer import BOS, EOS, WordEncoder
from positron_mini.text.tokens import token_dtype

TRAIN, VALIDATION, LEFT_OUT = 0, 1, 2  # what a document is used for
PART_BYTES = 32 << 20
_BATCH_CHARS = 1 << 20
_LONG_CHARS = 1 << 20
_SAMPLES = 3
Tell = Callable[[int], None]  # takes the number of bytes of the part read so far
Sides = NDArray[np.uint8]  # (documents,), one of the three above each


@dataclass(frozen=True)
class Part:
    """Pieces that are read one after the other."""

    pieces: tuple[FilePiece, ...]

    def documents(self, stats: ReadStats) -> Iterator[str]:
        """Documents in reading order. Errors: those of reading."""
        return (text for piece in self.pieces for text in read_piece(piece, stats))

    def to_json(self) -> str:
        """The part as one line of ASCII, which also represents paths that are not UTF-8."""
        return json.dumps([[str(p.path), p.start, p.end, p.has_separator] for p in self.pieces])

    @classmethod
    def from_json(cls, line: str) -> Part:
        """Parse the output of `to_json`."""
        return cls(tuple(FilePiece(Path(path), start, end, has_separator) for path, start, end, has_separator in json.loads(line)))


def list_parts(path: Path, stats: ReadStats) -> tuple[list[Part], int]:
    """Parts of a file or folder in reading order, and the bytes of its files. Errors: DataError if a file is no text."""
    parts: list[Part] = []
    held: list[FilePiece] = []
    size = 0
    for piece in list_pieces(path, stats=stats, piece_bytes=PART_BYTES):
        held.append(piece)
        size += PART_BYTES if piece.end is not None else piece.path.stat().st_size
        if size >= PART_BYTES:
            parts.append(Part(tuple(held)))
            held, size = [], 0
    if held:
        parts.append(Part(tuple(held)))
    return parts, sum(file.stat().st_size for file in list_files(path))


def scan_part(part: Part, tell: Tell) -> tuple[bytes, dict[str, Any]]:
    """Read a part; return the packed keys of its documents and the counts of the reader."""
    block, stats = KeyBlock(), ReadStats()
    for text in part.documents(stats):
        block.add(text)
        tell(stats.source_bytes)
    return block.pack(), asdict(stats)


def routed(part: Part, sides: Sides, stats: ReadStats) -> Iterator[tuple[int, str]]:
    """Documents of a part that are not left out, each with its side. Errors: DataError when their number has changed."""
    try:
        for text, side in zip(part.documents(stats), sides.tolist(), strict=True):
            if side != LEFT_OUT:
                yield side, text
    except ValueError as error:  # zip
        raise changed(part.pieces[0].path) from error


def changed(path: Path) -> DataError:
    """The error for a text that changed while it was prepared."""
    return DataError(f"{path}: changed while it was being prepared", "start the same command again when the file is complete")


@dataclass
class Tally:
    """Counts of the second pass, for the report."""

    documents: list[int] = field(default_factory=lambda: [0, 0])  # training, validation
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    source_bytes: int = 0
    total_bytes: int = 0
    longest_bytes: int = 0
    longest_tokens: int = 0
    samples: list[str] = field(default_factory=list)

    def count(self, side: int, text: str, n_tokens: int) -> None:
        """Count one document of `n_tokens` tokens, including bos and eos."""
        n_bytes = len(text.encode("utf-8"))
        self.documents[side] += 1
        self.tokens[side] += n_tokens
        self.total_bytes += n_bytes
        self.longest_bytes = max(self.longest_bytes, n_bytes)
        self.longest_tokens = max(self.longest_tokens, n_tokens)
        if side == TRAIN and len(self.samples) < _SAMPLES:
            self.samples.append(first_sentence(text))

    def add(self, other: Tally) -> None:
        """Add the counts of `other`, for later documents."""
        self.documents = [a + b for a, b in zip(self.documents, other.documents, strict=True)]
        self.tokens = [a + b for a, b in zip(self.tokens, other.tokens, strict=True)]
        self.source_bytes += other.source_bytes
        self.total_bytes += other.total_bytes
        self.longest_bytes = max(self.longest_bytes, other.longest_bytes)
        self.longest_tokens = max(self.longest_tokens, other.longest_tokens)
        self.samples = [*self.samples, *other.samples][:_SAMPLES]


def encode_part(part: Part, sides: Sides, encoder: WordEncoder, outputs: tuple[BinaryIO, BinaryIO], tell: Tell) -> Tally:
    """Write the ids of the training and of the validation documents to the two `outputs`; return the counts."""
    tally, stats, id_type = Tally(), ReadStats(), token_dtype(encoder.vocab_size)
    for batch in _batches(routed(part, sides, stats)):
        if len(batch[0][1]) > _LONG_CHARS:
            side, text = batch[0]
            counts = [_encode_long(text, encoder, outputs[side], id_type)]
        else:
            counts = _encode_batch(batch, encoder, outputs, id_type)
        for (side, text), n_tokens in zip(batch, counts, strict=True):
            tally.count(side, text, n_tokens)
        tell(stats.source_bytes)
    tally.source_bytes = stats.source_bytes
    return tally


def _batches(documents: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Documents in lists of about a million characters; a long one gets its own list."""
    batch: list[tuple[int, str]] = []
    size = 0
    for document in documents:
        is_long = len(document[1]) > _LONG_CHARS
        if batch and (is_long or size >= _BATCH_CHARS):
            yield batch
            batch, size = [], 0
        if is_long:
            yield [document]
        else:
            batch.append(document)
            size += len(document[1])
    if batch:
        yield batch


def _encode_batch(batch: list[tuple[int, str]], encoder: WordEncoder, outputs: tuple[BinaryIO, BinaryIO], id_type: Any) -> list[int]:
    """Encode a batch and write each document to its side; return the tokens of each, including bos and eos."""
    ids, counts = encoder.encode([text for _, text in batch])
    counts = counts + 2
    ends = np.cumsum(counts)
    tokens = np.empty(ends[-1], id_type)
    is_text = np.ones(len(tokens), bool)
    is_text[ends - counts] = is_text[ends - 1] = False
    tokens[ends - counts], tokens[ends - 1], tokens[is_text] = BOS, EOS, ids
    sides = np.repeat(np.array([side for side, _ in batch], np.uint8), counts)
    for side, output in enumerate(outputs):
        output.write(tokens[sides == side].tobytes())
    return [int(count) for count in counts]


def _encode_long(text: str, encoder: WordEncoder, output: BinaryIO, id_type: Any) -> int:
    """Encode and write one long document in parts, as its ids take many times the memory of its text; return its tokens."""
    count = 2
    output.write(np.array([BOS], id_type).tobytes())
    for part in encoder.parts(text):
        ids, _ = encoder.encode([part])
        output.write(ids.astype(id_type).tobytes())
        count += len(ids)
    output.write(np.array([EOS], id_type).tobytes())
    return count
