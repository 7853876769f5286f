"""Draws of names, kinds, objects and places, each made just before it is told."""

from __future__ import annotations

from positron_mini.storyworld.lexicon import lexicon
from positron_mini.storyworld.teller import Teller, without

HERO_GROUPS = ("boy", "girl", "animal", "robot")
HERO_WEIGHTS = (3.0, 3.0, 5.0, 1.0)
FAMILY = ("grandfather", "grandmother", "father", "mother")
NEIGHBORS = ("uncle", "aunt", "farmer", "baker", "captain", "doctor")


def someone(t: Teller, groups: tuple[str, ...] = HERO_GROUPS, weights: tuple[float, ...] = HERO_WEIGHTS) -> tuple[str, str]:
    """Draw the name and kind of somebody who is not in the story yet. Kinds do not repeat, so that "the fox" means one."""
    taken = {character.kind for character in t.state.cast.values()}
    names = [unlike(t, lexicon().names[group]) for group in groups]
    is_open = [bool(left) and (group not in taken or group == "animal") for group, left in zip(groups, names, strict=True)]
    chosen = t.dice.weigh([weight * fits for weight, fits in zip(weights, is_open, strict=True)])
    name = t.choose(names[chosen])
    return name, lexicon().people[name].kind or t.choose(without(lexicon().kinds, *taken))


def elder(t: Teller, *kinds: str) -> str:
    """Draw the name of a grown-up who is not in the story yet, of one of the kinds if any is given."""
    names = unlike(t, lexicon().names["elder"])
    return t.choose([name for name in names if not kinds or lexicon().people[name].kind in kinds])


def unlike(t: Teller, names: tuple[str, ...]) -> list[str]:
    """Names that are new and of another pronoun than the hero, so that of two in the scene one is he and one is she."""
    pronouns = [character.pronoun for character in t.state.cast.values()][:1]
    return [name for name in without(names, *t.state.cast) if lexicon().people[name].pronoun not in pronouns]


def thing(t: Teller, mark: str = "") -> dict[str, str]:
    """Draw a new object as the roles `O` and `O.adjective`, one with the mark if it is given."""
    nouns = lexicon().marked(mark) if mark else tuple(lexicon().things)
    noun = t.choose(without(nouns, *t.state.things))
    return {"O": noun, "O_adjective": t.choose(lexicon().adjectives)}


def place(t: Teller, *groups: str) -> str:
    """Draw a place, in one of the groups if any is given."""
    return t.choose([place.noun for place in lexicon().places.values() if not groups or place.group in groups])


def spot(t: Teller) -> str:
    """Draw a spot where nobody has looked yet."""
    seen = [spot for spot in lexicon().spots if t.state.facts.get(f"searched {spot}")]
    return t.choose(without(lexicon().spots, *seen))
