"""The tokenizer: text to ids and back, by a SentencePiece BPE model of one fixed recipe.

Laws: `decode(encode(text)) == text` for every valid text without U+2581, which becomes a space because SentencePiece writes spaces with it.
User text never yields a control id, whatever it contains; role markers enter a sequence only as ids. A tokenizer trained here gives
control characters (newline, tab, NUL, ...) one byte piece each, so no piece crosses a line.
"""

from __future__ import annotations

import codecs
import io
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from positron_mini import files
from positron_mini.device import usable_cores
from positron_mini.errors import TokenizerError
from positron_mini.own_files import open_regular
from positron_mini.text.tokenizer.model_file import (
    BOS,
    EOS,
    FIRST_BYTE,
    FIRST_NORMAL,
    HINT,
    IM_END,
    IM_START,
    MAX_FILE_BYTES,
    MAX_PIECES,
    PAD,
    SPACE,
    SPECIAL_PIECES,
    UNK,
    Piece,
    fields,
    fingerprint_of,
    read_pieces,
)

# Longer texts are encoded in parts: SentencePiece needs about 50 bytes of memory per character of one text, and slows down.
_MAX_CHARS_AT_ONCE = 1 << 16
# A stretch without a place to cut is cut anyway after so many characters, counted from its start: 64 million of one letter, a kilobyte
# in a gzip file for each million, would take 3 GB.
_MAX_UNBROKEN_CHARS = 1 << 20
# The trainer drops a whole sentence with U+2585, its sign for the unknown, and cuts at tabs.
_TRAINING_BREAKS = re.compile("[\x00-\x1f\x7f\u2585]+")
# Older trainers crash on an unbroken run of 65,536 characters.
_MAX_SENTENCE_CHARS = 10_000
_MAX_TRAINING_THREADS = 127  # one byte in the file, see _without_thread_count
_TRAINER_SPEC, _NUM_THREADS = 2, 16  # protobuf field numbers

RECIPE: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "character_coverage": 0.9999,
    "max_sentence_length": 1 << 30,
    "unk_id": UNK,
    "bos_id": BOS,
    "eos_id": EOS,
    "pad_id": PAD,
    "control_symbols": [IM_START, IM_END],
}


