"""Bytes to documents, in blocks of bounded size: characters that a model must not see, and the ends of documents.

One policy per class of bad character, each counted in ReadStats: a byte-order mark is dropped, CRLF and lone CR become LF, bytes that are
not UTF-8 become U+FFFD, NUL is removed, U+2581 becomes a space (sentencepiece writes spaces as that character and cannot carry it).
Everything else is kept unchanged.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

from positron_mini.errors import DataError

SEPARATOR = "<|endoftext|>"
MAX_DOCUMENT_CHARS = 1 << 26  # four times the longest novel; a longer one means a missing separator, and would exhaust the memory
_BOM = "\ufeff"
SAMPLE_BYTES = 1 << 16
_SURROGATES = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")
_BLANK_LINES = re.compile("\n(?:[ \t]*\n)+")
_SIGNATURES = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF-": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"\x1f\x8b": "a gzip file without the ending .gz",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"PAR1": "a Parquet file without the ending .parquet",
    b"GGUF": "a GGUF model",
    b"PMTOKENS": "a token file",
}


@dataclass
class ReadStats:
    """Counts of what was read and repaired so far; the reader updates them."""

    files: int = 0
    other_files: int = 0  # in a folder, of a kind without stories
    source_bytes: int = 0  # read from the files, compressed where they are
    documents: int = 0
    empty: int = 0
    bom: int = 0
    carriage_returns: int = 0  # CRLF and lone CR
    invalid_utf8: int = 0  # inserted U+FFFD
    nul: int = 0
    lower_blocks: int = 0  # U+2581
    inner_separators: int = 0  # <|endoftext|> with other text on its line: kept as text
    blank_line_files: int = 0  # text files without a separator line

    def add(self, other: ReadStats) -> None:
        """Add the counts of `other`."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def check_is_text(path: Path, sample: bytes) -> None:
    """Raise DataError if a file cannot be text by its first bytes, saying what it seems to be."""
    for signature, kind in _SIGNATURES.items():
        if sample.startswith(signature):
            raise DataError(f"{path}: this is {kind}, not a text", "give a .txt, .jsonl, .csv or .parquet file, or a folder of them")
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _foreign(path, "UTF-16")
    decoded = sample[:SAMPLE_BYTES].decode("utf-8", "replace")
    bad = len(_CONTROLS.findall(decoded))
    if bad > 0.3 * len(decoded):
        if "\0" not in decoded and not re.search("[\x01-\x08\x0e-\x1a]", decoded):
            raise _foreign(path, "WINDOWS-1251")
        raise DataError(
            f"{path}: mostly not text ({bad / len(decoded):.0%} of its first characters are not UTF-8 or control characters)",
            "give a .txt, .jsonl, .csv or .parquet file, or a folder of them",
        )


def _foreign(path: Path, encoding: str) -> DataError:
    return DataError(
        f"{path}: not UTF-8, it looks like {encoding} or another old encoding",
        f"iconv -f {encoding} -t UTF-8 '{path}' > '{path.stem}-utf8{path.suffix}'",
    )


def clean_text(text: str, stats: ReadStats) -> str:
    """Apply the policy above to a whole text: for strings from JSON, CSV and Parquet."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell a lone surrogate, which no file can hold
        text, count = _SURROGATES.subn("\ufffd", text)
        stats.invalid_utf8 += count
    if "\r" in text:
        crlf = text.count("\r\n")
        stats.carriage_returns += text.count("\r")
        text = (text.replace("\r\n", "\n") if crlf else text).replace("\r", "\n")
    return _without_specials(text, stats)


def _without_specials(text: str, stats: ReadStats) -> str:
    if "\0" in text:
        stats.nul += text.count("\0")
        text = text.replace("\0", "")
    if "\u2581" in text:
        stats.lower_blocks += text.count("\u2581")
        text = text.replace("\u2581", " ")
    return text


def decode(data: bytes, stats: ReadStats) -> str:
    """Decode UTF-8, with U+FFFD for invalid bytes, counted apart from those that the text already had."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
        stats.invalid_utf8 += text.count("\ufffd") - data.count(b"\xef\xbf\xbd")
        return text


def clean_blocks(chunks: Iterable[bytes], stats: ReadStats, *, is_start: bool = True) -> Iterator[str]:
    """Clean text from chunks of bytes cut anywhere, even inside a character or a CRLF. `is_start`: they begin where their file does."""
    rest = b""
    is_first = is_start
    for chunk in chunks:
        data = rest + chunk
        at = _complete(data)
        data, rest = data[:at], data[at:]
        if data:
            yield clean_text(_without_bom(decode(data, stats), stats) if is_first else decode(data, stats), stats)
            is_first = False
    if rest:
        yield clean_text(decode(rest, stats), stats)


