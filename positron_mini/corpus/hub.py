"""Text from the Hugging Face hub: TinyStories, cleaned, whole or its beginning; and any data set named as owner/name:split:column.

    write_tinystories(Path("data/tinystories.txt"), first_bytes=50_000_000, say=print)
    for story in fetch_dataset("SimpleStories/SimpleStories:train:story", Path("data/hub"), say=print): ...

What was downloaded lies in a folder `hub` beside the text, and may be deleted; a `.json` beside the text says where it came from.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from positron_mini.corpus.clean import SEPARATOR, CleanStats, clean_stories
from positron_mini.corpus.download import Say, fetch_file, human_bytes, plan
from positron_mini.corpus.listing import (
    HubError,
    HubFile,
    HubUnreachableError,
    Listing,
    Patience,
    address_of,
    is_offline,
    list_files,
    page_of,
)
from positron_mini.errors import DataError, UsageError
from positron_mini.files import read_json, stream_file, translate_os_errors, write_json

__all__ = [
    "HubError",
    "HubText",
    "HubUnreachableError",
    "Patience",
    "Source",
    "fetch_dataset",
    "fetch_tinystories",
    "hub_reachable",
    "is_offline",
    "resolve_source",
    "write_dataset",
    "write_tinystories",
]

TINYSTORIES = "roneneldan/TinyStories"
TRAIN_FILE, VALID_FILE = "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"
LICENCE = "CDLA-Sharing-1.0"
CLEAN = "karpathy/tinystories-gpt4-clean"
CLEAN_ROWS: dict[str, tuple[int, int | None]] = {"test": (0, 10_000), "validation": (10_000, 20_000), "train": (20_000, None)}

SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev", "eval"), "test": ("test", "testing")}
TEXT_COLUMNS = ("text", "story", "content")
DATA_ENDINGS = ((".parquet",), (".jsonl", ".jsonl.gz", ".txt", ".txt.gz"))
NOT_DATA = re.compile(r"(^|/)(\.|readme|licen[cs]e|requirements|notice|changelog)", re.IGNORECASE)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SEPARATOR_LINE = re.compile(r"^[ \t]*<\|endoftext\|>[ \t]*(?:\n|$)", re.MULTILINE)
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class HubText:
    """A text written from the hub: where it lies, what it is and what was done to it."""

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
    """What a `--dataset` value means: a local path, TinyStories as published, or a hub data set with split, column and rows."""

    kind: Literal["path", "tinystories", "dataset"]
    path: Path | None = None
    repo: str = ""
    split: str = "train"
    column: str = ""
    rows: tuple[int, int | None] | None = None


def resolve_source(spec: str) -> Source:
    """What `spec` names. An existing path always wins; then tinystories, tinystories-clean[:split], owner/name[:split[:column]].

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
        raise UsageError(f"--dataset {spec!r} is no known data set and no path", "--dataset tinystories  (or owner/name:split:column, or a path)")
    if Path(name.split("/")[0]).is_dir() and not rest:
        raise DataError(f"{spec}: no such file or folder", f"for the hub's data set of this name: --dataset {spec}:train")
    return Source("dataset", repo=name, split=split or "train", column=column)


def _clean_source(split: str, column: str) -> Source:
    for name, aliases in SPLIT_NAMES.items():
        if split in aliases:
            return Source("dataset", repo=CLEAN, split=name, column=column, rows=CLEAN_ROWS[name])
    raise UsageError(f"{CLEAN} has no split {split!r}", f"use one of {', '.join(CLEAN_ROWS)}, as tinystories-clean:train")


def hub_reachable(timeout_s: float = 8.0) -> bool:
    """Whether the hub answers as a hub within `timeout_s`; False under HF_HUB_OFFLINE. The login page of a network is no hub."""
    try:
        list_files(TINYSTORIES, patience=Patience(attempts=1, connect_s=timeout_s))
    except HubError:
        return False
    return True


