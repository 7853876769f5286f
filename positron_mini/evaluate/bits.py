"""Bits per byte and log-probabilities: every token of a document after bos is predicted exactly once.

Legend: B windows at once, T time in tokens, V vocabulary. Documents longer than the context are read in windows that advance by half a
context, so each token but those of the first window sees at least half a context before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from positron_mini import device as devices
from positron_mini.generate import check_finite
from positron_mini.model import GPT, IGNORED
from positron_mini.text.tokenizer import BOS, Tokenizer

BATCH_TOKENS = 8_192  # tokens per forward pass; more gains nothing on a CPU
HEAD_ROWS = 2_048  # positions whose logits exist at once


@dataclass(frozen=True)
class Score:
    """Sums over documents: nats, predicted tokens (eos included), UTF-8 bytes of the texts, documents."""

    nats: float
    tokens: int
    bytes: int
    documents: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / max(self.tokens, 1)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text, comparable between tokenizers."""
        return self.nats / math.log(2) / max(self.bytes, 1)


@dataclass(frozen=True)
class _Window:
    document: int
    start: int  # index of the first input token
    length: int  # inputs
    scored_from: int  # targets before this index were scored by an earlier window


def _windows(lengths: Sequence[int], context_len: int) -> Iterator[_Window]:
    """Windows over documents of `lengths` tokens (bos included): inputs start..start+length-1, each predicting the token after it."""
    for document, length in enumerate(lengths):
        inputs, start, scored = length - 1, 0, 0
        while scored < inputs:
            end = min(start + context_len, inputs)
            yield _Window(document, start, end - start, scored)
            start, scored = start + max(1, context_len // 2), end


@torch.inference_mode()
def token_logprobs(
    model: GPT,
    documents: Sequence[Sequence[int]],
    *,
    device: str = "cpu",
    precision: str = "fp32",
    done: Callable[[int], None] = lambda _: None,
) -> list[Tensor]:
    """ln p of every token after the first, per document: (length - 1,) fp32 each. `done` gets the tokens read after each pass.

    Errors: NotFiniteOutput.
    """
    context = model.config.context_len
    results = [torch.zeros(max(len(document) - 1, 0)) for document in documents]
    windows = sorted(_windows([len(document) for document in documents], context), key=lambda w: w.length)  # little padding
    for group in _groups(windows):
        width = max(w.length for w in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)  # (B, T)
        targets = torch.full((len(group), width), IGNORED)
        for row, w in enumerate(group):
            part = torch.as_tensor(documents[w.document][w.start : w.start + w.length + 1], dtype=torch.long)
            ids[row, : w.length] = part[:-1]
            skip = w.scored_from - w.start
            targets[row, skip : w.length] = part[1 + skip :]
        with devices.autocast(device, precision):
            hidden = model.hidden(ids.to(device))
        picked = targets != IGNORED
        flat = _pick_logprobs(model, hidden[picked.to(device)], targets[picked].to(device)).cpu()
        check_finite(flat, model)
        for w, values in zip(group, torch.split(flat, picked.sum(1).tolist()), strict=True):
            results[w.document][w.scored_from : w.start + w.length] = values
        done(ids.numel())
    return results


def _groups(windows: Sequence[_Window]) -> Iterator[list[_Window]]:
    """Windows in groups of at most BATCH_TOKENS padded tokens, at least one each."""
    group: list[_Window] = []
    for window in windows:
        if group and (len(group) + 1) * window.length > BATCH_TOKENS:
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _pick_logprobs(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """ln p of `targets` (M,) given `hidden` (M, C), HEAD_ROWS rows of logits at a time."""
    parts = zip(torch.split(hidden, HEAD_ROWS), torch.split(targets, HEAD_ROWS), strict=True)
    return torch.cat([-F.cross_entropy(model.logits(h), t, reduction="none") for h, t in parts]) if len(targets) else hidden.new_zeros(0)


def score_documents(
    model: GPT, documents: Sequence[Sequence[int]], byte_counts: Sequence[int], *, device: str = "cpu", precision: str = "fp32"
) -> Score:
    """The sums over tokenised documents (bos + text + eos); `byte_counts` are the UTF-8 bytes of their texts."""
    nats = [-float(values.double().sum()) for values in token_logprobs(model, documents, device=device, precision=precision)]
    return Score(math.fsum(nats), sum(len(d) - 1 for d in documents), sum(byte_counts), len(documents))


def score_texts(model: GPT, tokenizer: Tokenizer, texts: Sequence[str]) -> Score:
    """The sums over texts: each stripped of outer newlines, read as bos + text + eos."""
    stripped = [text.strip("\r\n") for text in texts]
    documents = [tokenizer.encode_document(text) for text in stripped]
    return score_documents(model, documents, [len(text.encode()) for text in stripped])


def line_logprobs(model: GPT, tokenizer: Tokenizer, lines: Sequence[str]) -> list[tuple[float, int]]:
    """Per line, the sum of ln p of its tokens after bos (no eos), and their number."""
    documents = [[BOS, *tokenizer.encode(line)] for line in lines]
    return [(float(values.double().sum()), len(values)) for values in token_logprobs(model, documents)]
