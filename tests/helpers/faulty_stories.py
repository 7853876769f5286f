"""Stories made wrong on purpose, one fault each, to measure how well the checker sees faults."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from positron_mini.storyworld.lexicon import lexicon
from positron_mini.storyworld.tales import Story, stable_number

SWAPS = {"he": "she", "she": "he", "his": "her", "him": "her", "himself": "herself", "herself": "himself"}
SWAPS |= {old.capitalize(): new.capitalize() for old, new in SWAPS.items()}
_PRONOUN = re.compile(r"\b(?:" + "|".join(SWAPS) + r")\b")
TURNS = {"find", "mend", "mend_pair", "reach", "buy", "make_up", "accept", "try_brave", "give_gift", "home_found", "meal", "grow"}
_STOP = re.compile(r'[.!?]"?(?=\s|$)')
Corruption = Callable[[Story, random.Random], str | None]


def _replace_one(text: str, pattern: str, new: str, dice: random.Random, skip: int = 0) -> str | None:
    """The text with one occurrence (not among the first `skip`) replaced, None when there is none."""
    found = list(re.finditer(pattern, text))[skip:]
    if not found:
        return None
    place = found[int(dice.random() * len(found))]
    return text[: place.start()] + new + text[place.end() :]


def stranger(story: Story, dice: random.Random) -> str | None:
    """One mention of the hero becomes the name of somebody who was never introduced."""
    hero = story.facts["hero"]
    known = {person["name"] for person in story.facts["characters"]}
    group = lexicon().people[hero].group
    names = [name for name in lexicon().names[group] if name not in known]
    return _replace_one(story.text, rf"\b{hero}\b", names[int(dice.random() * len(names))], dice, skip=1)


def exchanged_names(story: Story, dice: random.Random) -> str | None:
    """In one sentence where both speak or act, two characters change places."""
    names = [person["name"] for person in story.facts["characters"]][:2]
    events = [event for event in story.facts["events"] if all(name in event["text"] for name in names) and event["event"] != "go"]
    events = [event for event in events if " and ".join(names) not in event["text"]]
    if len(names) < 2 or not events:
        return None
    old = events[int(dice.random() * len(events))]["text"]
    new = re.sub(rf"\b(?:{names[0]}|{names[1]})\b", lambda found: names[found[0] == names[0]], old)
    return story.text.replace(old, new, 1)


def wrong_pronoun(story: Story, dice: random.Random) -> str | None:
    """One pronoun changes its gender."""
    found = list(_PRONOUN.finditer(story.text))
    if not found:
        return None
    place = found[int(dice.random() * len(found))]
    return story.text[: place.start()] + SWAPS[place[0]] + story.text[place.end() :]


def wrong_object(story: Story, dice: random.Random) -> str | None:
    """One mention of the object (not the first) becomes another object."""
    if not story.facts["objects"]:
        return None
    noun = story.facts["objects"][0]["noun"]
    others = [other for other in lexicon().things if other != noun]
    return _replace_one(story.text, rf"\b{noun}\b", others[int(dice.random() * len(others))], dice, skip=1)


def wrong_giver(story: Story, dice: random.Random) -> str | None:
    """Somebody gives what another holds."""
    for event in story.facts["events"]:
        if event["event"] in ("give_back", "give_gift", "fetch_give", "pay") and "gave" in event["text"]:
            giver, taker = event["A"], event["B"]
            wrong = f"{taker} gave the {event['O']} back to {giver}." if "O" in event else f"{taker} gave {giver} the coins one by one."
            return story.text.replace(event["text"], wrong, 1)
    return None


def causeless_feeling(story: Story, dice: random.Random) -> str | None:
    """The hero is sad, proud or glad before anything has happened."""
    first = story.facts["events"][0]["text"]
    feeling = ("sad", "very happy", "very proud")[int(dice.random() * 3)]
    return story.text.replace(first, f"{first} {story.facts['hero']} was {feeling}.", 1)


def opposite_feeling(story: Story, dice: random.Random) -> str | None:
    """Where the hero is sad for a reason he is happy, or the other way round."""
    pairs = {"sad": "happy", "happy": "sad", "unhappy": "glad", "glad": "unhappy", "proud": "sad", "lonely": "proud", "sorry": "happy"}
    found = [place for place in re.finditer(r"\b(?:" + "|".join(pairs) + r")\b", story.text) if "." in story.text[: place.start()]]
    if not found:
        return None
    place = found[int(dice.random() * len(found))]
    return story.text[: place.start()] + pairs[place[0]] + story.text[place.end() :]


def cut_sentence(story: Story, dice: random.Random) -> str | None:
    """The text breaks off in the middle of a sentence."""
    cut = int(len(story.text) * (0.3 + 0.65 * dice.random()))
    text = story.text[:cut].rstrip()
    return text if not _STOP.search(text[-2:]) else text[:-4]


def cut_story(story: Story, dice: random.Random) -> str | None:
    """The text stops after a sentence, before the end."""
    events = story.facts["events"]
    last = events[len(events) // 2 + int(dice.random() * (len(events) - len(events) // 2 - 1))]["text"]
    return story.text[: story.text.index(last) + len(last)]


def missing_turn(story: Story, dice: random.Random) -> str | None:
    """The sentence that solves the trouble is left out."""
    texts = [event["text"] for event in story.facts["events"] if event["event"] in TURNS]
    return story.text.replace(f"{texts[-1]} ", "", 1) if texts and f"{texts[-1]} " in story.text else None


CORRUPTIONS: dict[str, Corruption] = {
    corruption.__name__: corruption
    for corruption in (
        stranger, exchanged_names, wrong_pronoun, wrong_object, wrong_giver, causeless_feeling, opposite_feeling, cut_sentence,
        cut_story, missing_turn,
    )
}  # fmt: skip


def corrupted(story: Story, name: str) -> str | None:
    """The story with one fault of the named sort, the same every time; None when the story has no place for it."""
    text = CORRUPTIONS[name](story, random.Random(stable_number(f"{name} {story.text}")))
    return None if text == story.text else text
