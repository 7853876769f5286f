"""Run folders written by hand, with curves, samples and skills that are known: for tests of what reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from positron_mini.config import TrainConfig
from positron_mini.evaluate.interval import wilson

SHAPE = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_kv_head": 2, "head_dim": 16, "ffn": 64, "context_len": 64, "vocab_size": 512}
SKILLS = ("word_order", "agreement_near", "tracking_who", "feelings")
HOSTILE = "</blockquote><script>alert(1)</script>&amp;<img src=x onerror=alert(2)>\x1b[31m\x07\u202e\ud800\u2028\x85\"' | `$x$` ](http://evil.example)"


def record(**changes: Any) -> dict[str, Any]:
    """The content of a run.json."""
    config = {"config": "PicoGPT", "dataset_path": "data/none.txt", "out_dir": "runs/made", "batch_tokens": 512, "eval_every": 10}
    base = {
        "format": 1,
        "kind": "pretrain",
        "identity": {"model": SHAPE, "text": "a" * 64, "tokenizer": "b" * 64},
        "config": {**{name: getattr(TrainConfig, name) for name in ("warmup_steps", "seed", "short_steps")}, **config},
        "device": {"device": "cpu", "precision": "fp32", "reason": "as asked"},
        "versions": {"positron_mini": "0.1.0", "torch": "2.13.0", "processor": "2 cores, Testchip 9"},
        "started": "2026-11-01",
        "events": [{"kind": "schedule", "step": 0, "warmup_steps": 20, "cooldown_steps": 0, "horizon": None}],
        "command": "positron train",
    }
    return {**base, **changes}


def metric(step: int, loss: float, val_bpb: float | None = None) -> dict[str, Any]:
    """A line of metrics.jsonl; a validation costs two nats per token for each bit per byte."""
    row = {"step": step, "tokens": 512 * step, "loss": loss, "lr": 1e-3, "grad_norm": 1.0, "tok_per_s": 1000.0, "elapsed_s": float(step)}
    return row if val_bpb is None else {**row, "val_loss": 2 * val_bpb, "val_bpb": val_bpb}


def sample(step: int, text: str, prompt: str = "Once upon a time") -> dict[str, Any]:
    """A line of samples.jsonl."""
    return {"step": step, "prompt": prompt, "text": text, "seed": 42, "temperature": 0.7}


def skill(step: int, name: str, right: float, pairs: int = 200) -> dict[str, Any]:
    """A line of skills.jsonl."""
    low, high = wilson(right, pairs)  # type: ignore[arg-type]
    return {"step": step, "skill": name, "accuracy": right / pairs, "low": low, "high": high, "pairs": pairs}


def write_run(
    folder: Path,
    *,
    metrics: Sequence[dict[str, Any]] = (),
    samples: Sequence[dict[str, Any]] = (),
    skills: Sequence[dict[str, Any]] = (),
    happened: Sequence[dict[str, Any]] = (),
    **changes: Any,
) -> Path:
    """A run folder without checkpoints; `happened` are the lines of events.jsonl, `changes` go into run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record(**changes)))
    for name, rows in (("metrics", metrics), ("samples", samples), ("skills", skills), ("events", happened)):
        if rows:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def grown_run(folder: Path, steps: int = 400, **changes: Any) -> Path:
    """A run whose loss falls, whose samples change and whose skills rise one after the other; tracking never does."""
    rng = random.Random(3)
    milestones = [0, *(step for step in range(100, steps + 1, 100))]
    words = "the little dog was happy and ran to the big red house with a ball".split()  # noqa: SIM905
    rises = {"word_order": 100, "agreement_near": 200, "feelings": steps}
    return write_run(
        folder,
        metrics=[
            metric(step, 6 / (1 + step / 100) + 1 + rng.random() / 9, 3 / (1 + step / 100) + 0.5 if step % 10 == 0 else None)
            for step in range(1, steps + 1)
        ],
        samples=[
            sample(step, " " + " ".join(words[: 4 + step // 100] + rng.sample(words, 4)), prompt)
            for step in milestones
            for prompt in ("Once upon a time", "One day")
        ],
        skills=[
            skill(step, name, 190 if step >= rises.get(name, steps + 1) else 98 + i) for step in milestones for i, name in enumerate(SKILLS)
        ],
        **changes,
    )
