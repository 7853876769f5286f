"""A run that is ready to train, of whatever kind: what a person is told first, then one report per step, then the last save."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from positron_mini.config import TrainConfig
from positron_mini.errors import Interrupted
from positron_mini.recorder import Recorder
from positron_mini.runs import Plan, RunFolder, plan_finish, schedule_record
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

    @property
    def is_done(self) -> bool:
        """Whether the run has a horizon and has reached it."""
        horizon = self.plan.schedule.horizon
        return horizon is not None and self.trainer.step >= horizon

    def go_on(self, until: int | None) -> None:
        """Plan the next call of `steps`: from here to `until`, or to the horizon."""
        self.plan = replace(self.plan, start=self.trainer.step, until=until, changed=False, rewinds=False, finished=False, say="")

    def cool_down(self, cooldown_steps: int | None = None) -> None:
        """Plan the end of the run: a cool-down from here, over a quarter of the steps done unless told. Errors: UsageError at step 0."""
        self.go_on(None)
        self.plan = plan_finish(self.plan, cooldown_steps)
        self.trainer.config = replace(self.trainer.config, schedule=self.plan.schedule)
        if self.plan.changed:
            self.run_json["events"].append(schedule_record(self.plan.schedule, self.plan.start))

    def _write_down_plan(self) -> None:
        self.run.rewind(self.plan.start, keep_lines=self.plan.rewinds)
        self.run.write(self.run_json)

    def resume_command(self) -> str:
        """The command that goes on exactly where this one ended."""
        return f"positron train --out_dir {shlex.quote(str(self.run.path))}"
