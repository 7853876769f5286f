"""Small models whose every weight matters, ids that are spread like those of a text, and token files of given ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from positron_mini.config import ModelConfig
from positron_mini.files import stream_file
from positron_mini.model import GPT, IGNORED
from positron_mini.text.tokens import TokenWriter
from positron_mini.trainer import Batch


def shape(**changes: int) -> ModelConfig:
    """Two layers, width 32, grouped heads, head_dim != width / heads; 512 pieces, as the tiny tokenizer has."""
    base = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_kv_head": 2, "head_dim": 16, "ffn": 64, "context_len": 32, "vocab_size": 512}
    return ModelConfig(**{**base, **changes})


def lively_model(config: ModelConfig, seed: int = 0) -> GPT:
    """A model with noise in place of the zeros and ones that training starts from."""
    model = GPT(config).init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def text_like_ids(vocab_size: int, rows: int, length: int, seed: int = 0) -> Tensor:
    """Ids (rows, length), int64, whose frequencies fall like those of words (Zipf), after the control ids."""
    ranks = np.arange(1, vocab_size - 5)
    weights = 1 / (ranks + 2.7)
    drawn = np.random.default_rng(seed).choice(len(ranks), (rows, length), p=weights / weights.sum())
    return torch.from_numpy(drawn + 6)


@dataclass(frozen=True)
class TextLikeRows:
    """Training data of text-like rows that follow from the step; of every row another number of targets does not count."""

    rows: int
    length: int

    def batch(self, step: int) -> Batch:
        """The rows of a step."""
        ids = text_like_ids(512, self.rows, self.length + 1, seed=step)
        targets = ids[:, 1:].clone()
        for row in range(self.rows):
            targets[row, : row + step % 3] = IGNORED
        return Batch(ids[:, :-1], targets)


def write_tokens(path: Path, chunks: Iterable[Any], *, vocab_size: int, fingerprint: str) -> int:
    """The number of ids written to the token file `path`, atomically, from 1-D arrays; `fingerprint` is the tokenizer's SHA-256."""
    count = 0

    def fill(handle: BinaryIO) -> None:
        nonlocal count
        writer = TokenWriter(handle, vocab_size=vocab_size, fingerprint=fingerprint)
        for chunk in chunks:
            writer.write(chunk)
        writer.finish()
        count = writer.count

    stream_file(path, fill)
    return count
