"""Reading a SentencePiece model file in plain Python, before the C++ library sees it.

The file is a protobuf message. Only what our recipe produces is accepted, and everything is checked: a file that is truncated, has a
flipped bit in its structure, or was made by another recipe is refused with the reason. A pickle is recognised by its first bytes and
never opened.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from positron_mini.errors import TokenizerError

UNK, BOS, EOS, PAD = 0, 1, 2, 3
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
SPECIAL_PIECES = ("<unk>", "<s>", "</s>", "<pad>", IM_START, IM_END)
FIRST_BYTE = len(SPECIAL_PIECES)  # ids 6..261 are the bytes 0x00..0xFF
FIRST_NORMAL = FIRST_BYTE + 256
SPACE = "\u2581"  # SentencePiece's sign for a space
MAX_PIECES = 1 << 20
MAX_FILE_BYTES = 64 << 20
MAX_PIECE_CHARS = 16  # the trainer makes none longer; checking a piece takes quadratic time
HINT = "--tokenizer_path tokenizer/spm.bpe.model  (a file that does not exist yet is trained from the text)"

_KINDS = {1: "normal", 2: "unknown", 3: "control", 4: "user-defined", 5: "unused", 6: "byte"}  # 4 and 5 only to name them in errors
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field of the file -> most occurrences, and most bytes: pieces, trainer and normalizer settings (of another recipe too, to name
# what differs), and two that are empty. Larger ones are refused before they are parsed.
_MOST = {1: (MAX_PIECES, 128), 2: (1, 1 << 20), 3: (1, 1 << 20), 4: (1, 0), 5: (1, 0)}
_NAMES = {1: "a piece", 2: "the trainer settings", 3: "the normalizer settings"}
# (name, field number, value when absent, value of the recipe)
_TRAINER_RECIPE = (
    ("model_type", 3, 1, 2),
    ("byte_fallback", 35, 0, 1),
    ("split_digits", 25, 0, 1),
    ("allow_whitespace_only_pieces", 26, 0, 1),
    ("split_by_whitespace", 22, 1, 1),
    ("treat_whitespace_as_suffix", 24, 0, 0),
    ("unk_id", 40, 0, UNK),
    ("bos_id", 41, 1, BOS),
    ("eos_id", 42, 2, EOS),
    ("pad_id", 43, -1, PAD),
)
_NORMALIZER_RECIPE = (("add_dummy_prefix", 3, 1, 0), ("remove_extra_whitespaces", 4, 1, 0), ("escape_whitespaces", 5, 1, 1))
_FOREIGN_STARTS = (
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint"),
    (b"\x80", "a Python pickle"),
    (b"{", "JSON; the tokenizer.model file beside it is the right one"),
    (b"GGUF", "a GGUF model"),
    (b"\x1f\x8b", "a gzip archive"),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary. `text` writes a space as U+2581; `kind` is normal, unknown, control or byte."""

    text: str
    score: float
    kind: str


class Field(NamedTuple):
    """One protobuf field: its number, its value (an int, or the bytes of a string or message), and the value's offset in the buffer."""

    number: int
    value: int | bytes
    start: int


class _DamagedError(ValueError):
    """The bytes are not a well-formed message of the expected kind."""


def fingerprint_of(model: bytes) -> str:
    """SHA-256 of a model file, which identifies a tokenizer everywhere."""
    return hashlib.sha256(model).hexdigest()


