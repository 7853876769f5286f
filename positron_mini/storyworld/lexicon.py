"""Words of the story world: people, objects, places, and the classes of free words.

Everything is read once from the text files beside this module, so that the generator and the checker share one vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent / "text"


@dataclass(frozen=True, slots=True)
class Person:
    """A name of the world: it fixes the group (boy, girl, animal, robot, elder), the pronoun and, for elders, the kind."""

    name: str
    group: str
    pronoun: str
    kind: str  # "" when the story chooses it (animals)


@dataclass(frozen=True, slots=True)
class Thing:
    """An object noun and the troubles that it can have."""

    noun: str
    marks: frozenset[str]


@dataclass(frozen=True, slots=True)
class Place:
    """A place noun with its preposition and its group (nature, water, town)."""

    noun: str
    preposition: str
    group: str


@dataclass(frozen=True, slots=True)
class Lexicon:
    """All that can be named. Lists keep the order of the file: the generator's choices are indices into them."""

    people: dict[str, Person]
    names: dict[str, tuple[str, ...]]  # by "group" and "group pronoun"
    kinds: tuple[str, ...]
    traits: tuple[str, ...]
    things: dict[str, Thing]
    adjectives: tuple[str, ...]
    places: dict[str, Place]
    spots: tuple[str, ...]
    foods: tuple[str, ...]
    fears: tuple[str, ...]
    chores: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]

    def marked(self, mark: str) -> tuple[str, ...]:
        """Nouns with a mark, such as "b" for what can break."""
        return tuple(noun for noun, thing in self.things.items() if mark in thing.marks)


def _sections(path: Path) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.startswith("== "):
            current = sections.setdefault(line[3:].strip(), [])
        elif line.strip() and not line.startswith("#"):
            current.append(line.strip())
    return sections


def _read_people(sections: dict[str, list[str]]) -> dict[str, Person]:
    people: dict[str, Person] = {}
    for title, lines in sections.items():
        if not title.startswith("names "):
            continue
        _, group, pronoun = title.split()
        for line in lines:
            entries = [line] if "=" in line else line.split()
            for entry in entries:
                name, _, kind = (part.strip() for part in entry.partition("="))
                people[name] = Person(name, group, pronoun, kind or ("" if group == "animal" else group))
    return people


def _read_things(lines: list[str]) -> dict[str, Thing]:
    things = {}
    for line in lines:
        noun, _, marks = line.partition(" / ")
        things[noun] = Thing(noun, frozenset(marks.split()) - {"-"})
    return things


def _read_places(sections: dict[str, list[str]]) -> dict[str, Place]:
    places = {}
    for title, lines in sections.items():
        if title.startswith("places "):
            for line in lines:
                preposition, noun = line.split()
                places[noun] = Place(noun, preposition, title.split()[1])
    return places


def _read_classes(path: Path) -> dict[str, tuple[str, ...]]:
    joined: list[str] = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.startswith(" "):
            joined[-1] += " " + line.strip()
        elif line.strip() and not line.startswith("#"):
            joined.append(line.strip())
    classes = {}
    for line in joined:
        name, _, choices = line.partition(" = ")
        classes[name] = tuple(choice.strip() for choice in choices.split(" / "))
    return classes


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """The one vocabulary, read at first use."""
    sections = _sections(FOLDER / "things.txt")
    people = _read_people(sections)
    names: dict[str, tuple[str, ...]] = {}
    for person in people.values():
        for label in (person.group, f"{person.group} {person.pronoun}"):
            names[label] = (*names.get(label, ()), person.name)
    return Lexicon(
        people=people,
        names=names,
        kinds=tuple(" ".join(sections["kinds animal"]).split()),
        traits=tuple(" ".join(sections["traits"]).split()),
        things=_read_things(sections["objects"]),
        adjectives=tuple(" ".join(sections["adjectives"]).split()),
        places=_read_places(sections),
        spots=tuple(sections["spots"]),
        foods=tuple(" ".join(sections["foods"]).split()),
        fears=tuple(sections["fears"]),
        chores=tuple(sections["chores"]),
        classes=_read_classes(FOLDER / "words.txt"),
    )
