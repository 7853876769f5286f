"""The rows of tiny_instruct_sample.jsonl: hand-written conversations, and some that the story world generates.

python -m positron_mini.text.corpus.sample > tiny_instruct_sample.jsonl
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files

from positron_mini.storyworld import instruction_rows

STORYWORLD_ROWS, SEED = 240, 7


def sample_lines() -> list[str]:
    """Every line of the file, each {"instruction", "input", "output", "source"}."""
    written = files("positron_mini.text.corpus").joinpath("instructions_handwritten.jsonl").read_text(encoding="utf-8").splitlines()
    return written + [json.dumps(row, ensure_ascii=False) for row in instruction_rows(SEED, STORYWORLD_ROWS)]


if __name__ == "__main__":
    sys.stdout.write("\n".join(sample_lines()) + "\n")
