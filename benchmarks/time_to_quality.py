"""Seconds of training until held-out stories take 1.25 bits per byte: our loop beside AdamW in a plain one, both over the same grid.

    python benchmarks/time_to_quality.py --text FILE [--config PicoGPT] [--vocab_size 2048] [--target 1.25] [--compile on] [--out FILE.json]

Ours is `positron train --budget`: Muon, half windows, native kernels, the precision that is faster here; `--compile on` takes torch.compile
in place of the kernels, and its start-up counts. The plain loop trains the same model from the same first weights: whole windows,
`GPT.loss` in fp32, torch's fused AdamW, clipping. What is generous to it: its running average of the weights is judged as ours is, which is
worth a cool-down, and the average costs it no time. It trains first, before ours lets the process keep the memory that it frees. Both keep
a constant rate after 20 steps of warm-up and see the same rows. Only training counts, not judging. A trial ends once it takes longer than
the best of its kind, or is clearly behind it after half of its time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import paired
import torch
from paired import Row, say

from positron_mini.config import ModelConfig, TrainConfig, model_config
from positron_mini.doctor.bench import training
from positron_mini.evaluate.bits import score_documents
from positron_mini.model import GPT
from positron_mini.optim import update_average
from positron_mini.text.prepare import Prepared, prepare_corpus
from positron_mini.train import budget
from positron_mini.train.pretrain import TokenBatches, validation_subset
from positron_mini.trainer import StopFlag

TARGET_RATIO = 4.0
WARM_UP = 20
JUDGED_TOKENS = 20_000
ROWS = 4  # of a micro-batch, in both
BEHIND = 0.04  # bits per byte that a trial may be behind the best one at half its time


class State(NamedTuple):
    """A trial between two steps."""

    seconds: float
    model: GPT  # with averaged weights


Steps = Iterator[Callable[[], State]]  # after each step, what gives the state


def ours(shape: ModelConfig, prepared: Prepared, flags: argparse.Namespace, lr: float, batch: int) -> Steps:
    """Our loop."""
    config = TrainConfig(
        config=flags.config,
        batch_tokens=batch,
        lr=lr,
        warmup_steps=WARM_UP,
        compile=flags.compile,
        precision=flags.precision,
        threads=flags.threads,
    )
    _, trainer = training(config, shape, say)
    trainer.source = TokenBatches(prepared.train.ids, 0, batch // shape.context_len, shape.context_len, short_steps=10**9)
    steps, seconds = trainer.run(None, StopFlag()), 0.0

    def state() -> State:
        with trainer.best_weights() as model:
            copy = GPT(shape)
            copy.load_state_dict(model.state_dict())
        return State(seconds, copy)

    while True:
        began = time.perf_counter()
        next(steps)
        seconds += time.perf_counter() - began
        yield state


def plain(shape: ModelConfig, prepared: Prepared, flags: argparse.Namespace, lr: float, batch: int) -> Steps:
    """AdamW in a plain loop."""
    torch.set_num_threads(flags.threads)
    model, copy = GPT(shape).init_weights(0), GPT(shape)
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    source = TokenBatches(prepared.train.ids, 0, batch // shape.context_len, shape.context_len)
    seconds, step = 0.0, 0

    def state() -> State:
        for parameter, mean in zip(copy.parameters(), average, strict=True):
            parameter.data.copy_(mean)
        return State(seconds, copy)

    while True:
        began = time.perf_counter()
        rows = source.batch(step)
        for ids, targets in zip(torch.split(rows.ids, ROWS), torch.split(rows.targets, ROWS), strict=True):
            (model.loss(ids, targets) / rows.ids.numel()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / WARM_UP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seconds += time.perf_counter() - began
        update_average(average, [p.detach() for p in model.parameters()], step)
        yield state


def is_behind(seconds: float, bits: float, best: Row | None) -> bool:
    """Whether a trial that stands at `bits` after so many seconds is not worth going on with."""
    if best is None or seconds < best["seconds"] / 2:
        return False
    then = next((b for _, s, b in best["curve"] if s >= seconds), 0.0)
    return bits > then + BEHIND


def trial(name: str, steps: Steps, judge: Callable[[GPT], float], target: float, every: int, limit_s: float, best: Row | None) -> Row:
    """Train until the target, the limit or a sure defeat; seconds (None without the target), steps and the curve."""
    curve: list[tuple[int, float, float]] = []
    for number, state in enumerate(steps, 1):
        if number % every:
            continue
        seconds, model = state()
        bits = judge(model)
        curve.append((number, seconds, bits))
        if bits <= target or seconds > limit_s or is_behind(seconds, bits, best):
            break
    number, seconds, bits = curve[-1]
    say(f"{name:<32} step {number:>5,}  {seconds:6.1f} s  {bits:.3f} bits per byte")
    return {"steps": number, "seconds": seconds if bits <= target else None, "bits_per_byte": bits, "curve": curve}


def numbers(text: str) -> list[float]:
    """Numbers separated by commas."""
    return [float(part) for part in text.split(",")]


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a training text; its own held-out stories are judged")
    parser.add_argument("--config", default="PicoGPT", help="preset (default PicoGPT)")
    parser.add_argument("--vocab_size", type=int, default=2_048, help="pieces (default 2,048)")
    parser.add_argument("--context_len", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument("--target", type=float, default=1.25, help="bits per byte (default 1.25)")
    parser.add_argument("--ours", type=numbers, default=[4e-3, 8e-3, 2e-3], help="rates of ours (default 4e-3,8e-3,2e-3)")
    parser.add_argument("--plain", type=numbers, default=[4e-3, 8e-3, 2e-3], help="rates of AdamW (default 4e-3,8e-3,2e-3)")
    parser.add_argument("--batches", type=numbers, default=[2_048, 4_096, 8_192], help="tokens a step (default 2048,4096,8192)")
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="torch.compile of ours; its start-up counts (default off)")
    parser.add_argument("--limit", type=float, default=900.0, help="most seconds of a trial (default 900)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default all)")
    parser.add_argument("--out", type=Path, default=Path("results/time-to-quality.json"), help="where the figures go")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    prepared = prepare_corpus(flags.text, tokenizer_path=None, vocab_size=flags.vocab_size, min_train_tokens=flags.context_len + 1, say=say)
    shape = model_config(TrainConfig(config=flags.config, context_len=flags.context_len), prepared.tokenizer.vocab_size)
    documents, byte_counts = validation_subset(prepared, JUDGED_TOKENS)

    def judge(model: GPT) -> float:
        return score_documents(model, documents, byte_counts, device="cpu", precision="fp32").bits_per_byte

    table: list[Row] = []
    for who, make, rates in (("AdamW", plain, flags.plain), ("ours", ours, flags.ours)):
        best: Row | None = None
        if who == "ours":
            flags.precision = budget.faster_precision(TrainConfig(), shape, say)
        for batch in map(int, flags.batches):
            for lr in rates:
                every = max(1, 20 * 2_048 // batch)
                steps = make(shape, prepared, flags, lr, batch)
                limit = flags.limit if best is None else best["seconds"]
                row = trial(f"{who}, {batch:,} tokens, lr {lr:g}", steps, judge, flags.target, every, limit, best)
                table.append({"who": who, "batch_tokens": batch, "lr": lr, **row})
                if row["seconds"] is not None and row["seconds"] <= limit:
                    best = row
    shown = [
        (row["who"], f"{row['batch_tokens']:,}", f"{row['lr']:g}", f"{row['steps']:,}",
         f"{row['seconds']:.0f}" if row["seconds"] is not None else f"no: {row['bits_per_byte']:.3f} after {row['curve'][-1][1]:.0f}")
        for row in table
    ]  # fmt: skip
    print(paired.markdown(("who", "tokens a step", "learning rate", "steps", f"seconds to {flags.target:g} bits per byte"), shown))
    quickest = {who: min((r["seconds"] for r in table if r["who"] == who and r["seconds"]), default=None) for who in ("ours", "AdamW")}
    if quickest["ours"] and quickest["AdamW"]:
        print(f"\nAdamW / ours: {paired.verdict(quickest['AdamW'] / quickest['ours'], TARGET_RATIO)}")
    record = {
        **paired.circumstances(flags.threads), "config": flags.config, "parameters": shape.parameters, "precision_of_ours": flags.precision,
        "target": flags.target, "quickest": quickest, "trials": table,
    }  # fmt: skip
    paired.write(json.loads(json.dumps(record)), flags.out)


if __name__ == "__main__":
    main()
