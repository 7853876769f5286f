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


class Recorder:
    """Watches a trainer on behalf of a run folder. It never changes what is trained."""

    def __init__(self, run: RunFolder, trainer: Trainer, recording: Recording, tracker: Tracker) -> None:
        self.run, self.trainer, self.recording, self.tracker = run, trainer, recording, tracker
        self.saved: int | None = trainer.step if trainer.step > 0 else None
        self.last: StepReport | None = None

    def begin(self) -> None:
        """Keep the untrained model and its samples, if step 0 is a milestone and not there yet."""
        if self.trainer.step == 0 and is_milestone(0, self.recording.milestones) and 0 not in self.run.steps():
            with self.trainer.best_weights() as model:
                self.recording.observe(model, 0)
            write_checkpoint(self.run.folder(0), self.trainer.model_weights(), self.recording.texts(0, 0, None), None)
            self.run.point_latest(0)

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
        if milestone or step % due.save_every == 0 or step in (horizon, cooldown_start):
            self.save()
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
        self.run.point_latest(trainer.step)
        self.saved = trainer.step
        cooldown_start = trainer.config.schedule.cooldown_start
        keep = frozenset() if cooldown_start is None else frozenset({cooldown_start})
        self.run.prune(trainer.step, self.recording.milestones, keep)
