"""Measures of a model's stories: do they end, do they repeat themselves, are they copied, are they consistent?

A word is a run of letters, digits and apostrophes, in lower case, so that punctuation and case do not hide a repetition or a copy. Held-out
stories of the same text are measured too, because human stories also repeat and share phrases.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from positron_mini import storyworld
from positron_mini.config import SampleConfig
from positron_mini.evaluate.bits import Score
from positron_mini.evaluate.suites import prompt_ids, tally
from positron_mini.generate import generate
from positron_mini.model import GPT
from positron_mini.store.checkpoint import Checkpoint
from positron_mini.text.prepare import Prepared
from positron_mini.text.tokenizer import BOS

STORIES = 20
SAMPLING = SampleConfig(max_tokens=400, temperature=0.7, seed=42)
HELD_OUT = 200  # stories of the validation part that are measured for comparison
INDEXED_BYTES = 32_000_000  # of the training text; more would take more than a few seconds and 300 MB of memory
LONGEST_COPY = 256  # words; a longer copy is reported as this long
LOOPED_WORDS = 12  # a story that repeats a run of this many words counts as looping
COPIED_WORDS = 24  # a story with a run of this many words from the training text counts as copied
_WORD = re.compile(r"[\w']+")
_ENDING = re.compile(r"[.!?…][\"'”’)]*\s*$")


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation."""
    return _WORD.findall(text.lower())


# --- repetition -------------------------------------------------------------------------------------------------------------------------


def distinct(words: Sequence[str], n: int) -> float:
    """The share of distinct runs among all runs of `n` words, 1 if there are none. Source: Li et al. 2016 (arXiv 1510.03055)."""
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def longest_repeat(words: Sequence[str]) -> int:
    """The length of the longest run of words that occurs twice; the two may overlap.

    A repeated run is a common prefix of two suffixes, and the longest one belongs to neighbours in sorted order.
    """
    suffixes = sorted(list(words[i:]) for i in range(len(words)))
    return max((_shared(one, other) for one, other in pairwise(suffixes)), default=0)


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The length of the common prefix of two sequences."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


# --- memorisation -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """The longest run of words that a text shares with another: how many, and which."""

    words: int
    text: str


class SuffixIndex:
    """A suffix array over the words of some stories, in which any run of words is found by bisection.

    Built by prefix doubling: an order by the first k words gives the order by 2k words. Source: Manber and Myers 1990. 13 MB of stories
    take a few seconds and 8 bytes a word.
    """

    def __init__(self, stories: Iterable[str]) -> None:
        self._numbers: dict[str, int] = {}  # word -> 2, 3, ...; 1 stands between stories, 0 after the last
        ids = array("i")
        self.bytes = 0
        for story in stories:
            self.bytes += len(story.encode())
            ids.extend(self._numbers.setdefault(word, len(self._numbers) + 2) for word in words_of(story))
            ids.append(1)
        self._ids = np.frombuffer(ids, dtype=np.intc) if ids else np.zeros(0, np.intc)
        self._places = suffix_order(self._ids, LONGEST_COPY)

    def longest_copy(self, text: str) -> Copy:
        """The longest run of words of `text` that occurs in one of the stories."""
        words = words_of(text)
        ids = [self._numbers.get(word, 0) for word in words]
        best, at = 0, 0
        for start in range(len(ids)):
            length = self._match(ids[start : start + LONGEST_COPY])
            if length > best:
                best, at = length, start
        return Copy(best, " ".join(words[at : at + best]))

    def _match(self, ids: list[int]) -> int:
        """The length of the longest prefix of `ids` that occurs in a story; it belongs to a neighbour in sorted order."""
        place = bisect_left(range(len(self._places)), ids, key=self._words_at)
        near = range(max(place - 1, 0), min(place + 1, len(self._places)))
        known = ids[: ids.index(0)] if 0 in ids else ids  # 0: a word that no story has
        return max((_shared(known, self._words_at(i)) for i in near), default=0)

    def _words_at(self, index: int) -> list[int]:
        start = int(self._places[index])
        found: list[int] = self._ids[start : start + LONGEST_COPY].tolist()
        return found


def suffix_order(ids: NDArray[np.signedinteger[Any]], length: int) -> NDArray[np.int32]:
    """The positions of `ids` (all above 0), sorted by the up to `length` (a power of two) ids from each."""
    rank = ids.astype(np.int64)
    order = np.argsort(rank, kind="stable")
    known = 1
    while True:
        keys = rank[order]
        is_new = np.concatenate(([False], keys[1:] != keys[:-1]))
        rank = np.empty_like(rank)
        rank[order] = np.cumsum(is_new) + 1
        if known >= length or len(ids) == 0 or rank[order[-1]] == len(ids):
            return order.astype(np.int32)
        following = np.zeros_like(rank)  # 0: past the end, which sorts first
        following[: -known or None] = rank[known:]
        rank = rank * (len(ids) + 1) + following
        order = np.argsort(rank, kind="stable")
        known *= 2


