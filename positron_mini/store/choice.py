"""Choice of a run for commands that name none: one rule for all commands, and the words that describe the run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from positron_mini.store.run_state import RunState, look, run_folders


def by_rule(states: Iterable[RunState], *, talks: bool) -> list[RunState]:
    """Sort the usable runs, the best choice first.

    Finished runs come before those that were stopped early or still train, fine-tuned ones before base ones if the command `talks`, then
    the one whose newest step was saved last. When a run was started does not matter.
    """
    usable = [state for state in states if state.steps and state.record is not None]
    return sorted(usable, key=lambda state: (not state.is_finished, talks and not state.is_chat, -state.active_s))


def runs(folder: str | Path = "runs") -> list[RunState]:
    """State of each run in `folder`: first by the rule for a command that talks, then those without a saved step and damaged ones, whose
    `damaged` gives the reason. Reads only small files.
    """
    states = sorted(map(look, run_folders(Path(folder))), key=lambda state: -state.active_s)
    usable = by_rule(states, talks=True)
    return [*usable, *(state for state in states if state not in usable)]


def newest_base(root: Path = Path("runs")) -> RunState | None:
    """Default base run for fine-tuning; None if there is none."""
    return next(iter(by_rule((state for state in map(look, run_folders(root)) if state.kind == "pretrain"), talks=False)), None)


def in_words(state: RunState, step: int | None = None) -> str:
    """`fine-tuned, step 30 of 30`: kind of the run's model at `step` (None: the newest), and its progress."""
    kind = "fine-tuned" if state.is_chat else "base"
    if step is not None and step != state.step:
        return f"{kind}, step {step:,}; the run is at {state.step:,}"
    return f"{kind}, {state.progress}{'' if state.is_finished or state.horizon is None else ', not finished'}"


def outdated(state: RunState, base: RunState | None) -> str:
    """Note on a fine-tuned run whose base is not `base`, the newest one; empty for others."""
    named = state.record.config.get("base_ckpt") if state.record is not None and state.is_chat else None
    if named is None or base is None or not base.is_finished:
        return ""
    own = look(Path(named).parent)
    if own.path.resolve() == base.path.resolve() or own.active_s > base.active_s:
        return ""
    return f"fine-tuned from {own.path}, which is older than {base.path}: positron quicksft teaches the newer one"
