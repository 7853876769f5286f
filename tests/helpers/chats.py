"""Chat checkpoints for tests: a tiny model that has learned a few answers by heart, and streams whose tokens are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from helpers.models import lively_model, shape
from positron_mini.export.card import step_card
from positron_mini.generate import Token
from positron_mini.model import GPT, IGNORED
from positron_mini.store.checkpoint import model_files, write_checkpoint
from positron_mini.text.chat_format import CHAT_TEMPLATE, Message, encode_chat
from positron_mini.text.tokenizer import Tokenizer

LEARNED = {
    "Explain gravity to a child.": "Things fall down to the ground.",
    "Who are you?": "I am a cat.",
    "What do you eat?": "Fish and cake.",
}
ASKED = "Who are you?"


def taught_model(tokenizer: Tokenizer) -> GPT:
    """A model that knows the answers of LEARNED by heart, each as the first question of a conversation."""
    rows = [encode_chat(tokenizer, [Message("user", q), Message("assistant", a)]) for q, a in LEARNED.items()]
    width = max(len(row.ids) for row in rows) - 1
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    targets = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        end = len(row.ids) - 1
        ids[i, :end] = torch.tensor(row.ids[:-1])
        targets[i, :end] = torch.tensor([t if trained else IGNORED for t, trained in zip(row.ids[1:], row.trained[1:], strict=True)])
    model = lively_model(shape(context_len=128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(400):
        loss = model.loss(ids, targets) / (targets != IGNORED).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    return model


def write_model(folder: Path, model: GPT, tokenizer: Tokenizer, *, is_chat: bool) -> Path:
    """`folder`, after writing a checkpoint there."""
    card = step_card("test", model.config, {}, is_chat=is_chat)
    texts = model_files(model.config, tokenizer, chat_template=CHAT_TEMPLATE if is_chat else None, card=card)
    write_checkpoint(folder, {name: p.detach() for name, p in model.named_parameters()}, texts, None)
    return folder


def scripted(pieces: Sequence[str], *, seconds: float = 0.0, seen: list[Any] | None = None) -> Callable[..., Iterator[Token]]:
    """A stand-in for `generate.stream` that writes `pieces`, one token each, however long that takes; `seen` gets its arguments."""

    def stream(model: GPT, tokenizer: Tokenizer, ids: Sequence[int], config: Any, *, end_ids: frozenset[int]) -> Iterator[Token]:
        if seen is not None:
            seen.append((list(ids), config))
        for i, piece in enumerate(pieces[: config.max_tokens]):
            time.sleep(seconds)
            last = "stop" if i == len(pieces) - 1 else "length" if i == config.max_tokens - 1 else None
            yield Token(10 + i, piece, -0.5, 0, last)

    return stream