class Tokenizer:
    """Text to ids and back. Immutable, so threads can share one instance.

    Made by `load`, `from_bytes` and `train_tokenizer`, which check the model file.
    """

    model_bytes: bytes
    vocab_size: int
    fingerprint: str  # sha256 of model_bytes, 64 hexadecimal digits
    im_start_id: int
    im_end_id: int
    control_ids: frozenset[int]  # bos, eos, pad and the role markers
    _pieces: tuple[Piece, ...]
    _byte_table: tuple[bytes, ...]  # UTF-8 bytes of each id in a text
    _processor: sentencepiece.SentencePieceProcessor

    def __init__(self, model_bytes: bytes, pieces: Sequence[Piece], processor: sentencepiece.SentencePieceProcessor) -> None:
        texts = {piece.text: index for index, piece in enumerate(pieces)}
        values = {
            "model_bytes": model_bytes,
            "vocab_size": len(pieces),
            "fingerprint": fingerprint_of(model_bytes),
            "im_start_id": texts[IM_START],
            "im_end_id": texts[IM_END],
            "control_ids": frozenset(index for index, piece in enumerate(pieces) if piece.kind == "control"),
            "_pieces": tuple(pieces),
            "_byte_table": tuple(_piece_bytes(index, piece) for index, piece in enumerate(pieces)),
            "_processor": processor,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Tokenizer is immutable; {name} cannot be set")

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size:,} pieces, {self.fingerprint[:12]})"

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Load a SentencePiece file made by our recipe. Errors: TokenizerError with the reason."""
        path = Path(path)
        if path.is_dir():
            file = shlex.quote(str(path / "tokenizer.model"))
            raise TokenizerError(f"{path}: a folder, not a tokenizer file", f"--tokenizer_path {file}")
        try:
            with open_regular(path) as handle:
                data = handle.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError as error:
            raise TokenizerError(f"{path}: no such tokenizer file", HINT) from error
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{path}: the tokenizer file cannot be read ({error})", HINT) from error
        return cls.from_bytes(data, str(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Tokenizer:
        """Make a tokenizer from the bytes of a model file; `name` stands for the file in errors. Errors: TokenizerError."""
        data = bytes(data)
        pieces = read_pieces(data, name)
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(data)
        except (RuntimeError, ValueError) as error:
            raise TokenizerError(f"{name}: SentencePiece cannot read the model ({_one_line(error)})", HINT) from error
        if processor.get_piece_size() != len(pieces):
            raise TokenizerError(f"{name}: {processor.get_piece_size():,} pieces were loaded, {len(pieces):,} are in the file", HINT)
        return cls(data, pieces, processor)

    def save(self, path: Path | str) -> None:
        """Write the model file to `path`, atomically."""
        files.write_bytes(Path(path), self.model_bytes)

    def encode(self, text: str) -> list[int]:
        """Encode `text` as ids, without bos and eos. U+2581 counts as a space. Errors: TokenizerError for a lone surrogate."""
        if len(text) <= _MAX_CHARS_AT_ONCE:
            return list(self._processor.encode(to_utf8(text)))
        ids: list[int] = []
        for part in self._parts(text):
            ids += self._processor.encode(to_utf8(part))
        return ids

    def encode_many(self, texts: Sequence[str], threads: int = 0) -> list[list[int]]:
        """`[encode(text) for text in texts]`, by `threads` threads (0: one per core)."""
        if any(len(text) > _MAX_CHARS_AT_ONCE for text in texts):
            return [self.encode(text) for text in texts]
        encoded = self._processor.encode([to_utf8(text) for text in texts], num_threads=threads or usable_cores())
        return [list(ids) for ids in encoded]

    def encode_document(self, text: str) -> list[int]:
        """bos, the ids of `text` without its outer newlines, eos: one document as in training and evaluation."""
        return [BOS, *self.encode(text.strip("\r\n")), EOS]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode `ids`. Control ids and the unknown id give no text; bytes that are not UTF-8 become U+FFFD."""
        return b"".join([self._bytes_of(index) for index in ids]).decode("utf-8", errors="replace")

    def piece(self, id: int) -> str:
        """Text of one vocabulary entry, with U+2581 for a space. Errors: TokenizerError when there is no such id."""
        self._bytes_of(id)
        return self._pieces[id].text

    def pieces(self) -> list[Piece]:
        """The whole vocabulary in id order."""
        return list(self._pieces)

    def _bytes_of(self, index: int) -> bytes:
        if not 0 <= index < self.vocab_size:
            message = f"id {index:,} does not exist: the tokenizer has {self.vocab_size:,} pieces"
            raise TokenizerError(message, "use the tokenizer in the model's own folder")
        return self._byte_table[index]

    def _parts(self, text: str) -> Iterator[str]:
        """Parts of `text` whose ids, joined, are the ids of the whole: cut between two characters that are adjacent in no piece, and in a
        stretch without such a place after each `_MAX_UNBROKEN_CHARS` of it, independent of earlier cuts.
        """
        text = text.replace(SPACE, " ")
        inner = {pair for piece in self._pieces[FIRST_NORMAL:] for pair in _pairs(piece.text.replace(SPACE, " "))}
        start = 0
        while len(text) - start > _MAX_CHARS_AT_ONCE:
            cut = start + _MAX_CHARS_AT_ONCE
            begin = next((at for at in range(cut, start, -1) if text[at - 1 : at + 1] not in inner), start)  # of the stretch
            while cut < len(text) and text[cut - 1 : cut + 1] in inner and cut - begin < _MAX_UNBROKEN_CHARS:
                cut += 1
            yield text[start:cut]
            start = cut
        yield text[start:]


