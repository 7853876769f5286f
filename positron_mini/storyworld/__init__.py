"""The story world: unlimited children's stories from a simulated world, each with the facts that are true in it.

`story(seed, index)` writes one; `questions`, `requests` and `retellings` ask about it; `check_story` judges any text by the same rules.
"""

from positron_mini.storyworld.checker import StoryVerdict, check_story
from positron_mini.storyworld.choices import entropy_bits_per_byte, recover
from positron_mini.storyworld.documents import check_document, document
from positron_mini.storyworld.output import fact_lines, write_corpus
from positron_mini.storyworld.questions import Question, Retelling, check_answer, check_next, questions, retellings
from positron_mini.storyworld.requests import Request, check_request, read_request, request_for, requests
from positron_mini.storyworld.rows import conversation_rows, instruction_rows
from positron_mini.storyworld.tales import Split, Story, stories, story

VERSION = 6  # increased when the same seed gives other bytes

__all__ = [
    "VERSION",
    "Question",
    "Request",
    "Retelling",
    "Split",
    "Story",
    "StoryVerdict",
    "check_answer",
    "check_document",
    "check_next",
    "check_request",
    "check_story",
    "conversation_rows",
    "document",
    "entropy_bits_per_byte",
    "fact_lines",
    "instruction_rows",
    "questions",
    "read_request",
    "recover",
    "request_for",
    "requests",
    "retellings",
    "stories",
    "story",
    "write_corpus",
]