def _without_bom(text: str, stats: ReadStats) -> str:
    if text.startswith(_BOM):
        stats.bom += 1
        return text[1:]
    return text


def _complete(data: bytes) -> int:
    """Where to cut so that neither a UTF-8 sequence nor a CRLF is split: at most 3 bytes before the end."""
    if data.endswith(b"\r"):
        return len(data) - 1
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:
            width = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if width > back else len(data)
        if byte < 0x80:
            break
    return len(data)


def split_documents(path: Path, blocks: Iterable[str], stats: ReadStats, *, has_separator: bool, is_start: bool = True) -> Iterator[str]:
    """Split a text in blocks into documents, at separator lines or else at blank lines, each without its outer newlines.

    A text that does not begin where its file does (`is_start` False) begins after a separator line, or after blank lines.
    """
    if has_separator:
        return _documents(path, recut(path, blocks, after_last_line), split_at_separators, stats, is_edge=is_start)
    # with newlines around it, a blank line at either end is like any other
    return _documents(path, recut(path, chain(["\n"], blocks, ["\n\n"]), before_last_space), _BLANK_LINES.split, stats)


def after_last_line(block: str) -> int:
    """End of the last whole line of a block."""
    return block.rfind("\n") + 1


def before_last_space(block: str) -> int:
    """Start of the white space that ends a block."""
    return len(block.rstrip(" \t\n"))


def recut(path: Path, blocks: Iterable[str], cut: Callable[[str], int]) -> Iterator[str]:
    """Divide the same text into blocks that end only where `cut` allows, so that no separator crosses two of them. Linear in the text."""
    held: list[str] = []
    size = 0
    for block in blocks:
        at = cut(block)
        if at:
            held.append(block[:at])
            yield "".join(held)
            held, size = [], 0
        held.append(block[at:])
        size += len(held[-1])
        if size > MAX_DOCUMENT_CHARS:
            raise too_long(path)
    yield "".join(held)


def _documents(
    path: Path, blocks: Iterable[str], split: Callable[[str], list[str]], stats: ReadStats, *, is_edge: bool = True
) -> Iterator[str]:
    """`is_edge`: blank text before the first separator is no document, like that after the last."""
    unfinished: list[str] = []
    size = 0
    for block in blocks:
        first, *others = split(block)
        unfinished.append(first)
        size += len(first)
        if size > MAX_DOCUMENT_CHARS:
            raise too_long(path)
        if others:
            texts = ["".join(unfinished), *others[:-1]]
            yield from finished(texts[1:] if is_edge and not texts[0].strip() else texts, stats)
            unfinished, size, is_edge = [others[-1]], len(others[-1]), False
    last = "".join(unfinished)
    unfinished.clear()
    yield from finished([last] if last.strip() else [], stats)


def too_long(path: Path) -> DataError:
    """The error for a file in which no document ends."""
    return DataError(
        f"{path}: a story or line of more than {MAX_DOCUMENT_CHARS:,} characters, so its separators seem to be missing",
        f"put a line {SEPARATOR} between the stories",
    )


def finished(texts: Iterable[str], stats: ReadStats) -> Iterator[str]:
    """Texts without outer newlines, counted; those without a visible character are left out, and counted too."""
    for text in texts:
        stripped = text.strip("\n")
        if not stripped or stripped.isspace():
            stats.empty += 1
            continue
        stats.documents += 1
        if SEPARATOR in stripped:
            stats.inner_separators += stripped.count(SEPARATOR)
        yield stripped


def split_at_separators(text: str) -> list[str]:
    """Parts between lines with only a separator, spaces around it allowed. `text` begins and ends at line edges."""
    parts: list[str] = []
    start = found = 0
    while (found := text.find(SEPARATOR, found)) >= 0:
        left, right = found, found + len(SEPARATOR)
        found = right
        while left > start and text[left - 1] in " \t":
            left -= 1
        while right < len(text) and text[right] in " \t":
            right += 1
        if (left == start or text[left - 1] == "\n") and (right == len(text) or text[right] == "\n"):
            parts.append(text[start:left])
            start = found = min(right + 1, len(text))
    parts.append(text[start:])
    return parts
