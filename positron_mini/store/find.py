"""Find the checkpoint of a command: by its path, or by the one rule for all commands if none is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from positron_mini.errors import CheckpointError, PositronError, Say
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.choice import by_rule
from positron_mini.store.run_folder import POINTERS, TRIES, RunFolder
from positron_mini.store.run_record import RUN_JSON, RunRecord
from positron_mini.store.run_state import RunState, look, run_folders

if TYPE_CHECKING:
    from positron_mini.model import GPT

T = TypeVar("T")


def find_checkpoint(path: str | Path, *, say: Say = lambda _: None) -> ckpt.Checkpoint:
    """Find the checkpoint at a path: a step folder, a run folder, `runs/x/latest`, or the older spellings `latest.pt` / `step_1000.pt`.
    Errors: CheckpointError, listing the existing runs.
    """
    given = Path(path)
    if given.is_file() and given.name not in POINTERS:
        raise CheckpointError(
            f"{given}: a single file is not a checkpoint of this project; a checkpoint is a folder, and .pt files are never unpickled",
            _known_runs(),
        )
    target = _meant(given)
    if target.name in POINTERS:
        return _follow(target, say)
    if (target / ckpt.MANIFEST).is_file():
        return ckpt.open_checkpoint(target)
    if os.path.lexists(target / RUN_JSON) or RunFolder(target).steps():
        return _preferred(RunFolder(target), say)
    if target.is_dir():
        ckpt.read_manifest(target)
    raise CheckpointError(f"{given}: no checkpoint there", _known_runs())


def _meant(given: Path) -> Path:
    """The path without the suffix of older commands; a step under its folder's name."""
    target = given if given.exists() or given.is_symlink() else given.with_suffix("") if given.suffix in (".pt", ".pth") else given
    step = ckpt.step_number(target.name)
    return target.with_name(ckpt.step_name(step)) if step is not None and not target.exists() else target


def read_found(find: Callable[[], ckpt.Checkpoint], read: Callable[[ckpt.Checkpoint], T]) -> T:
    """Find a checkpoint and read it. If the training process deletes the step meanwhile, find again: that gives the newest. Errors: those
    of both; DroppedError for a step that was asked for by its own name.
    """
    gone = None
    for _ in range(TRIES):
        try:
            checkpoint = find()
        except CheckpointError as error:
            if gone is None:
                raise
            raise ckpt.dropped(gone) from error
        try:
            return read(checkpoint)
        except (PositronError, OSError):
            if checkpoint.folder.is_dir():
                raise
            gone = checkpoint.folder
    assert gone is not None
    raise ckpt.dropped(gone)


def find_model(path: str | Path, *, say: Say = lambda _: None) -> tuple[ckpt.Checkpoint, GPT]:
    """Find the checkpoint at a path and load its model. Errors: as `find_checkpoint`, DroppedError."""
    return read_found(lambda: find_checkpoint(path, say=say), lambda found: (found, ckpt.load_model(found)))


def _follow(pointer: Path, say: Say) -> ckpt.Checkpoint:
    """Open the checkpoint that `latest` or `best` names; the newest undamaged one if it names none.

    If a copy without links turned the pointer into a folder, `latest` still means the newest step beside it, and `best` the step it copies.
    """
    run = RunFolder(pointer.parent)
    is_copy = pointer.is_dir() and not pointer.is_symlink()
    if is_copy and pointer.name == "latest" and (found := run.newest(training=False, say=say)) is not None:
        return found
    name = run.points_to(pointer.name) or ""
    if ckpt.step_number(name) is not None:
        try:
            return ckpt.open_checkpoint(run.path / name)
        except PositronError as error:
            if run.points_to(pointer.name) != name:
                return _follow(pointer, say)  # the pointer was moved meanwhile
            say(f"warning: {error.message}; falling back to the newest complete step")
    elif (pointer / ckpt.MANIFEST).is_file():
        return ckpt.open_checkpoint(pointer)
    else:
        say(f"warning: {pointer} {'names no step' if name or pointer.exists() else 'is missing'}; taking the newest complete step")
    return _newest_of(run, say)


def _preferred(run: RunFolder, say: Say) -> ckpt.Checkpoint:
    """Checkpoint that a run's own name stands for: its newest step; if the held-out loss of a pretraining has turned, the one that `best`
    names, saying so. The best step of a fine-tuning has to be asked for.
    """
    best = run.points_to("best")
    if best is None or (run.path / best / "chat_template.jinja").is_file():
        return _newest_of(run, say)
    found, newest = _follow(run.path / "best", say), max(run.steps())
    if found.folder.name == best and found.step is not None and found.step < newest:
        say(f"{run.path}: taking step {found.step:,}, where the held-out loss is lowest (the newest is step {newest:,})")
    return found


def _newest_of(run: RunFolder, say: Say) -> ckpt.Checkpoint:
    found = run.newest(training=False, say=say)
    if found is None:
        raise CheckpointError(f"{run.path}: no complete checkpoint there", _known_runs())
    return found


def newest_checkpoint(root: Path = Path("runs"), *, talks: bool, say: Say = lambda _: None) -> ckpt.Checkpoint:
    """Find the checkpoint for a command that names none: of the newest finished run, a fine-tuned one if the command `talks`
    (`store.choice.by_rule`); of a fine-tuned run the best step. `say` is told of unusable runs. Errors: CheckpointError.
    """
    for state in usable_runs(root, talks=talks, say=say):
        best = state.path / "best"
        try:
            return find_checkpoint(best if best.exists() or best.is_symlink() else state.path, say=say)
        except PositronError as error:
            say(f"warning: {error.message}; passed over")
    raise CheckpointError(f"there is no trained model in {root}", "train one: ./bootstrap_tiny_llm.sh, then ./sft_quickstart.sh")


def usable_runs(root: Path = Path("runs"), *, talks: bool, say: Say = lambda _: None) -> list[RunState]:
    """Runs with a saved step, the best choice first. `say` is told of those whose record cannot be read."""
    states = [look(path) for path in list_runs(root)]
    for state in states:
        if state.record is None:
            say(f"warning: {state.damaged}; passed over")
    return by_rule(states, talks=talks)


def list_runs(root: Path = Path("runs")) -> list[Path]:
    """Run folders under `root`, newest first."""
    found = {path: _modified(path / RUN_JSON) for path in run_folders(root)}
    return sorted(found, key=lambda path: found[path], reverse=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # being deleted
        return 0.0


def readable_runs(root: Path = Path("runs"), *, say: Say = lambda _: None) -> Iterator[tuple[RunFolder, RunRecord]]:
    """Runs under `root` with their records, newest first. `say` is told of those whose record cannot be read."""
    for path in list_runs(root):
        run = RunFolder(path)
        try:
            recorded = run.read()
        except PositronError as error:
            say(f"warning: {error.message}; passed over")
        else:
            if recorded is not None:
                yield run, recorded


def _known_runs() -> str:
    runs = list_runs()
    return f"runs here: {', '.join(map(str, runs[:8]))}" if runs else "no runs here yet; train one with: positron train --dataset_path FILE"
