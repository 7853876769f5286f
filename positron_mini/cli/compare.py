"""`positron compare A B`: two runs or checkpoints side by side, on the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.terminal import print, printable
from positron_mini.config import check_ranges

if TYPE_CHECKING:
    from positron_mini.report.compare import Comparison, Crossing

WIDTH = 96


@dataclass(frozen=True)
class CompareFlags:
    """Compare two runs or checkpoints: settings, curves at equal tokens and equal time, skills, samples from the same seeds."""

    a: tyro.conf.Positional[str]
    """the one: a run folder, a step folder or runs/x/latest"""
    b: tyro.conf.Positional[str]
    """the other"""
    prompt: tuple[str, ...] = ()
    """what both continue; may be given several times (default: the prompts of the milestones)"""
    max_tokens: int | None = None
    """tokens of a sample (default: as at the milestones)"""
    seed: int | None = None
    """seed of the first prompt, the next one has one more (default: as at the milestones)"""
    json: bool = False
    """print one JSON object"""
    threads: int | None = None
    """CPU threads (default: all cores)"""

    def __post_init__(self) -> None:
        check_ranges(self, {"max_tokens": 1, "seed": 0, "threads": 1})


def run(argv: Sequence[str]) -> int:
    """Compare; 0 when done."""
    flags = parse(CompareFlags, argv, "compare")
    from positron_mini.device import set_threads
    from positron_mini.report.compare import compare

    set_threads(flags.threads)
    found = compare(flags.a, flags.b, prompts=flags.prompt, seed=flags.seed, max_tokens=flags.max_tokens, say=note)
    if flags.json:
        print_json(found.summary())
        return 0
    for line in comparison_lines(found):
        print(printable(line))
    return 0


def comparison_lines(found: Comparison) -> list[str]:
    """The comparison as lines of text."""
    lines = [f"A  {found.a.label}", f"B  {found.b.label}", *(f"note: {caution}" for caution in found.cautions)]
    lines += _settings(found)
    lines += _curves("bits per byte at equal tokens", "tokens", found.tokens, lambda at: f"{at:,.0f}")
    lines += _curves("bits per byte after equal time of training", "time", found.time, _spell)
    return lines + _skills(found) + _samples(found)


def _settings(found: Comparison) -> list[str]:
    if not found.settings:
        return ["", "no setting differs"]
    width = max(len(name) for name, _, _ in found.settings)
    left = max(5, *(len(_value(one)) for _, one, _ in found.settings))
    rows = (f"  {name:<{width}}  {_value(one):<{left}}  {_value(other)}" for name, one, other in found.settings)
    return ["", f"  {'settings':<{width}}  {'A':<{left}}  B", *rows]


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if type(value) is int else str(value)


def _curves(title: str, axis: str, rows: Sequence[Crossing], at: Callable[[float], str]) -> list[str]:
    if not rows:
        return ["", f"{title}: the two share no stretch"]
    table = (f"  {at(row.at):>14}  {row.a:8.3f}  {row.b:8.3f}  {row.b - row.a:+8.3f}  {_better(row)}" for row in rows)
    return ["", title, f"  {axis:>14}  {'A':>8}  {'B':>8}  {'B - A':>8}", *table]


def _spell(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 180 else f"{seconds / 60:,.1f} min"


def _better(row: Crossing) -> str:
    return "A is lower" if row.a < row.b else "B is lower" if row.b < row.a else "equal"


def _skills(found: Comparison) -> list[str]:
    if not found.skills:
        return []
    from positron_mini.report.learned import title

    width = max(len(title(move.skill)) for move in found.skills)
    rows = []
    for move in found.skills:
        one, other = (f"{100 * s.accuracy:3.0f} ({100 * s.low:.0f} to {100 * s.high:.0f})" for s in (move.before, move.after))
        which = ("B is better" if move.gain > 0 else "A is better") if move.is_clear else "intervals overlap"
        rows.append(f"  {title(move.skill):<{width}}  {one:<15}  {other:<15}  {100 * move.gain:+4.0f}  {which}")
    steps = f"A at step {found.skills[0].before.step:,}, B at step {found.skills[0].after.step:,}"
    return ["", f"skills: right of 100 pairs, 95 % interval (50 by guessing); {steps}", *rows]


def _samples(found: Comparison) -> list[str]:
    lines = ["", "samples from the same seeds"]
    for twin in found.samples:
        lines += ["", f"  {twin.prompt} [seed {twin.seed}]", *_said("A", twin.a), *_said("B", twin.b)]
    return lines


def _said(name: str, text: str) -> list[str]:
    paragraphs = [part for line in text.splitlines() for part in textwrap.wrap(line, WIDTH - 6)] or ["(it ended at once)"]
    return [f"  {name if i == 0 else ' '}   {line}" for i, line in enumerate(paragraphs)]
