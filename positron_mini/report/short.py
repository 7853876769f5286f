"""The short report, for a terminal between two chunks of training: two samples, the skills that moved most, whether to go on."""

from __future__ import annotations

from pathlib import Path

from positron_mini.report.advice import improvement
from positron_mini.report.learned import CHANCE, SURE, Move, above, moves, skill_lines, title
from positron_mini.store.run_history import RunHistory, read_run
from positron_mini.store.run_logs import SkillScore

SAMPLES, SKILLS = 2, 3


def short_form(path: Path, since: int) -> list[str]:
    """Lines of text, unfiltered: the caller handles control characters. `since`: the step at the end of the last chunk. Errors: those of
    `read_run`."""
    record = read_run(path)
    return [*_validation(record), *_samples(record, since), *_skills(record, since), *_advice(record)]


def _validation(record: RunHistory) -> list[str]:
    rows = record.validations
    if not rows:
        return []
    lowest = "" if record.turn is None else f" (lowest at step {record.turn.best.step:,}: {record.turn.best.bpb:.3f})"
    return [f"validation at step {rows[-1].step:,}: {rows[-1].val_bpb:.3f} bits per byte{lowest}"]


def _samples(record: RunHistory, since: int) -> list[str]:
    """The newest samples, unless an earlier chunk showed them already, or they are of the untrained model."""
    newest = [row for row in record.samples if row.step == record.samples[-1].step > since][:SAMPLES]
    return [line for row in newest for line in ("", f"[step {row.step:,}] {row.prompt}{row.text}")]


def _skills(record: RunHistory, since: int) -> list[str]:
    """The three skills that moved most since `since`; none if the chunk had no milestone."""
    lines = skill_lines(record.skills)
    newest = max((row.step for row in record.skills), default=0)
    found = [] if newest <= since else moves(lines, since)[:SKILLS]
    if not found:
        return []
    now = [line.newest for line in lines if line.newest.step == newest]
    width = max(len(title(move.skill)) for move in found)
    return [
        "",
        f"skills that moved most, step {found[0].before.step:,} to {newest:,} (right of 100 pairs, 50 by guessing):",
        *(f"  {title(move.skill):<{width}}  {_move(move, now)}" for move in found),
    ]


def _move(move: Move, now: list[SkillScore]) -> str:
    words = "above 80" if move.skill in above(now, SURE) else "above chance" if move.skill in above(now, CHANCE) else "not above chance"
    after = move.after
    interval = f"95 % interval {100 * after.low:.0f} to {100 * after.high:.0f}"
    return f"{100 * move.before.accuracy:3.0f} -> {100 * after.accuracy:3.0f}   {words} ({interval})"


def _advice(record: RunHistory) -> list[str]:
    verdict = improvement(record).verdict
    if verdict.answer is None:
        return []
    return ["", f"{'still improving' if verdict.answer else 'no longer improving'}: {verdict.reason[:1].lower()}{verdict.reason[1:]}"]
