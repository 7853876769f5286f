"""Laws of packed rows: each conversation once an epoch, unpacking gives the originals, nothing crosses from one segment to another."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from positron_mini.chat.packing import PADDING_SEGMENT, PackedBatches, Stories, pack
from positron_mini.config import ModelConfig
from positron_mini.model import GPT, IGNORED
from positron_mini.text.chat_format import Encoded
from positron_mini.text.tokenizer import BOS, EOS, PAD
from positron_mini.trainer import Batch

CONTEXT, VOCAB = 160, 500


def made_row(number: int, length: int, answer: int) -> Encoded:
    """bos, its own number, then counting on; `answer` trained tokens, and one after them."""
    ids = [BOS, 10 + number, *(100 + (number * 7 + i) % 400 for i in range(length - 2))]
    answer = min(answer, length - 2)
    return Encoded(ids, [length - 1 - answer <= i < length - 1 for i in range(length)])


row_lists = st.lists(st.tuples(st.integers(3, CONTEXT), st.integers(1, 40)), min_size=1, max_size=30).map(
    lambda sizes: [made_row(number, *size) for number, size in enumerate(sizes)]
)


def made_stories(count: int = 40) -> Stories:
    """Documents bos .. eos of 2 to 300 tokens."""
    lengths = [2 + (i * 37) % 299 for i in range(count)]
    ids = np.concatenate([[BOS, *(20 + (i + k) % 60 for k in range(n - 2)), EOS] for i, n in enumerate(lengths)]).astype(np.uint16)
    ends = np.cumsum(lengths)
    return Stories(ids, np.stack([ends - lengths, ends], axis=1).astype(np.int64))


def unpacked(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Ids and targets of every segment, read back from the tensors."""
    assert batch.segments is not None
    found = []
    for ids, targets, segments in zip(*(t.tolist() for t in batch), strict=True):
        for number in sorted(set(segments) - {PADDING_SEGMENT}):
            at = [i for i, segment in enumerate(segments) if segment == number]
            assert at == list(range(at[0], at[-1] + 1)), "a segment is one stretch"
            found.append(([ids[i] for i in at], [targets[i] for i in at]))
        padding = [i for i, segment in enumerate(segments) if segment == PADDING_SEGMENT]
        assert all(ids[i] == PAD and targets[i] == IGNORED for i in padding)
    return found


def expected(row: Encoded) -> tuple[list[int], list[int]]:
    """A naive twin of what a conversation asks: each next id if it is trained, up to the last that is."""
    last = max(i for i, trained in enumerate(row.trained) if trained)
    return row.ids[:last], [row.ids[i] if row.trained[i] else IGNORED for i in range(1, last + 1)]


@settings(max_examples=60)
@given(row_lists, st.integers(1, 9), st.integers(0, 3))
def test_every_conversation_comes_back_whole_exactly_once_an_epoch(rows: list[Encoded], batch_size: int, epoch: int) -> None:
    source = PackedBatches(rows, batch_size=batch_size, context_len=CONTEXT, seed=5)
    steps = range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)
    per_step = [unpacked(source.batch(step)) for step in steps]
    assert sorted(piece for pieces in per_step for piece in pieces) == sorted(map(expected, rows))
    assert source.examples == len(rows)
    assert max(map(len, per_step)) <= batch_size
    assert max(map(len, per_step)) - min(map(len, per_step)) <= 1


@settings(max_examples=60)
@given(row_lists, st.integers(0, 50))
def test_shapes_are_few_and_targets_never_leave_their_segment(rows: list[Encoded], step: int) -> None:
    batch = PackedBatches(rows, batch_size=8, context_len=CONTEXT, seed=1, replay=0.3, stories=made_stories()).batch(step)
    assert batch.segments is not None
    assert batch.ids.shape == batch.targets.shape == batch.segments.shape
    assert all(t.dtype == torch.int64 and t.device.type == "cpu" for t in batch)
    assert batch.ids.shape[1] in (64, 128, CONTEXT)
    same = batch.segments[:, :-1] == batch.segments[:, 1:]
    follows = batch.targets[:, :-1] == batch.ids[:, 1:]
    asked = batch.targets[:, :-1] != IGNORED
    assert bool((follows | ~asked | ~same).all()), "within a segment a target is the next id"
    assert int((batch.targets != IGNORED).sum()) > 0


