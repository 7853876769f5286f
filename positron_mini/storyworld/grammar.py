"""Sentence patterns that work in both directions: from a world to words, and from words back to the world.

A pattern is text with alternatives `{went|ran}`, word classes `@food` and slots `<A>`, `<O.full>`. `realise` walks it with a source of
choices and yields words; `match` walks it with a text and yields every (end, bindings, choices) that can produce the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from positron_mini.storyworld.lexicon import lexicon

Choice = tuple[int, int]  # (index, number of options)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a pattern that the world fills: role letter and form, such as A and "he"."""

    role: str
    form: str


@dataclass(slots=True, eq=False)
class Alt:
    """A free choice among sequences. `index` maps two leading characters to the options that can start with them."""

    options: tuple[tuple[Node, ...], ...]
    index: dict[str, tuple[int, ...]] | None = field(default=None)


Node = str | Slot | Alt
Sequence = tuple[Node, ...]

_TOKEN = re.compile(r"[{}|]|@[a-z_]+|<[A-Z](?:[.!][A-Za-z]*)?>|[^{}|@<]+")
_INDEFINITE = re.compile(r"\b([Aa])n?(?=[ |}])")
_ARTICLE = re.compile(r"\b([Aa])n? (?=[A-Za-z])")
_MARKED = re.compile(r"~ ([A-Za-z])")


def mark_articles(text: str) -> str:
    """The text with each correct a/an as `a~`; a wrong one stays, and so fits no pattern."""

    def mark(found: re.Match[str]) -> str:
        vowel = text[found.end()] in "aeiouAEIOU"
        return f"{found[1]}~ " if found[0].rstrip().endswith("n") == vowel else found[0]

    return _ARTICLE.sub(mark, text)


def set_articles(text: str) -> str:
    """The text with each `a~` as a or an, by the letter that follows."""
    if "~" not in text:
        return text
    return _MARKED.sub(lambda found: ("n " if found[1] in "aeiouAEIOU" else " ") + found[1], text)


@cache
def compile_class(name: str) -> Alt:
    """Alternatives of a word class."""
    return Alt(tuple(compile_pattern(choice) for choice in lexicon().classes[name]))


@cache
def compile_pattern(pattern: str) -> Sequence:
    """Parse a pattern into a sequence of nodes. Articles before a word or a choice become `a~`, which agrees with what follows."""
    tokens = _TOKEN.findall(_INDEFINITE.sub(r"\1~", pattern))
    sequence, rest = _parse(tokens, 0)
    assert rest == len(tokens), f"unbalanced pattern: {pattern}"
    return sequence


def _parse(tokens: list[str], position: int) -> tuple[Sequence, int]:
    nodes: list[Node] = []
    while position < len(tokens) and tokens[position] not in "|}":
        token = tokens[position]
        position += 1
        if token == "{":
            alt, position = _parse_alt(tokens, position)
            nodes.append(alt)
        elif token[0] == "@":
            nodes.append(compile_class(token[1:]))
        elif token[0] == "<":
            nodes.append(Slot(token[1], token[2:-1].lstrip(".")))
        else:
            nodes.append(token)
    return tuple(nodes), position


def _parse_alt(tokens: list[str], position: int) -> tuple[Alt, int]:
    options = []
    while True:
        sequence, position = _parse(tokens, position)
        options.append(sequence)
        position += 1
        if tokens[position - 1] == "}":
            return Alt(tuple(options)), position


class Source(Protocol):
    """Answers `realise`: free choices, and the words of slots."""

    def pick(self, count: int) -> int:
        """One of 0 .. count - 1."""

    def fill(self, slot: Slot) -> str:
        """Words for `slot`."""


def realise(sequence: Sequence, source: Source) -> str:
    """Words of a pattern, its free choices taken from `source`."""
    parts = []
    for node in sequence:
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, Alt):
            parts.append(realise(node.options[source.pick(len(node.options))], source))
        else:
            parts.append(source.fill(node))
    return "".join(parts)


Bindings = tuple[tuple[str, str], ...]  # ("A", "Tim"), ("A.pronoun", "he"), newest last
Reading = tuple[int, Bindings, tuple[Choice, ...]]
ReadSlot = Callable[[Slot, str, int, bool, Bindings], Iterator[tuple[int, Bindings, tuple[Choice, ...]]]]


def match(sequence: Sequence, text: str, start: int, read_slot: ReadSlot, bindings: Bindings = ()) -> Iterator[Reading]:
    """Every parse of the text from `start` by the pattern. The first letter of a sentence may be a capital of the pattern's."""
    yield from _match(sequence, 0, text, start, start, read_slot, bindings, ())


def _match(
    sequence: Sequence, at: int, text: str, position: int, start: int, read_slot: ReadSlot, bindings: Bindings, choices: tuple[Choice, ...]
) -> Iterator[Reading]:
    while at < len(sequence):
        node = sequence[at]
        if not isinstance(node, str):
            break
        if not _starts(text, node, position, start):
            return
        position += len(node)
        at += 1
    else:
        yield position, bindings, choices
        return
    if isinstance(node, Slot):
        for end, bound, more in read_slot(node, text, position, position == start, bindings):
            yield from _match(sequence, at + 1, text, end, start, read_slot, bound, choices + more)
        return
    for number in _options(node, text, position, start):
        taken = ((number, len(node.options)),)
        for end, bound, inner in _match(node.options[number], 0, text, position, start, read_slot, bindings, choices + taken):
            yield from _match(sequence, at + 1, text, end, start, read_slot, bound, inner)


def _starts(text: str, literal: str, position: int, start: int) -> bool:
    if position == start:
        return text.startswith(literal[0].upper() + literal[1:], position)
    return text.startswith(literal, position)


def _options(alt: Alt, text: str, position: int, start: int) -> tuple[int, ...] | range:
    if position == start or len(alt.options) < 4:
        return range(len(alt.options))
    if alt.index is None:
        alt.index = _index(alt)
    return alt.index.get(text[position : position + 2], alt.index[""])


def _index(alt: Alt) -> dict[str, tuple[int, ...]]:
    """Two leading characters -> options; those without a fixed start are in every entry, and alone under "" (the default)."""
    keys = [option[0][:2] if option and isinstance(option[0], str) and len(option[0]) > 1 else "" for option in alt.options]
    always = tuple(number for number, key in enumerate(keys) if not key)
    return {key: tuple(n for n, own in enumerate(keys) if own in ("", key)) for key in {*keys, ""}} | {"": always}
