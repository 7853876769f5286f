"""`positron runs`: the runs there are, how far they came, how large they are, what they are doing; `runs prune`: what can go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.terminal import printable
from positron_mini.config import check_ranges
from positron_mini.errors import RunError


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
    from positron_mini.runs import list_runs

    rows = [summary(path) for path in list_runs(Path(flags.root))]
    if flags.json:
        print_json({"runs": [{name: value for name, value in row.items() if name != "progress"} for row in rows]})
        return 0
    if not rows:
        print(f"no runs under {flags.root}; start one with: positron train --dataset_path FILE")
    for row in rows:
        if row["damaged"]:
            print(printable(f"{row['run']:<40} {row['state']:<22} step {row['step']:,}  {row['damaged']}"))
            continue
        score = f"{row['val_bpb']:.3f} bits per byte" if row["val_bpb"] is not None else "not validated yet"
        minutes, size = f"{row['minutes']} min", f"{row['bytes'] / 1e6:,.0f} MB"
        print(printable(f"{row['run']:<40} {row['state']:<22} {row['progress'].replace(' of ', '/')}  {score}  {minutes}  {size}"))
    return 0


def summary(path: Path) -> dict[str, Any]:
    """State, steps, horizon, last loss and validation, minutes and size of a run; a damaged one says so in its state, and why."""
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


def size_of(path: Path) -> int:
    """Bytes of a file, or of everything below a folder; links count nothing."""
    entries = [path] if path.is_file() else path.rglob("*")
    return sum(entry.stat().st_size for entry in entries if entry.is_file() and not entry.is_symlink())


def prune(flags: PruneFlags) -> int:
    """Show what can go, and with --yes remove it; 0 when done."""
    from positron_mini.runs import RunFolder, list_runs

    runs = [RunFolder(path) for path in ([Path(flags.run)] if flags.run else list_runs(Path(flags.root)))]
    found = []
    for run in runs:
        if run.read() is None:
            raise RunError(f"{run.path}: no run there", "positron runs lists the runs there are")
        pid = run.writer()
        if pid is not None:
            note(f"{run.path}: process {pid} is training in this folder; left alone")
            continue
        found += [(run, path, why, size_of(path)) for path, why in removable(run, flags.keep)]
    if flags.yes:
        for run, path, _, _ in found:
            with run.writing():
                doomed = run.path / f".tmp-old-{path.name}"
                if path.exists():  # leftovers have gone by now
                    os.replace(path, doomed)  # out of sight first: a half-removed step is never seen
                    shutil.rmtree(doomed, ignore_errors=True)
    total = sum(size for *_, size in found)
    if flags.json:
        rows = [{"path": str(path), "why": why, "bytes": size} for _, path, why, size in found]
        print_json({"removed": flags.yes, "bytes": total, "entries": rows})
        return 0
    for _, path, why, size in found:
        print(f"{size / 1e6:>9,.1f} MB  {path}  ({why})")
    if not found:
        print("nothing to remove" + ("" if flags.keep else "; --keep 2 would remove all but the two newest steps of each run"))
    else:
        print(f"{total / 1e6:>9,.1f} MB " + ("removed" if flags.yes else "in all; nothing is removed yet, add --yes to remove it"))
    return 0


def removable(run: Any, keep: int | None) -> list[tuple[Path, str]]:
    """What the run can do without, and why: leftovers and superseded steps, and with `keep` its older steps.

    What stays: the newest `keep` steps, those that `latest` and `best` name, the one before the cool-down, and the newest undamaged one.
    """
    from positron_mini import checkpoint as ckpt

    found = [(path, "left by a process that was killed") for path in sorted(run.path.glob(".tmp-*"))]
    found += [(path, "superseded") for path in sorted((run.path / "superseded").glob("*"))]
    if keep is None:
        return found
    right = run.newest(training=True, say=lambda _: None) or run.newest(training=False, say=lambda _: None)
    if right is None:
        note(f"{run.path}: every step is damaged; all are left alone (positron verify {run.path})")
        return found
    named = {run.points_to("latest"), run.points_to("best"), right.folder.name}
    kept = {*run.steps()[-keep:], recorded.schedule_at().cooldown_start if (recorded := run.read()) and recorded.schedules else None}
    old = [step for step in run.steps() if step not in kept and ckpt.step_name(step) not in named]
    return found + [(run.folder(step), "older step") for step in old]
