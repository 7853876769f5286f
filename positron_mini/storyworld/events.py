"""Events of the world: a rule each, and the sentence patterns that tell it. Read once from the text files beside this module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from positron_mini.storyworld.grammar import Sequence, compile_pattern
from positron_mini.storyworld.lexicon import FOLDER
from positron_mini.storyworld.world import Roles, Rule, State, Term, holds, parse_rule, parse_term

FILES = ("common.txt", "trouble.txt", "heart.txt", "seasons.txt")
_SPEECH = re.compile(r"(SAY|ASK|CRY) (\{[^}]*\}|\w+): (.*)")


@dataclass(frozen=True, slots=True, eq=False)
class Telling:
    """One sentence pattern of an event, and its conditions beyond the event's needs."""

    sequence: Sequence
    needs: tuple[Term, ...]
    source: str

    def fits(self, state: State, roles: Roles) -> bool:
        """Whether the extra conditions hold."""
        return all(holds(term, state, roles) for term in self.needs)


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """A rule with its tellings."""

    rule: Rule
    tellings: tuple[Telling, ...]


def spoken_orders(verbs: str, words: str) -> Iterator[str]:
    """Patterns of a speech: speaker last, speaker first and, where ` / ` allows it, speaker in the middle.

    "Asked" is used beside questions only.
    """
    first, cut, second = words.partition(" / ")
    whole = words.replace(" / ", " ")
    if whole.endswith("?") or verbs != "asked":
        yield f'"{_before_speaker(whole)}" {_verb(verbs, whole)} <A!>{{| @manner}}.'
    yield f'<A> {_verb(verbs, first)}, "{whole}"'
    if cut:
        yield f'"{_before_speaker(first)}" {_verb(verbs, first)} <A!>. "{second}"'


def _verb(verbs: str, words: str) -> str:
    return "asked" if words.endswith("?") else verbs


def _before_speaker(words: str) -> str:
    return words[:-1] + "," if words.endswith(".") else words


def _tellings(line: str) -> Iterator[Telling]:
    needs: tuple[Term, ...] = ()
    if line.startswith("? "):
        wanted, _, line = line[2:].partition(" : ")
        needs = tuple(parse_term(part.strip()) for part in wanted.split(";"))
    speech = _SPEECH.fullmatch(line)
    patterns = spoken_orders(speech[2], speech[3]) if speech else iter([line])
    for pattern in patterns:
        yield Telling(compile_pattern(pattern), needs, pattern)


@lru_cache(maxsize=1)
def events() -> dict[str, Event]:
    """Every event by name."""
    rules: dict[str, Rule] = {}
    tellings: dict[str, list[Telling]] = {}
    for file in FILES:
        name = ""
        for line in (FOLDER / file).read_text(encoding="utf-8").split("\n")[1:]:
            if line.startswith("# ") and line.count("|") >= 2:
                name, needs, effects = (part.strip() for part in line[2:].split("|"))
                assert name not in rules, f"event {name} is defined twice"
                rules[name] = parse_rule(name, needs, effects)
            elif line.strip() and not line.startswith("#"):
                tellings.setdefault(name, []).extend(_tellings(line.strip()))
    return {name: Event(rule, tuple(tellings[name])) for name, rule in rules.items()}