def read_pieces(model: bytes, name: str) -> list[Piece]:
    """Parse the vocabulary of a model file made by our recipe. Errors: TokenizerError naming the fault in the file called `name`."""
    _refuse_foreign(model, name)
    try:
        sections = _sections(model)
        pieces = [_piece(section) for section in sections[1]]
        difference = _difference(_fields_by_number(sections[2][0]), _fields_by_number(sections[3][0]), pieces)
    except (_DamagedError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{name}: not a SentencePiece model, or a damaged one ({error})", HINT) from error
    if difference:
        raise TokenizerError(f"{name}: made by another recipe: {difference}", HINT)
    try:
        _check_normal_pieces(pieces)
    except _DamagedError as error:
        raise TokenizerError(f"{name}: the vocabulary is damaged ({error})", HINT) from error
    return pieces


def fields(data: bytes) -> Iterator[Field]:
    """Fields of one protobuf message in file order. Errors: ValueError for malformed bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise _DamagedError(f"field number 0 before byte {at}")
        if wire_type == _VARINT:
            start = at
            value, at = _varint(data, at)
            yield Field(number, value - (1 << 64) if value >> 63 else value, start)
            continue
        if wire_type == _BYTES:
            size, at = _varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise _DamagedError(f"wire type {wire_type} before byte {at}")
        if size > end - at:
            raise _DamagedError(f"a field of {size:,} bytes where {end - at:,} are left")
        yield Field(number, data[at : at + size], at)
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise _DamagedError("the file ends in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & ((1 << 64) - 1), at
    raise _DamagedError(f"a number longer than 10 bytes before byte {at}")


def _refuse_foreign(model: bytes, name: str) -> None:
    if not model:
        raise TokenizerError(f"{name}: the file is empty", HINT)
    if len(model) > MAX_FILE_BYTES:
        raise TokenizerError(f"{name}: {len(model):,} bytes or more, too large for a tokenizer; at most {MAX_FILE_BYTES:,} are read", HINT)
    for start, what in _FOREIGN_STARTS:
        if model.startswith(start):
            raise TokenizerError(f"{name}: not a SentencePiece model but {what}", HINT)


def _sections(model: bytes) -> dict[int, list[bytes]]:
    """Messages of the file by field number, within the limits of `_MOST`: 1 pieces, 2 trainer, 3 normalizer."""
    found: dict[int, list[bytes]] = {number: [] for number in _MOST}
    for number, value, _ in fields(model):
        if not isinstance(value, bytes):
            raise _DamagedError(f"field {number} is a number")
        most, most_bytes = _MOST.get(number, (0, 0))
        if not most or len(value) > most_bytes == 0:
            raise _DamagedError(f"unexpected field {number}")
        if len(value) > most_bytes:
            raise _DamagedError(f"{_NAMES[number]} of {len(value):,} bytes, more than {most_bytes:,}")
        if len(found[number]) == most:
            raise _DamagedError(f"field {number} more than {most:,} times")
        found[number].append(value)
    if not (found[1] and found[2] and found[3]):
        raise _DamagedError(f"{len(found[1]):,} pieces, {len(found[2])} trainer and {len(found[3])} normalizer settings")
    return found


def _piece(message: bytes) -> Piece:
    text, score, kind = b"", 0.0, 1
    for number, value, _ in fields(message):
        if number == 1 and isinstance(value, bytes):
            text = value
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int) and value in _KINDS:
            kind = value
        else:
            raise _DamagedError(f"a piece with field {number} of value {value!r:.40}")
    return Piece(text.decode("utf-8"), score, _KINDS[kind])


def _fields_by_number(message: bytes) -> dict[int, list[int | bytes]]:
    found: dict[int, list[int | bytes]] = {}
    for field in fields(message):
        found.setdefault(field.number, []).append(field.value)
    return found


def _difference(trainer: dict[int, list[int | bytes]], normalizer: dict[int, list[int | bytes]], pieces: list[Piece]) -> str:
    """Differences from the recipe, in words; empty if there are none."""
    for settings, recipe in ((trainer, _TRAINER_RECIPE), (normalizer, _NORMALIZER_RECIPE)):
        for name, number, absent, wanted in recipe:
            value = settings.get(number, [absent])[-1]
            if value != wanted:
                return f"{name} is {value!r:.40}, expected {wanted}"
    if any(normalizer.get(2, [])):
        return f"the normalization is {normalizer.get(1, [b'unnamed'])[-1]!r:.40}, expected identity"
    if 31 in trainer:
        return f"{len(trainer[31])} user-defined symbols, expected none"
    for index, expected in enumerate(_reserved_pieces()):
        found = pieces[index] if index < len(pieces) else None
        if found != expected:
            return f"piece {index} is {found.text + ', ' + found.kind if found else 'missing'}, expected {expected.text}, {expected.kind}"
    if trainer.get(4, [8000])[-1] != len(pieces):
        return f"{len(pieces):,} pieces where the settings say {trainer.get(4, [8000])[-1]!r:.40}"
    return ""


def _reserved_pieces() -> list[Piece]:
    special = [Piece(text, 0.0, "unknown" if index == UNK else "control") for index, text in enumerate(SPECIAL_PIECES)]
    return special + [Piece(f"<0x{byte:02X}>", 0.0, "byte") for byte in range(256)]


def _check_normal_pieces(pieces: list[Piece]) -> None:
    """Raise _DamagedError unless the learned pieces can result from BPE training; a flipped bit in one breaks one of these laws."""
    texts = {piece.text for piece in pieces}
    if len(texts) != len(pieces):
        raise _DamagedError(f"{len(pieces) - len(texts)} pieces occur twice")
    for index, piece in enumerate(pieces[FIRST_NORMAL:]):
        where = f"piece {FIRST_NORMAL + index}, {piece.text!r:.40}"
        if piece.kind != "normal" or piece.score != -index:
            raise _DamagedError(f"{where}, is {piece.kind} with score {piece.score:g}, expected normal with {-index}")
        if len(piece.text) > MAX_PIECE_CHARS:
            raise _DamagedError(f"{where}, has {len(piece.text)} characters, the recipe makes at most {MAX_PIECE_CHARS}")
        if not piece.text or "\0" in piece.text or " " in piece.text:
            raise _DamagedError(f"{where}, is empty or holds a zero byte or a space")
        if len(piece.text) > 1 and not any(splits(piece.text, texts)):
            raise _DamagedError(f"{where}, cannot be made of two other pieces")


def splits(text: str, texts: set[str] | dict[str, int]) -> Iterator[tuple[str, str]]:
    """Ways to cut `text`, at most MAX_PIECE_CHARS long, into two pieces that both occur in `texts`, the shortest left part first."""
    for cut in range(1, len(text)):
        if text[:cut] in texts and text[cut:] in texts:
            yield text[:cut], text[cut:]
