"""Questions with one right answer about a story, retellings of what happened next, and checks of the replies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from positron_mini.storyworld.checker import StoryReplay
from positron_mini.storyworld.lexicon import lexicon
from positron_mini.storyworld.tales import Story

Event = dict[str, str]
_WORDS = re.compile(r"[a-z]+(?:['-][a-z]+)*")
_NO = {"not", "no", "never", "nobody", "don't", "didn't", "wasn't", "isn't"}


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a story. A reply is right when it contains one of `accepted` and none of `others`.

    An accepted entry is a phrase; `&` joins phrases that must all occur.
    """

    text: str
    answer: str
    kind: str
    accepted: tuple[str, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Retelling:
    """Beginning of a story and the sentence that comes next."""

    beginning: str
    next_sentence: str


def check_answer(question: Question, reply: str) -> bool:
    """Whether a reply answers the question: it says the answer and neither denies it nor names another."""
    said = words_of(reply)
    answers = [[words_of(part) for part in entry.split("&")] for entry in question.accepted]
    right = any(all(_holds(said, part) for part in entry) for entry in answers)
    denied = any(word in _NO for word in said) and not any(word in _NO for word in words_of(question.answer))
    return right and not denied and not any(_holds(said, words_of(other)) for other in question.others)


def words_of(text: str) -> list[str]:
    """Lower-case words of a text without articles."""
    return [word for word in _WORDS.findall(text.lower()) if word not in ("a", "an", "the")]


def _holds(said: list[str], part: list[str]) -> bool:
    return bool(part) and any(said[start : start + len(part)] == part for start in range(len(said) - len(part) + 1))


def questions(story: Story) -> list[Question]:
    """Questions that the story answers, in the order of its events."""
    found = [question for event in story.facts["events"] for question in _about(event, story.facts)]
    found.extend(_about_people(story.facts))
    unique = {question.text: question for question in found}
    return list(unique.values())


def _about(event: Event, facts: dict[str, Any]) -> Iterator[Question]:
    for ask in ASKERS.get(event["event"], ()):
        question = ask(event, facts)
        if question is not None:
            yield question


def _about_people(facts: dict[str, Any]) -> Iterator[Question]:
    for person in facts["characters"]:
        name, kind = person["name"], person["kind"]
        if lexicon().people[name].group != "elder":
            others = tuple(other["kind"] for other in facts["characters"] if other["kind"] != kind)
            yield Question(f"Who is {name}?", f"{name} is {_a(kind)}.", "kind", (kind,), others)
    hero = next(person for person in facts["characters"] if person["name"] == facts["hero"])
    feeling = hero["feeling"]
    accepted = {"happy": ("happy", "glad"), "proud": ("proud",)}.get(feeling, (feeling,))
    yield Question(f"How did {hero['name']} feel at the end?", f"{hero['name']} felt {feeling}.", "feeling", accepted, ("sad", "unhappy"))


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


Asker = Callable[[Event, dict[str, Any]], Question | None]


def _who(role: str, text: str, answer: str) -> Asker:
    """Make an asker for the name in a role."""

    def ask(event: Event, facts: dict[str, Any]) -> Question | None:
        asked, full = text.format(**event), answer.format(**event)
        others = tuple(person["name"] for person in facts["characters"] if person["name"] not in f"{asked} {full}")
        return Question(asked, full, "who", (event[role],), others)

    return ask


def _what(text: str, answer: str) -> Asker:
    """Make an asker for the object of an event."""

    def ask(event: Event, facts: dict[str, Any]) -> Question | None:
        adjective = next((o["adjective"] for o in facts["objects"] if o["noun"] == event["O"]), "")
        full = _a(f"{adjective} {event['O']}".strip())
        others = tuple(o["noun"] for o in facts["objects"] if o["noun"] != event["O"])
        return Question(text.format(**event), answer.format(**event, full=full), "what", (event["O"],), others)

    return ask


def _where(role: str, text: str, answer: str) -> Asker:
    """Make an asker for a spot or a place."""

    def ask(event: Event, facts: dict[str, Any]) -> Question | None:
        value = event[role]
        if role == "P":
            others = tuple(place for place in lexicon().places if place != value)
            place = lexicon().places[value]
            at = f"{place.preposition} the {value}"
            return Question(text.format(**event), answer.format(**event, at=at, to=f"to the {value}"), "where", (value,), others)
        others = tuple(spot for spot in lexicon().spots if spot != value)
        return Question(text.format(**event), answer.format(**event), "where", (value,), others)

    return ask


def _why(text: str, answer: str, *accepted: str) -> Asker:
    """Make an asker for the cause of a feeling."""

    def ask(event: Event, facts: dict[str, Any]) -> Question | None:
        return Question(text.format(**event), answer.format(**event), "why", tuple(entry.format(**event) for entry in accepted))

    return ask


def _plain(role: str, kind: str, text: str, answer: str) -> Asker:
    """Make an asker for a fear or a food."""

    def ask(event: Event, facts: dict[str, Any]) -> Question | None:
        options = lexicon().fears if role == "X" else lexicon().foods
        return Question(
            text.format(**event), answer.format(**event), kind, (event[role],), tuple(other for other in options if other != event[role])
        )

    return ask


ASKERS: dict[str, tuple[Asker, ...]] = {
    "go": (_where("P", "Where did {A} go?", "{A} went {to}."),),
    "go_with": (_where("P", "Where did {A} take the {O}?", "{A} took the {O} {to}."),),
    "lose": (
        _who("A", "Who lost the {O}?", "{A} lost the {O}."),
        _what("What did {A} lose?", "{A} lost {full}."),
        _why("Why was {A} sad?", "Because the {O} was lost.", "{O}&lost", "{O}&gone", "{O}&missing", "lost it", "{O}&lose"),
    ),
    "find": (
        _who("A", "Who found the {O}?", "{A} found the {O}."),
        _where("S", "Where was the {O}?", "The {O} was {S}."),
    ),
    "break": (
        _what("What broke?", "The {O} broke."),
        _why("Why was {A} sad?", "Because the {O} was broken.", "{O}&broken", "{O}&broke", "it broke", "{O}&break"),
    ),
    "mend": (_who("A", "Who mended the {O}?", "{A} mended the {O}."),),
    "stick": (
        _what("What was stuck in the tree?", "The {O} was stuck in the tree."),
        _why("Why was {A} sad?", "Because the {O} was stuck in the tree.", "{O}&stuck", "{O}&tree"),
    ),
    "reach": (_who("A", "Who got the {O} down?", "{A} got the {O} down."),),
    "see_wish": (_what("What did {A} wish for?", "{A} wished for {full}."),),
    "no_money": (_why("Why was {A} sad?", "Because {A} had no money to buy the {O}.", "no money", "no coins", "not&money", "not&buy"),),
    "pay": (_who("A", "Who gave {B} coins?", "{A} gave {B} coins."),),
    "buy": (_who("A", "Who bought the {O}?", "{A} bought the {O}."),),
    "break_borrowed": (
        _who("B", "Whose {O} broke?", "It was the {O} of {B}."),
        _who("A", "Who broke the {O}?", "{A} broke the {O}."),
    ),
    "hide_it": (_where("S", "Where did {A} hide the {O}?", "{A} hid the {O} {S}."),),
    "confess": (_who("A", "Who told the truth?", "{A} told the truth."),),
    "refuse": (_what("What did {A} not want to share?", "{A} did not want to share the {O}."),),
    "sorry": (_who("A", "Who said sorry first?", "{A} said sorry first."),),
    "see_other": (_who("A", "Whom did {B} meet?", "{B} met {A}."),),
    "lonely": (_why("Why was {A} lonely?", "Because {A} had no friend to play with.", "no friend", "nobody", "no one", "alone"),),
    "afraid": (_plain("X", "fear", "What was {A} afraid of?", "{A} was afraid of {X}."),),
    "comfort": (_who("A", "Who helped {B} to be brave?", "{A} helped {B}."),),
    "make": (_what("What did {A} make?", "{A} made {full}."),),
    "give_gift": (_who("B", "Who got the {O}?", "{B} got the {O}."), _who("A", "Who made the present?", "{A} made the present.")),
    "advise": (_who("A", "Who gave {B} an idea?", "{A} gave {B} an idea."),),
    "stray": (_who("A", "Who lost the way home?", "{A} lost the way home."),),
    "home_found": (_who("B", "Who took {A} home?", "{B} took {A} home."),),
    "start_hide": (_who("A", "Who counted?", "{A} counted."), _who("B", "Who hid?", "{B} hid.")),
    "spot_hider": (_where("S", "Where was {B} hiding?", "{B} was {S}."),),
    "missing": (_plain("F", "food", "What was missing in the kitchen?", "They had no more {F}."),),
    "fetch_give": (_who("A", "Who gave {B} the {F}?", "{A} gave {B} the {F}."),),
    "rain": (_why("Why was {A} sad?", "Because it began to rain.", "rain", "rained", "raining", "picnic&wet"),),
    "rain_idea": (_who("A", "Who had a good idea?", "{A} had a good idea."),),
    "sad_seed": (_why("Why was {A} sad?", "Because the seed did not grow.", "not grow", "never&grow", "didn't grow", "nothing grew"),),
    "patience": (_who("A", "Who told {B} to be patient?", "{A} told {B} to be patient."),),
}


def retellings(story: Story) -> list[Retelling]:
    """The story cut before each sentence from the second on: the beginning, and what comes next."""
    found = []
    end = 0
    for event in story.facts["events"]:
        start = story.text.index(event["text"], end)
        if end:
            found.append(Retelling(story.text[:start].rstrip(), event["text"]))
        end = start + len(event["text"])
    return found


def check_next(beginning: str, reply: str) -> bool:
    """Whether a reply can follow the beginning: it can be parsed and does not contradict the beginning."""
    replay = StoryReplay()
    replay.read(beginning)
    before, known = len(replay.reasons), len(replay.events)
    replay.read(reply)
    return len(replay.reasons) == before and len(replay.events) > known
