"""`positron eval`: how good a checkpoint is on a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from positron_mini.cli.flags import note, parse
from positron_mini.errors import UsageError


@dataclass(frozen=True)
class EvalFlags:
    """Measure a checkpoint: loss and bits per byte of all documents of a text."""

    ckpt: str = "runs/positron-mini-15M-v1-base/latest"
    """checkpoint: a step folder, a run folder or runs/x/latest"""
    text: str | None = None
    """a text file or folder, read like a training text (nothing is split off or dropped)"""
    json: bool = False
    """print one JSON object"""
    threads: int | None = None
    """CPU threads (default: all cores)"""


def run(argv: Sequence[str]) -> int:
    """Evaluate; 0 when done."""
    flags = parse(EvalFlags, argv, "eval")
    if flags.text is None:
        raise UsageError("nothing to evaluate", "--text FILE")
    from positron_mini.checkpoint import load_model
    from positron_mini.corpus.files import ReadStats, read_documents
    from positron_mini.device import set_threads
    from positron_mini.evaluate.bits import score_texts
    from positron_mini.runs import find_checkpoint

    checkpoint = find_checkpoint(flags.ckpt, say=note)
    documents = list(read_documents(Path(flags.text), stats=ReadStats()))
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
