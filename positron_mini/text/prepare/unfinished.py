"""Folder of the cache with the finished parts of an unfinished preparation, so that the next start continues it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from positron_mini import files
from positron_mini.errors import PositronError
from positron_mini.text.corpus.memo import signature_of
from positron_mini.text.prepare.parts import Part, changed

_FORMAT = 1


@dataclass(frozen=True)
class Origin:
    """The user's text, and the separate validation text if there is one."""

    path: Path
    validation: Path | None
    signature: str  # changes when a file is added, removed, renamed or written

    @classmethod
    def of(cls, path: Path, validation: Path | None) -> Origin:
        """Origin of the texts as they are now. Errors: DataError for a missing one."""
        return cls(path, validation, signature_of(path, validation))

    def check_unchanged(self) -> None:
        """Raise DataError if a file has changed."""
        if signature_of(self.path, self.validation) != self.signature:
            raise changed(self.path)


def unfinished_folder(cache_dir: Path, origin: Origin, parts: list[Part]) -> Path:
    """Folder for the parts of this text, left by an earlier process or new. Folders of missing or changed texts are deleted.

    Call it only while holding the lock of the cache.
    """
    cut = hashlib.sha256("\n".join(part.to_json() for part in parts).encode()).hexdigest()
    about = {
        "format": _FORMAT,
        "text": str(origin.path.absolute()),
        "validation": str(origin.validation.absolute()) if origin.validation is not None else None,
        "signature": origin.signature,
        "parts": cut,
    }
    mine = Path(cache_dir) / f"unfinished-{origin.signature[:16]}"
    for folder in Path(cache_dir).glob("unfinished-*"):
        is_ours = re.fullmatch(r"unfinished-[0-9a-f]{16}", folder.name)
        if is_ours and not (_about(folder) == about if folder == mine else _is_of_use(folder)):
            shutil.rmtree(folder, ignore_errors=True)
    files.write_text(mine / "about.json", json.dumps(about) + "\n")  # in ASCII, which also represents paths that are not UTF-8
    return mine


def _about(folder: Path) -> object:
    try:
        return files.read_json(folder / "about.json")
    except PositronError:
        return None


def _is_of_use(folder: Path) -> bool:
    """Whether the text of an unfinished preparation is unchanged."""
    about = _about(folder)
    try:
        assert isinstance(about, dict)
        validation = Path(about["validation"]) if about["validation"] is not None else None
        return bool(signature_of(Path(about["text"]), validation) == about["signature"])
    except (AssertionError, KeyError, TypeError, PositronError, OSError):
        return False
