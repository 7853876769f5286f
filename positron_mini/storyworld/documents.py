"""Training documents: stories, every second one after a line with the wish that it fulfils.

A model of them learns early that a wish decides whom the story is about, what happens, and with which object. Few tokens of a story
depend on its wish, so a thousand wishes during fine-tuning do not teach this (docs/results/fine-tuning.md).
"""

from __future__ import annotations

import math

from positron_mini.storyworld.checker import StoryVerdict, check_story
from positron_mini.storyworld.requests import OPENINGS, PLAIN, check_request, read_request, request_for
from positron_mini.storyworld.tales import Story

WISH_NATS = math.log(len(OPENINGS)) + math.log(2)  # opening words, and whether it names the hero; the event comes from the story


def has_wish(index: int) -> bool:
    """Whether the document of story number `index` begins with a wish."""
    return index % 2 == 0


def document(story: Story) -> str:
    """The text that is trained on."""
    return f"{request_for(story).text}\n{story.text}" if has_wish(story.index) else story.text


def document_nats(story: Story) -> float:
    """Information in the choices that made the document, in nats."""
    nats = story.choice_nats + math.log(2)
    if has_wish(story.index):
        nats += WISH_NATS - math.log(1 - PLAIN if "event" in request_for(story).constraints else PLAIN)
    return nats


def check_document(text: str) -> StoryVerdict:
    """Judge a document: its story must be consistent and, if there is a wish before it, fulfil the wish."""
    wish, _, rest = text.strip().partition("\n")
    request = read_request(wish)
    if request is None:
        return check_story(text)
    verdict = check_story(rest)
    if check_request(request, rest):
        return verdict
    return StoryVerdict(False, verdict.parsed_share, (*verdict.reasons, f"the wish is not met: {wish}"))
