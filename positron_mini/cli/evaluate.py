"""`positron eval`: how good a checkpoint is, on a text or a suite of tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from positron_mini.cli.flags import note, parse
from positron_mini.config import check_ranges
from positron_mini.errors import UsageError


@dataclass(frozen=True)
class EvalFlags:
    """Measure a checkpoint: loss and bits per byte of a text, or the share of right answers in a suite."""

    ckpt: str = "runs/positron-mini-15M-v1-base/latest"
    """checkpoint: a step folder, a run folder or runs/x/latest"""
    text: str | None = None
    """a text file or folder, read like a training text (nothing is split off or dropped)"""
    suite: Literal["reading", "requests"] | None = None
    """reading: questions about unseen stories; requests: stories with constraints; both judged by code"""
    items: int | None = None
    """tasks of the suite (default: reading 500, requests 200)"""
    json: bool = False
    """print one JSON object"""
    threads: int | None = None
    """CPU threads (default: all cores)"""


def run(argv: Sequence[str]) -> int:
    """Evaluate; 0 when done."""
    flags = parse(EvalFlags, argv, "eval")
    check_ranges(flags, {"items": 1, "threads": 1})
    if (flags.text is None) == (flags.suite is None):
        raise UsageError("give either --text or --suite", "--text FILE   or   --suite reading")
    return evaluate_text(flags, flags.text) if flags.text is not None else evaluate_suite(flags)


def evaluate_suite(flags: EvalFlags) -> int:
    """Print the result of a suite; 0 when done."""
    from positron_mini.checkpoint import load_model
    from positron_mini.device import set_threads
    from positron_mini.evaluate.suites import run_suite
    from positron_mini.runs import find_checkpoint

    assert flags.suite is not None
    checkpoint = find_checkpoint(flags.ckpt, say=note)
    set_threads(flags.threads)

    def done(finished: int, total: int) -> None:
        if finished % 50 == 0:
            note(f"{finished} of {total}")

    result: dict[str, Any] = run_suite(flags.suite, load_model(checkpoint), checkpoint, items=flags.items, done=done)
    if flags.json:
        print(json.dumps(result))
        return 0
    rows = {**result["by_kind"], "all": result}
    for kind, row in rows.items():
        print(f"{kind:<16} {row['accuracy']:6.1%}  ({row['low']:.1%} to {row['high']:.1%}, {row['items']} tasks)")
    print(f"by guessing: {result['chance']:.1%}")
    return 0


def evaluate_text(flags: EvalFlags, text: str) -> int:
    """Print the loss and bits per byte of a text; 0 when done."""
    from positron_mini.checkpoint import load_model
    from positron_mini.corpus.files import ReadStats, read_documents
    from positron_mini.device import set_threads
    from positron_mini.evaluate.bits import score_texts
    from positron_mini.runs import find_checkpoint

    checkpoint = find_checkpoint(flags.ckpt, say=note)
    documents = list(read_documents(Path(text), stats=ReadStats()))
    set_threads(flags.threads)
    score = score_texts(load_model(checkpoint), checkpoint.tokenizer, documents)
    result = {
        "loss": score.loss,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "bytes": score.bytes,
        "documents": score.documents,
    }
    if flags.json:
        print(json.dumps(result))
    else:
        print(f"{score.loss:.4f} nats per token, {score.bits_per_byte:.4f} bits per byte ({score.documents:,} documents)")
    return 0
