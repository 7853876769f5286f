"""A run that is ready to train, of whatever kind: what a person is told first, then one report per step, then the last save."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from positron_mini.config import TrainConfig
from positron_mini.errors import Interrupted
from positron_mini.recorder import Recorder
from positron_mini.runs import Plan, RunFolder
from positron_mini.tokenizer import Tokenizer
from positron_mini.trainer import StepReport, StopFlag, Trainer


@dataclass
class Session:
    """A run that is ready to train. `lines` tell a person what will happen; iterate `steps()` to make it happen."""

    config: TrainConfig
    run: RunFolder
    plan: Plan
    lines: list[str]
    trainer: Trainer
    recorder: Recorder
    run_json: dict[str, Any]
    stop: StopFlag
    tokenizer: Tokenizer

    def steps(self) -> Iterator[StepReport]:
        """One report per finished step. The last step is saved however the loop ends, unless it ends in an error.

        Errors: Interrupted after a clean save when `stop` was set; NonFiniteError, OutOfMemoryError, DiskFullError.
        """
        if self.plan.finished:
            return
        with self.run.writing():
            self._write_down_plan()
            self.recorder.begin()
            try:
                for report in self.trainer.run(self.plan.until, self.stop):
                    yield self.recorder.record(report)
            except GeneratorExit:
                self.recorder.save()
                raise
            finally:
                self.recorder.tracker.close()
            self.recorder.save()
        if self.stop.signal_number is not None:
            raise Interrupted(
                f"stopped by a signal; step {self.trainer.step:,} is saved in {self.run.path}",
                self.resume_command(),
                signal_number=self.stop.signal_number,
            )

    def _write_down_plan(self) -> None:
        self.run.rewind(self.plan.start, keep_lines=self.plan.rewinds)
        self.run.write(self.run_json)

    def resume_command(self) -> str:
        """The command that goes on exactly where this one ended."""
        return f"positron train --out_dir {shlex.quote(str(self.run.path))}"