def fetch_tinystories(folder: Path, *, first_bytes: int | None = None, say: Say, patience: Patience | None = None) -> HubText:
    """TinyStories, cleaned, as `folder`/tinystories.txt and tinystories-valid.txt. See `write_tinystories`."""
    return write_tinystories(folder / "tinystories.txt", first_bytes=first_bytes, say=say, patience=patience)


def write_tinystories(
    out: Path = Path("data/tinystories.txt"), *, first_bytes: int | None = None, say: Say, patience: Patience | None = None
) -> HubText:
    """The cleaned stories as `out`, the validation stories beside it; with `first_bytes` only the stories in that many bytes of the training file.

    A text that an earlier call finished for the same `first_bytes` is returned as it is, without network.
    Errors: HubUnreachableError (its hint is the manual way), HubError, DiskFullError.
    """
    if first_bytes is not None and first_bytes < 1:
        raise UsageError(f"{first_bytes} bytes of the training file were asked for", "ask for at least 1,000,000")
    done = _recorded(out, first_bytes)
    if done is not None:
        say(f"{out} is already there: {done.documents:,} stories")
        return done
    say(f"TinyStories ({TINYSTORIES}, Eldan and Li 2023), licence {LICENCE}")
    train, valid, revision, is_beginning = _raw_tinystories(out.parent / "hub", first_bytes, patience or Patience(), say)
    out.with_suffix(".json").unlink(missing_ok=True)
    seen: set[bytes] = set()
    valid_stats, stats = CleanStats(), CleanStats()
    valid_out = out.with_name(f"{out.stem}-valid{out.suffix}")
    _write_documents(valid_out, clean_stories(_stories(valid), valid_stats, seen))
    _write_documents(out, clean_stories(_stories(train, first_bytes if is_beginning else None), stats, seen))
    source = f"{TINYSTORIES}: {TRAIN_FILE}" + (f" (its first {first_bytes:,} bytes)" if is_beginning else "") + f", {VALID_FILE}"
    text = HubText(out, valid_out, source, revision, LICENCE, stats.kept, out.stat().st_size, stats, valid_stats)
    _record(text, first_bytes)
    say(f"{out}: {stats.sentence()}")
    say(f"{valid_out}: {valid_stats.sentence()}")
    return text


def _raw_tinystories(folder: Path, first_bytes: int | None, patience: Patience, say: Say) -> tuple[Path, Path, str, bool]:
    """The raw files (training, validation), their revision, and whether only the beginning of the training file is meant."""
    addresses = " and ".join(address_of(TINYSTORIES, name) for name in (TRAIN_FILE, VALID_FILE))
    by_hand = f"download {addresses} in a browser, put both into {folder}{'/'}, then start the same command again"
    try:
        listing = list_files(TINYSTORIES, patience=patience, hint=by_hand)
    except HubUnreachableError as error:
        train, valid = folder / TRAIN_FILE, folder / VALID_FILE
        if not (train.is_file() and valid.is_file()):
            raise
        say(f"{error.message}; using the files in {folder} without asking the hub for their checksums")
        return train, valid, "unknown", first_bytes is not None and first_bytes < train.stat().st_size
    train_entry, valid_entry = listing.file(TRAIN_FILE), listing.file(VALID_FILE)
    wanted = train_entry.size if first_bytes is None else min(first_bytes, train_entry.size)
    plan([(train_entry, wanted), (valid_entry, valid_entry.size)], folder, extra_bytes=wanted + valid_entry.size, say=say)
    valid = fetch_file(listing, valid_entry, folder, patience=patience, say=say)
    train = fetch_file(listing, train_entry, folder, first_bytes=wanted, patience=patience, say=say)
    return train, valid, listing.commit, wanted < train_entry.size


