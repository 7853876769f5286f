"""What a run writes down while it trains: validation, log lines, milestone samples and skills, checkpoints, retention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from positron_mini.checkpoint import TrainingState, step_name, write_checkpoint
from positron_mini.config import is_milestone
from positron_mini.evaluate.bits import Score
from positron_mini.model import GPT
from positron_mini.runs import RunFolder
from positron_mini.store.run_logs import StepReport, log_path, read_rows
from positron_mini.track import Tracker
from positron_mini.trainer import Trainer


@dataclass(frozen=True)
class Recording:
    """What is written when. `evaluate` scores the model; `observe` writes its samples and skills; `texts` gives a model folder's texts."""

    save_every: int
    eval_every: int
    milestones: frozenset[int] | None
    evaluate: Callable[[GPT], Score]
    observe: Callable[[GPT, int], None]
    texts: Callable[[int, int, StepReport | None], dict[str, bytes]]
    evaluate_first: bool = False  # score and observe before the first step, to compare with the end
    keep_best: bool = False  # save the step with the lowest validation loss and point `best` at it


class Recorder:
    """Watches a trainer on behalf of a run folder. It never changes what is trained."""

    def __init__(self, run: RunFolder, trainer: Trainer, recording: Recording, tracker: Tracker) -> None:
        self.run, self.trainer, self.recording, self.tracker = run, trainer, recording, tracker
        self.saved: int | None = trainer.step if trainer.step > 0 else None
        self.last: StepReport | None = None
        self._stay: set[int] = set()  # old steps of which was said that they are kept
        self.best = _best_saved(run, trainer.step) if recording.keep_best else None

    def begin(self) -> None:
        """Score and observe the untrained model where that is due, and keep it if step 0 is a milestone; once."""
        if self.best is not None:
            self.run.point("best", self.best[1])  # the run may have been set back
        if self.trainer.step > 0 and not self.is_settled():
            self.settle()
        is_kept = is_milestone(0, self.recording.milestones)
        if self.trainer.step > 0 or 0 in self.run.steps() or not (is_kept or self.recording.evaluate_first):
            return
        with self.trainer.best_weights() as model:
            self.recording.observe(model, 0)
            score = self.recording.evaluate(model) if self.recording.evaluate_first and not self._has_scored_before() else None
        if score is not None:
            self.run.log("events", {"kind": "before", "step": 0, "val_loss": score.loss, "val_bpb": score.bits_per_byte})
        if is_kept:
            write_checkpoint(self.run.folder(0), self.trainer.model_weights(), self.recording.texts(0, 0, None), None)
            self.run.point("latest", 0)
        self.trainer.clock.lap_other()

    def _has_scored_before(self) -> bool:
        """Whether the score before the first step is written down: a run that was killed before its first checkpoint begins again."""
        return any(event.get("kind") == "before" for event in read_rows(log_path(self.run.path, "events")))

    def record(self, report: StepReport) -> StepReport:
        """The report, with validation where it is due, after everything due at its step has been written."""
        step, due = report.step, self.recording
        horizon = self.trainer.config.schedule.horizon
        if step % due.eval_every == 0 or step == horizon:
            with self.trainer.best_weights() as model:
                score = due.evaluate(model)
            report = replace(report, val_loss=score.loss, val_bpb=score.bits_per_byte)
        self.last = report
        self._write(report, is_end=step == horizon)
        self.trainer.clock.lap_other()
        return report

    def _write(self, report: StepReport, *, is_end: bool) -> None:
        """The log line, and the samples, skills and checkpoint that are due."""
        step, due = report.step, self.recording
        self.run.log("metrics", report.record())
        self.tracker.log(report)
        milestone = is_milestone(step, due.milestones)
        if milestone or is_end:
            with self.trainer.best_weights() as model:
                due.observe(model, step)
        is_best = due.keep_best and self._is_best(report)
        if milestone or is_best or is_end or step % due.save_every == 0 or step == self.trainer.config.schedule.cooldown_start:
            self.save()

    def _is_best(self, report: StepReport) -> bool:
        """Whether this is the lowest validation loss so far, rounded as in the log, so that a resumed run decides alike; remembers it."""
        loss = report.record().get("val_loss")
        if loss is None or (self.best is not None and loss >= self.best[0]):
            return False
        self.best = (loss, report.step)
        return True

    def save(self) -> None:
        """Write the checkpoint of the newest finished step, once, and apply the retention rule."""
        trainer = self.trainer
        if trainer.step == 0 or self.saved == trainer.step:
            return
        training = TrainingState(trainer.state_tensors(), trainer.state_numbers())
        texts = self.recording.texts(trainer.step, trainer.tokens, self.last)
        write_checkpoint(self.run.folder(trainer.step), trainer.model_weights(), texts, training)
        self.saved = trainer.step
        self.settle()

    def settle(self) -> None:
        """Point `latest` and `best` at what is saved and apply the retention rule: the end of a save, or of one that a kill cut short."""
        step = self.trainer.step
        self.run.point("latest", step)
        if self.best is not None and self.best[1] == step:
            self.run.point("best", step)  # before the one it replaces goes
        for stays, names in self.run.prune(step, self.recording.milestones, self._kept_states()).items():
            self._say_once(stays, names[0])

    def _say_once(self, stays: int, name: str) -> None:
        """Say that an old step is kept for a file in it that is not ours."""
        if stays not in self._stay:
            self._stay.add(stays)
            text = f"step {stays:,} is kept: {name} in its folder was not made by this program"
            self.trainer.tell({"kind": "kept", "step": self.trainer.step, "text": text})

    def is_settled(self) -> bool:
        """Whether `settle` would change nothing."""
        step = self.trainer.step
        pointed = self.run.points_to("latest") == step_name(step)
        return pointed and not self.run.surplus(step, self.recording.milestones, self._kept_states())

    def _kept_states(self) -> frozenset[int]:
        """The steps besides the newest that keep their training state."""
        cooldown_start = self.trainer.config.schedule.cooldown_start
        return frozenset(step for step in (cooldown_start, self.best[1] if self.best else None) if step is not None)


class Follower(Recorder):
    """The recorder of a process that is not the first of its run: it takes its part in validation, and writes nothing."""

    def begin(self) -> None:
        """Nothing."""

    def _write(self, report: StepReport, *, is_end: bool) -> None:
        pass

    def save(self) -> None:
        """Nothing."""

    def settle(self) -> None:
        """Nothing."""


def _best_saved(run: RunFolder, step: int) -> tuple[float, int] | None:
    """The lowest logged validation loss up to `step` and its step, among the steps that are still there; None without one."""
    there = {saved for saved in run.steps() if saved <= step}
    return min(((row["val_loss"], row["step"]) for row in run.metrics() if "val_loss" in row and row["step"] in there), default=None)