class IncrementalDecoder:
    """Ids one by one to text, holding back the bytes of an unfinished character. All outputs joined equal `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """Text that is complete with this id; empty while a character lacks bytes, and for control ids."""
        return self._decoder.decode(self._tokenizer._bytes_of(id))

    def flush(self) -> str:
        """Return the bytes held back, as U+FFFD, and reset the decoder."""
        return self._decoder.decode(b"", final=True)


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, threads: int = 0) -> Tokenizer:
    """Train a tokenizer of exactly `vocab_size` pieces on `texts`; equal texts give equal bytes, for any number of threads.

    Errors: TokenizerError when the text is empty, or too small or too varied for that size; the hint then names a size that works.
    """
    if vocab_size > MAX_PIECES:
        raise TokenizerError(f"a vocabulary of {vocab_size:,} pieces is too large: at most {MAX_PIECES:,}", "--vocab_size 16000")
    threads = min(threads or usable_cores(), _MAX_TRAINING_THREADS)
    source = _Sentences(texts)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(source),
            model_writer=written,
            vocab_size=max(vocab_size, FIRST_NORMAL),  # with fewer, SentencePiece does not say how many it needs
            num_threads=threads,
            minloglevel=2,  # errors arrive as exceptions; the log would mix with the progress bar
            **RECIPE,
        )
    except (RuntimeError, ValueError, OSError) as error:
        if source.error is not None:
            raise source.error from None
        raise _training_error(str(error), vocab_size, source.characters) from error
    return Tokenizer.from_bytes(_without_thread_count(written.getvalue()), "the trained tokenizer")


class _Sentences:
    """Sentences for the trainer, in UTF-8. An error of the source is kept: C++ would turn it into a RuntimeError."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.error: BaseException | None = None
        self.characters = 0

    def __iter__(self) -> Iterator[bytes]:
        try:
            for text in self._texts:
                self.characters += len(text)
                yield from map(to_utf8, _sentences(text))
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise


def _sentences(text: str) -> Iterator[str]:
    """Lines of `text`, cut at other control characters too; those over 10,000 characters in parts, cut before a space if possible."""
    for line in _TRAINING_BREAKS.split(text):
        start = 0
        while len(line) - start > _MAX_SENTENCE_CHARS:
            cut = line.rfind(" ", start + 1, start + _MAX_SENTENCE_CHARS + 1)
            cut = cut if cut > 0 else start + _MAX_SENTENCE_CHARS
            yield line[start:cut]
            start = cut
        if start < len(line):
            yield line[start:]


def _training_error(message: str, vocab_size: int, characters: int) -> TokenizerError:
    """The error for a failed training, from SentencePiece's message."""
    if found := re.search(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        largest = int(found[1])
        return TokenizerError(
            f"a vocabulary of {vocab_size:,} pieces is too large for a text of {characters:,} characters: at most {largest:,}",
            f"--vocab_size {largest}  (or train on more text)",
        )
    if found := re.search(r"smaller than required_chars\. -?\d+ vs (\d+)", message):
        smallest = int(found[1])
        return TokenizerError(
            f"a vocabulary of {vocab_size:,} pieces is too small: the characters of this text need {smallest:,}", f"--vocab_size {smallest}"
        )
    if "sentences_.empty()" in message:
        return TokenizerError(f"no text to train a tokenizer on ({characters:,} characters)", "give a file with text: --dataset_path FILE")
    return TokenizerError(f"training the tokenizer failed: {_one_line(message)}", "try another --vocab_size")


def _without_thread_count(model: bytes) -> bytes:
    """Set the number of training threads recorded in the model file, the only value in it that depends on them, to 1."""
    for section in fields(model):
        if section.number != _TRAINER_SPEC or not isinstance(section.value, bytes):
            continue
        for field in fields(section.value):
            if field.number == _NUM_THREADS:
                at = section.start + field.start
                return model[:at] + b"\x01" + model[at + 1 :]
    return model


def _piece_bytes(index: int, piece: Piece) -> bytes:
    if piece.kind == "byte":
        return bytes([index - FIRST_BYTE])
    return piece.text.replace(SPACE, " ").encode() if index >= len(SPECIAL_PIECES) else b""


def to_utf8(text: str) -> bytes:
    """UTF-8 for SentencePiece, U+2581 made a space. Errors: TokenizerError for a lone surrogate."""
    try:
        return text.replace(SPACE, " ").encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start:,} of the text is U+{ord(text[error.start]):04X}, half of a surrogate pair, not a character",
            "remove it, or read the text as UTF-8 with errors='replace'",
        ) from error


def _pairs(text: str) -> Iterator[str]:
    return (text[at : at + 2] for at in range(len(text) - 1))


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
