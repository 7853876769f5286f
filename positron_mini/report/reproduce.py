"""The commands that reproduce a run, from its record: the text, then one command for each schedule it followed.

For a fine-tuning, whose schedule no flag can set, and for a run with a budget, whose schedule followed the clock, the original command is
shown.
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from positron_mini.config import TrainConfig
from positron_mini.errors import command
from positron_mini.optim import Schedule, make_schedule
from positron_mini.store.run_history import RunHistory, shown_path
from positron_mini.text.corpus.sources import TINYSTORIES_BYTES_PER_STORY
from positron_mini.train.find_run import CONTROL_FLAGS


def reproduction(record: RunHistory, note: dict[str, Any]) -> list[str]:
    """Shell lines, with comments for what no command can do. Absolute paths are shortened to the name: a report may be shown to others."""
    if record.kind != "pretrain":
        trained = [_typed(record, "sft")]
    elif record.is_timed:
        moves = len(record.schedules) - 1
        trained = [
            f"# the clock decides how many steps fit the budget; it moved the horizon {moves:,} times (run.json has each)",
            _typed(record, "train"),
        ]
    else:
        trained = _train_lines(record)
    return [*_text_lines(record, note), *trained, command("report", "--run", shown_path(_folder(record)))]


def _folder(record: RunHistory) -> str:
    return str(record.config.get("out_dir") or record.path)


def _typed(record: RunHistory, name: str) -> str:
    """The command that began the run, as typed; `name` is the command for a file such as train.py."""
    words = [shown_path(word) for word in shlex.split(record.command)[1:]]
    return command(*([] if words[:1] and not words[0].startswith("-") else [name]), *words)


def _text_lines(record: RunHistory, note: dict[str, Any]) -> list[str]:
    if record.kind != "pretrain":
        base = str(record.identity.get("base"))[:16]
        return [f"# the base model: its model.safetensors has the sha256 {base}..."]
    path = shown_path(str(record.config.get("dataset_path") or "data/tinystories.txt"))
    found = _prepare_words(note)
    content = f"# the text: {path}, content {str(record.identity.get('text'))[:16]}..."
    if found is None:
        return [f"{content} (not fetched by this program)"]
    name, *words = found
    return [content, command("prepare", "--dataset", name, *words, "--text_out", path)]


def _prepare_words(note: dict[str, Any]) -> list[str] | None:
    """Data set and flags of the `positron prepare` that wrote a text; None if the note beside it does not record them."""
    if note.get("corpus") == "storyworld":
        return ["storyworld", "--stories", str(note.get("stories")), "--seed", str(note.get("seed"))]
    if "first_bytes" in note and note.get("source"):
        first = note["first_bytes"]
        return ["tinystories", *([] if first is None else ["--stories", str(int(first) // TINYSTORIES_BYTES_PER_STORY)])]
    return None


def _train_lines(record: RunHistory) -> list[str]:
    """The first command with every setting that differs from its default, then one for each later schedule."""
    warmup = int(record.config.get("warmup_steps", TrainConfig.warmup_steps))
    begins = [event["step"] for event in record.schedules]
    lines = []
    for place, event in enumerate(record.schedules):
        schedule = Schedule(event["warmup_steps"], event["cooldown_steps"], event["horizon"])
        settings = _setting_words(record) if place == 0 else ["--out_dir", shown_path(_folder(record))]
        end = begins[place + 1] if place + 1 < len(begins) else record.step
        pause = ["--until_step", str(end)] if schedule.horizon is None or end < schedule.horizon else []
        lines.append(command("train", *settings, *_schedule_words(schedule, begins[place], warmup), *pause))
    return lines


def _schedule_words(schedule: Schedule, begin: int, warmup: int) -> list[str]:
    """The flags that set a schedule at step `begin`."""
    if schedule.horizon is None:
        return []
    cooldown = ["--cooldown_steps", str(schedule.cooldown_steps)]
    if begin > 0 and schedule.cooldown_start == begin:
        return ["--finish", *cooldown]
    is_usual = make_schedule(warmup, None, schedule.horizon) == schedule
    return ["--max_steps", str(schedule.horizon), *([] if is_usual else cooldown)]


def _setting_words(record: RunHistory) -> list[str]:
    words: list[str] = []
    for field in dataclasses.fields(TrainConfig):
        value = record.config.get(field.name, field.default)
        if field.name not in CONTROL_FLAGS and value is not None and value != field.default:
            words += [f"--{field.name}", shown_path(value) if isinstance(value, str) else f"{value}"]
    return words
