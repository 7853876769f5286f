"""Text of slots in both directions: names, pronouns, "the fox", objects, places.

There are up to three ways to refer to the actor `<A>`; the state alone decides which are allowed, so a reader can price the choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from positron_mini.storyworld.grammar import Bindings, Choice, Slot
from positron_mini.storyworld.lexicon import lexicon
from positron_mini.storyworld.world import CHARACTERS, HIM, HIS, OBJECTS, PLACES, State

NAME, PRONOUN, KIND = 0, 1, 2
WEIGHTS = (5.0, 6.0, 0.1)  # of name, pronoun, "the fox"
PAIR_WEIGHTS = (1.0, 7.0)  # of "Tim and Mia", "they"
_NAME = re.compile(r"[A-Z][a-z]+(?: [A-Z][a-z]+)?")
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
Found = tuple[int, Bindings, tuple[Choice, ...]]


def ways(state: State, name: str, fresh: bool) -> tuple[float, ...]:
    """Weights of name, pronoun and kind for the actor; 0 if it could be misread. `fresh`: in a paragraph's first sentence."""
    person = state.cast.get(name)
    pronoun = state.focus == name and not fresh
    kind = person is not None and person.group == "animal" and state.only_of_kind(name) and state.focus != ""
    return (WEIGHTS[0], WEIGHTS[1] * pronoun, WEIGHTS[2] * kind)


def say_character(form: str, name: str) -> str:
    """A character in a fixed form: name or pronoun."""
    pronoun = lexicon().people[name].pronoun
    low = form.lower()
    if low in ("", "!"):
        return name
    word = {"he": pronoun, "him": HIM[pronoun], "his": HIS[pronoun], "self": HIM[pronoun] + "self"}[low]
    return word.capitalize() if form[0].isupper() else word


def say_place(form: str, noun: str) -> str:
    """A place as noun, with its preposition, or with "to"."""
    if form == "at":
        return f"{lexicon().places[noun].preposition} the {noun}"
    return f"to the {noun}" if form == "to" else noun


def bind(bindings: Bindings, key: str, value: str) -> Bindings | None:
    """The bindings with one more; None if the key is bound to something else."""
    for known, old in bindings:
        if known == key:
            return bindings if old == value else None
    return (*bindings, (key, value))


def _yield(end: int, bindings: Bindings, pairs: list[tuple[str, str]], choices: tuple[Choice, ...] = ()) -> Iterator[Found]:
    bound: Bindings | None = bindings
    for key, value in pairs:
        bound = bind(bound, key, value) if bound is not None else None
    if bound is not None:
        yield end, bound, choices


def read_slot(slot: Slot, text: str, position: int, at_start: bool, bindings: Bindings) -> Iterator[Found]:
    """Every way in which the text at `position` can fill the slot. Choices are (way, 0): their price depends on the state."""
    role, form = slot.role, slot.form
    if role in CHARACTERS:
        yield from _read_character(role, form, text, position, at_start, bindings)
    elif role in OBJECTS:
        yield from _read_thing(role, form, text, position, bindings)
    elif role in PLACES:
        yield from _read_place(role, form, text, position, at_start, bindings)
    elif role == "T":
        yield from _read_pair(text, position, at_start, bindings)
    else:
        yield from _read_phrase(role, text, position, bindings)


def _read_character(role: str, form: str, text: str, position: int, at_start: bool, bindings: Bindings) -> Iterator[Found]:
    if form in ("", "!"):
        flexible = role == "A" and form == ""
        for name in _names_at(text, position):
            yield from _yield(position + len(name), bindings, [(role, name)], ((NAME, 0),) if flexible else ())
        if flexible:
            yield from _read_pronoun(role, "he", text, position, at_start, bindings, ((PRONOUN, 0),))
            article = "The " if at_start else "the "
            if text.startswith(article, position):
                for word in _words_at(text, position + 4):
                    yield from _yield(position + 4 + len(word), bindings, [(f"{role}.kind", word)], ((KIND, 0),))
    elif form == "kind":
        for word in _words_at(text, position):
            yield from _yield(position + len(word), bindings, [(f"{role}.kind", word)])
    else:
        yield from _read_pronoun(role, form, text, position, at_start, bindings, ())


def _read_pronoun(
    role: str, form: str, text: str, position: int, at_start: bool, bindings: Bindings, choices: tuple[Choice, ...]
) -> Iterator[Found]:
    for pronoun, name in (("he", "Tim"), ("she", "Mia")):
        word = say_character(form, name)
        if at_start:
            word = word.capitalize()
        end = position + len(word)
        if text.startswith(word, position) and not text[end : end + 1].isalpha():
            yield from _yield(end, bindings, [(f"{role}.pronoun", pronoun)], choices)


def _read_thing(role: str, form: str, text: str, position: int, bindings: Bindings) -> Iterator[Found]:
    for first in _words_at(text, position):
        end = position + len(first)
        if form == "" and first in lexicon().things:
            yield from _yield(end, bindings, [(role, first)])
        if form == "full" and text[end : end + 1] == " ":
            for second in _words_at(text, end + 1):
                if first in lexicon().adjectives and second in lexicon().things:
                    yield from _yield(end + 1 + len(second), bindings, [(role, second), (f"{role}.adjective", first)])


def _read_place(role: str, form: str, text: str, position: int, at_start: bool, bindings: Bindings) -> Iterator[Found]:
    lead = 0
    if form:
        found = re.compile(r"([a-zA-Z]+) the ").match(text, position)
        if not found:
            return
        lead = len(found[0])
        preposition = found[1].lower() if at_start else found[1]
    for noun in _words_at(text, position + lead):
        place = lexicon().places.get(noun)
        if place and (not form or preposition == (place.preposition if form == "at" else "to")):
            yield from _yield(position + lead + len(noun), bindings, [(role, noun)])


def _read_pair(text: str, position: int, at_start: bool, bindings: Bindings) -> Iterator[Found]:
    they = "They" if at_start else "they"
    if text.startswith(they, position) and not text[position + 4 : position + 5].isalpha():
        yield from _yield(position + 4, bindings, [("T", "they")], ((1, 0),))
    for first in _names_at(text, position):
        end = position + len(first)
        if text.startswith(" and ", end):
            for second in _names_at(text, end + 5):
                yield from _yield(end + 5 + len(second), bindings, [("T", f"{first} and {second}")], ((0, 0),))


def _read_phrase(role: str, text: str, position: int, bindings: Bindings) -> Iterator[Found]:
    words = lexicon()
    known = {"S": words.spots, "F": words.foods, "X": words.fears, "V": words.traits, "K": words.chores}
    for phrase in known[role]:
        marked = phrase.replace(" an ", " a~ ").replace(" a ", " a~ ")
        if text.startswith(marked, position) and not text[position + len(marked) : position + len(marked) + 1].isalpha():
            yield from _yield(position + len(marked), bindings, [(role, phrase)])


def _names_at(text: str, position: int) -> Iterator[str]:
    found = _NAME.match(text, position)
    if found:
        for name in dict.fromkeys((found[0], found[0].partition(" ")[0])):
            if name in lexicon().people:
                yield name


def _words_at(text: str, position: int) -> Iterator[str]:
    found = _WORD.match(text, position)
    if found:
        yield found[0]
