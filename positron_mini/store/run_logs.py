"""Logs of a run as typed lines: the only place that reads or writes metrics, samples, skills, stories and events.

A log is read line by line; for lists of runs, only its end. A last line cut off by a crash is dropped; any other invalid line is an error
that names it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from positron_mini import files
from positron_mini.errors import PositronError, RunError, UsageError
from positron_mini.own_files import open_regular

STEP_LOGS = ("metrics.jsonl", "samples.jsonl", "skills.jsonl", "stories.jsonl")
LOGS = (*STEP_LOGS, "events.jsonl")  # every line file of a run
NUMBERS = ("tokens", "loss", "lr", "grad_norm", "tok_per_s", "elapsed_s", "val_loss", "val_bpb")
MAX_LINE_BYTES = 1 << 20  # longer than any of ours
MAX_PART_BYTES = 1 << 18
BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished update. `loss` is the mean over the step's targets before the update, in nats per token."""

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tok_per_s: float
    elapsed_s: float
    val_loss: float | None = None
    val_bpb: float | None = None

    def record(self) -> dict[str, Any]:
        """The line for metrics.jsonl; validation only if there was one."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "loss": round(self.loss, 6),
            "lr": float(f"{self.lr:.6g}"),
            "grad_norm": round(self.grad_norm, 6),
            "tok_per_s": round(self.tok_per_s, 1),
            "elapsed_s": round(self.elapsed_s, 3),
            **({} if self.val_loss is None else {"val_loss": round(self.val_loss, 6)}),
            **({} if self.val_bpb is None else {"val_bpb": round(self.val_bpb, 6)}),
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """Text written by the model after `prompt` at a milestone."""

    step: int
    prompt: str
    text: str
    seed: int
    temperature: float


@dataclass(frozen=True, slots=True)
class SkillScore:
    """Share of pairs in which the correct sentence was the likelier one at a step, with its 95 % interval."""

    step: int
    skill: str
    accuracy: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True, slots=True)
class StoryScore:
    """How well a fine-tuned model still tells the stories of its base, at a step."""

    step: int
    story_loss: float | None = None
    story_bpb: float | None = None


Row = TypeVar("Row", StepReport, Sample, SkillScore, StoryScore)


def log_path(run: Path, name: str) -> Path:
    """Path of the log `name` in a run folder."""
    return run / f"{name}.jsonl"


def append(run: Path, name: str, row: dict[str, Any]) -> None:
    """Append a line to the log `name`."""
    files.append_line(log_path(run, name), row)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of a log, in order; none for a missing file. Errors: PositronError naming an invalid line."""
    if not os.path.lexists(path):
        return
    damaged: PositronError | None = None
    with files.translate_os_errors(f"reading {path}"), open_regular(path) as handle:
        number = 0
        while line := handle.readline(MAX_LINE_BYTES):
            number += 1
            if damaged is not None:
                raise damaged  # it was not the last line
            if not line.endswith(b"\n"):
                if len(line) < MAX_LINE_BYTES:
                    return  # cut off by a crash, or still being written
                raise _bad_line(path, number, "longer than any of ours")
            try:
                row = parse_row(line)
            except (ValueError, RecursionError) as error:
                damaged = PositronError(f"{path}, line {number}: not JSON ({error})", f"remove that line from {path}")
            else:
                yield row


def parse_row(line: bytes) -> dict[str, Any]:
    """Parse the JSON object in a line. Errors: ValueError, also for an integer of 2^63 or more; RecursionError."""
    if len(line) > MAX_LINE_BYTES:
        raise ValueError("longer than any of ours")
    row = json.loads(line.decode("utf-8", errors="replace"), parse_int=_whole)
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__} where an object is expected")
    return row


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= 2**63:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def step_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a log with a step in each. Errors: PositronError naming a line without a valid step or with an invalid number."""
    for number, row in enumerate(read_rows(path), 1):
        if not _tells_of_a_step(row):
            raise RunError(f"{path}, line {number}: not a record of a step", f"remove that line from {path}")
        yield row


def _tells_of_a_step(row: Mapping[str, Any]) -> bool:
    return type(row.get("step")) is int and all(type(row[name]) in (int, float) for name in NUMBERS if name in row)


def typed_rows(kind: type[Row], path: Path) -> Iterator[Row]:
    """Lines of a log as records of `kind`; unknown keys are ignored. Errors: PositronError naming a line that does not fit."""
    known, is_strict = {field.name: str(field.type) for field in fields(kind)}, kind is not StepReport  # a report may have diverged
    for number, row in enumerate(numbered_rows(path), 1):
        values = {name: row[name] for name in known if name in row}
        fits = {name: _fits(value, known[name]) and not (is_strict and not _is_finite(value)) for name, value in values.items()}
        wrong = next((name for name in fits if not fits[name]), None)
        try:
            if wrong is not None:
                raise UsageError(f"{wrong} is {values[wrong]!r}")
            yield kind(**values)
        except (TypeError, UsageError) as error:
            raise _bad_line(path, number, str(error).partition("() ")[2] or str(error)) from error


def numbered_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a log, each with a step, 0 for an event without one. Errors: PositronError naming a line with an invalid step."""
    for number, row in enumerate(read_rows(path), 1):
        if type(row.setdefault("step", 0)) is not int or row["step"] < 0:
            raise _bad_line(path, number, "its step is not a whole number")
        yield row


