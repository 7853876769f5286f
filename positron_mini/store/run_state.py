"""How far runs are, by their small files: what `positron`, `positron runs`, the lab and the choice of a model look at.

A run whose files are damaged says so in its own state; the others are not touched by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from positron_mini.errors import PositronError
from positron_mini.store.run_logs import LogEnd, log_end
from positron_mini.store.run_record import RUN_JSON, RunRecord, read_record
from positron_mini.store.steps import saved_steps, step_name
from positron_mini.store.writer import writer_of


@dataclass(frozen=True)
class RunState:
    """A run folder at a glance. `damaged` says what is wrong with its record or logs; then only the saved steps are known."""

    path: Path
    steps: tuple[int, ...]  # saved, ascending
    record: RunRecord | None = None
    end: LogEnd = field(default_factory=LogEnd)
    writer: str | None = None  # the process that trains in it
    damaged: str = ""

    @property
    def step(self) -> int:
        """The newest saved step: what a command that takes a checkpoint gets."""
        return self.steps[-1] if self.steps else 0

    @property
    def trained(self) -> int:
        """The newest step that the log tells of, which may not be saved yet."""
        return max(self.step, self.end.step or 0)

    @property
    def kind(self) -> str | None:
        """pretrain, sft, or None for a damaged record; a folder of a saved step tells without it."""
        if self.record is not None:
            return self.record.kind
        return "sft" if self.steps and (self.path / step_name(self.step) / "chat_template.jinja").is_file() else None

    @property
    def is_chat(self) -> bool:
        """Whether its model answers questions."""
        return self.kind == "sft"

    @property
    def horizon(self) -> int | None:
        """The step at which it ends as planned last; None for an open-ended one."""
        return None if self.record is None else self.record.horizon

    @property
    def is_finished(self) -> bool:
        """Whether its last planned step is saved."""
        return self.horizon is not None and 0 < self.horizon <= self.step

    @property
    def active_s(self) -> float:
        """When its newest step was saved, in seconds since 1970; when its record was written, where none is."""
        for path in (self.path / step_name(self.step) / "manifest.json", self.path / RUN_JSON):
            try:
                return path.stat().st_mtime
            except OSError:
                continue
        return 0.0

    @property
    def progress(self) -> str:
        """`step 400 of 3,266`, and how far the log is where that is further."""
        goal = "" if self.horizon is None else f" of {self.horizon:,}"
        if self.trained == self.step:
            return f"step {self.step:,}{goal}"
        return f"trained to {self.trained:,}{goal}, saved {self.step:,}"


def look(run: Path) -> RunState:
    """The state of a run folder. Nothing in it makes this fail."""
    state = RunState(run, (), writer=writer_of(run))
    try:
        state = replace(state, steps=tuple(saved_steps(run)))
        state = replace(state, record=read_record(run))
        return replace(state, end=log_end(run), damaged="" if state.record else f"{run}: no {RUN_JSON}")
    except PositronError as error:
        return replace(state, damaged=error.message)
    except OSError as error:
        return replace(state, damaged=f"{run}: {error.strerror or error}")  # just being removed


def run_folders(root: Path) -> list[Path]:
    """The run folders under `root`, in no order."""
    return [path.parent for path in root.glob(f"*/{RUN_JSON}")] if root.is_dir() else []
