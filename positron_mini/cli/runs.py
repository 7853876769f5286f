"""`positron runs`: the runs there are, how far they came, and how large they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron_mini.cli.flags import parse


@dataclass(frozen=True)
class RunsFlags:
    """List the runs under a folder, newest first."""

    root: str = "runs"
    """folder that holds run folders"""
    json: bool = False
    """print one JSON object"""


def summary(path: Path) -> dict[str, Any]:
    """Step, horizon, last loss and validation, minutes and size of a run."""
    from positron_mini.runs import RunFolder, recorded_schedule

    run = RunFolder(path)
    metrics, steps = run.metrics(), run.steps()
    data = run.read() or {"events": []}
    validated = [row for row in metrics if "val_bpb" in row]
    return {
        "run": str(path),
        "kind": data.get("kind"),
        "step": steps[-1] if steps else 0,
        "horizon": recorded_schedule(data["events"]).horizon,
        "loss": metrics[-1]["loss"] if metrics else None,
        "val_bpb": validated[-1]["val_bpb"] if validated else None,
        "minutes": round(metrics[-1]["elapsed_s"] / 60, 1) if metrics else 0.0,
        "bytes": sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file() and not entry.is_symlink()),
    }


def run(argv: Sequence[str]) -> int:
    """List; 0 when done."""
    flags = parse(RunsFlags, argv, "runs")
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
        print(f"{row['run']:<44} step {row['step']:,}{goal}  {score}  {row['minutes']} min  {row['bytes'] / 1e6:,.0f} MB")
    return 0
