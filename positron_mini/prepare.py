"""From a text to token files: read twice, never held in memory, cached by what the stories and the tokenizer are.

The first pass hashes the stories and decides which are copies and which are for validation; the second encodes them. A cache folder
`<content>-<tokenizer>` holds train.tokens, validation.tokens and report.json;
it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from positron_mini import files
from positron_mini.corpus.files import ReadStats, list_files, read_documents
from positron_mini.corpus.memo import locked, read_memo, remember, signature_of
from positron_mini.corpus.report import Progress, Say, first_sentence, reading_report, report_lines
from positron_mini.corpus.split import KeyTable, Split, sample_of, split_by_file, split_documents
from positron_mini.errors import DataError, PositronError, TokenizerError
from positron_mini.tokenizer import BOS, EOS, Tokenizer, train_tokenizer
from positron_mini.tokens import TokenFile, TokenWriter

__all__ = ["Prepared", "prepare_corpus", "report_lines"]

DEFAULT_VOCAB_SIZE = 16_000
MAX_SAMPLE_BYTES = 100_000_000
_FORMAT = 1  # part of the content fingerprint: raise it when equal stories are to give other files
_BATCH_CHARS = 1 << 20
_LONG_CHARS = 1 << 18
_SAMPLES = 3
_WORD_EDGE = re.compile("(?<=[^ ]) ")  # no piece of the recipe has a space after another character, so parts cut here encode as the whole


@dataclass(frozen=True)
class Prepared:
    """A text ready for training. `folder` holds the token files; `report` is what `report_lines` prints."""

    folder: Path
    train: TokenFile
    validation: TokenFile
    tokenizer: Tokenizer
    content_fingerprint: str
    report: dict[str, Any]


@dataclass(frozen=True)
class _Source:
    """The user's text, and the text for validation where there is one of its own."""

    path: Path
    validation: Path | None
    signature: str  # changes when a file is added, removed, renamed or written

    @classmethod
    def of(cls, path: Path, validation: Path | None) -> _Source:
        return cls(path, validation, signature_of(path, validation))

    def check_unchanged(self) -> None:
        if signature_of(self.path, self.validation) != self.signature:
            raise DataError(f"{self.path}: changed while it was being prepared", "start the same command again when the file is complete")


@dataclass(frozen=True)
class _Scan:
    """What the first pass found out. `kept` are the documents of the validation text, where there is one."""

    content: str
    table: KeyTable
    split: Split
    kept: NDArray[np.bool_] | None
    reading: dict[str, Any]
    seconds: float


def prepare_corpus(
    source: Path,
    *,
    tokenizer_path: Path | None,
    vocab_size: int | None,
    cache_dir: Path = Path("data/cache"),
    seed: int = 0,
    threads: int = 0,
    validation: Path | None = None,
    min_train_tokens: int = 1,
    check_content: Callable[[str], None] = lambda _: None,
    say: Say,
) -> Prepared:
    """The token files of a text and their tokenizer, from the cache where it has them; a missing tokenizer is trained and saved.

    Without `validation` some stories of `source` are held back for it. Equal stories, tokenizer and seed give equal bytes, for any number
    of threads (0: all). `check_content` is told the content fingerprint as soon as it is known, and may raise. Errors: DataError (also for
    fewer than `min_train_tokens`) and TokenizerError. All errors come before anything is written.
    """
    # the tokenizer comes first, so that a wrong one is named before a long scan
    path = Path(tokenizer_path) if tokenizer_path is not None else default_tokenizer_path(vocab_size)
    tokenizer = _existing_tokenizer(path, vocab_size, is_default=tokenizer_path is None, say=say)
    origin = _Source.of(Path(source), Path(validation) if validation is not None else None)
    memo = read_memo(cache_dir).get(origin.signature)
    if tokenizer is not None and memo is not None:
        found = _open_cached(cache_dir, memo["content"], tokenizer, memo["reading"], lambda _: None)
        if found is not None:
            check_content(found.content_fingerprint)
            if found.train.count < min_train_tokens:
                raise _too_short(origin.path, found.train.count, min_train_tokens)
            return found
    scan = _scan(origin, say)
    check_content(scan.content)
    seconds = {"scan": scan.seconds}
    if tokenizer is None:
        tokenizer, seconds["tokenizer"] = _train(origin, scan, vocab_size or DEFAULT_VOCAB_SIZE, seed, threads, say)
        _check_length(origin, scan, tokenizer, min_train_tokens)
        origin.check_unchanged()
        tokenizer.save(path)
        say(f"tokenizer: {tokenizer.vocab_size:,} pieces, saved as {path}")
    else:
        _check_length(origin, scan, tokenizer, min_train_tokens)
    with locked(cache_dir, say):
        found = _open_cached(cache_dir, scan.content, tokenizer, scan.reading, say)
        if found is None:
            seconds["encode"] = _encode(origin, scan, tokenizer, cache_dir, threads, say)
            found = _open_cached(cache_dir, scan.content, tokenizer, scan.reading, say)
            assert found is not None, cache_dir
            found = replace(found, report={**found.report, "seconds": seconds})
        remember(cache_dir, origin.signature, scan.content, scan.reading)
    return found


