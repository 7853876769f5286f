"""Records of a run in training: validation, log lines, milestone samples and skills, checkpoints, retention."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import fmean

from positron_mini import files
from positron_mini.config import is_milestone, parse_milestones
from positron_mini.fast.plain import changed
from positron_mini.store.checkpoint import CHANGED, TrainingState, step_name, write_checkpoint
from positron_mini.store.curve import Turn, Validation, turned, validations
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_logs import StepReport, log_path, read_rows
from positron_mini.train.task import Task
from positron_mini.train.track import Tracker
from positron_mini.trainer import Trainer


class Recorder:
    """Writes the records of a trainer to its run folder. Never changes what is trained.

    The step with the lowest validation loss is saved and kept. `turn` is set once that loss has turned; it and `best` are functions of the
    log and of the saved steps, so that a resumed run keeps what an uninterrupted one keeps.
    """

    def __init__(self, run: RunFolder, trainer: Trainer, task: Task, tracker: Tracker) -> None:
        self.run, self.trainer, self.task, self.tracker = run, trainer, task, tracker
        self.milestones = parse_milestones(task.config.milestones)
        self.saved: int | None = trainer.step if trainer.step > 0 else None
        self.last: StepReport | None = None
        self._stay: set[int] = set()  # old steps already reported as kept
        rows = [row for row in run.metrics() if row["step"] <= trainer.step]
        self.validations = validations(rows)
        self.turn: Turn | None = turned(self.validations)
        self.best = _best_saved(run, self.validations)
        last = self.validations[-1].step if self.validations else 0
        self._losses = [row["loss"] for row in rows if row["step"] > last]  # of training, since the last validation

    def begin(self) -> None:
        """Score and observe the untrained model where that is due, and keep it if step 0 is a milestone; once."""
        self._point_best()  # the run may have been set back
        if self.trainer.step > 0 and not self.is_settled():
            self.settle()
        is_kept = is_milestone(0, self.milestones)
        if self.trainer.step > 0 or 0 in self.run.steps() or not (is_kept or self.task.scores_first):
            return
        with self.trainer.best_weights() as model:
            self.task.observe(self.run, model, 0, is_end=False)
            score = self.task.evaluate(model) if self.task.scores_first and not self._has_scored_before() else None
        if score is not None:
            self.run.log("events", {"kind": "before", "step": 0, "val_loss": score.loss, "val_bpb": score.bits_per_byte})
        if is_kept:
            write_checkpoint(self.run.folder(0), self.trainer.model_weights(), self._texts(None), None)
            self.run.point("latest", 0)
        self.trainer.clock.lap_other()

    def _has_scored_before(self) -> bool:
        """Whether the score before the first step is logged: a run killed before its first checkpoint begins again."""
        return any(event.get("kind") == "before" for event in read_rows(log_path(self.run.path, "events")))

    def record(self, report: StepReport) -> StepReport:
        """Write everything due at the report's step; return the report, with validation where it is due."""
        step = report.step
        horizon = self.trainer.config.schedule.horizon
        if step % self.task.settings.eval_every == 0 or step == horizon:
            with self.trainer.best_weights() as model:
                score = self.task.evaluate(model)
            report = replace(report, val_loss=score.loss, val_bpb=score.bits_per_byte)
        self.last = report
        self._write(report, is_end=step == horizon)
        self.trainer.clock.lap_other()
        return report

    def _write(self, report: StepReport, *, is_end: bool) -> None:
        """Write the log line, and the samples, skills and checkpoint that are due."""
        step = report.step
        self.run.log("metrics", report.record())
        self.tracker.log(report)
        is_best = self._is_best(report)
        milestone = is_milestone(step, self.milestones)
        if milestone or is_end:
            with self.trainer.best_weights() as model:
                self.task.observe(self.run, model, step, is_end=is_end)
        if milestone or is_best or is_end or step % self.task.config.save_every == 0 or step == self.trainer.config.schedule.cooldown_start:
            self.save()
        elif report.val_loss is not None:
            self._point_best()

    def _is_best(self, report: StepReport) -> bool:
        """Whether this is the lowest validation loss so far, rounded as in the log, so that a resumed run decides alike; remember it."""
        row = report.record()
        self._losses.append(row["loss"])
        if not math.isfinite(row.get("val_loss", math.inf)):
            return False
        self.validations.append(Validation(report.step, row["val_loss"], row["val_bpb"], fmean(self._losses)))
        self.turn, self._losses = turned(self.validations), []
        if self.best is not None and row["val_loss"] >= self.best.loss:
            return False
        self.best = self.validations[-1]
        return True

    def save(self) -> None:
        """Write the checkpoint of the newest finished step, once, and apply the retention rule."""
        trainer = self.trainer
        if trainer.step == 0 or self.saved == trainer.step:
            return
        training = TrainingState(trainer.state_tensors(), trainer.state_numbers())
        write_checkpoint(self.run.folder(trainer.step), trainer.model_weights(), self._texts(self.last), training)
        self.saved = trainer.step
        self.settle()

    def _texts(self, report: StepReport | None) -> dict[str, bytes]:
        """Texts of a model folder. A model that is not the built-in one gets a type of its own, so that no program takes it for Qwen3."""
        trainer = self.trainer
        texts, why = self.task.texts(self.run, trainer.step, trainer.tokens, report), changed(trainer.model)
        if not why or "config.json" not in texts:
            return texts
        settings = {**json.loads(texts["config.json"]), "model_type": CHANGED, "changed": why}
        return {**texts, "config.json": files.json_text(settings).encode()}

    def settle(self) -> None:
        """Point `latest` and `best` at the saved steps and apply the retention rule: completes a save, also one that a kill cut short."""
        step = self.trainer.step
        self.run.point("latest", step)
        self._point_best()  # before the old best is deleted
        for stays, names in self.run.prune(step, self.milestones, self._kept_states()).items():
            self._say_once(stays, names[0])

    def _say_once(self, stays: int, name: str) -> None:
        """Report once that an old step is kept because a file in it is not ours."""
        if stays not in self._stay:
            self._stay.add(stays)
            text = f"step {stays:,} is kept: {name} in its folder was not made by this program"
            self.trainer.tell({"kind": "kept", "step": self.trainer.step, "text": text})

    def is_settled(self) -> bool:
        """Whether `settle` would change nothing."""
        step = self.trainer.step
        pointed = self.run.points_to("latest") == step_name(step) and self.run.points_to("best") == self._best_name()
        return pointed and not self.run.surplus(step, self.milestones, self._kept_states())

    def _best_name(self) -> str | None:
        """Folder that `best` should name; None in a pretraining whose held-out loss has not turned, where the newest step counts."""
        is_named = self.best is not None and (self.task.points_best or self.turn is not None)
        return step_name(self.best.step) if self.best is not None and is_named else None

    def _point_best(self) -> None:
        if self.run.points_to("best") == self._best_name():
            return
        if self.best is not None and self._best_name() is not None:
            self.run.point("best", self.best.step)
        else:
            self.run.unpoint("best")

    def _kept_states(self) -> frozenset[int]:
        """Steps besides the newest that keep their training state."""
        cooldown_start = self.trainer.config.schedule.cooldown_start
        return frozenset(step for step in (cooldown_start, self.best.step if self.best else None) if step is not None)


class Follower(Recorder):
    """Recorder of a process that is not the first of its run: takes part in validation and writes nothing."""

    def begin(self) -> None:
        """Do nothing."""

    def _write(self, report: StepReport, *, is_end: bool) -> None:
        pass

    def save(self) -> None:
        """Do nothing."""

    def settle(self) -> None:
        """Do nothing."""


def _best_saved(run: RunFolder, found: list[Validation]) -> Validation | None:
    """Lowest validation among the steps that still exist; None without one."""
    there = set(run.steps())
    return min((one for one in found if one.step in there), key=lambda one: one.loss, default=None)
