"""From a text to token files, cached by stories and tokenizer.

The first pass hashes the stories and decides which are duplicates and which are for validation; the second encodes them. Several
processes do both part by part; finished parts are kept when the preparation is killed and started again. A cache folder
`<content>-<tokenizer>` holds train.tokens, validation.tokens and report.json; it is complete or absent.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from positron_mini import files
from positron_mini.device import usable_cores
from positron_mini.errors import DataError, PositronError, Say, TokenizerError
from positron_mini.own_files import temporary_name
from positron_mini.text.corpus.files import ReadStats
from positron_mini.text.corpus.memo import locked, read_memo, remember
from positron_mini.text.corpus.report import Progress
from positron_mini.text.corpus.split import sample_of
from positron_mini.text.prepare.parts import LEFT_OUT, TRAIN, Part, Sides, Tally, routed
from positron_mini.text.prepare.scan import FORMAT, Plan, Scan, do_parts, make_plan, scan_text
from positron_mini.text.prepare.unfinished import Origin, unfinished_folder
from positron_mini.text.prepare.workers import TOKENIZER_FILE, Job, run
from positron_mini.text.tokenizer import Tokenizer, train_tokenizer
from positron_mini.text.tokens import TokenFile, TokenWriter, token_dtype

DEFAULT_VOCAB_SIZE = 16_000
MAX_SAMPLE_BYTES = 100_000_000
_COPIED_IDS = 1 << 20
_CACHED = frozenset(("train.tokens", "validation.tokens", "report.json"))  # files in a folder of the cache


@dataclass(frozen=True)
class Prepared:
    """A text ready for training. `folder` holds the token files; `report` is what `report_lines` prints."""

    folder: Path
    train: TokenFile
    validation: TokenFile
    tokenizer: Tokenizer
    content_fingerprint: str
    report: dict[str, Any]


def prepare_corpus(
    source: Path,
    *,
    tokenizer_path: Path | None,
    vocab_size: int | None,
    cache_dir: Path = Path("data/cache"),
    seed: int = 0,
    workers: int = 0,
    validation: Path | None = None,
    min_train_tokens: int = 1,
    check_content: Callable[[str], None] = lambda _: None,
    say: Say,
) -> Prepared:
    """Make the token files of a text and their tokenizer, or take them from the cache; a missing tokenizer is trained and saved.

    Without `validation` some stories of `source` are held back for it. Equal stories, tokenizer and seed give equal bytes, for any number
    of `workers` (processes; 0: one per core) and any number of kills on the way. `check_content` gets the content fingerprint as soon as it
    is known, and may raise. Errors: DataError (also for fewer than `min_train_tokens`) and TokenizerError. Before an error, only the
    unfinished parts of a text of more than 32 MB are written.
    """
    # the tokenizer comes first, so that a wrong one is reported before a long scan
    path = Path(tokenizer_path) if tokenizer_path is not None else default_tokenizer_path(vocab_size)
    tokenizer = _existing_tokenizer(path, vocab_size, is_default=tokenizer_path is None, say=say)
    origin = Origin.of(Path(source), Path(validation) if validation is not None else None)
    workers = workers or usable_cores()

    def remembered() -> Prepared | None:
        memo = read_memo(cache_dir).get(origin.signature)
        if tokenizer is None or memo is None:
            return None
        found = _open_cached(cache_dir, memo["content"], tokenizer, memo["reading"], lambda _: None)
        if found is not None:
            check_content(found.content_fingerprint)
            if found.train.count < min_train_tokens:
                raise _too_short(origin.path, found.train.count, min_train_tokens)
        return found

    if found := remembered():
        return found
    plan = make_plan(origin)
    with contextlib.ExitStack() as held:
        folder = None
        if not plan.is_small:
            held.enter_context(locked(cache_dir, say))
            if found := remembered():  # another process finished it meanwhile
                return found
            folder = unfinished_folder(cache_dir, origin, plan.parts)
        scan = scan_text(plan, folder, workers, say)
        check_content(scan.content)
        seconds = {"scan": scan.seconds}
        if tokenizer is None:
            began = time.monotonic()
            tokenizer = _train(plan, scan, vocab_size or DEFAULT_VOCAB_SIZE, seed, folder, workers, say)
            seconds["tokenizer"] = time.monotonic() - began
            _check_length(plan, scan, tokenizer, min_train_tokens)
            origin.check_unchanged()
            tokenizer.save(path)
            say(f"tokenizer: {tokenizer.vocab_size:,} pieces, saved as {path}")
        else:
            _check_length(plan, scan, tokenizer, min_train_tokens)
        if plan.is_small:
            held.enter_context(locked(cache_dir, say))
        return _finish(plan, scan, tokenizer, cache_dir, folder, workers, seconds, say)


def _finish(
    plan: Plan, scan: Scan, tokenizer: Tokenizer, cache_dir: Path, folder: Path | None, workers: int, seconds: dict[str, float], say: Say
) -> Prepared:
    """Take the token files from the cache, or make them; then record them and delete unfinished parts. Needs the lock of the cache."""
    found = _open_cached(cache_dir, scan.content, tokenizer, scan.reading, say)
    if found is None:
        place = folder if folder is not None else temporary_name(Path(cache_dir) / "parts")
        try:
            seconds["encode"] = _encode(plan, scan, tokenizer, cache_dir, place, workers, say)
        finally:
            if folder is None:
                shutil.rmtree(place, ignore_errors=True)
        found = _open_cached(cache_dir, scan.content, tokenizer, scan.reading, say)
        assert found is not None, cache_dir
        found = replace(found, report={**found.report, "seconds": seconds})
    remember(cache_dir, plan.origin.signature, scan.content, scan.reading)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def default_tokenizer_path(vocab_size: int | None) -> Path:
    """Path of the tokenizer with this vocabulary when none is given."""
    if vocab_size is None or vocab_size == DEFAULT_VOCAB_SIZE:
        return Path("tokenizer/spm.bpe.model")
    return Path(f"tokenizer/spm.bpe.{vocab_size}.model")


# --- tokenizer ---------------------------------------------------------------------------------------------------------------------


def _existing_tokenizer(path: Path, vocab_size: int | None, *, is_default: bool, say: Say) -> Tokenizer | None:
    """Load the tokenizer in `path`; None if there is no such file. Errors: TokenizerError when its size differs from the requested one."""
    if vocab_size is not None and vocab_size < 1:
        raise TokenizerError(f"a vocabulary of {vocab_size:,} pieces is impossible", f"--vocab_size {DEFAULT_VOCAB_SIZE}")
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


def _train(plan: Plan, scan: Scan, vocab_size: int, seed: int, folder: Path | None, threads: int, say: Say) -> Tokenizer:
    """Train a tokenizer on a sample of the training stories; for a large text in a separate process, because that takes 300 MB."""
    chosen = sample_of(scan.split.train, scan.table, seed=seed, max_bytes=MAX_SAMPLE_BYTES)
    size = int(scan.table.sizes[chosen].sum(dtype=np.int64))
    say(f"no tokenizer yet: training {vocab_size:,} pieces on {int(chosen.sum()):,} stories ({size / 1e6:,.1f} MB) of this text")
    everything = Part(tuple(piece for part in plan.parts[: plan.n_train_parts] for piece in part.pieces))
    sides = np.where(chosen, TRAIN, LEFT_OUT).astype(np.uint8)
    if folder is None:
        return train_tokenizer((text for _, text in routed(everything, sides, ReadStats())), vocab_size, threads=threads)
    job = Job("train", folder / "tokenizer", vocab_size, threads)
    shutil.rmtree(job.folder, ignore_errors=True)
    files.write_bytes(job.file(0, "sides"), sides.tobytes())
    run(job, {0: everything}, 1, Progress(say, "choosing stories", plan.source_bytes), apart=True)
    return Tokenizer.load(job.folder / TOKENIZER_FILE)


def _documents(parts: list[Part], sides: list[Sides]) -> Iterator[tuple[int, str]]:
    """Documents that are not left out, with their sides. Errors: DataError when the text has changed."""
    for part, part_sides in zip(parts, sides, strict=True):
        yield from routed(part, part_sides, ReadStats())


def _check_length(plan: Plan, scan: Scan, tokenizer: Tokenizer, least: int) -> None:
    """Raise DataError if the training documents have fewer than `least` tokens. Reads no further than it must."""
    count = 0
    for side, text in _documents(plan.parts, scan.sides()):
        if side == TRAIN:
            count += len(tokenizer.encode(text)) + 2  # bos and eos
        if count >= least:
            return
    raise _too_short(plan.origin.path, count, least)


def _too_short(path: Path, count: int, least: int) -> DataError:
    return DataError(
        f"{path}: {count:,} training tokens are fewer than one context of {least - 1:,} and its last target",
        "--context_len 64, or more text",
    )


# --- encoding ----------------------------------------------------------------------------------------------------------------------


def _encode(plan: Plan, scan: Scan, tokenizer: Tokenizer, cache_dir: Path, place: Path, workers: int, say: Say) -> float:
    """Write the cache folder and return the seconds taken. The parts are encoded into `place` first."""
    started = time.monotonic()
    job = Job("encode", place / f"encode-{tokenizer.fingerprint[:16]}")
    for other in place.glob("encode-*"):
        if other != job.folder and re.fullmatch(r"encode-[0-9a-f]{16}", other.name):
            shutil.rmtree(other, ignore_errors=True)
    tokenizer.save(job.folder / TOKENIZER_FILE)
    for index, sides in enumerate(scan.sides()):
        files.write_bytes(job.file(index, "sides"), sides.tobytes())
    tally = Tally()
    for result in do_parts(job, plan, 1 if plan.is_small else workers, "encoding", say):
        tally.add(Tally(**result))
    with files.atomic_folder(_folder(cache_dir, scan.content, tokenizer), _CACHED.__contains__) as folder:
        for name in ("train", "validation"):
            files.stream_file(folder / f"{name}.tokens", partial(_join, job, name, len(plan.parts), tokenizer))
        plan.origin.check_unchanged()
        files.write_json(folder / "report.json", _report(scan, tokenizer, tally))
    return time.monotonic() - started


def _join(job: Job, name: str, count: int, tokenizer: Tokenizer, handle: BinaryIO) -> None:
    """Write the token file of all parts, in order."""
    writer = TokenWriter(handle, vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
    for index in range(count):
        with open(job.file(index, name), "rb") as part:
            while len(ids := np.fromfile(part, token_dtype(tokenizer.vocab_size), _COPIED_IDS)):
                writer.write(ids)
    writer.finish()


def _report(scan: Scan, tokenizer: Tokenizer, tally: Tally) -> dict[str, Any]:
    """The report without times, so that equal stories give equal files."""
    tokens = sum(tally.tokens)
    return {
        "format": FORMAT,
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
    """Open the prepared text in the cache; None when it is missing or damaged."""
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