def default_tokenizer_path(vocab_size: int | None) -> Path:
    """Where the tokenizer of this many pieces lies when no path is given."""
    if vocab_size is None or vocab_size == DEFAULT_VOCAB_SIZE:
        return Path("tokenizer/spm.bpe.model")
    return Path(f"tokenizer/spm.bpe.{vocab_size}.model")


# --- tokenizer ---------------------------------------------------------------------------------------------------------------------


def _existing_tokenizer(path: Path, vocab_size: int | None, *, is_default: bool, say: Say) -> Tokenizer | None:
    """The tokenizer in `path`, or None when there is no such file. Errors: TokenizerError when it has another size than asked for."""
    if vocab_size is not None and vocab_size < 1:
        raise TokenizerError(f"a vocabulary of {vocab_size:,} pieces cannot be", f"--vocab_size {DEFAULT_VOCAB_SIZE}")
    if not path.exists():
        return None
    tokenizer = Tokenizer.load(path)
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise TokenizerError(
            f"{path}: this tokenizer has {tokenizer.vocab_size:,} pieces, --vocab_size asks for {vocab_size:,}",
            f"--vocab_size {tokenizer.vocab_size}  (or another --tokenizer_path, which is then trained from the text)",
        )
    if is_default:
        say(f"tokenizer: {path} ({tokenizer.vocab_size:,} pieces)")
    return tokenizer


def _train(origin: _Source, scan: _Scan, vocab_size: int, seed: int, threads: int, say: Say) -> tuple[Tokenizer, float]:
    chosen = sample_of(scan.split.train, scan.table, seed=seed, max_bytes=MAX_SAMPLE_BYTES)
    size = int(scan.table.sizes[chosen].sum())
    say(f"no tokenizer yet: training {vocab_size:,} pieces on {int(chosen.sum()):,} stories ({size / 1e6:,.1f} MB) of this text")
    progress = Progress(say, "tokenizer", size)
    texts = (text for text, is_chosen in zip(read_documents(origin.path, stats=ReadStats()), chosen, strict=True) if is_chosen)
    return train_tokenizer(texts, vocab_size, threads=threads), progress.seconds()


# --- first pass --------------------------------------------------------------------------------------------------------------------