@given(st.lists(st.integers(1, 512), min_size=1, max_size=40), st.integers(512, 700))
def test_packing_holds_everything_and_computes_no_more_than_one_row_each_or_the_widest_rows(lengths: list[int], context: int) -> None:
    rows, width = pack(lengths, context)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) <= width <= context
    assert width % 64 == 0 or width == context
    one_each = -(-max(lengths) // 64) * 64
    assert len(rows) * width <= len(lengths) * min(one_each, context)


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    rows = [made_row(i, 20, 5) for i in range(30)]
    make = functools.partial(PackedBatches, rows, batch_size=4, context_len=CONTEXT, replay=0.2, stories=made_stories())
    a, b, other = make(seed=1), make(seed=1), make(seed=2)
    forward = [a.batch(step) for step in range(20)]
    backward = [b.batch(step) for step in reversed(range(20))][::-1]
    assert all(torch.equal(x, y) for one, two in zip(forward, backward, strict=True) for x, y in zip(one, two, strict=True))
    epochs = [[i for step in range(e * 8, e * 8 + 8) for i in a.chosen(step)] for e in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != [i for step in range(8) for i in other.chosen(step)]


@pytest.mark.parametrize("replay", [0.1, 0.5])
def test_the_share_of_replayed_tokens_is_what_was_asked_for(replay: float) -> None:
    rows = [made_row(i, 60, 30) for i in range(30)]
    source = PackedBatches(rows, batch_size=8, context_len=CONTEXT, seed=0, replay=replay, stories=made_stories())
    own = told = 0
    for step in range(600):
        for _, targets in unpacked(source.batch(step)):
            if IGNORED in targets:  # only conversations have questions
                own += sum(target != IGNORED for target in targets)
            else:
                told += len(targets)
    assert told / (told + own) == pytest.approx(replay, rel=0.1)


def test_replayed_stories_are_whole_documents_cut_at_the_context_and_all_trained() -> None:
    stories = made_stories()
    source = PackedBatches([made_row(0, 20, 10)], batch_size=1, context_len=CONTEXT, seed=3, replay=0.9, stories=stories)
    documents = [stories.ids[a:b].tolist()[: CONTEXT + 1] for a, b in stories.documents]
    seen = set()
    for step in range(300):
        for ids, targets in unpacked(source.batch(step)):
            if IGNORED not in targets:
                assert [*ids, targets[-1]] in documents
                seen.add(len(ids))
    assert len(seen) > 10
    plain = PackedBatches([made_row(0, 20, 10)], batch_size=1, context_len=CONTEXT, seed=3)
    assert all(len(unpacked(plain.batch(step))) == 1 for step in range(50))


@functools.cache
def tiny_model() -> GPT:
    model = GPT(ModelConfig(2, 32, 2, 2, 16, 64, CONTEXT, VOCAB)).init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # the projections start at zero, and attention would not show
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@torch.no_grad()
def test_changing_one_example_leaves_the_logits_of_the_others_equal() -> None:
    rows = [made_row(i, 18 + i, 8) for i in range(6)]
    batch = PackedBatches(rows, batch_size=6, context_len=CONTEXT, seed=0).batch(0)
    assert batch.segments is not None
    assert batch.segments.unique().tolist() == [PADDING_SEGMENT, 1, 2, 3]
    model = tiny_model()
    before = model.logits(model.hidden(batch.ids, segments=batch.segments))
    for row, number in itertools.product(range(len(batch.ids)), range(PADDING_SEGMENT, 4)):
        mine = (batch.segments == number) & (torch.arange(len(batch.ids)) == row)[:, None]
        changed = torch.where(mine, (batch.ids + 17) % VOCAB, batch.ids)
        after = model.logits(model.hidden(changed, segments=batch.segments))
        assert torch.equal(after[~mine], before[~mine])
        assert not mine.any() or not torch.equal(after[mine], before[mine])


@torch.no_grad()
def test_the_loss_of_packed_rows_is_the_sum_of_the_losses_of_each_alone() -> None:
    rows = [made_row(i, 12 + 9 * i, 6) for i in range(8)]
    model = tiny_model()
    together = float(model.loss(*PackedBatches(rows, batch_size=8, context_len=CONTEXT, seed=0).batch(0)))
    alone = [float(model.loss(*(torch.tensor([part]) for part in expected(row)))) for row in rows]
    assert together == pytest.approx(sum(alone), rel=1e-5)