def _stories(path: Path, first_bytes: int | None = None) -> Iterator[str]:
    """The texts between separators; of a beginning only those whose separator lies within it, so the last one is whole."""
    left = path.stat().st_size if first_bytes is None else first_bytes
    rest = b""
    with translate_os_errors(f"reading {path}"), open(path, "rb") as handle:
        while left > 0 and (chunk := handle.read(min(READ_BYTES, left))):
            left -= len(chunk)
            *whole, rest = (rest + chunk).split(SEPARATOR.encode())
            yield from (story.decode("utf-8", "replace") for story in whole)
    if first_bytes is None and rest.strip():
        yield rest.decode("utf-8", "replace")


def _write_documents(out: Path, documents: Iterable[str]) -> int:
    """The number of documents written to `out`, each followed by a separator line. Errors: DataError when there is none."""
    count = 0

    def fill(handle: Any) -> None:
        nonlocal count
        for document in documents:
            handle.write(f"{document}\n{SEPARATOR}\n".encode("utf-8", "replace"))
            count += 1
        if not count:
            raise DataError(f"nothing to write to {out}: no usable document in what was read", "ask for more of it, or another split or column")

    stream_file(out, fill)
    return count


def _record(text: HubText, first_bytes: int | None) -> None:
    """Write what the text is beside it, last, so that its presence means a finished text."""
    fields = asdict(text) | {"text": text.text.name, "valid": text.valid.name if text.valid else None, "first_bytes": first_bytes}
    write_json(text.text.with_suffix(".json"), fields)


def _recorded(out: Path, first_bytes: int | None) -> HubText | None:
    """The finished text of an earlier call for the same bytes, or None."""
    path = out.with_suffix(".json")
    if not (path.is_file() and out.is_file()):
        return None
    try:
        fields = read_json(path)
        valid = out.with_name(fields.pop("valid"))
        if fields.pop("first_bytes") != first_bytes or fields["text_bytes"] != out.stat().st_size or not valid.is_file():
            return None
        stats, valid_stats = CleanStats(**fields.pop("stats")), CleanStats(**fields.pop("valid_stats"))
        return HubText(**fields | {"text": out, "valid": valid, "stats": stats, "valid_stats": valid_stats})
    except (DataError, KeyError, TypeError, AttributeError):
        return None


def fetch_dataset(
    spec: str | Source, folder: Path, *, max_documents: int | None = None, say: Say, patience: Patience | None = None
) -> Iterator[str]:
    """The documents of a hub data set `owner/name:split:column`, in order; files are fetched into `folder` when their turn comes.

    Parquet files of the repository first, then .jsonl and .txt (also .gz), then the hub's own Parquet conversion.
    """
    source = resolve_source(spec) if isinstance(spec, str) else spec
    if source.kind != "dataset":
        raise UsageError(f"{spec} is no hub data set", "name one as owner/name:split:column")
    patience = patience or Patience()
    listing, entries = _data_files(source, patience)
    return _rows(source, _fetched_documents(listing, entries, source, folder, patience, say), max_documents)


def _rows(source: Source, documents: Iterator[str], max_documents: int | None) -> Iterator[str]:
    start, stop = source.rows or (0, None)
    if max_documents is not None:
        stop = start + max_documents if stop is None else min(stop, start + max_documents)
    return itertools.islice(documents, start, stop)


def _fetched_documents(
    listing: Listing, entries: list[HubFile], source: Source, folder: Path, patience: Patience, say: Say
) -> Iterator[str]:
    place = folder / source.repo.replace("/", "--")
    say(f"{source.repo} ({source.split}), licence {listing.licence}: {len(entries)} files, {human_bytes(sum(e.size for e in entries))}")
    for entry in entries:
        plan([(entry, entry.size)], place, extra_bytes=entry.size, say=say)
        yield from _read_documents(fetch_file(listing, entry, place, patience=patience, say=say), source)


