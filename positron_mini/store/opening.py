"""How a text begins: what a model is asked to continue, taken from the text that it learns."""

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
    """The first words of `count` documents, spread over all: at most six words and half of a document, or of a single word."""
    chosen = [documents[i * len(documents) // count] for i in range(count)] if documents else []
    return tuple(found for text in chosen if (found := _beginning(text)))


def _beginning(text: str) -> str:
    line = text.strip().partition("\n")[0]
    words = line.split()
    if len(words) < 2:
        return line[: (len(line) + 1) // 2][:40]
    return " ".join(words[: min(MOST_WORDS, (len(words) + 1) // 2)])[:80]


def opening_of(run: Path) -> str | None:
    """A prompt that suits the model in a run folder: the first clause of its newest sample's prompt. None where there are no samples."""
    with contextlib.suppress(PositronError):
        prompts = [row.get("prompt") for row in files.read_lines(run / "samples.jsonl")]
        if prompts and isinstance(prompts[0], str):
            return re.split(r"[,.;:\n]", prompts[0])[0].strip() or prompts[0].strip() or None
    return None


def try_it(run: Path, place: str | Path, *, is_chat: bool = False) -> str:
    """The command that lets the model of a run folder speak, which is named as `place` in it."""
    prompt = None if is_chat else opening_of(run)
    return command("chat" if is_chat else "generate", "--ckpt", place, *([] if prompt is None else ["--prompt", prompt]))
