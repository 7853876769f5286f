"""What a run folder says, as typed values. It only reads, and what does not fit is an error that names the file."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from positron_mini import files
from positron_mini.config import ModelConfig
from positron_mini.errors import PositronError, RunError, UsageError
from positron_mini.optim import Schedule
from positron_mini.plan import recorded_schedule
from positron_mini.runs import RunFolder, list_runs
from positron_mini.trainer import StepReport


@dataclass(frozen=True)
class Sample:
    """What the model wrote after `prompt` at a milestone."""

    step: int
    prompt: str
    text: str
    seed: int
    temperature: float


@dataclass(frozen=True)
class SkillScore:
    """The share of pairs in which the right sentence was the likelier one at a step, with its 95 % interval."""

    step: int
    skill: str
    accuracy: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class RunRecord:
    """A run up to its newest step, or up to the step that was asked for. Lists are in the order of steps."""

    path: Path
    kind: str  # pretrain or sft
    config: dict[str, Any]
    identity: dict[str, Any]
    device: dict[str, Any]
    versions: dict[str, str]
    schedules: tuple[dict[str, Any], ...]  # the events that set one, oldest first
    shape: ModelConfig | None
    reports: tuple[StepReport, ...]
    samples: tuple[Sample, ...]
    skills: tuple[SkillScore, ...]
    stories: tuple[dict[str, Any], ...]  # how well a fine-tuned model still tells stories
    peak_bytes: int | None  # of main memory, where the run wrote it down
    scoring: dict[int, float]  # seconds that it took to score the skills, by step
    events: tuple[tuple[int, str], ...]  # step and sentence of what else happened
    started: str  # the day, empty where the run did not write it down
    command: str  # that began it

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def place(self) -> str:
        """The folder as a command names it: below the working directory where it is there."""
        path = self.path.resolve()
        return (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else self.path).as_posix()

    @property
    def is_timed(self) -> bool:
        """Whether the run had a time to keep, so that its horizon followed the clock."""
        return self.config.get("budget") is not None

    @property
    def machine(self) -> str:
        """What it ran on, in words."""
        device, processor = self.device.get("device", "an unknown device"), self.versions.get("processor")
        return f"{device} ({processor})" if processor else str(device)

    @property
    def step(self) -> int:
        """The newest step that was reported or observed."""
        return max([0, *(row.step for row in self.reports[-1:]), *self.observed[-1:]])

    @property
    def schedule(self) -> Schedule:
        """The schedule in force at the newest step."""
        return recorded_schedule(list(self.schedules), self.step)

    @property
    def validations(self) -> tuple[StepReport, ...]:
        """The reports that hold a validation."""
        return tuple(row for row in self.reports if row.val_loss is not None and row.val_bpb is not None and math.isfinite(row.val_loss))

    @property
    def observed(self) -> tuple[int, ...]:
        """The steps with samples or skills, ascending."""
        return tuple(sorted({row.step for row in self.samples} | {row.step for row in self.skills}))

    @property
    def scoring_s(self) -> tuple[float, ...]:
        """Seconds that each scoring of the skills took; those of steps that were trained anew count once."""
        return tuple(seconds for step, seconds in self.scoring.items() if step in {row.step for row in self.skills})

    @property
    def nats_per_bit(self) -> float | None:
        """Nats per token for one bit per byte: the validation text has as many tokens and bytes at every step."""
        rows = [row for row in self.validations if row.val_bpb]
        return rows[-1].val_loss / rows[-1].val_bpb if rows and rows[-1].val_loss and rows[-1].val_bpb else None

    def report_at(self, step: int) -> StepReport | None:
        """The report of a step."""
        return next((row for row in self.reports if row.step == step), None)


def shown_path(text: str) -> str:
    """A path as a report shows it to others: a relative one as it is, of an absolute one the name."""
    return Path(text).name if Path(text).is_absolute() else text


def read_run(path: Path, *, until: int | None = None) -> RunRecord:
    """The record of a run folder, up to step `until`. Errors: RunError when it is no run, PositronError for a line that does not fit."""
    run = RunFolder(path)
    data = run.read()
    if data is None:
        there = ", ".join(map(str, list_runs()[:8]))
        raise RunError(f"{path}: no run there (no run.json)", f"runs here: {there}" if there else "name a run folder: --run runs/NAME")
    last = math.inf if until is None else until

    def rows(name: str) -> list[dict[str, Any]]:
        return [row for row in _lines(path / name) if row["step"] <= last]

    def typed(kind: type[Row], name: str) -> tuple[Row, ...]:
        found = _typed(kind, path / name, _lines(path / name))
        return tuple(sorted((row for row in found if row.step <= last), key=lambda row: row.step))

    events = rows("events.jsonl")
    try:
        return RunRecord(
            path=path,
            kind=str(data.get("kind")),
            config=dict(data["config"]),
            identity=dict(data["identity"]),
            device=dict(data["device"]),
            versions=dict(data["versions"]),
            schedules=tuple(e for e in data["events"] if e["kind"] == "schedule" and e["step"] <= last),
            shape=_shape(run, data),
            reports=tuple(report for report in typed(StepReport, "metrics.jsonl") if math.isfinite(report.loss)),
            samples=typed(Sample, "samples.jsonl"),
            skills=typed(SkillScore, "skills.jsonl"),
            stories=tuple(rows("stories.jsonl")),
            peak_bytes=max((int(e["peak_bytes"]) for e in events if e.get("kind") == "memory"), default=None),
            scoring={e["step"]: float(e["seconds"]) for e in events if e.get("kind") == "skills"},
            events=tuple((e["step"], e["text"]) for e in events if isinstance(e.get("text"), str)),
            started=str(data.get("started") or ""),
            command=str(data.get("command") or "positron"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.run_json}: not the record of a run ({type(error).__name__}: {error})", "restore the file") from error


def _shape(run: RunFolder, data: dict[str, Any]) -> ModelConfig | None:
    """The model's shape: pretraining records it, a fine-tuning has its base's, which stands in every step folder."""
    if "model" in data["identity"]:
        return ModelConfig(**data["identity"]["model"])
    for step in reversed(run.steps()):
        path = run.folder(step) / "config.json"
        if path.is_file():
            return ModelConfig.from_huggingface(files.read_json(path), str(path))
    return None


Row = TypeVar("Row", StepReport, Sample, SkillScore)


def _typed(kind: type[Row], path: Path, rows: list[dict[str, Any]]) -> list[Row]:
    """Lines as records of `kind`; keys it does not have are ignored."""
    known = {field.name: str(field.type) for field in fields(kind)}
    found = []
    for number, row in enumerate(rows, 1):
        values = {name: row[name] for name in known if name in row}
        wrong = next((name for name, value in values.items() if not _fits(value, known[name])), None)
        try:
            if wrong is not None:
                raise UsageError(f"{wrong} is {values[wrong]!r}")
            found.append(kind(**values))
        except (TypeError, UsageError) as error:
            raise _bad_line(path, number, str(error).partition("() ")[2] or str(error)) from error
    return found


def _fits(value: Any, kind: str) -> bool:
    if kind == "str":
        return isinstance(value, str)
    if value is None:
        return "None" in kind
    return isinstance(value, int | float) and not isinstance(value, bool) and (kind != "int" or isinstance(value, int))


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a line file; each has a step, 0 where an event has none."""
    found = files.read_lines(path)
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict) or type(row.setdefault("step", 0)) is not int or row["step"] < 0:
            raise _bad_line(path, number, "its step is not a whole number")
    return found


def _bad_line(path: Path, number: int, what: str) -> PositronError:
    return PositronError(f"{path}, line {number}: not a line of this log ({what})", f"remove that line from {path}")
