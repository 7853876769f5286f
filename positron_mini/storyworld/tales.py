"""Stories: text, facts, and information content. Story `index` of a seed always has the same bytes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from positron_mini.storyworld.arcs import opening
from positron_mini.storyworld.arcs_heart import ARCS
from positron_mini.storyworld.teller import Dice, Teller

MIN_WORDS, MAX_WORDS = 80, 300
Split = Literal["train", "validation"]


@dataclass(frozen=True, slots=True)
class Story:
    """A story of 80 to 300 words. `facts` is JSON-able; `choice_nats` is the information in the choices that made the text."""

    text: str
    facts: dict[str, Any]
    index: int
    choice_nats: float
    choices: tuple[int, ...]


def tell_story(teller: Teller) -> str:
    """Let the teller tell a whole story; return the arc's name."""
    hero = opening(teller)
    arc = ARCS[teller.pick(len(ARCS))]
    arc(teller, hero)
    return arc.__name__


def story(seed: int, index: int, split: Split = "train") -> Story:
    """Story number `index` of the seed. It depends on nothing else, so stories can be made in any order."""
    for attempt in range(1000):
        dice = Dice(random.Random(stable_number(f"storyworld {seed} {split} {index} {attempt}")))
        teller = Teller(dice)
        arc = tell_story(teller)
        text = teller.text()
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS and split_of(arc, teller.state.cast) == split:
            return Story(text, facts_of(teller, arc), index, dice.nats, tuple(dice.choices))
    raise AssertionError(f"no {split} story of {MIN_WORDS} to {MAX_WORDS} words for seed {seed}, index {index}")


def stories(seed: int, start: int = 0, split: Split = "train") -> Iterator[Story]:
    """Stories without end, from number `start` on."""
    index = start
    while True:
        yield story(seed, index, split)
        index += 1


def split_of(arc: str, names: Iterable[str]) -> Split:
    """Split of a story, by its arc and cast alone: one in ten for validation. No story can be in both."""
    return "validation" if stable_number(f"split {arc} {' '.join(names)}") % 10 == 0 else "train"


def stable_number(key: str) -> int:
    """A 128-bit number that depends on the key alone, on every platform."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big")


def facts_of(teller: Teller, arc: str) -> dict[str, Any]:
    """Facts of a finished story: people and objects, the events in order, and the state at the end."""
    facts, cast, things = teller.state.facts, teller.state.cast.values(), teller.state.things
    people = [{"name": c.name, "kind": c.kind, "pronoun": c.pronoun, "feeling": facts.get(f"mood {c.name}", "")} for c in cast]
    objects = [
        {"noun": noun, "adjective": adjective} | {aspect: facts.get(f"{aspect} {noun}", "") for aspect in ("owner", "holder", "spot")}
        for noun, adjective in things.items()
    ]
    events = [{"event": told.name, **told.roles, "text": told.text} for told in teller.told]
    return {"arc": arc, "hero": facts["hero"], "characters": people, "objects": objects, "events": events}
