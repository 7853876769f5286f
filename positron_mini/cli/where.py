"""`positron` alone: where you are. The runs that are here, how far each is, and the command that comes next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from positron_mini import files
from positron_mini.errors import PositronError

SHOWN = 5  # runs, the newest


def where_you_are(root: Path = Path("runs")) -> str:
    """The newest runs and what to do next, in a few lines. Nothing is loaded but their small files."""
    found = sorted(root.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True) if root.is_dir() else []
    if not found:
        return (
            "No model is here yet. From nothing to one, in about 10 minutes:\n  positron bootstrap\n"
            "or from your own text:\n  positron new my-book TEXTS\n\nAll commands: positron --help\n"
        )
    runs = [_look(path.parent) for path in found[:SHOWN]]
    width = max(len(run["name"]) for run in runs)
    lines = [f"  {run['name']:<{width}}  {run['state']}" for run in runs]
    if len(found) > SHOWN:
        lines.append(f"  and {len(found) - SHOWN} more: positron runs")
    return "\n".join(["Your runs, the newest first:", *lines, "", "Next:", *next_steps(runs), "", "All commands: positron --help", ""])


def _look(folder: Path) -> dict[str, Any]:
    """Name, kind, state and whether a run has reached its end; a damaged one says so."""
    found: dict[str, Any] = {
        "name": str(folder),
        "kind": None,
        "is_done": False,
        "state": f"its record is damaged: positron verify {folder}",
    }
    try:
        record, rows = files.read_json(folder / "run.json"), files.read_lines(folder / "metrics.jsonl")
        horizon = [event["horizon"] for event in record["events"] if event["kind"] == "schedule"][-1]
        step = rows[-1]["step"] if rows else 0
        scores = [row["val_bpb"] for row in rows if "val_bpb" in row]
        found |= {"kind": record["kind"], "is_done": horizon is not None and step >= horizon}
        goal = f" of {horizon:,}" if horizon is not None else ""
        score = f", {scores[-1]:.3f} bits per byte" if scores and record["kind"] == "pretrain" else ""
        return found | {"state": f"{'fine-tuned' if record['kind'] == 'sft' else 'base'}, step {step:,}{goal}{score}"}
    except (PositronError, KeyError, TypeError, IndexError, ValueError):
        return found


def next_steps(runs: list[dict[str, Any]]) -> list[str]:
    """The commands that make sense now: go on, fine-tune, ask, look."""
    steps = []
    paused = next((run for run in runs if run["kind"] is not None and not run["is_done"]), None)
    base = next((run for run in runs if run["kind"] == "pretrain"), None)
    if paused is not None:
        command = "sft" if paused["kind"] == "sft" else "train"
        steps.append(f"  positron {command} --out_dir {shlex.quote(paused['name'])}    go on with it")
    if base is not None and not any(run["kind"] == "sft" for run in runs):
        steps.append("  positron quicksft    teach it to answer questions")
    steps.append("  positron chat    ask the newest model")
    if base is not None:
        steps.append(f"  positron report --run {shlex.quote(base['name'])}    see how it learned")
    return [*steps, "  positron lab    look inside, in the browser"]
