"""run.json as one typed value: the only place that reads or writes it.

A damaged record raises an error that names the fault; lists of runs catch it for that run alone. Keys of a newer version are kept.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from positron_mini import files
from positron_mini.config import DEFAULT_TEXT, ModelConfig, SFTConfig, TrainConfig, is_of_type
from positron_mini.errors import PositronError, RunError

if TYPE_CHECKING:
    from positron_mini.optim import Schedule

FORMAT = 1
RUN_JSON = "run.json"
MAX_COUNT = 10**12  # limit for steps and tokens in a schedule
MAX_BYTES = 64 << 20
TYPES: dict[str, Any] = {
    "kind": str,
    "identity": dict,
    "config": dict,
    "device": dict,
    "versions": dict,
    "events": list,
    "started": str | None,
    "command": str,
    "expected_bpb": float | None,
    "bos_share": float | None,
}
HINT = "restore it from a copy, or choose another --out_dir"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Content of a run.json. Fields that an older version did not write are empty."""

    kind: str  # pretrain or sft
    identity: dict[str, Any] = field(default_factory=dict)  # settings that make two commands the same run
    config: dict[str, Any] = field(default_factory=dict)  # the resolved settings
    device: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    events: tuple[dict[str, Any], ...] = ()  # schedules, oldest first
    started: str | None = None  # date
    command: str = ""  # that started it
    expected_bpb: float | None = None  # for a run with a budget
    bos_share: float | None = None  # share of the training targets that follow an eos: they cost nothing and are not in the validation
    other: dict[str, Any] = field(default_factory=dict)  # keys written by a newer version

    def content(self) -> dict[str, Any]:
        """JSON value of run.json, its keys in the order in which they are written."""
        values = {name: getattr(self, name) for name in TYPES}
        for name in ("expected_bpb", "bos_share"):
            if values[name] is None:
                del values[name]
        return {"format": FORMAT, **values, **self.other}

    def write(self, run: Path) -> None:
        """Replace the run.json of a run folder."""
        files.write_json(run / RUN_JSON, self.content())

    # --- what it says -------------------------------------------------------------------------------------------------------------------

    @property
    def is_chat(self) -> bool:
        """Whether the run makes a chat model."""
        return self.kind == "sft"

    @property
    def text(self) -> Path:
        """Path of the training text of a pretraining."""
        return Path(self.config.get("dataset_path") or DEFAULT_TEXT)

    @property
    def processes(self) -> int:
        """Number of processes that trained it."""
        return self.config.get("nproc") or 1

    @property
    def vocab_size(self) -> int | None:
        """Vocabulary size; None for a fine-tuning, whose base has it."""
        size: int | None = self.identity.get("model", {}).get("vocab_size")
        return size

    @property
    def own_shape(self) -> ModelConfig | None:
        """Shape of the model; None for a fine-tuning, which has its base's. Errors: RunError."""
        if "model" not in self.identity:
            return None
        try:
            return ModelConfig(**self.identity["model"])
        except (TypeError, PositronError) as error:
            raise RunError(f"{RUN_JSON}: damaged (identity.model: {error})", HINT) from error

    @property
    def schedules(self) -> tuple[dict[str, Any], ...]:
        """Schedule events, oldest first."""
        return tuple(event for event in self.events if event["kind"] == "schedule")

    @property
    def horizon(self) -> int | None:
        """Step at which the run ends by its newest schedule; None for an open-ended one."""
        return self.schedules[-1]["horizon"] if self.schedules else None

    def schedule_at(self, step: int | None = None) -> Schedule:
        """Schedule in force (at `step`). Errors: RunError when there is none."""
        return recorded_schedule(self.events, step)

    # --- what changes while it trains ---------------------------------------------------------------------------------------------------

    def with_schedule(self, schedule: Schedule, step: int, asked: int | None = None) -> RunRecord:
        """The record with a new schedule from `step` on."""
        return replace(self, events=(*self.events, schedule_record(schedule, step, asked)))

    def with_setting(self, name: str, value: Any) -> RunRecord:
        """The record with a setting replaced."""
        return replace(self, config={**self.config, name: value})

    def check_complete(self, path: Path) -> None:
        """Raise RunError for a missing value that training cannot go on without."""
        wrong = [name for name in ("identity", "config", "device", "versions", "events", "command") if not getattr(self, name)]
        wrong += [f"device.{name}" for name in ("device", "reason") if self.device and name not in self.device]
        if self.kind == "pretrain" and self.identity and self.vocab_size is None:
            wrong.append("identity.model")
        if wrong:
            raise RunError(f"{path}: damaged ({', '.join(wrong[:4])})", HINT)


