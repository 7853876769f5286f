"""Which model a command works on, and the line that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from positron_mini.cli.flags import note
from positron_mini.cli.terminal import printable

if TYPE_CHECKING:
    from positron_mini.checkpoint import Checkpoint


def open_model(ckpt: str | None, *, talks: bool = False, is_terse: bool = False) -> Checkpoint:
    """The checkpoint that was named, else that of the newest finished run, a fine-tuned one where the command `talks`; then a note says
    which it is, with `is_terse` only where that may be another than a person expects. Errors: CheckpointError."""
    from positron_mini.runs import find_checkpoint, newest_checkpoint
    from positron_mini.store.choice import in_words, newest_base, outdated
    from positron_mini.store.run_state import look

    if ckpt is not None:
        return find_checkpoint(ckpt, say=note)
    checkpoint = newest_checkpoint(talks=talks, say=note)
    state = look(checkpoint.folder.resolve().parent)
    old = outdated(state, newest_base())
    if not is_terse or old or (state.horizon is not None and not state.is_finished):
        note(printable(f"model: {checkpoint.folder} ({in_words(state, checkpoint.step)})"))
    if old:
        note(printable(old))
    return checkpoint
