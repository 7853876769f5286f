"""The note beside a text that this program wrote: what the text is, and by which settings it was made."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from positron_mini.errors import PositronError, UsageError
from positron_mini.files import read_json


def quoted(out: Path, ending: str) -> str:
    """The path with another ending, as a shell reads it."""
    return shlex.quote(str(out.with_suffix("")) + ending)


def note_path(out: Path) -> Path:
    """The file beside a text that says what it is; it is written last. Errors: UsageError when the text has that name."""
    note = out.with_suffix(".json")
    if note == out:
        raise UsageError(f"{out}: this name is kept for the note on the text", f"--text_out {quoted(out, '.txt')}")
    return note


def check_note(out: Path) -> Path:
    """The place of the note on the text `out`. Errors: UsageError when a file of the user's stands there."""
    note = note_path(out)
    if os.path.lexists(note) and not {"corpus", "source"} & _note(out).keys():
        raise UsageError(f"{note}: this is not a note on a text, and would be overwritten", f"--text_out {out.with_suffix('')}-text.txt")
    return note


def is_there(out: Path, facts: dict[str, Any]) -> bool:
    """Whether the text with these facts lies there finished; if not, `out` may be written. Errors: UsageError for a file of the user's."""
    note, found = check_note(out), note_of(out)
    if out.is_file() and facts.items() <= found.items():
        return True
    note.unlink(missing_ok=True)
    return False


def generator_entropy(text: Path) -> float | None:
    """Bits per byte of the choices that made a story-world text, which no model can be below; None for any other text."""
    found = note_of(text)
    return found.get("entropy_bits_per_byte") if found.get("corpus") == "storyworld" else None


def note_of(text: Path) -> dict[str, Any]:
    """What `positron prepare` noted beside a text it wrote; empty where there is none, where a file of the user's has its name, or where
    the text has another size by now."""
    if not text.name or text.suffix == ".json":
        return {}
    found = _note(text)
    if text.is_file() and found.get("text_bytes", text.stat().st_size) != text.stat().st_size:
        return {}
    return found


def _note(text: Path) -> dict[str, Any]:
    """The object in the file that has the name of the note on a text; empty where there is none."""
    try:
        found = read_json(text.with_suffix(".json"))
    except PositronError:
        return {}
    return found if isinstance(found, dict) else {}
