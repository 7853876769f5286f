"""Documents of any hub data set, named as owner/name:split:column: which files hold a split, and what is read from them.

Parquet files of the repository come first, then .jsonl, .csv, .txt (also .gz), then the hub's own Parquet conversion. Files are downloaded
one by one when needed, so the first documents of a large data set cost one file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from positron_mini.config.units import spell_bytes
from positron_mini.errors import DataError, Say, UsageError
from positron_mini.files import stream_file
from positron_mini.text.corpus.clean import CleanStats
from positron_mini.text.corpus.download import fetch_file, plan
from positron_mini.text.corpus.files import SEPARATOR, ReadStats, read_documents
from positron_mini.text.corpus.listing import HubError, HubFile, HubUnreachableError, Listing, Patience, list_files, page_of

TINYSTORIES = "roneneldan/TinyStories"
CLEAN = "karpathy/tinystories-gpt4-clean"
CLEAN_ROWS: dict[str, tuple[int, int | None]] = {"test": (0, 10_000), "validation": (10_000, 20_000), "train": (20_000, None)}

SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev", "eval"), "test": ("test", "testing")}
TEXT_COLUMN = "text"  # else story or content, as in a user's own files
DATA_ENDINGS = ((".parquet",), (".jsonl", ".jsonl.gz"), (".csv", ".csv.gz"), (".txt", ".txt.gz"))
NOT_DATA = re.compile(r"(^|/)(\.|readme|licen[cs]e|requirements|notice|changelog)", re.IGNORECASE)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class HubText:
    """A text written from the hub: its path, origin and processing."""

    text: Path
    valid: Path | None
    source: str  # repository and files
    revision: str
    licence: str
    documents: int
    text_bytes: int
    stats: CleanStats | None = None
    valid_stats: CleanStats | None = None


@dataclass(frozen=True)
class Source:
    """Meaning of a `--dataset` value: a local path, TinyStories as published, or a hub data set with split, column and rows."""

    kind: Literal["path", "tinystories", "dataset"]
    path: Path | None = None
    repo: str = ""
    split: str = "train"
    column: str = ""
    rows: tuple[int, int | None] | None = None


def resolve_source(spec: str) -> Source:
    """Parse `spec`. An existing path always wins; then tinystories, tinystories-clean[:split], owner/name[:split[:column]].

    Errors: DataError for a path that does not exist, UsageError for what can be neither.
    """
    path = Path(spec).expanduser()
    if spec and path.exists():
        return Source("path", path=path)
    name, _, rest = spec.partition(":")
    split, _, column = rest.partition(":")
    if name == "tinystories" and not rest:
        return Source("tinystories", repo=TINYSTORIES)
    if name in ("tinystories-clean", CLEAN):
        return _clean_source(split or "train", column or "text")
    if not _REPO.fullmatch(name) or name.endswith((".txt", ".jsonl", ".json", ".parquet", ".gz", ".csv", ".md")) or name.startswith("."):
        if "/" in spec or "\\" in spec or path.suffix:
            raise DataError(f"{spec}: no such file or folder", "check the path, or use --dataset tinystories")
        message = f"--dataset {spec!r} is neither a known data set nor a path"
        raise UsageError(message, "--dataset tinystories  (or owner/name:split:column, or a path)")
    if Path(name.split("/")[0]).is_dir() and not rest:
        raise DataError(f"{spec}: no such file or folder", f"for the hub's data set of this name: --dataset {spec}:train")
    return Source("dataset", repo=name, split=split or "train", column=column)


def _clean_source(split: str, column: str) -> Source:
    for name, aliases in SPLIT_NAMES.items():
        if split in aliases:
            return Source("dataset", repo=CLEAN, split=name, column=column, rows=CLEAN_ROWS[name])
    raise UsageError(f"{CLEAN} has no split {split!r}", f"use one of {', '.join(CLEAN_ROWS)}, as tinystories-clean:train")


def write_documents(out: Path, documents: Iterable[str]) -> int:
    """Write documents to `out`, each followed by a separator line, and return their number. Errors: DataError when there is none."""
    count = 0

    def fill(handle: Any) -> None:
        nonlocal count
        for document in documents:
            handle.write(f"{document}\n{SEPARATOR}\n".encode("utf-8", "replace"))
            count += 1
        if not count:
            message = f"nothing to write to {out}: no usable document in what was read"
            raise DataError(message, "ask for more documents, or for another split or column")

    stream_file(out, fill)
    return count


def fetch_dataset(
    spec: str | Source, folder: Path, *, max_documents: int | None = None, say: Say, patience: Patience | None = None
) -> Iterator[str]:
    """Yield the documents of a hub data set `owner/name:split:column`, in order; files are downloaded into `folder` when needed.

    Parquet files of the repository first, then .jsonl, .csv and .txt (also .gz), then the hub's own Parquet conversion.
    """
    source, patience = _dataset_source(spec), patience or Patience()
    listing, entries = _data_files(source, patience)
    return _rows(source, _fetched_documents(listing, entries, source, folder, patience, say), max_documents)


def _dataset_source(spec: str | Source) -> Source:
    source = resolve_source(spec) if isinstance(spec, str) else spec
    if source.kind != "dataset":
        raise UsageError(f"{spec} is not a data set of the hub", "name one as owner/name:split:column")
    return source


def _rows(source: Source, documents: Iterator[str], max_documents: int | None) -> Iterator[str]:
    start, stop = source.rows or (0, None)
    if max_documents is not None:
        stop = start + max_documents if stop is None else min(stop, start + max_documents)
    return itertools.islice(documents, start, stop)


def _fetched_documents(
    listing: Listing, entries: list[HubFile], source: Source, folder: Path, patience: Patience, say: Say
) -> Iterator[str]:
    place = folder / source.repo.replace("/", "--")
    say(f"{source.repo} ({source.split}), licence {listing.licence}: {len(entries)} files, {spell_bytes(sum(e.size for e in entries))}")
    for entry in entries:
        plan([(entry, entry.size)], place, extra_bytes=entry.size, say=say)
        yield from _read_documents(fetch_file(listing, entry, place, patience=patience, say=say), source)


def write_dataset(
    spec: str | Source, out: Path, *, max_documents: int | None = None, say: Say, patience: Patience | None = None
) -> HubText:
    """Write a hub data set as one text file, documents separated by `<|endoftext|>` lines; downloads stay in the folder `hub` beside it.
    """
    source, patience = _dataset_source(spec), patience or Patience()
    listing, entries = _data_files(source, patience)
    documents = _fetched_documents(listing, entries, source, out.parent / "hub", patience, say)
    count = write_documents(out, _rows(source, documents, max_documents))
    say(f"{out}: {count:,} documents")
    name = f"{source.repo}:{source.split}" + (f":{source.column}" if source.column else "")
    return HubText(out, None, name, listing.commit, listing.licence, count, out.stat().st_size)


def _data_files(source: Source, patience: Patience) -> tuple[Listing, list[HubFile]]:
    """The listing and its files of the split. Errors: HubError naming the existing splits or parts."""
    by_hand = f"download a data file from {page_of(source.repo)} in a browser and give its path as --dataset"
    listing = list_files(source.repo, patience=patience, hint=by_hand)
    for endings in DATA_ENDINGS:
        files = [entry for entry in listing.files if entry.name.lower().endswith(endings) and not NOT_DATA.search(entry.name)]
        if files:
            return listing, files_of_split(files, source)
    try:
        converted = list_files(source.repo, revision="refs/convert/parquet", patience=patience, hint=by_hand)
    except HubUnreachableError:
        raise
    except HubError as error:
        message = f"{source.repo} has no Parquet, .jsonl, .csv or .txt files, and the hub has converted none"
        raise HubError(message, f"see what it has: {page_of(source.repo)}") from error
    return converted, files_of_split([entry for entry in converted.files if entry.name.endswith(".parquet")], source)


def files_of_split(files: list[HubFile], source: Source) -> list[HubFile]:
    """Files whose path names the split, in order; all files, when no path names any split and "train" or rows are asked for.

    A split may name a part of the data set before a slash: `config/train`.
    """
    part, _, split = source.split.rpartition("/")
    named = {entry.name: _split_of(entry.name) for entry in files}
    if part:
        files = [entry for entry in files if entry.name.startswith(f"{part}/") or f"/{part}/" in entry.name]
    wanted = next((name for name, aliases in SPLIT_NAMES.items() if split in aliases), split)
    if source.rows is not None or (wanted == "train" and not any(named.values())):
        chosen = files
    else:
        chosen = [entry for entry in files if named[entry.name] == wanted or _has_word(entry.name, split)]
    if not chosen:
        there = ", ".join(sorted({name for name in named.values() if name})) or "no named splits"
        raise HubError(f"{source.repo} has no split {source.split!r} (there: {there})", f"--dataset {source.repo}:train")
    parts = sorted({entry.name.split("/")[0] for entry in chosen if "/" in entry.name} - {"data", *itertools.chain(*SPLIT_NAMES.values())})
    if len(parts) > 1 and not part:
        message = f"{source.repo} has several parts: {', '.join(parts)}"
        raise HubError(message, f"name one: --dataset {source.repo}:{parts[0]}/{split}" + (f":{source.column}" if source.column else ""))
    return sorted(chosen, key=lambda entry: entry.name)


def _has_word(path: str, word: str) -> bool:
    return re.search(rf"(?:^|[^a-z0-9]){re.escape(word.lower())}(?:[^a-z0-9]|$)", path.lower()) is not None


def _split_of(path: str) -> str | None:
    """Split that a path names, as in data/train-00000-of-00004.parquet; None if it names none."""
    return next((name for name, aliases in SPLIT_NAMES.items() if any(_has_word(path, alias) for alias in aliases)), None)


def _read_documents(path: Path, source: Source) -> Iterator[str]:
    """Documents of a downloaded file. Errors: DataError for a damaged file, or one without the requested column."""
    if source.column and path.name.endswith(".parquet"):
        _check_column(path, source)
    return read_documents(path, stats=ReadStats(), text_field=source.column or TEXT_COLUMN)


def _check_column(path: Path, source: Source) -> None:
    """Raise DataError if the column is missing: a requested column must not be replaced by a usual one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
    except pa.ArrowException as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})", f"rm '{path}'  and start the same command again") from error
    if source.column not in columns:
        message = f"{path.name} has no column {source.column!r}; it has {', '.join(columns)}"
        raise DataError(message, f"--dataset {source.repo}:{source.split}:{columns[0]}")
