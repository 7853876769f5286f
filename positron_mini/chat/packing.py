"""Conversations as training rows: several per row, each in its own segment, so that attention never crosses from one to another.

Legend: R rows a step, T tokens of a row. A conversation of n tokens, up to its last trained one, is n - 1 inputs and their n - 1 targets.
Batches are a pure function of (seed, step): nothing is remembered, so a resumed run or a validation cannot disturb them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from positron_mini.model import IGNORED
from positron_mini.text.chat_format import Encoded
from positron_mini.text.tokenizer import PAD
from positron_mini.text.tokens import Ids, Indices, epoch_order
from positron_mini.trainer import Batch

WIDTH_STEP = 64  # row widths are a multiple of this: few shapes, so that memory and kernels are reused
PADDING_SEGMENT = 0  # conversations and stories count from 1
_STORY_DRAWS = 0x5701  # separates the random draws of stories from the order of an epoch, which uses (seed, epoch)


class Segment(NamedTuple):
    """Inputs and targets of one segment, (n,) each."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]  # IGNORED where nothing is predicted


class Stories(NamedTuple):
    """Documents to replay: the ids of a token file and where each begins and ends, shape (documents, 2)."""

    ids: Ids
    documents: Indices
    check: Callable[[], None] = lambda: None  # raises if the file was changed since it was opened


class PackedBatches:
    """Rows of fine-tuning, a BatchSource: each conversation once an epoch, in an order that depends on (seed, epoch).

    An epoch has `steps_per_epoch` steps of at most `batch_size` conversations, equal up to one, so that none is left with a few.
    `replay` is the share of trained tokens that come from whole `stories`, spread evenly over the steps, against forgetting.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        *,
        batch_size: int,
        context_len: int,
        seed: int,
        replay: float = 0.0,
        stories: Stories | None = None,
    ) -> None:
        assert rows and batch_size > 0, f"{len(rows)} conversations, {batch_size} a step"
        assert 0 <= replay < 1 and (not replay or (stories is not None and len(stories.documents))), f"replay {replay} of {stories}"
        self.batch_size, self.context_len, self.seed = batch_size, context_len, seed
        self._segments = [_conversation_segment(row, context_len) for row in rows]
        self._stories = stories
        self.stories_per_step = self._story_rate(replay) if stories is not None and replay else 0.0

    @property
    def examples(self) -> int:
        """Number of conversations."""
        return len(self._segments)

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every conversation was seen once."""
        return -(-self.examples // self.batch_size)

    def chosen(self, step: int) -> list[int]:
        """Indices of this step's conversations."""
        epoch, part = divmod(step, self.steps_per_epoch)
        first, end = (part * self.examples // self.steps_per_epoch, (part + 1) * self.examples // self.steps_per_epoch)
        return [int(index) for index in epoch_order(self.seed, epoch, self.examples)[first:end]]

    def batch(self, step: int) -> Batch:
        """Rows of the update after `step` finished ones, (R, T); R and T depend on the lengths to pack."""
        return _batch([self._segments[index] for index in self.chosen(step)] + self._replayed(step), self.context_len)

    def _story_rate(self, replay: float) -> float:
        """Stories per step that make up the share `replay` of all trained tokens in the long run."""
        assert self._stories is not None
        trained = sum(int((piece.targets != IGNORED).sum()) for piece in self._segments) / self.steps_per_epoch
        lengths = np.minimum(self._stories.documents[:, 1] - self._stories.documents[:, 0] - 1, self.context_len)
        return replay / (1 - replay) * trained / float(lengths.mean())

    def _replayed(self, step: int) -> list[Segment]:
        """Stories of this step: number j of the run where step <= j / stories_per_step < step + 1, each drawn by (seed, j)."""
        if self._stories is None or not self.stories_per_step:
            return []
        self._stories.check()
        numbers = range(int(step * self.stories_per_step), int((step + 1) * self.stories_per_step))
        return [_story_segment(self._stories, self.seed, number, self.context_len) for number in numbers]


def _conversation_segment(row: Encoded, context_len: int) -> Segment:
    """Inputs and targets up to the last trained token: nothing is learned after it."""
    assert any(row.trained), "a conversation with nothing to train on"
    last = len(row.trained) - 1 - row.trained[::-1].index(True)
    assert 1 <= last <= context_len, f"{last} tokens, a context of {context_len}"
    ids = np.array(row.ids[: last + 1], np.int64)
    targets = np.where(row.trained[1 : last + 1], ids[1:], IGNORED)
    return Segment(ids[:-1], targets)


def _story_segment(stories: Stories, seed: int, number: int, context_len: int) -> Segment:
    """Story `number` of the run, all of its tokens trained, cut at the context."""
    draw = np.random.SeedSequence([seed, _STORY_DRAWS, number]).generate_state(1, np.uint64)[0]
    start, end = stories.documents[int(draw) % len(stories.documents)]
    ids = np.asarray(stories.ids[start : min(end, start + context_len + 1)]).astype(np.int64)
    return Segment(ids[:-1], ids[1:])


def _batch(pieces: Sequence[Segment], context_len: int) -> Batch:
    """Pack segments into rows, each row filled up with padding that is a segment of its own."""
    rows, width = pack([len(piece.ids) for piece in pieces], context_len)
    shape = (len(rows), width)
    ids, targets, segments = np.full(shape, PAD, np.int64), np.full(shape, IGNORED, np.int64), np.full(shape, PADDING_SEGMENT, np.int64)
    for r, row in enumerate(rows):
        start = 0
        for number, index in enumerate(row, PADDING_SEGMENT + 1):
            end = start + len(pieces[index].ids)
            ids[r, start:end], targets[r, start:end], segments[r, start:end] = *pieces[index], number
            start = end
    return Batch(*(torch.from_numpy(array) for array in (ids, targets, segments)))


def pack(lengths: Sequence[int], context_len: int) -> tuple[list[list[int]], int]:
    """Indices of the segments of each row, and the width of all rows: a multiple of 64 or the context, with the fewest computed tokens.

    Among equals the narrower one, because attention costs the square of it. No length may exceed `context_len`.
    """
    longest = max(lengths)
    widths = sorted(
        {min(-(-width // WIDTH_STEP) * WIDTH_STEP, context_len) for width in range(longest, context_len + WIDTH_STEP, WIDTH_STEP)}
    )
    packings = [(_first_fit(lengths, width), width) for width in widths]
    return min(packings, key=lambda packing: (len(packing[0]) * packing[1], packing[1]))


def _first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of indices whose lengths sum to at most `width`: the longest first, each into the first row with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, left in enumerate(room) if left >= lengths[index]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(width)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows
