"""Check whether a story is consistent: parse it sentence by sentence with the generator's patterns, and replay it by the world's rules.

Any text can be judged, a model's included. A sentence that cannot be parsed counts as inconsistent; `parsed_share` tells how many could.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from positron_mini.storyworld.grammar import mark_articles
from positron_mini.storyworld.reading import Reading, readings_at
from positron_mini.storyworld.world import CHARACTERS, Contradiction, Rule, State, apply

_STOP = re.compile(r'[.!?]"?(?=\s|$)')
DEFAULTS = {"O": "thing", "F": "missing", "X": "fear", "K": "chore"}  # meaning of an event's role that is not named


@dataclass(frozen=True, slots=True)
class StoryVerdict:
    """Judgement of a story: consistent or not, the share of its sentences that could be parsed, and what is wrong."""

    consistent: bool
    parsed_share: float
    reasons: tuple[str, ...]


def check_story(text: str) -> StoryVerdict:
    """Judge a whole story."""
    replay = StoryReplay()
    replay.read(text)
    reasons = list(replay.reasons)
    if not replay.state.facts.get("ended"):
        reasons.append("the story has no ending")
    elif replay.state.facts.get("problem") != "solved":
        reasons.append("the trouble was not solved")
    total = replay.parsed + replay.unparsed
    return StoryVerdict(not reasons, replay.parsed / total if total else 0.0, tuple(reasons))


class StoryReplay:
    """Parser with a state: `read` takes text, `events` lists what happened, `reasons` the contradictions."""

    def __init__(self) -> None:
        self.state = State()
        self.reasons: list[str] = []
        self.events: list[tuple[str, dict[str, str]]] = []
        self.parsed = self.unparsed = 0

    def read(self, text: str) -> None:
        """Replay every sentence of the text."""
        for paragraph in text.strip().split("\n"):
            marked = mark_articles(paragraph)
            position = 0
            while position < len(marked):
                position = self._sentence(marked, position, fresh=position == 0) + 1

    def _sentence(self, text: str, position: int, *, fresh: bool) -> int:
        """Replay one sentence; return where it ends."""
        readings = sorted(readings_at(text, position), key=lambda reading: -reading.end)
        failure = ""
        for reading in readings:
            try:
                self._take(reading, fresh)
            except Contradiction as error:
                failure = failure or str(error)
                continue
            self.parsed += 1
            return reading.end
        if readings:
            self.parsed += 1
            self.reasons.append(failure)
            return readings[0].end
        stop = _STOP.search(text, position)
        end = stop.end() if stop else len(text)
        self.unparsed += 1
        self.reasons.append(f"cannot be read: {text[position:end]}")
        return end

    def _take(self, reading: Reading, fresh: bool) -> None:
        rule = reading.event.rule
        roles = resolve(reading, self.state, fresh)
        if not reading.telling.fits(self.state, roles):
            raise Contradiction(f"{rule.name}: not told so here")
        apply(rule, self.state, roles)
        self.events.append((rule.name, roles))


def resolve(reading: Reading, state: State, fresh: bool) -> dict[str, str]:
    """Roles of a sentence with pronouns, "the fox" and unnamed roles replaced by names."""
    roles = dict(reading.bindings)
    rule = reading.event.rule
    if "A" not in roles and "A.kind" in roles:
        roles["A"] = _one_of_kind(roles["A.kind"], state)
    if "A" not in roles and "A.pronoun" in roles:
        roles["A"] = state.focus
        if not state.focus:
            raise Contradiction(f"{rule.name}: nobody whom {roles['A.pronoun']} could mean")
    for role in sorted(_letters(rule) - set(roles) - rule.new):
        roles[role] = _unsaid(role, roles, state)
    return {role: value for role, value in roles.items() if value}


def _one_of_kind(kind: str, state: State) -> str:
    names = [character.name for character in state.cast.values() if character.kind == kind]
    if len(names) != 1:
        raise Contradiction(f"{len(names)} could be the {kind}")
    return names[0]


@cache
def _letters(rule: Rule) -> set[str]:
    terms = (*rule.needs, *rule.effects)
    words = {word for term in terms for word in (*term.key, *term.values)}
    return {word for word in words if len(word) == 1 and word.isupper()}


def _unsaid(role: str, roles: dict[str, str], state: State) -> str:
    """Name for a role that the sentence leaves out: the other one of two characters, or the object that the story is about."""
    if role in DEFAULTS:
        return state.facts.get(DEFAULTS[role], "")
    if role in CHARACTERS:
        said = {roles.get(other) for other in CHARACTERS}
        hero = state.facts.get("hero", "")
        order = (hero, *(state.pair or ())) if role == "A" else (*(state.pair or ())[::-1], hero)
        return next((name for name in order if name not in said), "")
    return ""
