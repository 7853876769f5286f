"""`positron runs`: the runs there are, how far they came, how large they are, what they are doing; `runs prune`: what can go."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron_mini.cli.flags import note, parse
from positron_mini.cli.terminal import print
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
        print(json.dumps({"runs": rows}))
        return 0
    if not rows:
        print(f"no runs under {flags.root}; start one with: positron train --dataset_path FILE")
    for row in rows:
        goal = f"/{row['horizon']:,}" if row["horizon"] else ""
        score = f"{row['val_bpb']:.3f} bits per byte" if row["val_bpb"] is not None else "not validated yet"
        minutes, size = f"{row['minutes']} min", f"{row['bytes'] / 1e6:,.0f} MB"
        print(f"{row['run']:<40} {row['state']:<22} step {row['step']:,}{goal}  {score}  {minutes}  {size}")
    return 0


def summary(path: Path) -> dict[str, Any]:
    """State, step, horizon, last loss and validation, minutes and size of a run; a damaged one says so in its state."""
    from positron_mini.errors import PositronError
    from positron_mini.plan import recorded_schedule
    from positron_mini.runs import RunFolder

    run, row = RunFolder(path), dict.fromkeys(("kind", "state", "step", "horizon", "loss", "val_bpb", "minutes", "bytes"))
    row |= {"run": str(path), "step": max(run.steps(), default=0), "minutes": 0.0, "bytes": size_of(path)}
    try:
        data, metrics = run.read() or {}, run.metrics()
        row |= {"kind": data["kind"], "horizon": recorded_schedule(data["events"]).horizon}
        if metrics:
            scores = [line["val_bpb"] for line in metrics if "val_bpb" in line]
            row |= {
                "loss": metrics[-1]["loss"],
                "minutes": round(metrics[-1]["elapsed_s"] / 60, 1),
                "val_bpb": scores[-1] if scores else None,
            }
    except (PositronError, KeyError, TypeError):
        return {**row, "state": "damaged record"}
    pid = run.writer()
    if pid is not None:
        state = f"training, process {pid}"
    elif row["horizon"] is not None and row["step"] >= row["horizon"]:
        state = "finished"
    else:
        state = "paused" if row["step"] else "not begun"
    return {**row, "state": state}


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
        print(json.dumps({"removed": flags.yes, "bytes": total, "entries": rows}))
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
    from positron_mini.plan import recorded_schedule

    found = [(path, "left by a process that was killed") for path in sorted(run.path.glob(".tmp-*"))]
    found += [(path, "superseded") for path in sorted((run.path / "superseded").glob("*"))]
    if keep is None:
        return found
    right = run.newest(training=True, say=lambda _: None) or run.newest(training=False, say=lambda _: None)
    if right is None:
        note(f"{run.path}: every step is damaged; all are left alone (positron verify {run.path})")
        return found
    named = {run.points_to("latest"), run.points_to("best"), right.folder.name}
    kept = {*run.steps()[-keep:], recorded_schedule(run.read()["events"]).cooldown_start}
    old = [step for step in run.steps() if step not in kept and ckpt.step_name(step) not in named]
    return found + [(run.folder(step), "older step") for step in old]
