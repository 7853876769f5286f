"""The samples of a run side by side: the same prompt and seed at each milestone, with the changes since the previous one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from positron_mini.store.run_logs import Sample

MOST_SHOWN = 20
LEAST_RUN = 2  # words in a row; a single common word is chance
LEAST_KEPT = 0.3  # share of the words; below it nearly everything would be marked
_PARTS = re.compile(r"\s+|\S+")


@dataclass(frozen=True)
class Piece:
    """A part of a sample, and whether it is new since the previous milestone."""

    text: str
    is_new: bool


@dataclass(frozen=True)
class Entry:
    """A sample in pieces, the number of its words that the previous milestone has too (0: all new, or the first), and its words."""

    sample: Sample
    pieces: tuple[Piece, ...]
    kept: int
    words: int


def shown_steps(steps: Sequence[int], most: int = MOST_SHOWN) -> list[int]:
    """At most `most` of the steps: the first, the last, and others spread evenly between."""
    steps = sorted(set(steps))
    if len(steps) <= most:
        return list(steps)
    return sorted({steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)})


def timelines(samples: Sequence[Sample], most: int = MOST_SHOWN) -> dict[str, tuple[Entry, ...]]:
    """For each prompt its samples at no more than `most` milestones, oldest first, each compared with the previous one shown."""
    steps = set(shown_steps([sample.step for sample in samples], most))
    by_prompt: dict[str, dict[int, Sample]] = {}
    for sample in samples:
        if sample.step in steps:
            by_prompt.setdefault(sample.prompt, {})[sample.step] = sample
    return {prompt: _entries([found[step] for step in sorted(found)]) for prompt, found in by_prompt.items()}


def _entries(samples: Sequence[Sample]) -> tuple[Entry, ...]:
    before: str | None = None
    entries = []
    for sample in samples:
        pieces, kept = compare_texts(before, sample.text)
        entries.append(Entry(sample, pieces, kept, len(sample.text.split())))
        before = sample.text
    return tuple(entries)


def compare_texts(before: str | None, text: str) -> tuple[tuple[Piece, ...], int]:
    """`text` in pieces, old and new, and the number of words that `before` has too, in the same order.

    Runs of two or more words count as common. If they are less than three tenths of the text, all of it counts as new and is not marked.
    """
    parts = _PARTS.findall(text)
    places = [i for i, part in enumerate(parts) if not part.isspace()]
    old, new = ([] if before is None else before.split()), [parts[i] for i in places]
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks() if before is not None else []
    same = {place for block in blocks if block.size >= LEAST_RUN for place in range(block.b, block.b + block.size)}
    if len(same) < LEAST_KEPT * len(new) or not same:
        return ((Piece(text, False),) if text else ()), 0
    kept = {places[place] for place in same}
    flags = [not (i in kept or part.isspace()) for i, part in enumerate(parts)]
    for i, part in enumerate(parts):  # a space between two new words is new as well, so that marks are continuous
        if part.isspace() and 0 < i < len(parts) - 1:
            flags[i] = flags[i - 1] and flags[i + 1]
    pieces: list[Piece] = []
    for part, is_new in zip(parts, flags, strict=True):
        if pieces and pieces[-1].is_new == is_new:
            pieces[-1] = Piece(pieces[-1].text + part, is_new)
        else:
            pieces.append(Piece(part, is_new))
    return tuple(pieces), len(same)
