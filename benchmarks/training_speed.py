"""Training speed and memory beside the matrix-product ceiling and beside transformers: tokens a second, paired in one run.

    python benchmarks/training_speed.py [--configs TinyGPT,MicroGPT] [--rounds 5] [--batch_tokens 16384] [--threads N] [--out FILE.json]

Ours trains as `positron train` does (Muon, running average, native kernels, micro-batches from the memory model), and compiled with
PyTorch's kernels. transformers trains its Qwen3 of the same shape in a plain loop: forward, cross-entropy, backward, clipping, AdamW, 8
rows at once, as it is and compiled. Where the processor has bf16 products, which `--budget` measures and takes there, ours also runs in
bf16 as it is and transformers compiled. A turn is one optimizer step on text that is as frequent as words are; the first turns, in which
compiling happens, do not count. The ceiling is that of the same precision.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import paired
from paired import Row, median, say, spread, verdict

from positron_mini.config import PRESETS, ModelConfig, TrainConfig, model_config, preset
from positron_mini.device import autocast, this_machine
from positron_mini.doctor.bench import MadeBatches, product_gflops

TARGETS = {"transformers": 1.5, "transformers compiled": 1.25}
CEILING_TARGET = 0.68
PLAIN_ROWS = 8  # of the plain loop at once: the logits of a whole step would take gigabytes


# --- competitors ------------------------------------------------------------------------------------------------------------------------


def ours(shape: ModelConfig, job: Row) -> Callable[[], Row]:
    """Steps of our own loop."""
    from positron_mini.doctor.bench import training
    from positron_mini.trainer import StopFlag

    config = TrainConfig(
        config=job["config"], batch_tokens=job["batch_tokens"],
        compile="on" if job["compiled"] else "auto", threads=job["threads"],
        precision=job["precision"],
    )  # fmt: skip
    _, trainer = training(config, shape, say)
    steps = trainer.run(None, StopFlag())

    def turn() -> Row:
        began = time.perf_counter()  # the trainer's own clock would count the turns of the others
        next(steps)
        return {"tok_per_s": job["batch_tokens"] / (time.perf_counter() - began), "micro_batch": trainer.config.micro_batch}

    return turn


def transformers(shape: ModelConfig, job: Row) -> Callable[[], Row]:
    """Steps of transformers' model in a plain loop."""
    import torch
    from torch.nn import functional as F
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**shape.to_huggingface())).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    source = MadeBatches(job["batch_tokens"] // shape.context_len, shape.context_len, shape.vocab_size)
    done = 0

    def loss_of(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with autocast("cpu", job["precision"]):
            return F.cross_entropy(model(ids, use_cache=False).logits.view(-1, shape.vocab_size), targets.view(-1))

    loss_now = torch.compile(loss_of, dynamic=False) if job["compiled"] else loss_of

    def turn() -> Row:
        nonlocal done
        batch = source.batch(done)
        done += 1
        began = time.perf_counter()
        for ids, targets in zip(batch.ids.split(PLAIN_ROWS), batch.targets.split(PLAIN_ROWS), strict=True):
            (loss_now(ids, targets) * (len(ids) / len(batch.ids))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"tok_per_s": batch.ids.numel() / (time.perf_counter() - began), "micro_batch": min(PLAIN_ROWS, len(batch.ids))}

    return turn


def worker(job: Row) -> None:
    """Serve the turns of one competitor."""
    import torch

    torch.set_num_threads(job["threads"])
    paired.work({"ours": ours, "transformers": transformers}[job["who"]](shape_of(job["config"]), job))


# --- the run ----------------------------------------------------------------------------------------------------------------------------


def shape_of(name: str) -> ModelConfig:
    """The shape of a preset with its own vocabulary."""
    return model_config(TrainConfig(config=name), preset(name).vocab_size)


def measured(name: str, flags: argparse.Namespace) -> Row:
    """One preset: every competitor's tokens a second and peak memory, and the ceiling before and after."""
    shape = shape_of(name)
    base = {"config": name, "batch_tokens": flags.batch_tokens, "threads": flags.threads, "precision": "fp32"}
    jobs = {
        f"{who}{' compiled' if compiled else ''}": {**base, "who": who, "compiled": compiled}
        for who in ("ours", "transformers")
        for compiled in ((False, True) if flags.compiled else (False,))
    }
    precisions = ["fp32"] + (["bf16"] if "cpu" in this_machine().bf16 else [])
    if "bf16" in precisions:
        theirs = "transformers bf16 compiled" if flags.compiled else "transformers bf16"
        jobs["ours bf16"] = {**base, "who": "ours", "compiled": False, "precision": "bf16"}
        jobs[theirs] = {**base, "who": "transformers", "compiled": flags.compiled, "precision": "bf16"}
    before = {precision: product_gflops("cpu", precision) for precision in precisions}
    with paired.started(__file__, jobs, flags.threads) as competitors:
        rows = paired.take_turns(competitors, flags.rounds, warm_up=2)
        peaks = {competitor.name: competitor.close() for competitor in competitors}
    after = {precision: product_gflops("cpu", precision) for precision in precisions}
    ceiling = {precision: max(*before[precision].values(), *after[precision].values()) for precision in precisions}
    found = {
        who: {
            "tok_per_s": median(turns),
            "tok_per_s_of_rounds": [row["tok_per_s"] for row in turns],
            "spread": spread(turns),
            "rows_at_once": turns[0]["micro_batch"],
            "fraction_of_ceiling": median(turns) * shape.flops_per_token() / 1e9 / ceiling[jobs[who]["precision"]],
            "peak_rss_bytes": peaks[who],
        }
        for who, turns in rows.items()
    }
    best = max(row["tok_per_s"] for who, row in found.items() if who.startswith("ours"))
    in_fp32 = max(row["tok_per_s"] for who, row in found.items() if who in ("ours", "ours compiled"))
    return {
        "config": name,
        "parameters": shape.parameters,
        "context_len": shape.context_len,
        "batch_tokens": flags.batch_tokens,
        "flops_per_token": shape.flops_per_token(),
        "matmul_gflops": ceiling,
        "product_gflops_by_size": {"before": before, "after": after},
        "competitors": found,
        "ratios": {who: best / row["tok_per_s"] for who, row in found.items() if not who.startswith("ours")},
        "ratios_in_fp32": {who: in_fp32 / row["tok_per_s"] for who, row in found.items() if who in TARGETS},
    }


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default="TinyGPT", help=f"presets, of {','.join(PRESETS)} (default TinyGPT)")
    parser.add_argument("--rounds", type=int, default=5, help="measured turns of each (default 5)")
    parser.add_argument("--batch_tokens", type=int, default=16_384, help="tokens of a step (default 16,384)")
    parser.add_argument("--no_compile", dest="compiled", action="store_false", help="leave the compiled ones out")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default all)")
    parser.add_argument("--out", type=Path, default=Path("results/training-speed.json"), help="where the figures go")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        worker(json.loads(flags.worker))
        return
    import torch

    torch.set_num_threads(flags.threads)
    results = [measured(name, flags) for name in flags.configs.split(",")]
    lines = [
        (
            result["config"], who, f"{row['tok_per_s']:,.0f}", row["spread"], f"{row['fraction_of_ceiling']:.0%}", row["rows_at_once"],
            f"{row['peak_rss_bytes'] / 1e9:.2f} GB",
        )
        for result in results
        for who, row in result["competitors"].items()
    ]  # fmt: skip
    print(paired.markdown(("preset", "who", "tok/s", "least - most", "of the ceiling", "rows at once", "peak memory"), lines))
    for result in results:
        print(
            f"\n{result['config']}: matrix products "
            + ", ".join(f"{rate:,.0f} GFLOP/s in {precision}" for precision, rate in result["matmul_gflops"].items())
        )
        for kind, ratios in (("quickest of ours", result["ratios"]), ("ours in fp32", result["ratios_in_fp32"])):
            for who, ratio in ratios.items():
                print(f"  {kind} / {who}: {verdict(ratio, TARGETS[who]) if who in TARGETS else f'{ratio:.2f}'}")
        best = max(row["fraction_of_ceiling"] for who, row in result["competitors"].items() if who in ("ours", "ours compiled"))
        print(f"  share of the ceiling in fp32: {verdict(best, CEILING_TARGET)}")
    paired.write({**paired.circumstances(flags.threads, ("torch", "transformers")), "results": results}, flags.out)


if __name__ == "__main__":
    sys.exit(main())
