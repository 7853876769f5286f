"""`positron` alone: the runs in this folder, their progress, and the next command."""

from __future__ import annotations

from pathlib import Path

from positron_mini.errors import command
from positron_mini.store.choice import by_rule, in_words, outdated
from positron_mini.store.run_state import RunState, look, run_folders

SHOWN = 5  # runs, the newest


def where_you_are(root: Path = Path("runs")) -> str:
    """The newest runs and what to do next, in a few lines. Only small files are read."""
    found = sorted(map(look, run_folders(root)), key=lambda run: run.active_s, reverse=True)
    if not found:
        return (
            "No model is here yet. From nothing to one, in about 10 minutes:\n  positron bootstrap\n"
            "or from your own text:\n  positron new my-book TEXTS\n\nAll commands: positron --help\n"
        )
    runs = found[:SHOWN]
    width = max(len(str(run.path)) for run in runs)
    lines = [f"  {run.path!s:<{width}}  {_words(run)}" for run in runs]
    if len(found) > SHOWN:
        lines.append(f"  and {len(found) - SHOWN} more: positron runs")
    after = ["", "Next:", *next_steps(runs), *_talking(found), "", "All commands: positron --help", ""]
    return "\n".join(["Your runs, the newest first:", *lines, *after])


def _talking(found: list[RunState]) -> list[str]:
    """The chat command, which model it uses, and whether a newer base model is not fine-tuned yet."""
    usable = by_rule(found, talks=True)
    if not usable:
        return []
    bases = by_rule((run for run in found if run.kind == "pretrain"), talks=False)
    old = outdated(usable[0], bases[0] if bases else None)
    line = f"  positron chat    ask {usable[0].path} ({in_words(usable[0])})"
    return [line, f"    it is {old}"] if old else [line]


def _words(run: RunState) -> str:
    """A run's kind and progress; for a damaged one, what is wrong."""
    if run.damaged:
        return f"damaged: {run.damaged}; {command('verify', run.path)} looks at every file"
    score = f", {run.end.val_bpb:.3f} bits per byte" if run.end.val_bpb is not None and not run.is_chat else ""
    return f"{'fine-tuned' if run.is_chat else 'base'}, {run.progress}{score}{', training now' if run.writer else ''}"


def next_steps(runs: list[RunState]) -> list[str]:
    """The commands that make sense now: continue, fine-tune, chat, look."""
    steps = []
    whole = [run for run in runs if not run.damaged]
    paused = next((run for run in whole if not run.is_finished and run.writer is None), None)
    base = next((run for run in whole if not run.is_chat), None)
    if paused is not None:
        steps.append(f"  {command('sft' if paused.is_chat else 'train', '--out_dir', paused.path)}    go on with it")
    if base is not None and not any(run.is_chat for run in whole):
        steps.append("  positron quicksft    teach it to answer questions")
    if base is not None:
        steps.append(f"  {command('report', '--run', base.path)}    see how it learned")
    return [*steps, "  positron lab    look inside, in the browser"]
