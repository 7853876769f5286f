"""Verify a run: check every file against its checksum, and train steps again to compare the results.

Replaying happens in a temporary folder and touches nothing in the run. The same device, build and settings give the same bytes; where they
were changed meanwhile, `events.jsonl` and `run.json` say so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron_mini.config import SFTConfig, TrainConfig
from positron_mini.errors import DroppedError, PositronError, RunError, Say, UsageError, command
from positron_mini.own_files import size_of
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.run_folder import POINTERS, RunFolder
from positron_mini.store.run_logs import LOGS, STEP_LOGS, read_rows
from positron_mini.store.run_record import RUN_JSON, Events, RunRecord
from positron_mini.train.session import Session

TIMES = ("tok_per_s", "elapsed_s")  # fields of a log line that differ from one training to the next


@dataclass(frozen=True)
class StepCheck:
    """Result of checking a step folder. `problem` is empty for a step that loads."""

    step: int
    files: int
    bytes: int
    has_training: bool
    problem: str = ""


def check_step(folder: Path) -> StepCheck:
    """Check all of a step: checksums, shape, tokenizer, names and values of the weights and of the training state.

    Errors: DroppedError when the training process deletes it meanwhile. If only the training state is deleted, the rest is read again.
    """
    step = ckpt.step_number(folder.name)
    assert step is not None, folder
    while True:
        listed = ckpt.manifest_bytes(folder)
        present = sum(len(names) for _, _, names in os.walk(folder))
        try:
            checkpoint = ckpt.open_checkpoint(folder)
            ckpt.load_model(checkpoint)
            if checkpoint.has_training:
                ckpt.load_training(checkpoint)
        except PositronError as error:
            if not folder.is_dir():
                raise ckpt.dropped(folder) from error
            if ckpt.manifest_bytes(folder) != listed:
                continue
            return StepCheck(step, present, size_of(folder), (folder / ckpt.STATE_FILE).is_file(), error.message)
        return StepCheck(step, present, size_of(folder), checkpoint.has_training)


def check_run(run: RunFolder) -> tuple[list[StepCheck], list[str]]:
    """Check every step of the run, ascending; also return other faults of its folder, as sentences. Errors: RunError if there is no run."""
    if not run.path.is_dir() or (run.read() is None and not run.steps()):
        raise RunError(f"{run.path}: no run there", "positron runs lists the runs there are")
    steps = []
    for step in run.steps():
        with contextlib.suppress(DroppedError):  # deleted by the training process: not part of the run any more
            steps.append(check_step(run.folder(step)))
    problems = [problem for pointer in POINTERS if (problem := _pointer_problem(run, pointer))]
    for log in LOGS:
        try:
            for _ in read_rows(run.path / log):
                pass
        except PositronError as error:
            problems.append(error.message)
    return steps, problems


def _pointer_problem(run: RunFolder, pointer: str) -> str:
    """What is wrong with `latest` or `best`; empty if nothing is."""
    path, name = run.path / pointer, run.points_to(pointer)
    if path.is_dir() and not path.is_symlink():
        return f"{pointer} is a folder, made by a copy that does not keep links; training makes it a link again"
    if name is None:
        return "latest is missing; commands take the newest complete step instead" if pointer == "latest" and run.steps() else ""
    if (run.path / name / ckpt.MANIFEST).is_file() or run.points_to(pointer) != name:
        return ""
    return f"{pointer} names {name!r}, which is not there; commands take the newest complete step instead"


@dataclass(frozen=True)
class Replay:
    """Result of training again from step `start` to step `end`: `lines` and `files` were compared, each difference is a sentence."""

    start: int
    end: int
    lines: int
    files: int
    differences: list[str]


def replay(run: RunFolder, steps: int, say: Say) -> Replay:
    """Train the last stretch of at most `steps` steps between two saved ones again, and compare byte for byte. If no saved steps are so
    close, train the steps logged after the newest suitable one, and compare their log lines.

    Errors: UsageError, RunError where there is nothing to replay, and all those of training.
    """
    recorded = run.read()
    if recorded is None:
        raise RunError(f"{run.path}: no run.json there, so nothing says how it was trained", "positron verify runs/NAME")
    if recorded.processes > 1:
        raise RunError(
            f"{run.path}: trained by {recorded.processes} processes; one alone adds up in another order and has other last digits",
            f"{command('verify', run.path)}   checks every file without a replay",
        )
    recorded.check_complete(run.run_json)
    start, end = stretch(run, recorded.events, steps)
    say(f"training steps {start + 1:,} to {end:,} again")
    with tempfile.TemporaryDirectory() as folder:
        twin = RunFolder(Path(folder) / run.path.resolve().name)  # the model card contains the name
        _copy(run, twin, start)
        session = _open(recorded, twin, end, say)
        if session.plan.start != start:
            raise RunError(f"{run.path}: training cannot go on from step {start:,}", command("verify", run.path))
        for _ in session.steps():
            pass
        lines, differences = _compare_lines(run, twin, start, end)
        here, there = ({n: e["sha256"] for n, e in _manifest(each, end).items()} for each in (run, twin))
        shared = [name for name in here if not name.startswith("training/") or name in there]
        differences += [
            f"{run.folder(end) / name}: not the bytes that training again gives" for name in shared if here[name] != there.get(name)
        ]
    return Replay(start, end, lines, len(shared), differences)


def stretch(run: RunFolder, events: Events, steps: int) -> tuple[int, int]:
    """Steps between which to train again, with no change of schedule. Errors: UsageError, RunError."""
    if steps < 1:
        raise UsageError(f"--replay is {steps}, it must be at least 1", "--replay 10")
    saved, logged = run.steps(), {row.get("step") for row in run.metrics()}
    moved = {event["step"] for event in events if event["kind"] == "schedule"}
    starts = ([0] if 1 in logged else []) + run.resumable()
    pairs = [(a, b) for a in starts for b in saved if 0 < b - a <= steps and not any(a < step < b for step in moved)]
    if pairs:
        return max(pairs, key=lambda pair: (pair[1], -pair[0]))
    for start in reversed(starts):
        following = [step for step in sorted(s for s in logged if isinstance(s, int)) if start < step <= start + steps]
        if following and not any(start < step < following[-1] for step in moved):
            return start, following[-1]
    raise RunError(f"{run.path}: nothing to replay: no step with a training state has logged steps after it", "train some steps first")


def _copy(run: RunFolder, twin: RunFolder, start: int) -> None:
    """Copy the run as it was at `start`, with hard links where possible: files are never changed in place."""
    twin.path.mkdir()
    for name in (RUN_JSON, *STEP_LOGS):
        if (run.path / name).is_file():
            shutil.copy2(run.path / name, twin.path / name)
    kept = [start] if start else []
    if 0 in run.steps():
        kept.append(0)
    for step in kept:
        shutil.copytree(run.folder(step), twin.folder(step), copy_function=_link_or_copy, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _open(recorded: RunRecord, twin: RunFolder, end: int, say: Say) -> Session:
    """Open the session that trains the twin up to `end`, by the settings of the record."""
    from positron_mini.train.finetune import open_sft_session
    from positron_mini.train.open_run import open_session

    given = frozenset({"out_dir", "until_step", "track"})
    if recorded.is_chat:
        return open_sft_session(SFTConfig(out_dir=str(twin.path), until_step=end, track="none"), given=given, say=say)
    return open_session(TrainConfig(out_dir=str(twin.path), until_step=end, track="none"), given=given, say=say)


def _manifest(run: RunFolder, step: int) -> dict[str, Any]:
    return ckpt.read_manifest(run.folder(step)) if run.folder(step).is_dir() else {}


def _compare_lines(run: RunFolder, twin: RunFolder, start: int, end: int) -> tuple[int, list[str]]:
    """Number of compared log lines, and those that differ."""

    def lines(each: RunFolder) -> dict[int, dict[str, Any]]:
        found = {row["step"]: {k: v for k, v in row.items() if k not in TIMES} for row in each.metrics()}
        return {step: row for step, row in found.items() if start < step <= end}

    here, there = lines(run), lines(twin)
    different = [
        f"step {step:,}: {name} is {here.get(step, {}).get(name)} in metrics.jsonl and {there.get(step, {}).get(name)} when trained again"
        for step in sorted(here.keys() | there.keys())
        for name in {**here.get(step, {}), **there.get(step, {})}
        if here.get(step, {}).get(name) != there.get(step, {}).get(name)
    ]
    return len(here), different