def write_dataset(
    spec: str | Source, out: Path, *, max_documents: int | None = None, say: Say, patience: Patience | None = None
) -> HubText:
    """A hub data set as one text file, documents separated by `<|endoftext|>` lines; the downloads lie in the folder `hub` beside it."""
    source = resolve_source(spec) if isinstance(spec, str) else spec
    count = _write_documents(out, fetch_dataset(source, out.parent / "hub", max_documents=max_documents, say=say, patience=patience))
    say(f"{out}: {count:,} documents")
    name = f"{source.repo}:{source.split}" + (f":{source.column}" if source.column else "")
    return HubText(out, None, name, "main", "see " + page_of(source.repo), count, out.stat().st_size)


def _data_files(source: Source, patience: Patience) -> tuple[Listing, list[HubFile]]:
    """The listing and those of its files that hold the split. Errors: HubError naming the splits or parts there are."""
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
        message = f"{source.repo} has no Parquet, .jsonl or .txt files, and the hub has converted none"
        raise HubError(message, f"see what it has: {page_of(source.repo)}") from error
    return listing if not converted.files else converted, files_of_split([e for e in converted.files if e.name.endswith(".parquet")], source)


def files_of_split(files: list[HubFile], source: Source) -> list[HubFile]:
    """The files whose path names the split, in order; all files, when no path names any split and "train" or rows are asked for.

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
    """The split that a path names, as in data/train-00000-of-00004.parquet; None where it names none."""
    return next((name for name, aliases in SPLIT_NAMES.items() if any(_has_word(path, alias) for alias in aliases)), None)


def _read_documents(path: Path, source: Source) -> Iterator[str]:
    """The documents of a Parquet, .jsonl or .txt file (also .gz), stripped, empty ones left out. Errors: DataError naming the columns."""
    if path.name.lower().endswith(".parquet"):
        values = _parquet_values(path, source.column)
    elif ".jsonl" in path.name.lower():
        values = _jsonl_values(path, source.column)
    else:
        values = _text_values(path)
    for value in values:
        for document in _SEPARATOR_LINE.split(value):
            if stripped := document.strip("\n"):
                yield stripped


def _column_of(path: Path, wanted: str, columns: list[str]) -> str:
    """The column to read: the one asked for, or text, story, content, or the only one there is."""
    candidates = [wanted] if wanted else [*TEXT_COLUMNS, *(columns if len(columns) == 1 else [])]
    for name in candidates:
        if name in columns:
            return name
    asked = f"column {wanted!r}" if wanted else "text column that could be guessed"
    raise DataError(f"{path.name} has no {asked}; its text columns: {', '.join(columns) or 'none'}", "name one, as owner/name:train:COLUMN")


def _parquet_values(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            types = (pa.types.is_string, pa.types.is_large_string)
            name = _column_of(path, column, [field.name for field in table.schema_arrow if any(test(field.type) for test in types)])
            for batch in table.iter_batches(columns=[name]):
                yield from (value for value in batch.column(0).to_pylist() if value is not None)
    except pa.ArrowException as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})", f"rm {path}  and start the same command again") from error


def _lines(path: Path) -> Iterator[str]:
    with translate_os_errors(f"reading {path}"):
        opened = gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")  # noqa: SIM115 (closed below)
        with opened as handle:
            for line in handle:
                yield line.decode("utf-8", "replace").replace("\r\n", "\n")


def _jsonl_values(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})", "name another file or data set") from error
        columns = [name for name, value in row.items() if isinstance(value, str)] if isinstance(row, dict) else []
        yield row[_column_of(path, column, columns)]


def _text_values(path: Path) -> Iterator[str]:
    """Documents between separator lines, or, in a file without any, between blank lines."""
    has_separator = any(line.strip() == SEPARATOR for line in itertools.islice(_lines(path), 100_000))
    held: list[str] = []
    for line in _lines(path):
        if line.strip() == SEPARATOR or (not has_separator and not line.strip()):
            yield "".join(held)
            held = []
        else:
            held.append(line)
    yield "".join(held)
