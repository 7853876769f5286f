"""`positron runs`: list the runs with progress, size and state; `runs prune`: remove what is no longer needed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron_mini import files
from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.spelling import here
from positron_mini.cli.terminal import print
from positron_mini.config import check_ranges
from positron_mini.errors import PositronError, RunError, command
from positron_mini.own_files import foreign, is_nobodys, size_of

if TYPE_CHECKING:
    from positron_mini.store.run_folder import RunFolder


@dataclass(frozen=True)
class RunsFlags:
    """List the runs under a folder, newest first. `positron runs prune -h` tells how to free space."""

    root: str = "runs"
    """folder that holds run folders"""
    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class PruneFlags:
    """Show what can be removed from runs, and with --yes remove it: superseded steps, leftovers, and with --keep old steps.

    The newest undamaged step, and those that `latest` and `best` name, always stay.
    """

    run: str | None = None
    """only this run folder (default: all under --root)"""
    root: str = "runs"
    """folder that holds run folders"""
    keep: int | None = None
    """keep only this many of the newest steps; milestones go too (default: all steps stay)"""
    yes: bool = False
    """remove; without it nothing is changed"""
    json: bool = False
    """print one JSON object"""

    def __post_init__(self) -> None:
        check_ranges(self, {"keep": 1})


def run(argv: Sequence[str]) -> int:
    """List, or prune; 0 when done."""
    words = list(argv)
    if words[:1] == ["prune"]:
        return prune(parse(PruneFlags, words[1:], "runs prune"))
    flags = parse(RunsFlags, words, "runs")
    from positron_mini.store.find import list_runs

    rows = [summary(path) for path in list_runs(Path(flags.root))]
    if flags.json:
        print_json({"runs": [{name: value for name, value in row.items() if name != "progress"} for row in rows]})
        return 0
    if not rows:
        print(here(f"no runs under {flags.root}; start one with: positron train --dataset_path FILE"))
    for row in rows:
        if row["damaged"]:
            print(f"{row['run']:<40} {row['state']:<22} step {row['step']:,}  {row['damaged']}")
            continue
        score = f"{row['val_bpb']:.3f} bits per byte" if row["val_bpb"] is not None else "not validated yet"
        minutes, size = f"{row['minutes']} min", f"{row['bytes'] / 1e6:,.0f} MB"
        print(f"{row['run']:<40} {row['state']:<22} {row['progress'].replace(' of ', '/')}  {score}  {minutes}  {size}")
    return 0


def summary(path: Path) -> dict[str, Any]:
    """State, steps, horizon, last loss and validation, minutes and size of a run; for a damaged one also why."""
    from positron_mini.store.run_state import look

    found = look(path)
    if found.damaged:
        state = "damaged record"
    elif found.writer is not None:
        state = f"training, process {found.writer}"
    elif found.is_finished:
        state = "finished"
    else:
        state = "paused" if found.step else "not begun"
    return {
        "kind": found.kind,
        "state": state,
        "step": found.step,
        "horizon": found.horizon,
        "loss": found.end.loss,
        "val_bpb": found.end.val_bpb,
        "minutes": round(found.end.elapsed_s / 60, 1),
        "bytes": size_of(path),
        "run": str(path),
        "trained": found.trained,
        "damaged": found.damaged,
        "progress": found.progress,
    }


def prune(flags: PruneFlags) -> int:
    """Show what can be removed, and with --yes remove it; 0 when done."""
    from positron_mini.store.find import list_runs
    from positron_mini.store.run_folder import RunFolder
    from positron_mini.store.writer import held

    found: list[Removable] = []
    for run in [RunFolder(path) for path in ([Path(flags.run)] if flags.run else list_runs(Path(flags.root)))]:
        try:
            recorded = run.read()
        except PositronError as error:  # the others can be pruned as ever
            if flags.run:
                raise
            note(f"{error.message}; left alone")
            continue
        if recorded is None:
            raise RunError(f"{run.path}: no run there", "positron runs lists the runs there are")
        pid = run.writer()
        if pid is not None:
            note(f"{run.path}: process {pid} is training in this folder; left alone")
            continue
        with held(run.path) if flags.yes else contextlib.nullcontext():  # so that exactly what is shown is removed
            there = removable(run, flags.keep)
            if flags.yes:
                for each in there:
                    each.remove()
        found += there
    show(flags, found)
    return 0


def show(flags: PruneFlags, found: Sequence[Removable]) -> None:
    """Print what can be removed, or was removed."""
    total = sum(each.bytes for each in found)
    if flags.json:
        rows = [{"path": str(each.shown), "why": each.why, "bytes": each.bytes} for each in found]
        print_json({"removed": flags.yes, "bytes": total, "entries": rows})
        return
    for each in found:
        print(f"{each.bytes / 1e6:>9,.1f} MB  {each.shown}  ({each.why})")
    if not found:
        print("nothing to remove" + ("" if flags.keep else "; --keep 2 would remove all but the two newest steps of each run"))
    else:
        print(f"{total / 1e6:>9,.1f} MB " + ("removed" if flags.yes else "in all; nothing is removed yet, add --yes to remove it"))


@dataclass(frozen=True)
class Removable:
    """A file or folder of a run that can be removed. `shown`: its real path if a link leads there."""

    path: Path
    why: str
    shown: Path
    bytes: int

    @classmethod
    def of(cls, path: Path, why: str) -> Removable:
        """The entry at `path`; a link counts as itself."""
        real = path.parent.resolve() / path.name
        return cls(path, why, path if real == Path.cwd().resolve() / path else real, size_of(path))

    def remove(self) -> None:
        """Rename it to a hidden name, then remove it."""
        if self.path.is_dir() and not self.path.is_symlink() and not self.path.name.startswith(".tmp-"):
            files.discard(self.path)
        else:
            files.remove_entry(self.path)


def removable(run: RunFolder, keep: int | None) -> list[Removable]:
    """What can be removed from the run: leftovers and superseded steps, and with `keep` its older steps.

    A folder with a file that this program did not make stays, and is named.
    """
    from positron_mini.store.checkpoint import FILES

    found = [Removable.of(path, "left by a process that was killed") for path in run.leftovers()]
    others = [(path, "superseded", foreign(path, is_superseded)) for path in superseded(run)]
    older = [] if keep is None else [run.folder(step) for step in old_steps(run, keep)]
    others += [(path, "older step", foreign(path, FILES.__contains__)) for path in older]
    for path, why, strangers in others:
        if strangers:
            note(f"{path} stays: {strangers[0]} in it was not made by this program")
        else:
            found.append(Removable.of(path, why))
    return found


def superseded(run: RunFolder) -> list[Path]:
    """The folders in superseded/ that hold moved steps. Anything else there stays and is named; links are not followed."""
    folder = run.path / "superseded"
    if folder.is_symlink():
        note(f"{folder} is a link, which was not made by this program; left alone")
        return []
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    ours = [path for path in entries if re.fullmatch("[0-9]{3,4}", path.name) and path.is_dir() and not path.is_symlink()]
    for path in entries:
        if path not in ours and not is_nobodys(path.name):
            note(f"{path} was not made by this program; left alone")
    return ours


def is_superseded(name: str) -> bool:
    """Whether this program uses the name below superseded/NNN: for log lines, files of steps, and old pointers."""
    from positron_mini.store import checkpoint as ckpt
    from positron_mini.store.run_folder import POINTERS
    from positron_mini.store.run_logs import LOGS

    folder, _, rest = name.partition("/")
    return name in LOGS or (rest in ckpt.FILES and (folder in POINTERS or ckpt.step_number(folder) is not None))


def old_steps(run: RunFolder, keep: int) -> list[int]:
    """All steps except the newest `keep`, those of `latest` and `best`, the last before the cool-down, and the newest undamaged."""
    from positron_mini.store import checkpoint as ckpt

    right = run.newest(training=True, say=lambda _: None) or run.newest(training=False, say=lambda _: None)
    if right is None:
        note(f"{run.path}: every step is damaged; all are left alone ({command('verify', run.path)})")
        return []
    named = {run.points_to("latest"), run.points_to("best"), right.folder.name}
    kept = {*run.steps()[-keep:], recorded.schedule_at().cooldown_start if (recorded := run.read()) and recorded.schedules else None}
    return [step for step in run.steps() if step not in kept and ckpt.step_name(step) not in named]