# --- a story ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoryMeasures:
    """The measures of one story, None if not measured. `ended`: whether it ended with a finished sentence."""

    words: int
    ended: bool
    distinct_1: float
    distinct_2: float
    distinct_3: float
    longest_repeat: int
    copied_words: int | None = None
    copied_text: str | None = None
    consistent: bool | None = None
    parsed_share: float | None = None

    def verdicts(self) -> dict[str, bool]:
        """Whether the story passes, for each criterion that was measured."""
        found: dict[str, bool | None] = {
            "ends": self.ended,
            "varied": self.longest_repeat < LOOPED_WORDS,
            "own_words": None if self.copied_words is None else self.copied_words < COPIED_WORDS,
            "consistent": self.consistent,
        }
        return {name: is_right for name, is_right in found.items() if is_right is not None}


def measure_story(text: str, *, stopped: bool, index: SuffixIndex | None = None, is_storyworld: bool = False) -> StoryMeasures:
    """The measures of a story. `stopped`: the model ended it; `index`: of the training text; `is_storyworld`: of the story world."""
    words = words_of(text)
    copy = index.longest_copy(text) if index is not None else None
    verdict = storyworld.check_story(text) if is_storyworld else None
    return StoryMeasures(
        words=len(words),
        ended=stopped and _ENDING.search(text) is not None,
        distinct_1=distinct(words, 1),
        distinct_2=distinct(words, 2),
        distinct_3=distinct(words, 3),
        longest_repeat=longest_repeat(words),
        copied_words=copy.words if copy else None,
        copied_text=copy.text if copy else None,
        consistent=verdict.consistent if verdict else None,
        parsed_share=verdict.parsed_share if verdict else None,
    )


def means(stories: Sequence[StoryMeasures]) -> dict[str, float]:
    """The mean of every measure, and the largest number of copied words."""
    names = ("words", "distinct_1", "distinct_2", "distinct_3", "longest_repeat", "copied_words", "parsed_share")
    known = {name: [getattr(story, name) for story in stories if getattr(story, name) is not None] for name in names}
    found = {name: fmean(values) for name, values in known.items() if values}
    return found | ({"most_copied_words": max(known["copied_words"])} if known["copied_words"] else {})


# --- the text they come from ------------------------------------------------------------------------------------------------------------


def train_stories(prepared: Prepared, most_bytes: int = INDEXED_BYTES) -> Iterator[str]:
    """Yield the training stories, from the first on, until they have `most_bytes` bytes."""
    size = 0
    for start, end in prepared.train.documents():
        story = prepared.tokenizer.decode(prepared.train.ids[start:end].tolist())
        size += len(story.encode())
        if size > most_bytes:
            return
        yield story


def held_out_stories(prepared: Prepared, most: int = HELD_OUT) -> list[str]:
    """The first `most` held-out stories, which no training step has read."""
    return [
        prepared.tokenizer.decode(prepared.validation.ids[start:end].tolist())
        for start, end in islice(prepared.validation.documents(), most)
    ]


def is_from_storyworld(stories: Sequence[str]) -> bool:
    """Whether the story world's checker can read every sentence of the first stories."""
    return bool(stories) and all(storyworld.check_story(story).parsed_share == 1.0 for story in stories[:3])


# --- the suite --------------------------------------------------------------------------------------------------------------------------


def sample_stories(model: GPT, checkpoint: Checkpoint, count: int = STORIES) -> list[tuple[str, bool]]:
    """Stories that the model writes without a prompt (a chat model: on request), each with whether the model ended it."""
    prompt = prompt_ids(checkpoint, "Tell me a story.") if checkpoint.is_chat else [BOS]
    told = generate(model, checkpoint.tokenizer, prompt, SAMPLING, n=count, end_ids=checkpoint.end_ids)
    return [(sample.text.strip(), sample.finish_reason == "stop") for sample in told]


def stories_suite(
    model: GPT, checkpoint: Checkpoint, prepared: Prepared | None, *, items: int = STORIES, score: Score | None = None
) -> dict[str, Any]:
    """The result: {"suite", "items", "accuracy", "low", "high", "by_kind", "measures", "held_out", ...}.

    A story is right if it ends, does not loop, is not copied and, for a story-world text, is consistent; `by_kind` has each of these.
    `prepared`: the model's training text; `score`: the model's loss on its held-out part.
    """
    index, is_storyworld, compared = None, False, None
    if prepared is not None:
        held_out = held_out_stories(prepared)
        index, is_storyworld = SuffixIndex(train_stories(prepared)), is_from_storyworld(held_out)
        compared = [measure_story(text, stopped=True, index=index, is_storyworld=is_storyworld) for text in held_out]
    told = sample_stories(model, checkpoint, items)
    stories = [measure_story(text, stopped=stopped, index=index, is_storyworld=is_storyworld) for text, stopped in told]
    verdicts = [story.verdicts() for story in stories]
    result: dict[str, Any] = {
        "suite": "stories",
        **tally(all(verdict.values()) for verdict in verdicts),
        "by_kind": {kind: tally(verdict[kind] for verdict in verdicts) for kind in verdicts[0]},
        "measures": means(stories),
    }
    if compared is not None and index is not None and prepared is not None:
        result |= {"held_out": means(compared), "indexed_bytes": index.bytes}
    if score is not None:
        result["bits_per_byte"] = score.bits_per_byte
    return result