def read_record(run: Path) -> RunRecord | None:
    """Read the record of a run folder; None for a folder without one. Errors: RunError naming the fault; PositronError."""
    path = run / RUN_JSON
    if not os.path.lexists(path):
        return None
    data = files.read_json(path, MAX_BYTES)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise RunError(f"{path}: not a run of format {FORMAT}", "choose another --out_dir")
    wrong = _wrong(data)
    if wrong:
        raise RunError(f"{path}: damaged ({', '.join(wrong[:4])})", HINT)
    known = {name: data[name] for name in TYPES if name in data}
    known["events"] = tuple(known.get("events", ()))
    other = {name: value for name, value in data.items() if name not in TYPES and name != "format"}
    return RunRecord(**known, other=other)


def _wrong(data: dict[str, Any]) -> list[str]:
    """Keys with a wrong type or an unrepresentable number."""
    wrong = [name for name, value in data.items() if not is_bounded(value)]
    wrong += [name for name, kind in TYPES.items() if name in data and not is_of_type(data[name], kind)]
    if wrong or "kind" not in data:
        return wrong or ["kind"]
    hints = _settings_of(data["kind"])
    config, device, identity = (data.get(name, {}) for name in ("config", "device", "identity"))
    wrong = [f"config.{name}" for name, value in config.items() if name in hints and not is_of_type(value, hints[name])]
    wrong += [f"device.{name}" for name in ("device", "precision", "reason") if not isinstance(device.get(name, ""), str)]
    model = identity.get("model", {"vocab_size": 1})
    wrong += [] if isinstance(model, dict) and type(model.get("vocab_size")) is int else ["identity.model"]
    return wrong + ([] if all(map(_is_event, data.get("events", []))) else ["events"])


@cache
def _settings_of(kind: str) -> dict[str, Any]:
    """Type of each setting of a kind of run."""
    configs = {"pretrain": TrainConfig, "sft": SFTConfig}
    return get_type_hints(configs[kind]) if kind in configs else {}


def is_bounded(value: Any) -> bool:
    """Whether every number in a JSON value is finite, and every integer below 2^63."""
    left = [value]  # not recursive: JSON may be nested deeper than Python's call stack
    while left:
        each = left.pop()
        if isinstance(each, dict | list):
            left += each.values() if isinstance(each, dict) else each
        elif isinstance(each, int):
            if abs(each) >= 2**63:
                return False
        elif isinstance(each, float) and not math.isfinite(each):
            return False
    return True


# --- schedules --------------------------------------------------------------------------------------------------------------------------

Events = list[dict[str, Any]] | tuple[dict[str, Any], ...]


def schedule_record(schedule: Schedule, step: int, asked: int | None = None) -> dict[str, Any]:
    """The event for a schedule that takes effect at `step`, with the requested cool-down if it did not fit."""
    is_other = asked not in (None, schedule.cooldown_steps)
    facts = {name: value for name, value in asdict(schedule).items() if schedule.bend_step is not None or not name.startswith("bend_")}
    return {"kind": "schedule", "step": step, **facts, **({"asked_cooldown_steps": asked} if is_other else {})}


def recorded_schedule(events: Events, step: int | None = None) -> Schedule:
    """Schedule in force according to a run's events (up to `step`). Errors: RunError when there is none."""
    from positron_mini.optim import Schedule  # imports torch, which lists of runs avoid

    event = schedule_event(events, step)
    known = {each.name for each in fields(Schedule)}  # runs from before horizons could bend have no bend
    return Schedule(**{name: value for name, value in event.items() if name in known})


def schedule_event(events: Events, step: int | None = None) -> dict[str, Any]:
    """Newest schedule event (up to `step`). Errors: RunError when there is none, or when an event is damaged."""
    if not (isinstance(events, list | tuple) and all(map(_is_event, events))):
        raise RunError("the events in run.json are damaged", HINT)
    found = [event for event in events if event["kind"] == "schedule" and (step is None or event["step"] <= step)]
    if not found:
        raise RunError("run.json records no schedule", "choose another --out_dir")
    return found[-1]


def _is_event(event: Any) -> bool:
    """Whether this is an event of run.json; a schedule event must have valid numbers."""
    if not (isinstance(event, dict) and isinstance(event.get("kind"), str) and _is_count(event.get("step"))):
        return False
    warmup, cooldown, horizon = (event.get(name) for name in ("warmup_steps", "cooldown_steps", "horizon"))
    bend, multiplier = event.get("bend_step"), event.get("bend_multiplier", 1.0)
    asked = event.get("asked_cooldown_steps")
    if not (all(each is None or _is_count(each) for each in (bend, asked)) and isinstance(multiplier, float) and 0 < multiplier <= 1):
        return False
    is_schedule = _is_count(warmup) and _is_count(cooldown) and (horizon is None or (_is_count(horizon) and cooldown <= horizon))
    return is_schedule or event["kind"] != "schedule"


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT
