"""Text from the Hugging Face hub: TinyStories, cleaned, whole or its beginning; and any data set named as owner/name:split:column.

    write_tinystories(Path("data/tinystories.txt"), first_bytes=50_000_000, say=print)
    for story in fetch_dataset("SimpleStories/SimpleStories:train:story", Path("data/hub"), say=print): ...

Downloads stay in a folder `hub` beside the text, and may be deleted; a `.json` beside the text records its origin.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from positron_mini.config.units import spell_bytes, spell_time
from positron_mini.errors import PositronError, Say, UsageError
from positron_mini.files import read_json, translate_os_errors, write_json
from positron_mini.text.corpus.clean import CleanStats, clean_stories
from positron_mini.text.corpus.dataset import TINYSTORIES, HubText, Source, fetch_dataset, resolve_source, write_dataset, write_documents
from positron_mini.text.corpus.download import fetch_file, plan
from positron_mini.text.corpus.files import SEPARATOR
from positron_mini.text.corpus.listing import HubError, HubUnreachableError, Patience, address_of, is_offline, list_files

__all__ = [
    "HubError",
    "HubText",
    "HubUnreachableError",
    "Patience",
    "Source",
    "fetch_dataset",
    "hub_reachable",
    "is_offline",
    "resolve_source",
    "write_dataset",
    "write_tinystories",
]

TRAIN_FILE, VALID_FILE = "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"
LICENCE = "CDLA-Sharing-1.0"
READ_BYTES = 1 << 22
CLEAN_BYTES_PER_S = 20e6  # on one core of a laptop


def hub_reachable(timeout_s: float = 8.0) -> bool:
    """Whether the hub answers within `timeout_s`; False under HF_HUB_OFFLINE. A login page of the network is not the hub."""
    try:
        list_files(TINYSTORIES, patience=Patience(attempts=1, connect_s=timeout_s))
    except HubError:
        return False
    return True


def write_tinystories(
    out: Path = Path("data/tinystories.txt"), *, first_bytes: int | None = None, say: Say, patience: Patience | None = None
) -> HubText:
    """Write the cleaned stories to `out`, validation stories beside it; with `first_bytes` those in that many bytes of the training file.

    A text that an earlier call finished for the same `first_bytes` is returned unchanged, without network.
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
    size = first_bytes if first_bytes is not None and is_beginning else train.stat().st_size
    say(f"cleaning {spell_bytes(size)} of stories, about {spell_time(size / CLEAN_BYTES_PER_S)}")
    seen: set[bytes] = set()
    valid_stats, stats = CleanStats(), CleanStats()
    valid_out = out.with_name(f"{out.stem}-valid{out.suffix}")
    valid_stories = list(clean_stories(_stories(valid), valid_stats, seen))
    _check_valid(valid_out, valid_stories, out.with_suffix(".json"))
    out.with_suffix(".json").unlink(missing_ok=True)
    write_documents(valid_out, valid_stories)
    write_documents(out, clean_stories(_stories(train, first_bytes if is_beginning else None), stats, seen))
    source = f"{TINYSTORIES}: {TRAIN_FILE}" + (f" (its first {first_bytes:,} bytes)" if is_beginning else "") + f", {VALID_FILE}"
    text = HubText(out, valid_out, source, revision, LICENCE, stats.kept, out.stat().st_size, stats, valid_stats)
    _record(text, first_bytes)
    say(f"{out}: {stats.sentence()}")
    say(f"{valid_out}: {valid_stats.sentence()}")
    return text


def _check_valid(path: Path, stories: list[str], note: Path) -> None:
    """Raise UsageError if the validation file, whose name follows from `out`, is the user's: no note records it, and its text differs."""
    if not os.path.lexists(path) or note.is_file():
        return
    if not path.is_file() or [story.strip() for story in _stories(path)] != [story.strip() for story in stories]:
        raise UsageError(f"{path}: this is not the validation text, and would be overwritten", "--text_out tinystories/tinystories.txt")


def _raw_tinystories(folder: Path, first_bytes: int | None, patience: Patience, say: Say) -> tuple[Path, Path, str, bool]:
    """Raw files (training, validation), their revision, and whether only the beginning of the training file is used."""
    addresses = " and ".join(address_of(TINYSTORIES, name) for name in (TRAIN_FILE, VALID_FILE))
    by_hand = f"download {addresses} in a browser, put both into {folder}, then start the same command again"
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
    """Texts between separators; of a beginning only those that end at a separator, so the last one is whole."""
    left = path.stat().st_size if first_bytes is None else first_bytes
    rest = b""
    with translate_os_errors(f"reading {path}"), open(path, "rb") as handle:
        while left > 0 and (chunk := handle.read(min(READ_BYTES, left))):
            left -= len(chunk)
            *whole, rest = (rest + chunk).split(SEPARATOR.encode())
            yield from (story.decode("utf-8", "replace") for story in whole)
    if first_bytes is None and rest.strip():
        yield rest.decode("utf-8", "replace")


def _record(text: HubText, first_bytes: int | None) -> None:
    """Write the note beside the text, last, so that its presence means a finished text."""
    fields = asdict(text) | {"text": text.text.name, "valid": text.valid.name if text.valid else None, "first_bytes": first_bytes}
    write_json(text.text.with_suffix(".json"), fields)


def _recorded(out: Path, first_bytes: int | None) -> HubText | None:
    """Finished text of an earlier call for the same bytes, or None."""
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
    except (PositronError, KeyError, TypeError, AttributeError):
        return None
