"""Errors a person can act on: one sentence that says what is wrong, one hint that works when pasted, one exit code."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Callable
from typing import Any

Say = Callable[[str], None]  # takes one sentence for the person at the terminal


class PositronError(Exception):
    """An error that is shown as a sentence and a hint, never as a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # for tracebacks, in which Python programs see it


class UsageError(PositronError):
    """A flag, or a combination of flags, that cannot mean anything."""

    exit_code = 2


class DataError(PositronError):
    """A text, a folder of texts or a token file that cannot be used."""


class TokenizerError(PositronError):
    """A tokenizer that cannot be trained, read, or that does not belong to the model."""


class CheckpointError(PositronError):
    """A checkpoint that is missing, damaged, or of another model."""


class NotFiniteOutput(CheckpointError):
    """A model whose weights are finite but so large that its logits are not: they give no probabilities."""


class DroppedError(CheckpointError):
    """A checkpoint that was deleted while it was being read: the training process keeps only the newest ones."""


class RunError(PositronError):
    """A run folder that cannot be used for what was asked: it holds another run, or another process writes it."""


class NonFiniteError(PositronError):
    """Training met a loss, gradient or weight that is not a finite number; nothing was updated or saved. `evidence` is for events.jsonl."""

    exit_code = 3

    def __init__(self, message: str, hint: str = "", *, evidence: dict[str, Any] | None = None) -> None:
        super().__init__(message, hint)
        self.evidence = evidence or {}


class DiskFullError(PositronError):
    """The disk, the quota or the file size limit is exhausted; what was written before is intact."""

    exit_code = 4


class OutOfMemoryError(PositronError):
    """The device has no memory left for the step."""

    exit_code = 5


class Interrupted(PositronError):
    """A signal stopped the work after a clean checkpoint. `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, hint: str = "", *, signal_number: int) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number


FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def from_os_error(error: OSError, doing: str) -> PositronError:
    """Convert an operating-system error, met while `doing` something such as "writing runs/a/run.json", into a PositronError."""
    if error.errno in FULL_DISK:
        return DiskFullError(
            f"no space left while {doing} ({error.strerror})", "free some space or choose another folder, then start the same command again"
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return PositronError(f"not allowed while {doing} ({error.strerror})", "choose a folder that you may write to")
    return PositronError(f"failed while {doing}: {error.strerror or error}", "check the path and start the same command again")


def command(*words: object) -> str:
    """A shell line `positron WORDS`, each word quoted where a shell would change it: spaces, $(...), quotes."""
    return shlex.join(["positron", *map(str, words)])
