"""What a run writes down while it trains: validation, log lines, milestone samples, checkpoints, retention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from positron_mini.checkpoint import TrainingState, write_checkpoint
from positron_mini.config import is_milestone
from positron_mini.evaluate.bits import Score
from positron_mini.model import GPT
from positron_mini.runs import RunFolder
from positron_mini.track import Tracker
from positron_mini.trainer import StepReport, Trainer


@dataclass(frozen=True)
class Recording:
    """When what is written. `evaluate` scores the model; `observe` writes samples of it; `texts` gives the model folder's text files."""

    save_every: int
    eval_every: int
    milestones: frozenset[int] | None
    evaluate: Callable[[GPT], Score]
    observe: Callable[[GPT, int], None]
    texts: Callable[[int, int, StepReport | None], dict[str, bytes]]
    evaluate_first: bool = False  # score and sample before the first step, to compare with the end
    keep_best: bool = False  # save the step with the lowest validation loss and point `best` at it


class Recorder:
    """Watches a trainer on behalf of a run folder. It never changes what is trained."""

    def __init__(self, run: RunFolder, trainer: Trainer, recording: Recording, tracker: Tracker) -> None:
        self.run, self.trainer, self.recording, self.tracker = run, trainer, recording, tracker
        self.saved: int | None = trainer.step if trainer.step > 0 else None
        self.last: StepReport | None = None
        scored = [(row["val_loss"], row["step"]) for row in run.metrics() if row["step"] <= trainer.step and "val_loss" in row]
        self.best: tuple[float, int] | None = min(scored, default=None)

    def begin(self) -> None:
        """Keep the untrained model and its samples, if step 0 is a milestone and not there yet."""
        if self.trainer.step == 0 and self.recording.evaluate_first:
            with self.trainer.best_weights() as model:
                score = self.recording.evaluate(model)
                self.recording.observe(model, 0)
            self.run.log("events", {"kind": "before", "step": 0, "val_loss": score.loss, "val_bpb": score.bits_per_byte})
        if self.trainer.step == 0 and is_milestone(0, self.recording.milestones) and 0 not in self.run.steps():
            with self.trainer.best_weights() as model:
                self.recording.observe(model, 0)
            write_checkpoint(self.run.folder(0), self.trainer.model_weights(), self.recording.texts(0, 0, None), None)
            self.run.point("latest", 0)

    def record(self, report: StepReport) -> StepReport:
        """The report, with validation where it is due, after everything due at its step has been written."""
        step, due = report.step, self.recording
        horizon, cooldown_start = self.trainer.config.schedule.horizon, self.trainer.config.schedule.cooldown_start
        if step % due.eval_every == 0 or step == horizon:
            with self.trainer.best_weights() as model:
                score = due.evaluate(model)
            report = replace(report, val_loss=score.loss, val_bpb=score.bits_per_byte)
        self.last = report
        self.run.log("metrics", report.record())
        self.tracker.log(report)
        milestone = is_milestone(step, due.milestones)
        if milestone or step == horizon:
            with self.trainer.best_weights() as model:
                due.observe(model, step)
        is_best = due.keep_best and report.val_loss is not None and (self.best is None or report.val_loss < self.best[0])
        if is_best and report.val_loss is not None:
            self.best = (report.val_loss, step)
        if milestone or is_best or step % due.save_every == 0 or step in (horizon, cooldown_start):
            self.save()
        if is_best:
            self.run.point("best", step)
        self.trainer.clock.lap_other()
        return report

    def save(self) -> None:
        """Write the checkpoint of the newest finished step, once, and apply the retention rule."""
        trainer = self.trainer
        if trainer.step == 0 or self.saved == trainer.step:
            return
        training = TrainingState(trainer.state_tensors(), trainer.state_numbers())
        texts = self.recording.texts(trainer.step, trainer.tokens, self.last)
        write_checkpoint(self.run.folder(trainer.step), trainer.model_weights(), texts, training)
        self.run.point("latest", trainer.step)
        self.saved = trainer.step
        cooldown_start = trainer.config.schedule.cooldown_start
        keep = {cooldown_start} if cooldown_start is not None else set()
        if self.recording.keep_best and self.best is not None:
            keep.add(self.best[1])
        self.run.prune(trainer.step, self.recording.milestones, frozenset(keep))
