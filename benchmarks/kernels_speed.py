"""Native kernels beside PyTorch's on this CPU: whole training steps that take turns, and where the time of a native one goes.

    python benchmarks/kernels_speed.py [--configs PicoGPT,TinyGPT] [--rounds 20] [--compile] [--threads N] [--out FILE.json]

Steps are those of `positron train` on four rows, medians: with `--kernels native`, with `--kernels pytorch`, and with `--compile` also with
torch.compile; in fp32, and where the processor has bf16 products also in those. The parts of a native step are measured in further steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paired
import torch
from paired import Row, say

from positron_mini import fast as native
from positron_mini.config import ModelConfig, TrainConfig, model_config, preset
from positron_mini.device import this_machine
from positron_mini.doctor.bench import training as trainer_of
from positron_mini.fast import training
from positron_mini.trainer import StopFlag

ROWS = 4
WARM_UP = 3  # steps
PROFILED = 5  # steps
WAYS: dict[str, dict[str, Any]] = {
    "native": {"kernels": "native", "compile": "off"},
    "PyTorch": {"kernels": "pytorch", "compile": "off"},
    "compiled": {"kernels": "pytorch", "compile": "on"},
}


def steps_of(name: str, shape: ModelConfig, precision: str, who: str, threads: int) -> Iterator[object]:
    """Training steps of four rows, after some that do not count."""
    settings = {"config": name, "batch_tokens": ROWS * shape.context_len, "precision": precision, "threads": threads, **WAYS[who]}
    steps = trainer_of(TrainConfig(**settings), shape, say)[2].run(None, StopFlag())
    for _ in range(WARM_UP):
        next(steps)
    return steps


def compared(name: str, precision: str, flags: argparse.Namespace) -> Row:
    """Milliseconds of whole steps by who computes them, and of the parts of a native one."""
    shape = model_config(TrainConfig(config=name), preset(name).vocab_size)
    runs = {who: steps_of(name, shape, precision, who, flags.threads) for who in WAYS if who != "compiled" or flags.compile}
    times: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(flags.rounds):
        for who, steps in runs.items():
            began = time.perf_counter()
            next(steps)
            times[who].append(time.perf_counter() - began)
    found = {who: 1e3 * statistics.median(seconds) for who, seconds in times.items()}
    return {"config": name, "precision": precision, "ms": found, "parts_ms": parts(runs["native"])}


def parts(steps: Iterator[object]) -> dict[str, float]:
    """Milliseconds of a native step by what they are spent on: products, each function of the C++ parts, and all the rest."""
    spent: Counter[str] = Counter()
    call = training._call

    def timed(name: str, *rest: Any) -> None:
        began = time.perf_counter()
        call(name, *rest)
        spent[name] += time.perf_counter() - began  # type: ignore[assignment]

    training._call = timed
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            began = time.perf_counter()
            for _ in range(PROFILED):
                next(steps)
            whole = time.perf_counter() - began
    finally:
        training._call = call
    for event in profile.key_averages():
        kind = {"aten::mm": "products", "aten::addmm_": "products", "aten::bmm": "Muon's products", "aten::baddbmm": "Muon's products"}
        if event.key in kind:
            spent[kind[event.key]] += event.self_cpu_time_total / 1e6
    spent["the rest"] = whole - sum(spent.values())
    return {name: 1e3 * seconds / PROFILED for name, seconds in spent.most_common()}


def main() -> None:
    """Print the tables and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default="PicoGPT,TinyGPT", help="presets (default PicoGPT,TinyGPT)")
    parser.add_argument("--rounds", type=int, default=20, help="measured steps of each (default 20)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default all)")
    parser.add_argument("--out", type=Path, default=Path("results/kernels-speed.json"), help="where the figures go")
    flags = parser.parse_args()
    if native.library() is None:
        raise SystemExit(f"error: there are no native kernels here: {native.why_not()}\n  hint: install g++ or clang++")
    torch.set_num_threads(flags.threads)
    precisions = ["fp32", *(["bf16"] if "cpu" in this_machine().bf16 else [])]
    rows = [compared(name, precision, flags) for name in flags.configs.split(",") for precision in precisions]
    ways = list(rows[0]["ms"])
    lines = [
        (
            r["config"],
            r["precision"],
            *(f"{r['ms'][w]:,.0f} ms" for w in ways),
            *(f"{r['ms'][w] / r['ms']['native']:.2f}" for w in ways[1:]),
        )
        for r in rows
    ]
    print(paired.markdown(("preset", "precision", *ways, *(f"{way} / native" for way in ways[1:])), lines))
    for row in rows:
        print(f"\n{row['config']}, {row['precision']}: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in row["parts_ms"].items()))
    paired.write({**paired.circumstances(flags.threads), "training": rows}, flags.out)


if __name__ == "__main__":
    main()
