"""What lies beside an export and is not ours, or was edited since, is kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from positron_mini import files
from positron_mini.errors import Say
from positron_mini.own_files import read_small

MODELFILE_COMMENT, CARD_COMMENT = "# {}", "<!-- {} -->"
SEAL = "written by positron export; an edited file is kept: "
MAX_TEXT_BYTES = 1 << 20  # of a file that may be one of ours


def free_name(gguf_path: Path, name: str, say: Say) -> Path:
    """Where a file named `name` may be written beside the GGUF file: there, unless what has that name is somebody's or was edited."""
    place, number = gguf_path.with_name(name), 1
    with files.translate_os_errors(f"reading {place}"):
        while os.path.lexists(place) and not _is_untouched(place):
            other = place.with_name(f"{gguf_path.stem}{f'-{number}' if number > 1 else ''}.{name}")
            say(f"{place} is not as an export wrote it and stays; writing {other.name}")
            place, number = other, number + 1
    return place


def sealed(text: str, comment: str) -> str:
    """The text with a last line that says what it was when it was written, so that an edited one is told from it."""
    return text + comment.format(SEAL + hashlib.sha256(text.encode()).hexdigest()[:16]) + "\n"


def _is_untouched(path: Path) -> bool:
    """Whether a file stands as an export wrote it: its last line fits the lines before."""
    if not path.is_file() or path.stat().st_size > MAX_TEXT_BYTES:
        return False
    text, _, last = read_small(path, MAX_TEXT_BYTES).decode("utf-8", "replace").removesuffix("\n").rpartition("\n")
    return any(f"{text}\n{last}\n" == sealed(f"{text}\n", comment) for comment in (MODELFILE_COMMENT, CARD_COMMENT))


@contextlib.contextmanager
def undone_on_error(paths: Sequence[Path]) -> Iterator[None]:
    """A context that, on an error, removes the files of `paths` and folders that did not exist before. Existing files stay complete."""
    new = [path for path in paths if not path.exists()]
    parents = [parent for parent in paths[0].absolute().parents if not parent.exists()]  # innermost first
    try:
        yield
    except BaseException:
        for path in new:
            if not path.is_dir():
                path.unlink(missing_ok=True)
        for parent in parents:
            with contextlib.suppress(OSError):  # not made, or it holds somebody else's file
                parent.rmdir()
        raise
