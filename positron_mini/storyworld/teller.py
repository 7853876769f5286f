"""The storyteller: keeps the state, draws the choices, and tells each event in words that fit the state."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from positron_mini.storyworld.events import Event, Telling, events
from positron_mini.storyworld.grammar import Slot, realise, set_articles
from positron_mini.storyworld.lexicon import lexicon
from positron_mini.storyworld.slots import KIND, PAIR_WEIGHTS, PRONOUN, say_character, say_place, ways
from positron_mini.storyworld.world import CHARACTERS, OBJECTS, PLACES, State, apply


@dataclass(slots=True)
class Told:
    """One told event: its name, its roles and its words."""

    name: str
    roles: dict[str, str]
    text: str


@dataclass(slots=True)
class Dice:
    """Source of choices. Only `random()` is used, whose values are the same on every platform and version."""

    generator: random.Random
    choices: list[int] = field(default_factory=list)
    nats: float = 0.0

    def pick(self, count: int) -> int:
        """An index below `count`, all equally likely."""
        index = int(self.generator.random() * count)
        self.choices.append(index)
        self.nats += math.log(count)
        return index

    def weigh(self, weights: Sequence[float]) -> int:
        """An index drawn with the given weights. With one nonzero weight there is no choice, and nothing is recorded."""
        total = sum(weights)
        if total == max(weights):
            return weights.index(total)
        point, index = self.generator.random() * total, 0
        while point >= weights[index] and index < len(weights) - 1:
            point -= weights[index]
            index += 1
        while not weights[index]:  # rounding may run past the last nonzero weight
            index -= 1
        self.choices.append(index)
        self.nats -= math.log(weights[index] / total)
        return index


class Teller:
    """A story in the making. `tell` applies an event's rule to the state and adds its words to the current paragraph."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.state = State()
        self.told: list[Told] = []
        self.paragraphs: list[list[str]] = [[]]
        self.kinds: dict[str, str] = {}
        self._roles: dict[str, str] = {}

    # ---- choices of the plan ----
    def choose(self, options: Sequence[str]) -> str:
        """Draw one of the words, which must show in the text soon."""
        return options[self.dice.pick(len(options))]

    def coin(self, yes: float = 0.5) -> bool:
        """True with the given probability. What it decides must show in the text."""
        return self.dice.weigh((1.0 - yes, yes)) == 1

    # ---- telling ----
    def paragraph(self) -> None:
        """Start a new paragraph."""
        if self.paragraphs[-1]:
            self.paragraphs.append([])

    def tell(self, event_name: str, **roles: str) -> None:
        """Let an event happen and tell it. Role keys are letters; `O_adjective` and `B_kind` describe what is new."""
        event = events()[event_name]
        full = {key.replace("_", "."): value for key, value in roles.items()}
        tellings = [telling for telling in event.tellings if telling.fits(self.state, full)]
        text, said = self.say(event, tellings, full)
        apply(event.rule, self.state, said)
        self.told.append(Told(event_name, said, text))
        self.paragraphs[-1].append(text)

    def say(self, event: Event, tellings: list[Telling], roles: dict[str, str]) -> tuple[str, dict[str, str]]:
        """Words for an event, and the roles that they show."""
        self._roles = dict(roles)
        telling = tellings[self.dice.pick(len(tellings))]
        text = set_articles(realise(telling.sequence, self))
        return text[0].upper() + text[1:], self._roles

    # ---- the two questions of `realise` ----
    def pick(self, count: int) -> int:
        """Draw a number below `count`: a free choice of words, or a branch of an arc."""
        return self.dice.pick(count)

    def fill(self, slot: Slot) -> str:
        """Words for a slot."""
        role, form = slot.role, slot.form
        value = self._roles.get(role, "")
        if role == "T":
            return self._pair()
        if role in CHARACTERS:
            if role == "A" and form == "":
                return self._actor(value)
            return self._kind(role) if form == "kind" else say_character(form, value)
        if role in OBJECTS:
            return self._thing(role, form, value)
        if role in PLACES:
            return say_place(form, value)
        return value or self._drawn(role)

    def _drawn(self, role: str) -> str:
        """A trait, drawn when it is first told."""
        assert role == "V", f"role {role} was not given"
        self._roles[role] = self.choose(lexicon().traits)
        return self._roles[role]

    def _kind(self, role: str) -> str:
        name = self._roles[role]
        return self._roles.get(f"{role}.kind") or self.state.cast[name].kind

    def _actor(self, name: str) -> str:
        way = self.dice.weigh(ways(self.state, name, self.fresh()))
        if way == KIND:
            return f"the {self.state.cast[name].kind}"
        return lexicon().people[name].pronoun if way == PRONOUN else name

    def _pair(self) -> str:
        assert self.state.pair is not None
        both = " and ".join(self.state.pair)
        self._roles["T"] = ("they", both)[1 - self.dice.weigh(PAIR_WEIGHTS)]
        return self._roles["T"]

    def _thing(self, role: str, form: str, noun: str) -> str:
        adjective = self._roles.get(f"{role}.adjective") or self.state.things.get(noun, "")
        return f"{adjective} {noun}" if form == "full" else noun

    def fresh(self) -> bool:
        """Whether the next sentence opens a paragraph; it then names its actor."""
        return not self.paragraphs[-1]

    def text(self) -> str:
        """The story so far."""
        return "\n".join(" ".join(sentences) for sentences in self.paragraphs if sentences)


def without(options: Iterable[str], *taken: str) -> list[str]:
    """Options that are not taken, in order."""
    return [option for option in options if option not in taken]
