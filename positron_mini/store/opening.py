"""Openings of texts, used as prompts for a model that learns these texts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from positron_mini import files
from positron_mini.errors import PositronError, command

STORY = "Once upon a time"
MOST_WORDS = 6


def openings(documents: Sequence[str], count: int) -> tuple[str, ...]:
    """First words of `count` documents, spread over all: at most six words and half of a document, or of a single word."""
    chosen = [documents[i * len(documents) // count] for i in range(count)] if documents else []
    return tuple(found for text in chosen if (found := _beginning(text)))


def _beginning(text: str) -> str:
    line = text.strip().partition("\n")[0]
    words = line.split()
    if len(words) < 2:
        return line[: (len(line) + 1) // 2][:40]
    return " ".join(words[: min(MOST_WORDS, (len(words) + 1) // 2)])[:80]


def opening_of(run: Path) -> str | None:
    """A prompt that suits the model of a run: the first clause of its newest sample's prompt. None without samples."""
    with contextlib.suppress(PositronError):
        prompts = [row.get("prompt") for row in files.read_lines(run / "samples.jsonl")]
        if prompts and isinstance(prompts[0], str):
            return re.split(r"[,.;:\n]", prompts[0])[0].strip() or prompts[0].strip() or None
    return None


def try_it(run: Path, place: str | Path, *, is_chat: bool = False) -> str:
    """Command that generates text with the model of a run folder, spelled as `place` in it."""
    prompt = None if is_chat else opening_of(run)
    return command("chat" if is_chat else "generate", "--ckpt", place, *([] if prompt is None else ["--prompt", prompt]))
