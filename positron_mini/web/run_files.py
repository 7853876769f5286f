"""What the page shows of run folders: which runs there are, how far they are, and their logs, also while they grow."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron_mini import files
from positron_mini.curve import reference_name
from positron_mini.errors import PositronError
from positron_mini.plan import recorded_schedule
from positron_mini.runs import RunFolder

MAX_LOG_BYTES = 1 << 18


def run_facts(run: RunFolder) -> dict[str, Any] | None:
    """What a run is and how far it is, by its files; None for a run.json that cannot be read."""
    try:
        record = run.read()
        if record is None:
            return None
        model, config, kind = record["identity"]["model"], record["config"], str(record["kind"])
        return {
            "name": run.path.name,
            "kind": kind,
            "reference": reference_name(config["config"], config.get("dataset_path")) if kind == "pretrain" else None,
            "vocab_size": int(model["vocab_size"]),
            "batch_tokens": config.get("batch_tokens"),
            "horizon": recorded_schedule(record["events"]).horizon,
            "steps": run.steps(),
            "step": last_step(run.path / "metrics.jsonl"),
            "is_training": is_training(run),
        }
    except (PositronError, OSError, KeyError, TypeError, ValueError):
        return None  # written by something else, or just being removed


def is_training(run: RunFolder) -> bool:
    """Whether a living process holds the run."""
    try:
        pid = files.read_json(run.path / ".lock.json")["pid"]
        if os.name != "nt":  # where this would not ask after the process but end it
            os.kill(pid, 0)
    except PermissionError:
        return True  # it lives and belongs to somebody else
    except (PositronError, OSError, KeyError, TypeError, OverflowError):
        return False
    return True


def last_step(path: Path) -> int:
    """The step of the last whole line of a metrics.jsonl, 0 where there is none."""
    try:
        with open(path, "rb") as handle:
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - 4_096))
            lines = handle.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


@dataclass(frozen=True)
class LogPart:
    """Lines of a log. The next ones begin at byte `offset`; `more` are there already. `restarted`: these are the first ones."""

    rows: list[Mapping[str, Any]]
    offset: int
    version: str
    more: bool
    restarted: bool


def read_log(path: Path, offset: int, version: str) -> LogPart:
    """The whole lines of a line file from byte `offset` on, at most MAX_LOG_BYTES of them; lines that are not a JSON object are left out.

    A log is rewritten when a run goes back to an earlier step: it then is another file, or ends before `offset`, and is read from 0.
    """
    try:
        with open(path, "rb") as handle:
            status = os.fstat(handle.fileno())
            same = version == str(status.st_ino) and offset <= status.st_size
            start = offset if same else 0
            handle.seek(start)
            data = handle.read(MAX_LOG_BYTES)
    except OSError:
        return LogPart([], 0, "", more=False, restarted=offset > 0)
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) == MAX_LOG_BYTES:
        end = len(data)  # one endless line is no log line
    rows = [row for line in data[:end].split(b"\n") if (row := _row(line)) is not None]
    return LogPart(rows, start + end, str(status.st_ino), more=start + len(data) < status.st_size, restarted=not same)


def _row(line: bytes) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
