"""Minimal pairs: two texts that differ in one respect, only one of them right. Fifteen skills, any number of pairs, from a seed.

The pairs are written for this project, in the words of stories for three-year-olds. They come in units of two, made so that neither word
frequency nor text length helps (`making.py`): a model that knows only word frequencies is right in exactly half of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from positron_mini.evaluate.pairs import events, grammar, people, stories, talk
from positron_mini.evaluate.pairs.making import Kind, Pair, Unit, collect
from positron_mini.evaluate.pairs.words import PEOPLE, PET_NAMES

PAIRS = 200  # of each skill


@dataclass(frozen=True)
class Skill:
    """A skill: its description, and the kinds of units that test it. `is_local`: neighbouring words suffice to tell right from wrong."""

    name: str
    about: str
    kinds: tuple[Kind, ...]
    is_local: bool = False


SKILLS: dict[str, Skill] = {
    skill.name: skill
    for skill in (
        Skill("word_order", "a red ball, not a ball red; why is he sad, not why he is sad", grammar.WORD_ORDER, is_local=True),
        Skill("agreement_near", "the dogs are, not the dogs is", grammar.AGREEMENT_NEAR, is_local=True),
        Skill("agreement_attractor", "the dogs near the tree are, not is", grammar.AGREEMENT_ATTRACTOR),
        Skill("pronoun_gender", "Tom fell, and he cried, not she cried", people.PRONOUN_GENDER),
        Skill("possessives", "Tom lost his hat, not her, their or your hat", people.POSSESSIVES),
        Skill("tense", "they went and did not go, not they go and did not went", grammar.TENSE, is_local=True),
        Skill("quotation", "quotation marks and question marks where speech ends", talk.QUOTATION),
        Skill("naming", "who is called Spot is still called Spot, and a dog stays a dog", people.NAMING),
        Skill("tracking_who", "who has a thing after it was given, taken or lost", people.TRACKING_WHO),
        Skill("tracking_where", "where a thing or a person is after they were put or went somewhere", events.TRACKING_WHERE),
        Skill("cause_effect", "who is hungry eats, what falls breaks", events.CAUSE_EFFECT),
        Skill("feelings", "sad after a loss, happy after a gift", events.FEELINGS),
        Skill("politeness", "thank you for a gift, sorry for harm, please in a friendly wish", talk.POLITENESS),
        Skill("opening", "what comes first in a story, and what comes after that", stories.OPENING, is_local=True),
        Skill("ending", "what comes last in a story, and whether it ends well", stories.ENDING),
    )
}


def skill_units(name: str, units: int = PAIRS // 2, seed: int = 0) -> list[Unit]:
    """The first `units` units of a skill; a longer list begins with the same ones. Errors: KeyError for an unknown skill."""
    names = [*(person.name for person in PEOPLE), *PET_NAMES]
    return collect(SKILLS[name].kinds, units, random.Random(f"{name} {seed}"), names)


def skill_pairs(name: str, pairs: int = PAIRS, seed: int = 0) -> list[Pair]:
    """The first `pairs` pairs of a skill, an even number. Errors: KeyError for an unknown skill."""
    assert pairs % 2 == 0, pairs
    return [pair for unit in skill_units(name, pairs // 2, seed) for pair in unit]


__all__ = ["PAIRS", "SKILLS", "Pair", "Skill", "Unit", "skill_pairs", "skill_units"]
