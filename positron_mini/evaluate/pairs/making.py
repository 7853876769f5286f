"""Making minimal pairs: two contexts, two wordings, each wording right in one of the contexts.

Each context is used with each wording, so the right texts of a unit hold the same words as the wrong ones. Whatever favours a wording
(its frequency, its length, its tokenization) favours it once where it is right and once where it is wrong.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

PLACE = "_"
_SWAP = re.compile(r"<([^|<>]+)\|([^|<>]+)>")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts that differ in one respect; only `good` is right."""

    good: str
    bad: str


Unit = tuple[Pair, Pair]
Kind = Callable[[random.Random], Unit]


@dataclass(frozen=True, slots=True)
class Person:
    """A person in a text: name and pronouns. In a template: {a}, {a.he}, {a.He}, {a.his}."""

    name: str
    he: str
    him: str
    his: str
    child: str  # boy or girl

    def __str__(self) -> str:
        return self.name

    @property
    def He(self) -> str:  # noqa: N802
        """The pronoun at the beginning of a sentence."""
        return self.he.capitalize()

    @property
    def himself(self) -> str:
        """The reflexive pronoun."""
        return f"{self.him}self"


def cross(first: str, second: str, one: str, two: str) -> Unit:
    """The unit in which `one` is right in the context `first` and `two` in `second`; `_` marks their place."""
    return (
        Pair(first.replace(PLACE, one), first.replace(PLACE, two)),
        Pair(second.replace(PLACE, two), second.replace(PLACE, one)),
    )


def swap(template: str) -> Pair:
    """The pair whose right text reads `<x|y>` as "x y" and whose wrong one reads it as "y x": the same words in another order."""
    return Pair(_SWAP.sub(r"\1 \2", template), _SWAP.sub(r"\2 \1", template))


def two(rng: random.Random, choices: Sequence[T]) -> tuple[T, T]:
    """Two different elements of `choices`, in random order."""
    first, second = rng.sample(range(len(choices)), 2)
    return choices[first], choices[second]


def collect(kinds: Sequence[Kind], units: int, rng: random.Random, names: Iterable[str]) -> list[Unit]:
    """`units` units, the kinds in turn. No text occurs twice, and no two units differ only in `names`.

    Errors: ValueError if a kind cannot make that many.
    """
    name = re.compile(rf"\b({'|'.join(names)})\b")
    found: list[Unit] = []
    seen: set[str] = set()
    while len(found) < units:
        kind = kinds[len(found) % len(kinds)]
        for _ in range(1000):
            unit = kind(rng)
            texts = {text for pair in unit for text in (pair.good, pair.bad)}
            marks = texts | {name.sub("N", f"{pair.good}\n{pair.bad}") for pair in unit}
            if len(texts) == 4 and not marks & seen:
                break
        else:
            raise ValueError(f"kind {kinds.index(kind)} cannot make {units // len(kinds)} different units")
        seen |= marks
        found.append(unit)
    return found