def _scan(origin: _Source, say: Say) -> _Scan:
    """One reading of everything: fingerprint, keys, split. Errors: DataError when there are not enough stories."""
    digest = hashlib.sha256(f"positron_mini tokens {_FORMAT}".encode())
    paths = [origin.path] if origin.validation is None else [origin.path, origin.validation]
    progress = Progress(say, "reading", sum(file.stat().st_size for path in paths for file in list_files(path)))
    stats = ReadStats()
    tables = []
    for path in paths:
        table = KeyTable()
        for text in read_documents(path, stats=stats):
            data = text.encode("utf-8")
            digest.update(len(data).to_bytes(8, "little") + data)
            table.add(text, len(data))
            progress.update(stats.source_bytes)
        digest.update(b"\xff" * 8)
        tables.append(table)
    kept = None
    if len(tables) == 1:
        split = split_documents(tables[0], str(origin.path))
    else:
        split, kept = split_by_file(tables[0], tables[1], str(origin.path))
    return _Scan(digest.hexdigest(), tables[0], split, kept, reading_report(stats), progress.seconds())


def _check_length(origin: _Source, scan: _Scan, tokenizer: Tokenizer, least: int) -> None:
    """Nothing, or DataError when the training documents have fewer than `least` tokens. Reads no further than it must."""
    count = 0
    for side, text in _routed(origin, scan):
        if side == 0:
            count += len(tokenizer.encode(text)) + 2  # bos and eos
        if count >= least:
            return
    raise _too_short(origin.path, count, least)


def _too_short(path: Path, count: int, least: int) -> DataError:
    return DataError(
        f"{path}: {count:,} training tokens are fewer than one context of {least - 1:,} and its last target",
        "--context_len 64, or more text",
    )


# --- second pass -------------------------------------------------------------------------------------------------------------------


def _encode(origin: _Source, scan: _Scan, tokenizer: Tokenizer, cache_dir: Path, threads: int, say: Say) -> float:
    """Seconds taken to write the cache folder."""
    total = int(scan.table.sizes[scan.split.train | scan.split.validation].sum())
    progress = Progress(say, "encoding", total)
    with files.atomic_folder(_folder(cache_dir, scan.content, tokenizer)) as folder:
        tally = _Tally()
        _write_both(origin, scan, tokenizer, folder, threads, tally, progress)
        origin.check_unchanged()
        files.write_json(folder / "report.json", _report(scan, tokenizer, tally))
    return progress.seconds()


def _write_both(origin: _Source, scan: _Scan, tokenizer: Tokenizer, folder: Path, threads: int, tally: _Tally, progress: Progress) -> None:
    def fill(train: BinaryIO, validation: BinaryIO) -> None:
        writers = [
            TokenWriter(handle, vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint) for handle in (train, validation)
        ]
        for batch in _batches(_routed(origin, scan)):
            tally.add(batch, _encode_batch(batch, tokenizer, threads, writers))
            progress.update(tally.total_bytes)
        for writer in writers:
            writer.finish()
        tally.tokens = [writer.count for writer in writers]

    def fill_train(train: BinaryIO) -> None:
        files.stream_file(folder / "validation.tokens", partial(fill, train))

    files.stream_file(folder / "train.tokens", fill_train)


def _routed(origin: _Source, scan: _Scan) -> Iterator[tuple[int, str]]:
    """The documents that are kept, with 0 for training and 1 for validation. Errors: DataError when the text is another one by now."""
    try:
        documents = read_documents(origin.path, stats=ReadStats())
        for text, is_train, is_validation in zip(documents, scan.split.train, scan.split.validation, strict=True):
            if is_train or is_validation:
                yield int(is_validation), text
        if origin.validation is not None and scan.kept is not None:
            for text, is_kept in zip(read_documents(origin.validation, stats=ReadStats()), scan.kept, strict=True):
                if is_kept:
                    yield 1, text
    except ValueError as error:  # zip: not as many documents as before
        origin.check_unchanged()
        raise DataError(f"{origin.path}: changed while it was being prepared", "start the same command again") from error


