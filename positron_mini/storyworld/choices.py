"""Information content of a story: the generator's choices, recovered from the text alone.

`recover` tells the story again with a teller that takes every choice from the text; where a choice shows only later it tries the
options in turn. The recovered choices make the same text, so they are information that the text contains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

from positron_mini.storyworld.documents import document, document_nats
from positron_mini.storyworld.events import Event, Telling
from positron_mini.storyworld.grammar import Bindings, Choice, Slot, mark_articles, match
from positron_mini.storyworld.lexicon import lexicon
from positron_mini.storyworld.slots import PAIR_WEIGHTS, read_slot, ways
from positron_mini.storyworld.tales import stories, tell_story
from positron_mini.storyworld.teller import Dice, Teller
from positron_mini.storyworld.world import Contradiction, Roles

MAX_TRIES = 20_000


class DeadEnd(Exception):
    """The choices so far cannot lead to the text."""


class Search(Dice):
    """Choices by depth-first search: the current path, and the untried options at each fork."""

    def __init__(self) -> None:
        self.forks: list[list[int]] = []
        self.rewind()

    def rewind(self) -> None:
        """Start the next telling at the beginning of the path."""
        self.depth = 0
        self.choices: list[int] = []
        self.nats = 0.0

    def advance(self) -> bool:
        """Discard the newest option; return False when none is left anywhere."""
        while self.forks and len(self.forks[-1]) == 1:
            self.forks.pop()
        if self.forks:
            self.forks[-1].pop(0)
        return bool(self.forks)

    def decide(self, options: list[int]) -> int:
        """Option of the path at this fork; a new fork takes the first."""
        if self.depth == len(self.forks):
            if not options:
                raise DeadEnd
            self.forks.append(options)
        self.depth += 1
        return self.forks[self.depth - 1][0]

    def record(self, index: int, nats: float) -> int:
        """Record a choice and its nats."""
        self.choices.append(index)
        self.nats += nats
        return index

    def pick(self, count: int) -> int:
        """One of 0 .. count - 1, each in its turn."""
        return self.record(self.decide(list(range(count))), math.log(count))

    def weigh(self, weights: Sequence[float]) -> int:
        """One of the indices with a nonzero weight, each in its turn."""
        openings = [index for index, weight in enumerate(weights) if weight]
        if len(openings) == 1:
            return openings[0]
        index = self.decide(openings)
        return self.record(index, -math.log(weights[index] / sum(weights)))


class Reteller(Teller):
    """A teller that finds its words in a given text instead of drawing them."""

    def __init__(self, text: str, search: Search, cache: dict[tuple[int, int], list[tuple[int, Bindings, tuple[Choice, ...]]]]) -> None:
        super().__init__(search)
        self.search = search
        self.target = mark_articles(text)
        self.position = 0
        self.cache = cache

    def choose(self, options: Sequence[str]) -> str:
        """One of the words that still occur in the rest of the text."""
        rest = self.target[self.position :]
        marked = [option.replace(" an ", " a~ ").replace(" a ", " a~ ") for option in options]
        index = self.search.decide([number for number, option in enumerate(marked) if option in rest])
        self.search.record(index, math.log(len(options)))
        return options[index]

    def say(self, event: Event, tellings: list[Telling], roles: dict[str, str]) -> tuple[str, dict[str, str]]:
        """The sentence of the text that tells the event, if one does."""
        self._step()
        found = []
        for number, telling in enumerate(tellings):
            for end, bindings, choices in self._readings(telling):
                priced = self._price(roles, dict(bindings), choices, telling) if self._ends(end) else None
                if priced is not None:
                    found.append((end, number, dict(bindings), priced))
        found.sort(key=lambda reading: -reading[0])
        end, number, bound, priced = found[self.search.decide(list(range(len(found))))]
        self.search.record(number, math.log(len(tellings)))
        for index, nats in priced:
            self.search.record(index, nats)
        text, self.position = self.target[self.position : end], end
        extra = {key: bound[key] for key in ("T", "V") if key in bound}
        return text, roles | extra

    def _step(self) -> None:
        if self.told:
            if not self.target.startswith("\n" if self.fresh() else " ", self.position):
                raise DeadEnd
            self.position += 1

    def _ends(self, end: int) -> bool:
        return end == len(self.target) or self.target[end] in " \n"

    def _readings(self, telling: Telling) -> list[tuple[int, Bindings, tuple[Choice, ...]]]:
        key = (id(telling), self.position)
        if key not in self.cache:
            self.cache[key] = list(match(telling.sequence, self.target, self.position, _tagged))
        return self.cache[key]

    def _price(self, roles: Roles, bound: Roles, choices: tuple[Choice, ...], telling: Telling) -> list[tuple[int, float]] | None:
        """Choices as (index, nats); None if the words do not fit the roles, or refer to somebody in a way that is not allowed here."""
        if not self._fits(roles, bound):
            return None
        priced = []
        for index, count in choices:
            if count > 0:
                priced.append((index, math.log(count)))
                continue
            weights = self._weights(-count, roles)
            if not weights[index]:
                return None
            if weights[index] < sum(weights):
                priced.append((index, -math.log(weights[index] / sum(weights))))
        return priced

    def _weights(self, tag: int, roles: Roles) -> tuple[float, ...]:
        if tag == TAGS["A"]:
            return ways(self.state, roles["A"], self.fresh())
        if tag == TAGS["T"]:
            return PAIR_WEIGHTS
        return (1.0,) * len(lexicon().traits)

    def _fits(self, roles: Roles, bound: Roles) -> bool:
        for key, value in bound.items():
            if key == "T":
                if self.state.pair is None or value not in ("they", " and ".join(self.state.pair)):
                    return False
            elif key != "V" and value != self._expected(key, roles):
                return False
        return True

    def _expected(self, key: str, roles: Roles) -> str:
        if key in roles or "." not in key:
            return roles.get(key, "")
        role, aspect = key.split(".")
        value = roles[role]
        if aspect == "pronoun":
            return lexicon().people[value].pronoun
        if aspect == "kind":
            return self.state.cast[value].kind if value in self.state.cast else ""
        return self.state.things.get(value, "")


TAGS = {"A": 1, "T": 2, "V": 3}


def _tagged(slot: Slot, text: str, position: int, at_start: bool, bindings: Bindings) -> Iterator[tuple[int, Bindings, tuple[Choice, ...]]]:
    """Readings of a slot whose choices carry their type as a negative count."""
    for end, bound, choices in read_slot(slot, text, position, at_start, bindings):
        if slot.role == "V":
            choices = ((lexicon().traits.index(dict(bound)["V"]), 0),)
        yield end, bound, tuple((index, -TAGS[slot.role]) for index, _ in choices)


def recover(text: str) -> tuple[tuple[int, ...], float]:
    """Recover the choices that make a generated text, and their nats. Errors: ValueError when the generator cannot make it."""
    search = Search()
    cache: dict[tuple[int, int], list[tuple[int, Bindings, tuple[Choice, ...]]]] = {}
    for _ in range(MAX_TRIES):
        search.rewind()
        teller = Reteller(text, search, cache)
        try:
            tell_story(teller)
            if teller.position == len(teller.target):
                return tuple(search.choices), search.nats
        except (DeadEnd, Contradiction):
            pass
        if not search.advance():
            break
    raise ValueError("the generator cannot have made this text")


def entropy_bits_per_byte(seed: int, n: int) -> float:
    """Bits per byte of the generator's choices, over the first `n` documents of a seed; each is recoverable from the text."""
    bits = size = 0.0
    for story in islice(stories(seed), n):
        bits += document_nats(story) / math.log(2)
        size += len(document(story).encode("utf-8"))
    return bits / size
