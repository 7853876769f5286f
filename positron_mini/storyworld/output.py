"""Stories as files: plain text for training, JSON lines for the facts of each story."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from positron_mini import files
from positron_mini.storyworld.documents import document
from positron_mini.storyworld.tales import Split, Story, stories

END = "<|endoftext|>"


def write_corpus(
    target: Path | str | IO[bytes], seed: int, n: int, *, start: int = 0, split: Split = "train", facts: Path | str | None = None
) -> int:
    """Write the documents of `n` stories, each followed by a line `<|endoftext|>`; return the bytes of text.

    `target` is a path, written atomically, or an open binary handle. With `facts` a JSON-lines file is written as well, one story a line.
    """
    if facts is not None:
        files.stream_file(Path(facts), lambda handle: _write_lines(handle, fact_lines(islice(stories(seed, start, split), n))))
    lines = (f"{document(story)}\n{END}\n" for story in islice(stories(seed, start, split), n))
    if not isinstance(target, (str, Path)):
        return _write_lines(target, lines)
    sizes: list[int] = []
    files.stream_file(Path(target), lambda handle: sizes.append(_write_lines(handle, lines)))
    return sizes[0]


def fact_lines(told: Iterator[Story]) -> Iterator[str]:
    """One JSON object per story, as lines: index, text, facts and nats of choice."""
    for story in told:
        row: dict[str, Any] = {"index": story.index, "text": story.text, "facts": story.facts}
        row["choice_nats"] = round(story.choice_nats, 6)
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _write_lines(handle: IO[bytes], lines: Iterator[str]) -> int:
    size = 0
    for line in lines:
        data = line.encode("utf-8")
        handle.write(data)
        size += len(data)
    return size
