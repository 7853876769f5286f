"""Progress of runs, from their small files: for `positron`, `positron runs`, the lab and the choice of a model.

A damaged run says so in its own state and does not affect the others.
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
    writer: str | None = None  # id of the process that trains in it
    damaged: str = ""

    @property
    def step(self) -> int:
        """Newest saved step, which commands read."""
        return self.steps[-1] if self.steps else 0

    @property
    def trained(self) -> int:
        """Newest step in the log, which may not be saved yet."""
        return max(self.step, self.end.step or 0)

    @property
    def kind(self) -> str | None:
        """pretrain, sft, or None if unknown; with a damaged record, the folder of a saved step tells."""
        if self.record is not None:
            return self.record.kind
        return "sft" if self.steps and (self.path / step_name(self.step) / "chat_template.jinja").is_file() else None

    @property
    def is_chat(self) -> bool:
        """Whether its model answers questions."""
        return self.kind == "sft"

    @property
    def horizon(self) -> int | None:
        """Step at which it ends by its newest schedule; None for an open-ended one."""
        return None if self.record is None else self.record.horizon

    @property
    def is_finished(self) -> bool:
        """Whether its last planned step is saved."""
        return self.horizon is not None and 0 < self.horizon <= self.step

    @property
    def active_s(self) -> float:
        """Time of its newest saved step, or else of its record, in seconds since 1970."""
        for path in (self.path / step_name(self.step) / "manifest.json", self.path / RUN_JSON):
            try:
                return path.stat().st_mtime
            except OSError:
                continue
        return 0.0

    @property
    def progress(self) -> str:
        """`step 400 of 3,266`, and the newest logged step if that is further."""
        goal = "" if self.horizon is None else f" of {self.horizon:,}"
        if self.trained == self.step:
            return f"step {self.step:,}{goal}"
        return f"trained to {self.trained:,}{goal}, saved {self.step:,}"


def look(run: Path) -> RunState:
    """Read the state of a run folder. Never fails because of its content."""
    state = RunState(run, (), writer=writer_of(run))
    try:
        state = replace(state, steps=tuple(saved_steps(run)))
        state = replace(state, record=read_record(run))
        return replace(state, end=log_end(run), damaged="" if state.record else f"{run}: no {RUN_JSON}")
    except PositronError as error:
        return replace(state, damaged=error.message)
    except OSError as error:
        return replace(state, damaged=f"{run}: {error.strerror or error}")  # being deleted


def run_folders(root: Path) -> list[Path]:
    """Run folders under `root`, in no order."""
    return [path.parent for path in root.glob(f"*/{RUN_JSON}")] if root.is_dir() else []
