"""Notes beside texts that this program wrote: the origin and settings of each text."""

from __future__ import annotations

import itertools
import os
import shlex
from pathlib import Path
from typing import Any

from positron_mini.errors import PositronError, UsageError
from positron_mini.files import read_json


def same_text(out: Path) -> UsageError:
    """The error for a text that would be written over itself."""
    return UsageError(f"{out}: this is the text to be read, and would be overwritten", f"--text_out {quoted(out, '-copy.txt')}")


def check_free(out: Path, dataset: str) -> None:
    """Raise UsageError if something stands at `out` that is no text of ours, which has a note beside it: it is not replaced."""
    if not os.path.lexists(out):
        return
    if Path(dataset).exists() and out.resolve() == Path(dataset).resolve():
        raise same_text(out)
    if out.is_symlink() or not out.is_file() or not {"corpus", "source"} & _note(out).keys():
        free = next(name for number in itertools.count(2) if not os.path.lexists(name := f"{out.with_suffix('')}-{number}.txt"))
        raise UsageError(f"{out}: is there already, and would be overwritten", f"--text_out {shlex.quote(free)}")


def quoted(out: Path, ending: str) -> str:
    """The path with another ending, quoted for a shell."""
    return shlex.quote(str(out.with_suffix("")) + ending)


def note_path(out: Path) -> Path:
    """Path of the note on a text; it is written last. Errors: UsageError when the text has that name."""
    note = out.with_suffix(".json")
    if note == out:
        raise UsageError(f"{out}: this name is kept for the note on the text", f"--text_out {quoted(out, '.txt')}")
    return note


def check_note(out: Path) -> Path:
    """Path of the note on the text `out`. Errors: UsageError when a file of the user's has that name."""
    note = note_path(out)
    if os.path.lexists(note) and not {"corpus", "source"} & _note(out).keys():
        raise UsageError(f"{note}: this is not a note on a text, and would be overwritten", f"--text_out {out.with_suffix('')}-text.txt")
    return note


def is_there(out: Path, facts: dict[str, Any]) -> bool:
    """Whether the text with these facts is finished; if not, `out` may be written. Errors: UsageError for a file of the user's."""
    note, found = check_note(out), note_of(out)
    if out.is_file() and facts.items() <= found.items():
        return True
    note.unlink(missing_ok=True)
    return False


def generator_entropy(text: Path) -> float | None:
    """Entropy of the choices behind a story-world text in bits per byte, a lower bound for every model; None for any other text."""
    found = note_of(text)
    return found.get("entropy_bits_per_byte") if found.get("corpus") == "storyworld" else None


def note_of(text: Path) -> dict[str, Any]:
    """Content of the note on a text; empty if there is none, if a file of the user's has its name, or if the text's size has changed."""
    if not text.name or text.suffix == ".json":
        return {}
    found = _note(text)
    if text.is_file() and found.get("text_bytes", text.stat().st_size) != text.stat().st_size:
        return {}
    return found


def _note(text: Path) -> dict[str, Any]:
    """JSON object in the file with the name of the note; empty if there is none."""
    try:
        found = read_json(text.with_suffix(".json"))
    except PositronError:
        return {}
    return found if isinstance(found, dict) else {}
