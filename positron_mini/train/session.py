"""A run that is ready to train, of either kind: its first lines, one report per step, the last save."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from positron_mini import device as devices
from positron_mini.config import RunConfig
from positron_mini.distributed import ALONE, PeerError, Processes
from positron_mini.errors import (
    DataError,
    Interrupted,
    NonFiniteError,
    NotFiniteOutput,
    OutOfMemoryError,
    RunError,
    Say,
    command,
)
from positron_mini.optim import Schedule
from positron_mini.store.checkpoint import step_name
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_logs import StepReport
from positron_mini.store.run_record import RunRecord
from positron_mini.text.tokenizer import Tokenizer
from positron_mini.train.pace import Pacer
from positron_mini.train.plan import Plan, plan_finish
from positron_mini.train.recorder import Recorder
from positron_mini.train.task import Task
from positron_mini.trainer import StopFlag, Trainer

# settings that may change when a run goes on, and what a change affects
CHANGEABLE = dict.fromkeys(
    ("device", "precision", "micro_batch", "threads", "compile", "kernels", "nproc"), "results may differ in the last digits"
)
CHANGEABLE |= dict.fromkeys(("on_nan", "max_skips", "grad_limit"), "which steps are left out may differ")


def better_before(run: RunFolder) -> str:
    """The superseded step with the lowest validation, in words, if the newest validation of the run is worse; else empty.

    A run that was set back is worse than before until it has cooled down again.
    """
    scored = [row for row in run.metrics() if "val_bpb" in row]
    older = [
        (row["val_bpb"], log.parent / step_name(row["step"]))
        for log in sorted((run.path / "superseded").glob("*/metrics.jsonl"))
        for row in RunFolder(log.parent).metrics()
        if "val_bpb" in row and (log.parent / step_name(row["step"])).is_dir()
    ]
    bits, folder = min(older, default=(math.inf, run.path))
    if not scored or bits >= scored[-1]["val_bpb"]:
        return ""
    return f"{folder} is better still, with {bits:.3f} bits per byte ({scored[-1]['val_bpb']:.3f} here)"


def changed_settings(recorded: RunRecord, record: RunRecord) -> list[dict[str, Any]]:
    """Events for the settings (device, threads, ...) that changed since the run was last trained."""
    before = {name: recorded.config.get(name) for name in CHANGEABLE}
    now = {name: record.config.get(name) for name in CHANGEABLE}
    effects = {**CHANGEABLE, "torch": "results may differ in the last digits"}
    before["torch"], now["torch"] = recorded.versions.get("torch"), devices.describe_versions()["torch"]
    return [
        {
            "kind": "changed",
            "name": name,
            "before": before[name],
            "now": now[name],
            "text": f"{name} was {before[name]}, now {now[name]}: {effect}",
        }
        for name, effect in effects.items()
        if before[name] != now[name] and before[name] is not None
    ]


@dataclass
class Session:
    """A run that is ready to train. `lines` is what to print first; iterate `steps()` to train.

    `say` is told what happens besides steps; `events.jsonl` has it too.
    """

    task: Task
    run: RunFolder
    plan: Plan
    lines: list[str]
    trainer: Trainer
    recorder: Recorder
    record: RunRecord
    stop: StopFlag
    steps_seen: list[int]  # steps in the run folder when the plan was made
    changes: list[dict[str, Any]]  # events for changed settings
    say: Say = lambda _: None
    pacer: Pacer | None = None  # for a run with a budget
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        self.lines += [f"warning: {change['text']}" for change in self.changes]
        self.trainer.tell = self._note

    @property
    def config(self) -> RunConfig:
        """Settings of the run."""
        return self.task.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model."""
        return self.task.tokenizer

    @property
    def is_chat(self) -> bool:
        """Whether the run makes a chat model."""
        return self.task.kind == "sft"

    def steps(self) -> Generator[StepReport, None, None]:
        """Train, yielding one report per finished step. The last step is saved however the loop ends, unless it ends in an error.

        Errors: Interrupted after a clean save when `stop` was set; OutOfMemoryError, DataError and PeerError likewise; NonFiniteError with
        its evidence in events.jsonl, DiskFullError. Of several processes only the first writes; all must iterate.
        """
        if self.plan.finished:
            self._settle()
            return
        with self._writing():
            self.processes.check_equal(list(self.trainer.parameters.values()))
            self.recorder.begin()
            try:
                before = self.trainer.clock.elapsed_s
                for report in self.trainer.run(self.plan.until, self.stop):
                    had_turned = self.recorder.turn is not None
                    report = self.recorder.record(report)
                    if not had_turned:
                        self._tell_turn(report.step)
                    self._keep_to_time(report, before)
                    before = self.trainer.clock.elapsed_s
                    yield report
            except (GeneratorExit, KeyboardInterrupt, OutOfMemoryError, DataError, PeerError):  # the steps before it are sound
                if self.trainer.is_whole:
                    self.recorder.save()
                raise
            finally:
                self.recorder.tracker.close()
            self.recorder.save()
        if self.stop.signal_number is not None:
            step = self.trainer.step
            what = f"step {step:,} is saved in {self.run.path}" if step else f"no step of {self.run.path} was finished yet"
            if better := better_before(self.run):
                what += f"; {better}"
            raise Interrupted(f"stopped by a signal; {what}", self.resume_command(), signal_number=self.stop.signal_number)

    def _keep_to_time(self, report: StepReport, before_s: float) -> None:
        """Move the horizon of a run with a budget if it would not end on time, or if more reading only hurts.

        `before_s` is the clock's time before this step.
        """
        schedule, elapsed_s = self.trainer.config.schedule, self.trainer.clock.elapsed_s
        if self.pacer is None or schedule.horizon is None:
            return
        has_turned = self.recorder.turn is not None
        other_s = elapsed_s - report.elapsed_s
        moved = self.pacer.move(report.step, report.elapsed_s - before_s, other_s, elapsed_s, schedule, has_turned=has_turned)
        if moved is None:
            return
        self._reschedule(moved, report.step)
        self.record.write(self.run.path)  # before it takes effect
        why = "as more reading only hurts" if has_turned else "to end on time"
        text = f"{why}, the run now ends at step {moved.horizon:,} instead of {schedule.horizon:,}"
        if has_turned:
            self.say(text)
        self.run.log("events", {"kind": "replan", "step": report.step, "horizon": moved.horizon, "text": text})
        if moved.cooldown_start == report.step:  # the step to go back to for a larger budget
            self.recorder.save()

    def _tell_turn(self, step: int) -> None:
        """Report and log that held-out loss has turned, and which step is kept because of that."""
        turn, best = self.recorder.turn, self.recorder.best
        if turn is None or best is None:
            return
        text = (
            f"held-out loss has turned: {turn.best.bpb:.3f} bits per byte at step {turn.best.step:,}, {turn.newest.bpb:.3f} now, while the "
            f"training loss falls: the text is being learned by heart. Step {best.step:,} is kept as {self.run.path / 'best'}, and "
            f"{self.run.path} stands for it; more text helps more than more steps"
        )
        self._note({"kind": "turned", "step": step, "best": best.step, "text": text})

    def _reschedule(self, schedule: Schedule, step: int, asked: int | None = None) -> None:
        self.plan = replace(self.plan, schedule=schedule)
        self.trainer.config = replace(self.trainer.config, schedule=schedule)
        self.record = self.record.with_schedule(schedule, step, asked)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Lock the run folder, set back to where the plan starts; only in the first process."""
        if not self.processes.is_first:
            yield
            return
        with self.run.writing(), self._evidence_kept():
            self._check_unchanged()
            self._write_down_plan()
            yield

    @contextmanager
    def _evidence_kept(self) -> Iterator[None]:
        """Write the evidence of a NonFiniteError inside the block to events.jsonl.

        This includes a non-finite value in held-out texts, samples or skills after a step with a finite loss.
        """
        try:
            yield
        except NotFiniteOutput as error:
            step = self.trainer.step
            text = f"step {step:,}: the loss is finite, but held-out texts, samples or skills are not; this step was not saved"
            self.run.log("events", {"kind": "non_finite", "step": step, "text": text})
            raise NonFiniteError(text, error.hint) from error
        except NonFiniteError as error:
            self.run.log("events", {**error.evidence, "text": error.message})
            raise

    def _note(self, event: dict[str, Any]) -> None:
        """Report and log an event besides the steps; a smaller micro-batch is recorded for the rest of the run."""
        if not self.processes.is_first:
            return
        self.say(event["text"])
        self.run.log("events", event)
        if event["kind"] == "micro_batch":
            self.record = self.record.with_setting("micro_batch", event["now"])
            self.record.write(self.run.path)

    def _settle(self) -> None:
        """Complete the last save of a finished run if a kill cut it short; else write nothing."""
        if not self.processes.is_first:
            return
        is_tidy = self.recorder.is_settled() and not self.run.leftovers()
        if self.run.steps()[-1:] == [self.trainer.step] and not is_tidy:
            with self.run.writing():
                self.recorder.settle()

    def _check_unchanged(self) -> None:
        """Raise RunError if another process has trained here since the plan was made, before this one locked the folder."""
        newest = max(self.run.steps(), default=0)
        known = max(self.steps_seen, default=0)
        if newest > max(known, self.trainer.step):
            raise RunError(f"{self.run.path}: another process has reached step {newest:,} meanwhile", "start the same command again")

    @property
    def is_done(self) -> bool:
        """Whether the run has reached its horizon."""
        horizon = self.plan.schedule.horizon
        return horizon is not None and self.trainer.step >= horizon

    def go_on(self, until: int | None) -> None:
        """Plan the next call of `steps`: from here to `until`, or to the horizon."""
        self.plan = replace(self.plan, start=self.trainer.step, until=until, changed=False, rewinds=False, finished=False, say="")

    def cool_down(self, cooldown_steps: int | None = None) -> None:
        """Plan the end of the run: a cool-down from here, by default over a quarter of the steps done. Errors: UsageError at step 0."""
        self.go_on(None)
        self.plan = plan_finish(self.plan, cooldown_steps)
        if self.plan.changed:
            self._reschedule(self.plan.schedule, self.plan.start, self.plan.asked)

    def _write_down_plan(self) -> None:
        self.run.rewind(self.plan.start, keep_lines=self.plan.rewinds)
        for change in self.changes:  # before run.json: a kill in between repeats it rather than losing it
            self.run.log("events", {**change, "step": self.plan.start})
        self.changes = []
        self.record.write(self.run.path)

    def resume_command(self) -> str:
        """Command that continues exactly where this one ended."""
        return command("sft" if self.is_chat else "train", "--out_dir", self.run.path)
