"""`positron verify RUN`: check every file of a run against its checksum, and with --replay train steps again, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.terminal import print
from positron_mini.errors import CheckpointError, RunError, command

if TYPE_CHECKING:
    from positron_mini.store.run_folder import RunFolder
    from positron_mini.train.replay import Replay, StepCheck


@dataclass(frozen=True)
class VerifyFlags:
    """Read every file of a run and check it; with --replay train some of its steps again and compare."""

    run: Annotated[str, tyro.conf.Positional]
    """run folder"""
    replay: int | None = None
    """train again at most this many steps before the newest saved one, and compare log lines and files byte for byte"""
    json: bool = False
    """print one JSON object"""


def run(argv: Sequence[str]) -> int:
    """Verify; 0 if everything is correct."""
    flags = parse(VerifyFlags, argv, "verify")
    from positron_mini.store.run_folder import RunFolder
    from positron_mini.train.replay import check_run, replay

    folder = RunFolder(Path(flags.run))
    steps, problems = check_run(folder)
    if not flags.json:
        show_steps(steps, problems)
    again = replay(folder, flags.replay, note) if flags.replay is not None else None
    if flags.json:
        print_json({"run": flags.run, "steps": [asdict(s) for s in steps], "problems": problems, "replay": again and asdict(again)})
    elif again is not None:
        show_replay(again)
    _raise_for(folder, steps, again)
    return 0


def show_steps(steps: Sequence[StepCheck], problems: Sequence[str]) -> None:
    """Print a line per step, then the other problems."""
    for step in steps:
        verdict = step.problem or ("undamaged, can be resumed from" if step.has_training else "undamaged")
        print(f"step {step.step:>9,}  {step.files:>2} files  {step.bytes / 1e6:>9,.1f} MB  {verdict}")
    if not steps:
        print("no step is saved yet")
    for problem in problems:
        print(f"warning: {problem}")


def show_replay(again: Replay) -> None:
    """Print the result of training again."""
    print(f"steps {again.start + 1:,} to {again.end:,} trained again: {again.lines:,} log lines and {again.files} files compared")
    for difference in again.differences:
        print(f"  {difference}")
    if not again.differences:
        print("  equal, byte for byte" if again.files else "  equal; no checkpoint stands at their end to compare its bytes")


def _raise_for(run: RunFolder, steps: Sequence[StepCheck], again: Replay | None) -> None:
    """Raise the error of a verification that found something wrong."""
    damaged = [step.step for step in steps if step.problem]
    if damaged:
        whole = [step.step for step in steps if not step.problem and step.has_training]
        record = run.read()
        train = "sft" if record is not None and record.is_chat else "train"
        again_from = command(train, "--out_dir", run.path, "--resume_from_step", max(whole, default=0))
        go_on = f"{again_from}   goes on from the newest undamaged one" if whole else "start a new run in another folder"
        listed = ", ".join(f"{step:,}" for step in damaged)
        raise CheckpointError(f"{run.path}: {len(damaged)} of {len(steps)} steps are damaged: {listed}", go_on)
    if again is not None and again.differences:
        raise RunError(
            f"{run.path}: {len(again.differences)} differences when steps {again.start + 1:,} to {again.end:,} are trained again",
            "another device, thread count or version of torch explains them: see events.jsonl and run.json in the run folder",
        )
