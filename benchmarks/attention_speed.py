"""Native attention beside PyTorch's on this CPU: milliseconds alone, forward and backward, and whole training steps that take turns.

    python benchmarks/attention_speed.py [--configs PicoGPT,TinyGPT] [--rounds 20] [--compile off] [--threads N] [--out FILE.json]

Alone: the least of ten repetitions, for the shapes of a micro-batch. In training: medians of steps as `positron train` makes them, with
`--attention native` and `--attention pytorch` in turn, in fp32 and where the processor has bf16 products also in those.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import paired
import torch
from paired import Row, say
from torch.nn import functional as F

from positron_mini.bench import training
from positron_mini.config import TrainConfig, model_config, preset
from positron_mini.device import this_machine
from positron_mini.native.attention import attend, is_there
from positron_mini.trainer import StopFlag

SHAPES = ((4, 512, 8, 32), (8, 256, 8, 32), (8, 256, 4, 32), (4, 512, 8, 64))  # rows, positions, heads, channels
REPETITIONS = 10
WARM_UP = 3  # steps
WAYS: dict[str, tuple[Callable[..., torch.Tensor], torch.dtype]] = {
    "native": (attend, torch.float32),
    "PyTorch fp32": (F.scaled_dot_product_attention, torch.float32),
    "PyTorch bf16": (F.scaled_dot_product_attention, torch.bfloat16),
}


def least_ms(work: Callable[[], object]) -> float:
    """Milliseconds of the quickest repetition, after one that does not count."""
    work()
    times = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def alone(shape: tuple[int, int, int, int]) -> Row:
    """Milliseconds of forward and backward, by who computes."""
    B, T, H, D = shape
    found: Row = {"shape": shape}
    for name, (function, dtype) in WAYS.items():
        if dtype == torch.bfloat16 and "cpu" not in this_machine().bf16:
            continue
        q, k, v, dy = (torch.randn(B, T, H, D).to(dtype).transpose(1, 2).requires_grad_() for _ in range(4))

        def forward(function: Callable[..., torch.Tensor] = function, q=q, k=k, v=v) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return function(q, k, v, attn_mask=None, is_causal=True, enable_gqa=False)

        y = forward()
        backward_ms = least_ms(lambda y=y, q=q, k=k, v=v, dy=dy: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True))  # type: ignore[misc]
        found[name] = {"forward_ms": least_ms(forward), "backward_ms": backward_ms}
    return found


def in_training(name: str, precision: str, flags: argparse.Namespace) -> Row:
    """Tokens a second of whole steps, by who computes attention, and their ratio."""
    shape = model_config(TrainConfig(config=name), preset(name).vocab_size)
    batch = 4 * shape.context_len
    steps, times = {}, {}
    for who in ("native", "pytorch"):
        config = TrainConfig(config=name, batch_tokens=batch, compile=flags.compile, precision=precision, threads=flags.threads)
        steps[who], times[who] = training(replace(config, attention=who), shape, say)[2].run(None, StopFlag()), []
        for _ in range(WARM_UP):
            next(steps[who])
    for _ in range(flags.rounds):
        for who, run in steps.items():
            began = time.perf_counter()
            next(run)
            times[who].append(time.perf_counter() - began)
    speed = {who: batch / statistics.median(seconds) for who, seconds in times.items()}
    return {"config": name, "precision": precision, "tok_per_s": speed, "ratio": speed["native"] / speed["pytorch"]}


def main() -> None:
    """Print the tables and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default="PicoGPT,TinyGPT", help="presets (default PicoGPT,TinyGPT)")
    parser.add_argument("--rounds", type=int, default=20, help="measured steps of each (default 20)")
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="torch.compile (default off)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default all)")
    parser.add_argument("--out", type=Path, default=Path("results/attention-speed.json"), help="where the figures go")
    flags = parser.parse_args()
    if not is_there():
        raise SystemExit("error: no C++ compiler works here, so there is no native attention\n  hint: install g++ or clang++")
    torch.set_num_threads(flags.threads)
    kernels = [alone(shape) for shape in SHAPES]
    ways = [way for way in WAYS if way in kernels[0]]
    shown = [
        (" x ".join(map(str, row["shape"])), *(f"{row[way]['forward_ms']:.1f}, {row[way]['backward_ms']:.1f}" for way in ways))
        for row in kernels
    ]
    print(paired.markdown(("rows x positions x heads x channels", *ways), shown))
    precisions = ["fp32", *(["bf16"] if "cpu" in this_machine().bf16 else [])]
    rows = [in_training(name, precision, flags) for name in flags.configs.split(",") for precision in precisions]
    lines = [
        (r["config"], r["precision"], *(f"{r['tok_per_s'][w]:,.0f}" for w in ("native", "pytorch")), f"{r['ratio']:.2f}") for r in rows
    ]
    print("\n" + paired.markdown(("preset", "precision", "native tok/s", "PyTorch tok/s", "ratio"), lines))
    paired.write({**paired.circumstances(flags.threads), "compile": flags.compile, "alone": kernels, "training": rows}, flags.out)


if __name__ == "__main__":
    main()
