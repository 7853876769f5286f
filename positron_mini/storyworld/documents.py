"""Training documents: stories, every second one with the wish it was told for in a line before it.

A model of them learns early that a wish decides what is told: whom it is about, what happens, with which object. Few tokens of a story
depend on its wish, so that a thousand wishes during fine-tuning do not teach it (docs/results/fine-tuning.md).
"""

from __future__ import annotations

import math

from positron_mini.storyworld.checker import Verdict, check_story
from positron_mini.storyworld.requests import OPENINGS, PLAIN, check_request, read_request, request_for
from positron_mini.storyworld.tales import Story

WISH_NATS = math.log(len(OPENINGS)) + math.log(2)  # how the wish begins, and whether it names the hero; what happens is the story's


def has_wish(index: int) -> bool:
    """Whether the document of story number `index` begins with a wish."""
    return index % 2 == 0


def document(story: Story) -> str:
    """The text that is trained on."""
    return f"{request_for(story).text}\n{story.text}" if has_wish(story.index) else story.text


def document_nats(story: Story) -> float:
    """The information of the choices that made the document."""
    nats = story.choice_nats + math.log(2)
    if has_wish(story.index):
        nats += WISH_NATS - math.log(1 - PLAIN if "event" in request_for(story).constraints else PLAIN)
    return nats


def check_document(text: str) -> Verdict:
    """The verdict on a document: its story must hold together and, where a wish stands before it, fulfil the wish."""
    wish, _, rest = text.strip().partition("\n")
    request = read_request(wish)
    if request is None:
        return check_story(text)
    verdict = check_story(rest)
    if check_request(request, rest):
        return verdict
    return Verdict(False, verdict.parsed_share, (*verdict.reasons, f"the wish is not met: {wish}"))