def _fits(value: Any, kind: str) -> bool:
    if kind == "str":
        return isinstance(value, str)
    if value is None:
        return "None" in kind
    return isinstance(value, int | float) and not isinstance(value, bool) and (kind != "int" or isinstance(value, int))


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _bad_line(path: Path, number: int, what: str) -> PositronError:
    return PositronError(f"{path}, line {number}: not a line of this log ({what})", f"remove that line from {path}")


# --- the end of a log -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogEnd:
    """Newest figures of a metrics.jsonl, None where there are none yet."""

    step: int | None = None
    loss: float | None = None
    elapsed_s: float = 0.0
    val_bpb: float | None = None


def log_end(run: Path) -> LogEnd:
    """Read the last lines of the metrics, from the end in blocks. Errors: RunError for an invalid one."""
    path, last, read_bytes = log_path(run, "metrics"), True, 0
    newest: dict[str, Any] | None = None
    scored: float | None = None
    for line in _lines_backwards(path):
        is_far, read_bytes = read_bytes > BLOCK_BYTES, read_bytes + len(line)
        if is_far and newest is not None:  # further back, only the newest validation is looked for
            if scored is not None:
                break
            if b'"val_bpb"' not in line:
                continue
        try:
            row = parse_row(line)
            if not (_tells_of_a_step(row) and all(_is_finite(row.get(name)) for name in NUMBERS)):
                raise ValueError("not a record of a step")
        except (ValueError, RecursionError) as error:
            if last:
                last = False
                continue
            raise RunError(f"{path}: a line near its end is damaged ({error})", f"remove that line from {path}") from error
        last = False
        newest = row if newest is None else newest
        scored = row.get("val_bpb") if scored is None else scored
    return LogEnd() if newest is None else LogEnd(newest["step"], newest.get("loss"), float(newest.get("elapsed_s", 0.0)), scored)


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """Complete lines of a file, the last one first. Errors: PositronError when it is no file, or a line is longer than any of ours."""
    if not os.path.lexists(path):
        return
    with files.translate_os_errors(f"reading {path}"), open_regular(path) as handle:
        place, held = handle.seek(0, os.SEEK_END), b""
        is_whole = False  # anything after the last newline is not a line yet
        while place > 0:
            size = min(BLOCK_BYTES, place)
            place -= size
            handle.seek(place)
            first, *lines = (handle.read(size) + held).split(b"\n")
            for line in reversed(lines):
                if is_whole:
                    yield line
                is_whole = True
            held = first
            if len(held) > MAX_LINE_BYTES:
                raise RunError(f"{path}: a line near its end is longer than any of ours", f"remove that line from {path}")
        if is_whole and held:
            yield held


# --- a log that grows -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogPart:
    """Lines of a log. The next ones begin at byte `offset`; `more`: some are there already. `restarted`: these are the first ones."""

    rows: list[Mapping[str, Any]]
    offset: int
    version: str
    more: bool
    restarted: bool


def read_log(path: Path, offset: int, version: str) -> LogPart:
    """Read the complete lines of a log from byte `offset` on, at most MAX_PART_BYTES; lines that are not a JSON object are left out.

    When a run goes back to an earlier step its log is rewritten: it is then another file, or ends before `offset`, and is read from 0.
    """
    try:
        with open_regular(path) as handle:
            status = os.fstat(handle.fileno())
            same = version == str(status.st_ino) and offset <= status.st_size
            start = offset if same else 0
            handle.seek(start)
            data = handle.read(MAX_PART_BYTES)
    except OSError:
        return LogPart([], 0, "", more=False, restarted=offset > 0)
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) == MAX_PART_BYTES:
        end = len(data)  # a line without end is no log line
    rows = [row for line in data[:end].split(b"\n") if (row := _sendable(line)) is not None]
    return LogPart(rows, start + end, str(status.st_ino), more=start + len(data) < status.st_size, restarted=not same)


def _sendable(line: bytes) -> Mapping[str, Any] | None:
    """The object in a line; None if there is none, or if JSON cannot represent one of its numbers."""
    from positron_mini.store.run_record import is_bounded

    try:
        row = parse_row(line)
    except (ValueError, RecursionError):
        return None
    return row if is_bounded(row) else None
