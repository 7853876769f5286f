"""Requests for a story, with constraints that code can check: the hero, what happens, and with which object."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from itertools import islice

from positron_mini.storyworld.checker import StoryReplay
from positron_mini.storyworld.tales import Split, Story, stable_number, stories

# arc: (what the hero does, the event that shows it, role of the hero in it)
PLOTS = {
    "lost": ("who loses {a}", "lose", "A"),
    "broken": ("who breaks {a}", "break", "A"),
    "stuck": ("whose {noun} gets stuck in a tree", "stick", "A"),
    "wish": ("who wants to buy {a}", "see_wish", "A"),
    "guilt": ("who breaks {a} and tells the truth", "confess", "A"),
    "quarrel": ("who does not want to share {a}", "refuse", "A"),
    "lonely": ("who is lonely and finds a friend", "accept", ""),
    "afraid": ("who is afraid and becomes brave", "try_brave", "A"),
    "gift": ("who makes {a} for a friend", "give_gift", "A"),
    "astray": ("who cannot find the way home", "stray", "A"),
    "hiding": ("who plays hide-and-seek", "spot_hider", ""),
    "cook": ("who helps to cook a meal", "missing", "A"),
    "rain": ("whose picnic ends in the rain", "rain", "A"),
    "seed": ("who plants a seed", "plant", "A"),
}
OPENINGS = (
    "Write a short story about {about}.",
    "Tell me a story about {about}.",
    "Can you tell a story about {about}?",
    "Please write a story about {about}.",
    "I would like to hear a story about {about}.",
    "Make up a story about {about}.",
)
PLAIN = 0.15  # share of wishes that leave open what happens
HOLES = {"a": "an? (?P<object>[a-z]+)", "noun": "(?P<object>[a-z]+)"}


@dataclass(frozen=True, slots=True)
class Request:
    """A wish for a story. Constraints: kind (of the hero) and, where the text names them, event, name, object."""

    text: str
    constraints: dict[str, str]


def request_for(story: Story) -> Request:
    """A request that the story fulfils; whether it asks for a name and for an event depends on the story alone."""
    dice = random.Random(stable_number(f"request {story.text}"))
    hero = next(person for person in story.facts["characters"] if person["name"] == story.facts["hero"])
    plot, event, role = PLOTS[story.facts["arc"]]
    wanted = {"kind": hero["kind"], "event": event, "role": role}
    if "{" in plot:
        wanted["object"] = next(told for told in story.facts["events"] if told["event"] == event)["O"]
    who = a_or_an(hero["kind"])
    if dice.random() < 0.5:
        wanted["name"] = hero["name"]
        who += f" named {hero['name']}"
    if dice.random() < PLAIN:
        named = {key: value for key, value in wanted.items() if key in ("kind", "name")}
        return Request(OPENINGS[int(dice.random() * len(OPENINGS))].format(about=who), named)
    noun = wanted.get("object", "")
    filled = plot.format(a=a_or_an(noun), noun=noun)
    return Request(OPENINGS[int(dice.random() * len(OPENINGS))].format(about=f"{who} {filled}"), wanted)


@cache
def _readers() -> list[tuple[re.Pattern[str], str, str]]:
    """Every way to wish for something as (pattern, event, role of the hero in it)."""
    who = "an? (?P<kind>[a-z]+)(?: named (?P<name>[A-Z][a-z]+))?"
    readers = []
    for opening in OPENINGS:
        before, after = map(re.escape, opening.split("{about}"))
        readers.append((re.compile(f"{before}{who}{after}"), "", ""))
        for plot, event, role in PLOTS.values():
            pattern = re.sub(r"\\{(\w+)\\}", lambda hole: HOLES[hole[1]], re.escape(plot))
            readers.append((re.compile(f"{before}{who} {pattern}{after}"), event, role))
    return readers


def read_request(text: str) -> Request | None:
    """Parse a wish from a line of text; None if it is none: the reverse of `request_for`."""
    for pattern, event, role in _readers():
        found = pattern.fullmatch(text)
        if found:
            what = {"event": event, "role": role} if event else {}
            return Request(text, what | {key: value for key, value in found.groupdict().items() if value})
    return None


def requests(seed: int, n: int, split: Split = "validation") -> list[Request]:
    """`n` different wishes that each name an event; by default no training story fulfils them exactly."""
    found: dict[str, Request] = {}
    for story in islice(stories(seed, 0, split), 20 * n):
        request = request_for(story)
        if "event" in request.constraints:
            found.setdefault(request.text, request)
        if len(found) == n:
            break
    return list(found.values())


def check_request(request: Request, story_text: str) -> bool:
    """Whether a text fulfils the wish: its hero has the kind (and name), and the event happens with the named object."""
    replay = StoryReplay()
    replay.read(story_text)
    hero = replay.state.cast.get(replay.state.facts.get("hero", ""))
    wanted = request.constraints
    if hero is None or hero.kind != wanted["kind"] or wanted.get("name", hero.name) != hero.name:
        return False
    return "event" not in wanted or any(name == wanted["event"] and _fits(roles, wanted, hero.name) for name, roles in replay.events)


def _fits(roles: dict[str, str], wanted: dict[str, str], hero: str) -> bool:
    if wanted["role"] and roles.get(wanted["role"]) != hero:
        return False
    return "object" not in wanted or roles.get("O") == wanted["object"]


def a_or_an(word: str) -> str:
    """The word with its article; empty for an empty word."""
    return word and f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
