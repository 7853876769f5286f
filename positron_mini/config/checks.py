"""Ranges of numbers, durations and milestones, checked the same way for every command."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from positron_mini.errors import UsageError

T = TypeVar("T")


def check_ranges(config: Any, at_least: dict[str, int]) -> None:
    """Raise UsageError for the first flag whose whole number is below its least value or above 10^12."""
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= 10**12:
            raise UsageError(
                f"--{name} is {value:,}, it must be at least {least:,} and at most 10^12", f"leave --{name} out for the default"
            )


def check_rates(config: Any, at_most: dict[str, float], *, zero: bool = False) -> None:
    """Raise UsageError for the first flag whose number is not finite, too large, negative or (without `zero`) zero."""
    for name, most in at_most.items():
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and (value >= 0 if zero else value > 0) and value <= most):
            least = "at least 0" if zero else "above 0"
            raise UsageError(f"--{name} is {value}, it must be {least} and at most {most:g}", f"leave --{name} out for the default")


def parse_duration(text: str, flag: str) -> float:
    """Seconds of a duration such as 90s, 15m, 2h or 1h30m, 10 s to 30 days. Errors: UsageError naming the flag."""
    parts = re.fullmatch(r"(?:(\d{1,4}(?:\.\d+)?)h)?(?:(\d{1,5}(?:\.\d+)?)m(?:in)?)?(?:(\d{1,7}(?:\.\d+)?)s)?", text.strip().lower())
    seconds = 0.0 if parts is None else sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True))
    if not 10 <= seconds <= 30 * 86_400:
        raise UsageError(f"--{flag} {text!r} is not a time of 10 s to 30 days", f"--{flag} 15m   or   --{flag} 1h30m")
    return seconds


def is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value from JSON has the type of a field; an int also counts as a float, a bool never as a number."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):
        return any(is_of_type(value, each) for each in get_args(hint))
    return type(value) in ((int, float) if hint is float else (hint,))


def from_names(kind: type[T], settings: Mapping[str, Any]) -> T:
    """Make a `kind` from settings that a Python program gives by name. A path may replace a string, a list or string a tuple.

    Raise UsageError for an unknown name or a value of another type.
    """
    hints = get_type_hints(kind)
    values = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in settings.items()}
    for name, value in values.items():
        if name not in hints:
            near = get_close_matches(name, hints, 1) or list(hints)[:1]
            raise UsageError(f"there is no setting {name!r}; there are {', '.join(hints)}", f"{near[0]}=...")
        if get_origin(hints[name]) is tuple:
            values[name] = parts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else (None,)
            is_right = all(isinstance(part, str) for part in parts)
        else:
            is_right = is_of_type(value, hints[name])
        if not is_right:
            raise UsageError(f"{name} cannot be {value!r:.80}, it takes {getattr(hints[name], '__name__', hints[name])}")
    return kind(**values)


def parse_milestones(text: str) -> frozenset[int] | None:
    """Steps named by `--milestones`, or None for the default series. Errors: UsageError."""
    if text == "auto":
        return None
    if text == "none":
        return frozenset()
    try:
        steps = frozenset(int(part) for part in text.replace(" ", "").split(","))
    except ValueError:
        raise UsageError(f"--milestones {text!r} is not a list of steps", "--milestones 0,100,1000  or  --milestones none") from None
    if min(steps) < 0:
        raise UsageError(f"--milestones {text!r} holds a negative step", "--milestones 0,100,1000")
    return steps


def is_milestone(step: int, milestones: frozenset[int] | None) -> bool:
    """Whether the model of this step is kept for ever: 0, 100, ... 1,000, then every 500, unless `milestones` names the steps."""
    if milestones is not None:
        return step in milestones
    return step % 100 == 0 if step <= 1_000 else step % 500 == 0


def given_flags(argv: list[str]) -> frozenset[str]:
    """Names, in snake_case, of the flags that a command line spells out: they must agree with a recorded run, defaults need not."""
    names = (word[2:].split("=", 1)[0].replace("-", "_") for word in argv if word.startswith("--"))
    return frozenset(name.removeprefix("no_") for name in names)


def changed_fields(config: Any) -> frozenset[str]:
    """Names of the fields that differ from their default; replaces `given_flags` for calls from Python."""
    return frozenset(field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default)
