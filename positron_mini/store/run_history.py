"""A run for reports: its record, and its logs up to a step. Only reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from positron_mini import files
from positron_mini.config import ModelConfig
from positron_mini.errors import RunError
from positron_mini.optim import Schedule
from positron_mini.store.curve import Turn, turned, validations
from positron_mini.store.find import list_runs
from positron_mini.store.run_logs import Row, Sample, SkillScore, StepReport, StoryScore, log_path, numbered_rows, typed_rows
from positron_mini.store.run_record import RunRecord, is_bounded, read_record
from positron_mini.store.steps import saved_steps, step_name


@dataclass(frozen=True, kw_only=True)
class RunHistory(RunRecord):
    """A run up to its newest step, or up to a requested one. Lists are in the order of steps."""

    path: Path
    shape: ModelConfig | None
    reports: tuple[StepReport, ...]
    samples: tuple[Sample, ...]
    skills: tuple[SkillScore, ...]
    stories: tuple[StoryScore, ...]  # how well a fine-tuned model still tells stories
    peak_bytes: int | None  # of main memory, if the run logged it
    scoring: dict[int, float]  # seconds to score the skills, by step
    happened: tuple[tuple[int, str], ...]  # step and sentence of each other event

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def place(self) -> str:
        """Path of the folder for a command, relative to the working directory if inside it."""
        path = self.path.resolve()
        return (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else self.path).as_posix()

    @property
    def is_timed(self) -> bool:
        """Whether the run had a time budget, so that its horizon followed the clock."""
        return self.config.get("budget") is not None

    @property
    def machine(self) -> str:
        """Device and build, in words."""
        device, processor = self.device.get("device", "an unknown device"), self.versions.get("processor")
        return f"{device} ({processor})" if processor else str(device)

    @property
    def step(self) -> int:
        """Newest step that was reported or observed."""
        return max([0, *(row.step for row in self.reports[-1:]), *self.observed[-1:]])

    @property
    def schedule(self) -> Schedule:
        """Schedule in force at the newest step."""
        return self.schedule_at(self.step)

    @property
    def validations(self) -> tuple[StepReport, ...]:
        """Reports with a validation."""
        return tuple(row for row in self.reports if row.val_loss is not None and row.val_bpb is not None and math.isfinite(row.val_loss))

    @cached_property
    def turn(self) -> Turn | None:
        """The turn of the held-out loss; None while it has not turned."""
        return turned(validations([row.record() for row in self.reports]))

    @property
    def observed(self) -> tuple[int, ...]:
        """Steps with samples or skills, ascending."""
        return tuple(sorted({row.step for row in self.samples} | {row.step for row in self.skills}))

    @property
    def scoring_s(self) -> tuple[float, ...]:
        """Seconds of each scoring of the skills; a step that was trained again counts once."""
        return tuple(seconds for step, seconds in self.scoring.items() if step in {row.step for row in self.skills})

    @property
    def nats_per_bit(self) -> float | None:
        """Nats per token for one bit per byte: a constant, as the validation text has the same tokens and bytes at every step."""
        rows = [row for row in self.validations if row.val_bpb]
        return rows[-1].val_loss / rows[-1].val_bpb if rows and rows[-1].val_loss and rows[-1].val_bpb else None

    def report_at(self, step: int) -> StepReport | None:
        """Report of a step."""
        return next((row for row in self.reports if row.step == step), None)


def shown_path(text: str) -> str:
    """A path for readers elsewhere: a relative one unchanged, of an absolute one only the name."""
    return Path(text).name if Path(text).is_absolute() else text


def read_run(path: Path, *, until: int | None = None) -> RunHistory:
    """Read a run folder up to step `until`. Errors: RunError when it is no run, PositronError for an invalid record or line."""
    record = read_record(path)
    if record is None:
        there = ", ".join(map(str, list_runs()[:8]))
        raise RunError(f"{path}: no run there (no run.json)", f"runs here: {there}" if there else "name a run folder: --run runs/NAME")
    last = math.inf if until is None else until

    def typed(kind: type[Row], name: str) -> tuple[Row, ...]:
        return tuple(sorted((row for row in typed_rows(kind, log_path(path, name)) if row.step <= last), key=lambda row: row.step))

    events = [row for row in numbered_rows(log_path(path, "events")) if row["step"] <= last and is_bounded(row)]
    return RunHistory(
        **{each.name: getattr(record, each.name) for each in fields(record) if each.name != "events"},
        events=tuple(event for event in record.events if event["step"] <= last),
        path=path,
        shape=_shape(path, record),
        reports=tuple(row for row in typed(StepReport, "metrics") if all(map(math.isfinite, (row.loss, row.tok_per_s, row.elapsed_s)))),
        samples=typed(Sample, "samples"),
        skills=typed(SkillScore, "skills"),
        stories=typed(StoryScore, "stories"),
        peak_bytes=max((e["peak_bytes"] for e in events if type(e.get("peak_bytes")) is int and e.get("kind") == "memory"), default=None),
        scoring={e["step"]: float(e["seconds"]) for e in events if e.get("kind") == "skills" and type(e.get("seconds")) in (int, float)},
        happened=tuple((e["step"], e["text"]) for e in events if isinstance(e.get("text"), str)),
    )


def _shape(run: Path, record: RunRecord) -> ModelConfig | None:
    """Shape of the model; a fine-tuning has its base's, recorded in every step folder."""
    if record.own_shape is not None:
        return record.own_shape
    for step in reversed(saved_steps(run)):
        path = run / step_name(step) / "config.json"
        if path.is_file():
            return ModelConfig.from_huggingface(files.read_json(path), str(path))
    return None