def _batches(documents: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Documents in lists of about a million characters; a long one stands alone."""
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


def _encode_batch(batch: list[tuple[int, str]], tokenizer: Tokenizer, threads: int, writers: list[TokenWriter]) -> list[int]:
    """The tokens of each document of a batch, bos and eos among them, which are written by its side."""
    if len(batch[0][1]) > _LONG_CHARS:
        side, text = batch[0]
        return [_encode_long(text, tokenizer, writers[side])]
    encoded = tokenizer.encode_many([text for _, text in batch], threads)
    flat: tuple[list[int], list[int]] = ([], [])
    for (side, _), ids in zip(batch, encoded, strict=True):
        flat[side].append(BOS)
        flat[side].extend(ids)
        flat[side].append(EOS)
    for writer, tokens in zip(writers, flat, strict=True):
        writer.write(np.array(tokens, np.uint32))
    return [len(ids) + 2 for ids in encoded]


def _encode_long(text: str, tokenizer: Tokenizer, writer: TokenWriter) -> int:
    """The tokens of one long document, which is encoded and written in parts: ids as Python numbers take ten times the text's memory."""
    before = writer.count
    writer.write(np.array([BOS], np.uint32))
    start = 0
    while start < len(text):
        edge = _WORD_EDGE.search(text, start + _LONG_CHARS)
        end = edge.start() if edge else len(text)
        writer.write(np.array(tokenizer.encode(text[start:end]), np.uint32))
        start = end
    writer.write(np.array([EOS], np.uint32))
    return writer.count - before


@dataclass
class _Tally:
    """What the second pass counts for the report."""

    documents: list[int] = field(default_factory=lambda: [0, 0])  # training, validation
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    total_bytes: int = 0
    longest_bytes: int = 0
    longest_tokens: int = 0
    samples: list[str] = field(default_factory=list)

    def add(self, batch: list[tuple[int, str]], token_counts: list[int]) -> None:
        for (side, text), n_tokens in zip(batch, token_counts, strict=True):
            n_bytes = len(text.encode("utf-8"))
            self.documents[side] += 1
            self.tokens[side] += n_tokens
            self.total_bytes += n_bytes
            self.longest_bytes = max(self.longest_bytes, n_bytes)
            self.longest_tokens = max(self.longest_tokens, n_tokens)
            if side == 0 and len(self.samples) < _SAMPLES:
                self.samples.append(first_sentence(text))


def _report(scan: _Scan, tokenizer: Tokenizer, tally: _Tally) -> dict[str, Any]:
    """The report without times, so that equal stories give equal files."""
    tokens = sum(tally.tokens)
    return {
        "format": _FORMAT,
        "content_fingerprint": scan.content,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "stories": sum(tally.documents),
        "train_stories": tally.documents[0],
        "validation_stories": tally.documents[1],
        "duplicates": scan.split.duplicates,
        "variants": scan.split.variants,
        "shared_with_validation": scan.split.shared,
        "bytes": tally.total_bytes,
        "tokens": tokens,
        "train_tokens": tally.tokens[0],
        "validation_tokens": tally.tokens[1],
        "bytes_per_token": round(tally.total_bytes / tokens, 4),
        "longest_bytes": tally.longest_bytes,
        "longest_tokens": tally.longest_tokens,
        "samples": tally.samples,
        "reading": scan.reading,
    }


# --- cache -------------------------------------------------------------------------------------------------------------------------


def _folder(cache_dir: Path, content: str, tokenizer: Tokenizer) -> Path:
    return Path(cache_dir) / f"{content[:16]}-{tokenizer.fingerprint[:16]}"


def _open_cached(cache_dir: Path, content: str, tokenizer: Tokenizer, reading: dict[str, Any], say: Say) -> Prepared | None:
    """The prepared text in the cache, or None when it is not there or damaged."""
    folder = _folder(cache_dir, content, tokenizer)
    if not folder.is_dir():
        return None
    try:
        train, held_back = (
            TokenFile.open(folder / f"{name}.tokens", expected_fingerprint=tokenizer.fingerprint) for name in ("train", "validation")
        )
        report = files.read_json(folder / "report.json")
        if not isinstance(report, dict) or report.get("content_fingerprint") != content:
            raise DataError(f"{folder}: the report is of another text")
    except PositronError as error:
        say(f"{error.message}: preparing it anew")
        return None
    return Prepared(folder, train, held_back, tokenizer, content, {**report, "reading": reading})
