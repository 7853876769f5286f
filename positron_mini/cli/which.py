"""Which model a command works on, and the line that says so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from positron_mini.cli.flags import note

if TYPE_CHECKING:
    from positron_mini.model import GPT
    from positron_mini.store.checkpoint import Checkpoint

T = TypeVar("T")


def open_model(ckpt: str | None, read: Callable[[Checkpoint], T], *, talks: bool = False, is_terse: bool = False) -> T:
    """`read` of the checkpoint named, else of the newest finished run's, with a note which it is. `talks`: prefer a fine-tuned run;
    `is_terse`: a note only if the choice may surprise. Errors: CheckpointError.
    """
    from positron_mini.store.find import find_checkpoint, newest_checkpoint, read_found

    find = partial(newest_checkpoint, talks=talks) if ckpt is None else partial(find_checkpoint, ckpt)
    checkpoint, found = read_found(partial(find, say=note), lambda checkpoint: (checkpoint, read(checkpoint)))
    if ckpt is None:
        _say_which(checkpoint, is_terse=is_terse)
    return found


def with_model(checkpoint: Checkpoint) -> tuple[Checkpoint, GPT]:
    """A checkpoint and its model, for `open_model`."""
    from positron_mini.store.checkpoint import load_model

    return checkpoint, load_model(checkpoint)


def _say_which(checkpoint: Checkpoint, *, is_terse: bool) -> None:
    from positron_mini.store.choice import in_words, newest_base, outdated
    from positron_mini.store.run_state import look

    state = look(checkpoint.folder.resolve().parent)
    old = outdated(state, newest_base())
    if not is_terse or old or (state.horizon is not None and not state.is_finished):
        note(f"model: {checkpoint.folder} ({in_words(state, checkpoint.step)})")
    if old:
        note(old)
