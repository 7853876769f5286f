"""A model's skills: for each, the share of minimal pairs in which the model finds the right text likelier than the wrong one.

A text's score is the sum of ln p of its tokens after bos, not divided by its length: in every unit of two pairs each wording is right once
and wrong once (`pairs/making.py`), so that a longer or rarer one cannot help. Chance is 50 %, exactly what a model that knows only word
frequencies gets. Equal scores count as half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from positron_mini.evaluate.bits import token_logprobs
from positron_mini.evaluate.interval import wilson
from positron_mini.evaluate.pairs import PAIRS, SKILLS, skill_pairs
from positron_mini.model import GPT
from positron_mini.text.tokenizer import BOS, Tokenizer

CHANCE = 0.5
TIE = 1e-4  # nats; sums of ln p in fp32 that should be equal differ by less
SHARE = 0.05  # largest share of the training time spent on scoring skills
END_PART = 0.25  # of that, the share of the last scoring
FORWARD_COST = 0.4  # of a training step, per token: a third for the pass itself, the rest for padding


@dataclass(frozen=True)
class SkillResult:
    """The share of right pairs of one skill, with its 95 % interval."""

    skill: str
    accuracy: float
    low: float
    high: float
    pairs: int

    def record(self, step: int) -> dict[str, Any]:
        """The line for skills.jsonl."""
        figures = {name: round(getattr(self, name), 4) for name in ("accuracy", "low", "high")}
        return {"step": step, "skill": self.skill, **figures, "pairs": self.pairs}


@dataclass(frozen=True)
class SkillTest:
    """The pairs of every skill as ids, each bos and a text: the right and the wrong text of each pair in turn."""

    texts: dict[str, list[list[int]]]  # by skill, equally many of each

    @property
    def pairs(self) -> int:
        """Pairs of each skill."""
        return min(map(len, self.texts.values())) // 2

    @property
    def tokens(self) -> int:
        """Tokens predicted in one scoring."""
        return sum(len(ids) - 1 for texts in self.texts.values() for ids in texts)

    def within(self, most_tokens: float) -> SkillTest | None:
        """The longest beginning of the test with at most `most_tokens` predicted tokens, None if two pairs of each skill are too many."""
        sizes = np.array([[len(ids) - 1 for ids in texts] for texts in self.texts.values()])  # (skills, texts)
        units = sizes.reshape(len(sizes), -1, 4).sum((0, 2)).cumsum()  # tokens of the first 1, 2, ... units of all skills
        affordable = int(np.searchsorted(units, most_tokens, side="right"))
        return self.beginning(2 * affordable) if affordable else None

    def beginning(self, pairs: int) -> SkillTest:
        """The test with only the first `pairs` pairs of each skill."""
        return SkillTest({skill: texts[: 2 * pairs] for skill, texts in self.texts.items()})

    def score(
        self, model: GPT, *, device: str = "cpu", precision: str = "fp32", done: Callable[[int], None] = lambda _: None
    ) -> list[SkillResult]:
        """One result per skill. `done` gets the tokens read after each pass."""
        points = self.points(model, device=device, precision=precision, done=done)
        return [result_of(skill, found) for skill, found in points.items()]

    def points(
        self, model: GPT, *, device: str = "cpu", precision: str = "fp32", done: Callable[[int], None] = lambda _: None
    ) -> dict[str, list[float]]:
        """By skill, the judgement of each pair: 1 right, 0 wrong, 0.5 a tie."""
        flat = [ids for texts in self.texts.values() for ids in texts]
        return self.judged(
            float(values.double().sum()) for values in token_logprobs(model, flat, device=device, precision=precision, done=done)
        )

    def judged(self, sums: Iterable[float]) -> dict[str, list[float]]:
        """The same from the sums of ln p of the texts, in the order of `texts`."""
        known = iter(sums)
        return {skill: [judge(next(known), next(known)) for _ in range(len(texts) // 2)] for skill, texts in self.texts.items()}


def skill_test(tokenizer: Tokenizer, pairs: int = PAIRS, *, threads: int = 0) -> SkillTest:
    """The first `pairs` pairs of each skill, an even number. Equal arguments give equal tests."""
    found = {}
    for skill in SKILLS:
        texts = [text for pair in skill_pairs(skill, pairs) for text in (pair.good, pair.bad)]
        found[skill] = [[BOS, *ids] for ids in tokenizer.encode_many(texts, threads)]
    return SkillTest(found)


@dataclass(frozen=True)
class RunTests:
    """The tests of a run: at its milestones, and at its end, which decides the verdict; None if there is no time for one."""

    milestone: SkillTest | None
    end: SkillTest | None


def run_tests(full: SkillTest, run_tokens: int, scorings: int) -> RunTests:
    """The parts of `full` for a run of `run_tokens` tokens that is scored `scorings` times, the last time at its end.

    All scorings together take `SHARE` of the training time, the last one a larger part of it.
    """
    tokens = SHARE / FORWARD_COST * run_tokens
    end = full.within(tokens * max(END_PART, 1 / max(scorings, 1)))
    return RunTests(full.within((tokens - (end.tokens if end else 0)) / max(scorings - 1, 1)), end)


def judge(good: float, bad: float) -> float:
    """1 when the right text scores higher, 0 when the wrong one does, 0.5 for a tie."""
    return 0.5 if abs(good - bad) <= TIE else float(good > bad)


def result_of(skill: str, points: Sequence[float]) -> SkillResult:
    """The result of a skill from the judgements of its pairs."""
    low, high = wilson(sum(points), len(points))
    return SkillResult(skill, sum(points) / max(len(points), 1), low, high, len(points))


def skills_suite(
    model: GPT, tokenizer: Tokenizer, *, pairs: int = PAIRS, done: Callable[[int, int], None] = lambda _i, _n: None
) -> dict[str, Any]:
    """The result of all skills: {"suite", "items", "accuracy", "low", "high", "chance", "by_kind"}; `done` gets (tokens read, all)."""
    test = skill_test(tokenizer, pairs)
    read = 0

    def count(tokens: int) -> None:
        nonlocal read
        read += tokens
        done(min(read, test.tokens), test.tokens)

    results = test.score(model, done=count)
    items = sum(result.pairs for result in results)
    right = sum(result.accuracy * result.pairs for result in results)
    low, high = wilson(right, items)
    by_kind = {r.skill: {"items": r.pairs, "accuracy": r.accuracy, "low": r.low, "high": r.high} for r in results}
    return {"suite": "skills", "items": items, "accuracy": right / items, "low": low, "high": high, "chance": CHANCE, "by_kind": by_kind}
