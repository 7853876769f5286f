"""Stories: text, what is true in it, and the information that went into it. Story `index` of a seed is always the same bytes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from positron_mini.corpus.storyworld.arcs import opening
from positron_mini.corpus.storyworld.arcs_heart import ARCS
from positron_mini.corpus.storyworld.teller import Dice, Teller

MIN_WORDS, MAX_WORDS = 80, 300


@dataclass(frozen=True, slots=True)
class Story:
    """A story of 80 to 300 words. `facts` is JSON-able; `choice_nats` is the information of the choices that made the text."""

    text: str
    facts: dict[str, Any]
    index: int
    choice_nats: float
    choices: tuple[int, ...]


def tell_story(teller: Teller) -> str:
    """The arc's name, after the teller has told a whole story."""
    hero = opening(teller)
    arc = ARCS[teller.one_of(len(ARCS))]
    arc(teller, hero)
    return arc.__name__


def story(seed: int, index: int) -> Story:
    """Story number `index` of the seed. It depends on nothing else, so stories can be made in any order."""
    for attempt in range(100):
        key = hashlib.blake2b(f"storyworld {seed} {index} {attempt}".encode(), digest_size=16).digest()
        dice = Dice(random.Random(int.from_bytes(key, "big")))
        teller = Teller(dice)
        arc = tell_story(teller)
        text = teller.text()
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            return Story(text, facts_of(teller, arc), index, dice.nats, tuple(dice.choices))
    raise AssertionError(f"no story of {MIN_WORDS} to {MAX_WORDS} words for seed {seed}, index {index}")


def stories(seed: int, start: int = 0) -> Iterator[Story]:
    """Stories without end, from number `start` on."""
    index = start
    while True:
        yield story(seed, index)
        index += 1


def facts_of(teller: Teller, arc: str) -> dict[str, Any]:
    """What is true in a finished story: who and what occurs, the events in order, and how things stand at the end."""
    state = teller.state
    return {
        "arc": arc,
        "hero": state.facts["hero"],
        "characters": [
            {"name": c.name, "kind": c.kind, "pronoun": c.pronoun, "feeling": state.facts.get(f"mood {c.name}", "")} for c in state.cast.values()
        ],
        "objects": [
            {
                "noun": noun,
                "adjective": adjective,
                "owner": state.facts.get(f"owner {noun}", ""),
                "holder": state.facts.get(f"holder {noun}", ""),
                "spot": state.facts.get(f"spot {noun}", ""),
            }
            for noun, adjective in state.things.items()
        ],
        "events": [{"event": told.name, **told.roles} for told in teller.told],
    }
