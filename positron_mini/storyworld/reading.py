"""From words to events: every pattern of the world that fits a sentence, found through its first two words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from positron_mini.storyworld.events import Event, Telling, events
from positron_mini.storyworld.grammar import Alt, Choice, Node, Sequence, match
from positron_mini.storyworld.lexicon import lexicon
from positron_mini.storyworld.slots import read_slot
from positron_mini.storyworld.world import CHARACTERS

MAX_HEADS = 400  # a pattern with more beginnings is indexed under fewer words
_NAME = re.compile(r'("?)([A-Z][a-z]+(?: [A-Z][a-z]+)?)')
_TOKEN = re.compile(r"[^ \n]+")


@dataclass(frozen=True, slots=True)
class Reading:
    """A parsed sentence: its event, whom and what it names, and where it ends."""

    event: Event
    telling: Telling
    bindings: dict[str, str]
    choices: tuple[Choice, ...]
    end: int


def readings_at(text: str, position: int) -> Iterator[Reading]:
    """Every reading of the text at `position` that ends with a sentence. Articles must be marked (`mark_articles`)."""
    for event, telling in _candidates(text, position):
        for end, bindings, choices in match(telling.sequence, text, position, read_slot):
            if end == len(text) or text[end] == " ":
                yield Reading(event, telling, dict(bindings), choices, end)


def _candidates(text: str, position: int) -> list[tuple[Event, Telling]]:
    first, after = _key_word(text, position)
    second, _ = _key_word(text, after + 1) if text.startswith(" ", after) else ("", 0)
    index = _index()
    return index.get(f"{_capital(first)} {second}", []) + index.get(_capital(first), []) + index["*"]


def _key_word(text: str, position: int) -> tuple[str, int]:
    """A word as the index spells it, names as <N>, and where it ends."""
    found = _NAME.match(text, position)
    if found:
        for name in (found[2], found[2].partition(" ")[0]):
            end = found.start(2) + len(name)
            if name in lexicon().people and not text[end : end + 1].isalpha():
                rest = _TOKEN.match(text, end)
                tail = rest[0] if rest else ""
                return _bare(f"{found[1]}<N>{tail}"), end + len(tail)
    token = _TOKEN.match(text, position)
    return (_bare(token[0]), token.end()) if token else ("", position)


def _bare(word: str) -> str:
    return word.rstrip(',.!?"')


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]


@lru_cache(maxsize=1)
def _index() -> dict[str, list[tuple[Event, Telling]]]:
    """First two words, or the first alone if the second varies, or "*" -> tellings."""
    index: dict[str, list[tuple[Event, Telling]]] = {"*": []}
    for event in events().values():
        for telling in event.tellings:
            for key in {_key(head) for head in _heads(telling.sequence)}:
                index.setdefault(key, []).append((event, telling))
    return index


def _key(head: str) -> str:
    first, _, rest = head.partition(" ")
    second = rest.partition(" ")[0]
    if "*" in first:
        return "*"
    if not second or "*" in second:
        return _capital(_bare(first))
    return f"{_capital(_bare(first))} {_bare(second)}"


def _heads(sequence: Sequence) -> set[str]:
    """Leading strings of a pattern, two words long; `*` stands for anything."""
    heads = {""}
    for node in sequence:
        growing = {head for head in heads if head.count(" ") < 2 and "*" not in head}
        if not growing:
            break
        starts = _starts_of(node) if len(growing) < MAX_HEADS else {"*"}
        heads = (heads - growing) | {head + more for head in growing for more in starts}
    return heads


def _starts_of(node: Node) -> set[str]:
    if isinstance(node, str):
        return {node}
    if isinstance(node, Alt):
        return {head for option in node.options for head in _heads(option)}
    form = node.form.lower()
    if node.role in CHARACTERS and form in ("", "!"):
        return {"<N>", "He", "She", "he", "she", "The *", "the *"} if node.role == "A" and form == "" else {"<N>"}
    if node.role == "T":
        return {"<N> and *", "They", "they"}
    return {"his": {"His", "Her", "his", "her"}, "he": {"He", "She", "he", "she"}}.get(form, {"*"})
