"""Shall I go on? Three questions, each answered from the measured curve and skills by a rule given here.

- A run whose held-out loss has turned (`curve.turned`) is not improving, whatever else its curve does; the step with the lowest loss stands
  for it, and more text is what helps.
- Still improving: a straight line is fitted to bits per byte against log2(tokens), over the validations at the constant rate that have at
  least half of the tokens of the last one (the falling rate of a cool-down lowers the loss by itself). Its slope is what twice the tokens
  take away; the model is still improving while that is more than 3 % of its bits per byte, about what another seed changes.
- Good enough for stories: bits per byte are below those of the bigram, every grammar skill is above chance, and at least half of all skills
  are above 80 %.
- Good enough for fine-tuning: the same, and three quarters of all skills are above chance, one about keeping track of who and where among
  them, because conversations teach the form of an answer and not how to find it.

Above means by the interval, after Holm's correction. Without measured skills the last two questions stay open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from positron_mini.config import parse_duration
from positron_mini.errors import command
from positron_mini.report.corpus import Corpus
from positron_mini.report.learned import SkillLine, area_of
from positron_mini.store.curve import Turn
from positron_mini.store.opening import try_it
from positron_mini.store.run_history import RunHistory
from positron_mini.store.run_logs import StepReport

WORTHWHILE = 0.03
LEAST_POINTS = 3


@dataclass(frozen=True)
class Verdict:
    """One question, its answer (None: unknown) and the figures behind it."""

    question: str
    answer: bool | None
    reason: str


@dataclass(frozen=True)
class Advice:
    """The three verdicts, the expected gain from twice the tokens, and the next command."""

    improving: Verdict
    stories: Verdict
    fine_tuning: Verdict
    gain_per_doubling: float | None  # bits per byte
    share_per_doubling: float | None  # the same as a share of the bits per byte at the end of the line
    next_command: str

    @property
    def headline(self) -> str:
        """The verdicts in a few words."""
        good = [what for what, verdict in (("stories", self.stories), ("fine-tuning", self.fine_tuning)) if verdict.answer]
        parts = [f"good enough for {' and for '.join(good)}"] if good else []
        if self.improving.answer is not None:
            parts.append("still improving" if self.improving.answer else "no longer improving")
        return ", ".join(parts) or "too early to tell"


@dataclass(frozen=True)
class Improvement:
    """Whether a run still improves, and by how much twice the tokens lower its bits per byte: absolute, and as a share."""

    verdict: Verdict
    gain: float | None = None
    share: float | None = None


def advise(record: RunHistory, corpus: Corpus, lines: Sequence[SkillLine]) -> Advice:
    """The advice for a run in its present state."""
    found = improvement(record)
    stories = _stories(record, corpus, lines)
    tuning = _fine_tuning(stories, lines)
    return Advice(found.verdict, stories, tuning, found.gain, found.share, _next_command(record, found.verdict, tuning))


def improvement(record: RunHistory) -> Improvement:
    """Whether a run still improves, from its curve alone."""
    if record.kind != "pretrain":
        return Improvement(_improving_answers(record))
    turn = record.turn
    if turn is not None:
        return Improvement(_has_turned(turn))
    rows = constant_rate(record)
    gain = gain_per_doubling(rows)
    share = gain / rows[-1].val_bpb if gain is not None and rows[-1].val_bpb else None
    return Improvement(_improving(rows, gain, share), gain, share)


def _has_turned(turn: Turn) -> Verdict:
    best, newest = turn.best, turn.newest
    reason = (
        f"Held-out loss has turned: {best.bpb:.3f} bits per byte at step {best.step:,}, {newest.bpb:.3f} at step {newest.step:,}, while "
        f"the training loss went on falling: the text is being learned by heart. Step {best.step:,} is the one to use; more text helps, "
        "more steps do not."
    )
    return Verdict("Is it still improving?", False, reason)


def constant_rate(record: RunHistory) -> list[StepReport]:
    """The validations before the rate falls that have at least half of the tokens of the last of them."""
    start = record.schedule.cooldown_start
    rows = [row for row in record.validations if start is None or row.step <= start]
    return [row for row in rows if 2 * row.tokens >= rows[-1].tokens and row.step > record.schedule.warmup_steps]


def gain_per_doubling(rows: Sequence[StepReport]) -> float | None:
    """Bits per byte gained by twice the tokens, by a least-squares line; None for fewer than three validations."""
    points = [(math.log2(row.tokens), row.val_bpb) for row in rows if row.tokens > 0 and row.val_bpb is not None]
    if len(points) < LEAST_POINTS:
        return None
    middle, mean = (math.fsum(values) / len(points) for values in zip(*points, strict=True))
    spread = math.fsum((x - middle) ** 2 for x, _ in points)
    return -math.fsum((x - middle) * (y - mean) for x, y in points) / spread if spread > 0 else None


def _improving(rows: Sequence[StepReport], gain: float | None, share: float | None) -> Verdict:
    question = "Is it still improving?"
    if gain is None or share is None:
        return Verdict(question, None, f"Validations at the constant rate: {len(rows)}; a line through them needs {LEAST_POINTS}.")
    read = f"Over the last {len(rows)} validations at the constant rate, steps {rows[0].step:,} to {rows[-1].step:,}"
    if gain <= 0:
        return Verdict(question, False, f"{read}, bits per byte no longer fall.")
    rate = f"{read}, twice the tokens take off {gain:.3f} bits per byte, {share:.1%} of them"
    return Verdict(question, share > WORTHWHILE, f"{rate}; more than {WORTHWHILE:.0%} counts as improving.")


def _improving_answers(record: RunHistory) -> Verdict:
    """The verdict for fine-tuning, which reads its conversations repeatedly: it improves while the newest held-out loss is the lowest."""
    question, rows = "Is it still improving?", record.validations
    if len(rows) < LEAST_POINTS:
        return Verdict(question, None, f"Validations: {len(rows)}; an answer needs {LEAST_POINTS}.")
    best = min(rows, key=lambda row: row.val_loss or 0.0)
    figures = f"The lowest held-out loss is {best.val_loss:.3f} nats per answer token at step {best.step:,}"
    if best.step == rows[-1].step:
        return Verdict(question, True, f"{figures}, the newest one.")
    return Verdict(question, False, f"{figures}; at step {rows[-1].step:,} it is {rows[-1].val_loss:.3f}.")


def _stories(record: RunHistory, corpus: Corpus, lines: Sequence[SkillLine]) -> Verdict:
    question = "Is it good enough for stories?"
    if record.kind != "pretrain":
        return Verdict(question, None, "This is a fine-tuning run; ask this of its base run.")
    if not lines:
        return Verdict(question, None, "No skills were measured in this run.")
    grammar = [line for line in lines if area_of(line.skill) == "grammar"]
    known = [line for line in grammar if line.above_chance is not None]
    sure = [line for line in lines if line.above_sure is not None]
    bigram, newest = corpus.reference("bigram"), record.validations[-1].val_bpb if record.validations else None
    newest = record.turn.best.bpb if record.turn is not None else newest
    is_below = None if bigram is None or newest is None else newest < bigram.bits_per_byte
    reason = f"{len(known)} of {len(grammar)} grammar skills are above chance, {len(sure)} of all {len(lines)} above 80 %"
    if bigram is not None and newest is not None:
        reason += f"; {newest:.3f} bits per byte against the bigram's {bigram.bits_per_byte:.3f}"
    is_good = len(known) == len(grammar) and 2 * len(sure) >= len(lines) and is_below is not False
    return Verdict(question, is_good, f"{reason}.")


def _fine_tuning(stories: Verdict, lines: Sequence[SkillLine]) -> Verdict:
    question = "Is it good enough for fine-tuning?"
    if stories.answer is None:
        return Verdict(question, None, stories.reason)
    risen = [line for line in lines if line.above_chance is not None]
    tracking = [line for line in risen if area_of(line.skill) == "keeping track"]
    is_good = stories.answer and 4 * len(risen) >= 3 * len(lines) and bool(tracking)
    first = "It is good enough for stories" if stories.answer else "It is not good enough for stories"
    names = ", ".join(line.title for line in tracking) or "none"
    return Verdict(question, is_good, f"{first}; {len(risen)} of {len(lines)} skills are above chance; those about keeping track: {names}.")


def _further(record: RunHistory) -> tuple[str, str]:
    """The flag and value that continue a run, to about twice its tokens if it had a horizon."""
    if record.schedule.horizon is None:
        return "--more_steps", "1000"
    if record.is_timed:
        return "--budget", f"{2 * parse_duration(str(record.config['budget']), 'budget') / 60:g}m"
    return "--max_steps", str(2 * max(record.step, 1))


def _next_command(record: RunHistory, improving: Verdict, tuning: Verdict) -> str:
    place, horizon = record.place, record.schedule.horizon
    if record.kind != "pretrain":
        return command("chat", "--ckpt", place)
    if record.turn is None and horizon is not None and record.step < horizon:
        return command("train", "--out_dir", place)
    if record.turn is None and improving.answer is False and horizon is None:
        return command("train", "--out_dir", place, "--finish")
    if improving.answer is not False:
        return command("train", "--out_dir", place, *_further(record))
    return command("sft", "--base_ckpt", place) if tuning.answer else try_it(record.path, place)
