"""Laws of scoring: every token after bos is predicted exactly once, and the sums are what they say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.models import lively_model, shape, text_like_ids
from positron_mini.evaluate import bits
from positron_mini.evaluate.bits import Score, line_logprobs, score_documents, score_texts, token_logprobs
from positron_mini.model import GPT
from positron_mini.text.tokenizer import Tokenizer


def document(length: int, seed: int = 0) -> list[int]:
    return [1, *text_like_ids(512, 1, length - 2, seed)[0].tolist(), 2]


def naive(model: GPT, ids: list[int]) -> list[float]:
    """One forward pass per token: ln p of ids[t + 1] given what the rule lets it see."""
    context, half = model.config.context_len, model.config.context_len // 2
    found = []
    for t in range(len(ids) - 1):
        start = 0
        while t >= start + context:
            start += half
        with torch.no_grad():
            logits = model(torch.tensor([ids[start : t + 1]]))[0, -1]
        found.append(float(logits.double().log_softmax(-1)[ids[t + 1]]))
    return found


@pytest.mark.parametrize("length", [2, 3, 32, 33, 34, 49, 50, 100])
def test_log_probabilities_equal_naive_one_by_one_scoring(tiny_model: GPT, length: int) -> None:
    ids = document(length)
    (found,) = token_logprobs(tiny_model, [ids])
    assert found.tolist() == pytest.approx(naive(tiny_model, ids), abs=1e-4)


def test_documents_of_all_lengths_together_equal_each_alone(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [document(length, seed=length) for length in (2, 90, 5, 33, 5, 17, 40)]
    alone = [token_logprobs(tiny_model, [ids])[0] for ids in documents]
    monkeypatch.setattr(bits, "BATCH_TOKENS", 70)
    monkeypatch.setattr(bits, "HEAD_ROWS", 7)
    read: list[int] = []
    together = token_logprobs(tiny_model, documents, done=read.append)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert len(read) > 3 and max(read) <= 70


@given(st.lists(st.integers(0, 90), max_size=6), st.integers(1, 20))
def test_windows_score_each_token_exactly_once_with_half_a_context_before_it(lengths: list[int], context: int) -> None:
    seen: list[tuple[int, int]] = []
    for w in bits._windows(lengths, context):
        assert 1 <= w.length <= context and w.start <= w.scored_from < w.start + w.length
        seen += [(w.document, t) for t in range(w.scored_from, w.start + w.length)]
        assert w.start == 0 or w.scored_from - w.start + 1 >= context // 2
    assert sorted(seen) == [(d, t) for d, length in enumerate(lengths) for t in range(length - 1)]
    assert len(set(seen)) == len(seen)


def test_a_document_without_targets_scores_nothing(tiny_model: GPT) -> None:
    assert [len(values) for values in token_logprobs(tiny_model, [[1], [], [1, 2]])] == [0, 0, 1]
    assert score_documents(tiny_model, [], []) == Score(0.0, 0, 0, 0)


def test_bits_per_byte_and_loss_are_worked_out_by_hand() -> None:
    score = Score(nats=6 * math.log(2), tokens=3, bytes=12, documents=1)
    assert score.bits_per_byte == pytest.approx(0.5) and score.loss == pytest.approx(2 * math.log(2))
    assert Score(0.0, 0, 0, 0).bits_per_byte == 0.0 and Score(0.0, 0, 0, 0).loss == 0.0


def test_a_model_without_opinion_has_log_vocabulary_nats_for_every_token_and_eos(tiny_tokenizer: Tokenizer) -> None:
    model = GPT(shape())
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    text = "Tom saw a café."  # é: two bytes
    score = score_texts(model, tiny_tokenizer, ["\n" + text + "\r\n", ""])
    tokens = len(tiny_tokenizer.encode(text)) + 1 + 1  # the eos of both
    assert (score.tokens, score.bytes, score.documents) == (tokens, 16, 2)
    assert score.nats == pytest.approx(tokens * math.log(512), rel=1e-6)
    assert score.bits_per_byte == pytest.approx(tokens * 9 / 16, rel=1e-6)


def test_a_line_is_scored_after_bos_and_without_eos(tiny_model: GPT, tiny_tokenizer: Tokenizer) -> None:
    lines = ["Once upon a time", "", " a dog"]
    found = line_logprobs(tiny_model, tiny_tokenizer, lines)
    for line, (logprob, count) in zip(lines, found, strict=True):
        ids = [1, *tiny_tokenizer.encode(line)]
        assert count == len(ids) - 1 and logprob == pytest.approx(sum(naive(tiny_model, ids)), abs=1e-3)
    assert found[1] == (0.0, 0)


def test_scoring_does_not_touch_the_model() -> None:
    model = lively_model(shape())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    token_logprobs(model, [document(20)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
