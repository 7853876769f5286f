"""Requests for a story, with constraints that code can check: whom it is about, what happens, with which object."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice
from typing import Any

from positron_mini.corpus.storyworld.checker import Replay
from positron_mini.corpus.storyworld.tales import Split, Story, stable_number, stories

# arc: (what the hero does, the event that shows it, role of the hero in it)
PLOTS = {
    "lost": ("who loses {a}", "lose", "A"),
    "broken": ("who breaks {a}", "break", "A"),
    "stuck": ("whose {noun} gets stuck in a tree", "stick", "A"),
    "wish": ("who wants to buy {a}", "see_wish", "A"),
    "guilt": ("who breaks {a} and tells the truth", "confess", "A"),
    "quarrel": ("who does not want to share {a}", "refuse", "A"),
    "lonely": ("who is lonely and finds a friend", "accept", ""),
    "afraid": ("who is afraid of {fear}", "try_brave", "A"),
    "gift": ("who makes {a} for a friend", "give_gift", "A"),
    "astray": ("who takes somebody home", "home_found", "B"),
    "hiding": ("who plays hide-and-seek", "spot_hider", ""),
    "cook": ("who has no more {food}", "missing", "A"),
    "rain": ("whose picnic ends in the rain", "rain", "A"),
    "seed": ("who plants a seed", "plant", "A"),
}
OPENINGS = ("Write a short story about {who} {plot}.", "Tell me a story about {who} {plot}.", "Can you tell a story about {who} {plot}?",
            "Please write a story about {who} {plot}.", "I would like to hear a story about {who} {plot}.", "Make up a story about {who} {plot}.")


@dataclass(frozen=True, slots=True)
class Request:
    """A wish for a story. Constraints: kind (of the hero), event and, where the text names them, name, object, fear, food."""

    text: str
    constraints: dict[str, str]


def request_for(story: Story) -> Request:
    """A request that the story fulfils; how much it asks for depends on the story's number."""
    dice = random.Random(stable_number(f"request {story.index} {story.text}"))
    facts = story.facts
    plot, event, role = PLOTS[facts["arc"]]
    wanted = {"kind": next(c["kind"] for c in facts["characters"] if c["name"] == facts["hero"]), "event": event, "role": role}
    shown = next(e for e in facts["events"] if e["event"] == event)
    noun = shown.get("O") or next((o["noun"] for o in facts["objects"]), "")
    for key, letter, needed in (("object", noun, "{a}" in plot or "{noun}" in plot), ("fear", shown.get("X"), "{fear}" in plot), ("food", shown.get("F"), "{food}" in plot)):
        if needed and letter:
            wanted[key] = letter
    who = _a(wanted["kind"])
    if dice.random() < 0.5:
        wanted["name"] = facts["hero"]
        who += f" named {facts['hero']}"
    opening = OPENINGS[int(dice.random() * len(OPENINGS))]
    filled = plot.format(a=_a(noun) if noun else "", noun=noun, fear=shown.get("X", ""), food=shown.get("F", ""))
    return Request(opening.format(who=who, plot=filled), wanted)


def requests(seed: int, n: int, split: Split = "validation") -> list[Request]:
    """`n` different wishes; by default such as training stories do not fulfil to the letter."""
    found: dict[str, Request] = {}
    for story in islice(stories(seed, 0, split), 20 * n):
        request = request_for(story)
        found.setdefault(request.text, request)
        if len(found) == n:
            break
    return list(found.values())


def check_request(request: Request, story_text: str) -> bool:
    """Whether a text fulfils the wish: its hero is of the kind (and name), and the event happens with the object that was named."""
    replay = Replay()
    replay.read(story_text)
    hero = replay.state.cast.get(replay.state.facts.get("hero", ""))
    wanted = request.constraints
    if hero is None or hero.kind != wanted["kind"] or wanted.get("name", hero.name) != hero.name:
        return False
    return any(name == wanted["event"] and _fits(roles, wanted, hero.name) for name, roles in replay.events)


def _fits(roles: dict[str, Any], wanted: dict[str, str], hero: str) -> bool:
    if wanted["role"] and roles.get(wanted["role"]) != hero:
        return False
    return all(roles.get(letter) == wanted[key] for key, letter in (("object", "O"), ("fear", "X"), ("food", "F")) if key in wanted)


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"
