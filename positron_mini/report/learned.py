"""When each skill was learned, and which claims the measurements support.

A skill is above a share at a step when the lower end of its 95 % interval lies above it and, because many skills are looked at together, an
exact binomial test still says so after Holm's correction over all skills of that step (one-sided, 2.5 %). It *rose* above the share at the
first step from which on that holds at every later measured step. A skill that does not pass is not mentioned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from positron_mini.store.run_logs import SkillScore

CHANCE, SURE = 0.5, 0.8
LEVEL = 0.025


@dataclass(frozen=True)
class SkillLine:
    """One skill over the run: its scores by step, and the steps since which it is above chance and above 80 % (None: it is not)."""

    skill: str
    scores: tuple[SkillScore, ...]
    above_chance: int | None
    above_sure: int | None

    @property
    def newest(self) -> SkillScore:
        """The last score."""
        return self.scores[-1]

    @property
    def title(self) -> str:
        """The skill's name with spaces."""
        return title(self.skill)


def title(skill: str) -> str:
    """A skill's name with spaces."""
    return skill.replace("_", " ").replace("-", " ").strip()


def binomial_tail(right: int, pairs: int, share: float) -> float:
    """Probability of at least `right` of `pairs` if each is right with probability `share`."""
    if right <= 0:
        return 1.0
    log = (math.log(share), math.log1p(-share), math.lgamma(pairs + 1))
    terms = (log[2] - math.lgamma(k + 1) - math.lgamma(pairs - k + 1) + k * log[0] + (pairs - k) * log[1] for k in range(right, pairs + 1))
    return min(1.0, math.fsum(map(math.exp, terms)))


def holm(p_values: dict[str, float], level: float) -> set[str]:
    """The names whose null hypothesis is rejected at a family-wise error of `level`. Source: Holm 1979."""
    fallen: set[str] = set()
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        if p > level / (len(p_values) - place):
            break
        fallen.add(name)
    return fallen


def above(scores: Sequence[SkillScore], share: float) -> set[str]:
    """The skills among those measured together that are above `share`."""
    # the quarter makes up for the log's four digits, and still rounds a tie's half point down
    tails = {row.skill: binomial_tail(int(row.accuracy * row.pairs + 0.25), row.pairs, share) for row in scores}
    return holm(tails, LEVEL) & {row.skill for row in scores if row.low > share}


def skill_lines(scores: Iterable[SkillScore]) -> tuple[SkillLine, ...]:
    """One line per skill: first learned first, then by accuracy."""
    by_step: dict[int, list[SkillScore]] = {}
    by_skill: dict[str, dict[int, SkillScore]] = {}
    for row in scores:
        by_step.setdefault(row.step, []).append(row)
        by_skill.setdefault(row.skill, {})[row.step] = row
    passed = {share: {step: above(rows, share) for step, rows in by_step.items()} for share in (CHANCE, SURE)}

    def since(skill: str, share: float) -> int | None:
        found = None
        for step in sorted(by_skill[skill], reverse=True):
            if skill not in passed[share][step]:
                break
            found = step
        return found

    lines = [
        SkillLine(skill, tuple(rows[step] for step in sorted(rows)), since(skill, CHANCE), since(skill, SURE))
        for skill, rows in by_skill.items()
    ]
    return tuple(sorted(lines, key=_order))


def _order(line: SkillLine) -> tuple[float, float, float, str]:
    def when(step: int | None) -> float:
        return math.inf if step is None else step

    return when(line.above_sure), when(line.above_chance), -line.newest.accuracy, line.skill


@dataclass(frozen=True)
class Move:
    """The change of a skill's accuracy between two steps."""

    skill: str
    before: SkillScore
    after: SkillScore

    @property
    def gain(self) -> float:
        """Change of the accuracy, -1 to 1."""
        return self.after.accuracy - self.before.accuracy

    @property
    def is_clear(self) -> bool:
        """Whether the 95 % intervals do not overlap."""
        return self.after.low > self.before.high or self.after.high < self.before.low


def moves(lines: Sequence[SkillLine], since: int | None = None) -> list[Move]:
    """The change of each skill from the newest score at or before step `since` (default: the last but one) to the newest, largest first."""
    found = []
    for line in lines:
        earlier = [row for row in line.scores[:-1] if since is None or row.step <= since]
        if earlier:
            found.append(Move(line.skill, earlier[-1], line.newest))
    return sorted(found, key=lambda move: (-abs(move.gain), move.skill))


# --- words ------------------------------------------------------------------------------------------------------------------------------

# areas of the skills, by their names in evaluate/pairs
AREAS: dict[str, tuple[str, ...]] = {
    "grammar": ("word_order", "agreement_near", "agreement_attractor", "pronoun_gender", "possessives", "tense"),
    "dialogue": ("quotation", "politeness"),
    "keeping track": ("naming", "tracking_who", "tracking_where"),
    "cause and feeling": ("cause_effect", "feelings"),
    "the shape of a story": ("opening", "ending"),
}


@dataclass(frozen=True)
class Claim:
    """A claim about an area that the intervals support: `word` is emerging or firm; the skills are its evidence."""

    area: str
    word: str
    evidence: tuple[SkillLine, ...]
    of: int  # skills of the area


def area_of(skill: str) -> str | None:
    """The area of a skill, None for an unknown one."""
    return next((area for area, skills in AREAS.items() if skill in skills), None)


def claims(lines: Sequence[SkillLine]) -> list[Claim]:
    """The supported claims: an area is emerging if a skill of it rose above chance, firm if all its skills rose above 80 %."""
    found = []
    for area, skills in AREAS.items():
        members = [line for line in lines if area_of(line.skill) == area]
        risen = tuple(line for line in members if line.above_chance is not None)
        if risen:
            is_firm = {line.skill for line in members if line.above_sure is not None} == set(skills)
            found.append(Claim(area, "firm" if is_firm else "emerging", risen, len(members)))
    return found
