"""How much memory and time a preset needs on other machines: a model of both, checked against what runs here.

python benchmarks/scale_model.py check [--configs TinyGPT,SmallGPT,BaseGPT]    prediction and measurement on this CPU
python benchmarks/scale_model.py plan                                          tables for one GPU and eight

Memory: weights, gradient, running average, Muon's momentum and AdamW's moments in fp32; what orthogonalising the largest group of matrices
takes meanwhile; the activations of the rows computed at once; and the loss, made in chunks on a CPU and whole on a GPU. Time: the products
of the model at a share of what the machine does in plain products, Muon's own products, and the gradients over the slowest link. `check`
takes the share from the first preset and predicts the others with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paired
from paired import Row, bench, say

from positron_mini import device as devices
from positron_mini.config import ModelConfig, TrainConfig, model_config, preset
from positron_mini.fast.chunked_loss import CHUNK_NUMBERS

PROGRAM_BYTES = 330e6  # Python and PyTorch for the CPU, before a model
GPU_PROGRAM_BYTES = 1e9  # CUDA's context and cuBLAS' work space


def shape_of(name: str) -> ModelConfig:
    """A preset with the vocabulary it is meant for."""
    return model_config(TrainConfig(config=name), preset(name).vocab_size)


def matrices(shape: ModelConfig) -> Iterator[tuple[int, int, int]]:
    """Rows, columns and number of the matrices that Muon updates, by equal shape."""
    heads = shape.n_head * shape.head_dim
    counts: dict[tuple[int, int], int] = {}
    for size in [(heads, shape.n_embd)] * 3 + [(shape.n_embd, heads)] + [(shape.ffn, shape.n_embd)] * 2 + [(shape.n_embd, shape.ffn)]:
        counts[size] = counts.get(size, 0) + shape.n_layer
    return ((rows, columns, count) for (rows, columns), count in counts.items())


def state_bytes(shape: ModelConfig) -> float:
    """Weights, gradient, average and the optimizer's tensors."""
    muon = sum(rows * columns * count for rows, columns, count in matrices(shape))
    return 4 * (3 * shape.parameters + muon + 2 * (shape.parameters - muon))


def muon_bytes(shape: ModelConfig) -> float:
    """What orthogonalising the largest group of equal matrices takes: the update stacked, scaled, its result, and four small squares."""
    return max(4 * count * (3 * rows * columns + 4 * min(rows, columns) ** 2) for rows, columns, count in matrices(shape))


def activation_bytes(shape: ModelConfig, tokens: int, *, half: bool) -> float:
    """Activations of that many tokens at once, without those of the loss; in bf16 (`half`) half as much."""
    return tokens * 4 * shape.n_layer * (34 * shape.n_embd + 10 * shape.ffn) * (0.5 if half else 1.0)


def loss_bytes(shape: ModelConfig, tokens: int, *, chunked: bool) -> float:
    """What the loss holds: three copies of the logits in fp32; in chunks two copies of one chunk and the gradient of the head."""
    if chunked:
        return 4.0 * (2 * min(CHUNK_NUMBERS, tokens * shape.vocab_size) + shape.vocab_size * shape.n_embd)
    return 12.0 * tokens * shape.vocab_size


def muon_flops(shape: ModelConfig) -> float:
    """Operations of five Newton-Schulz iterations of all matrices: XX' and the last product with X, and 17 products of small squares."""
    total = 0.0
    for rows, columns, count in matrices(shape):
        small, large = min(rows, columns), max(rows, columns)
        total += count * (4 * small**2 * large + 17 * 2 * small**3)
    return total


# --- this machine -------------------------------------------------------------------------------------------------------------------------


def check(configs: list[str], batch_tokens: int) -> tuple[str, list[Row]]:
    """A table of predictions and measurements, and the measurements."""
    words = ("train", "--batch_tokens", str(batch_tokens), "--compile", "off", "--seconds", "5")
    rows, table, share = [], [], None
    for config in configs:
        shape, found = shape_of(config), bench(*words, "--config", config)
        rows.append(found)
        tokens = found["micro_batch"] * shape.context_len
        work = activation_bytes(shape, tokens, half=False) + loss_bytes(shape, tokens, chunked=True)
        memory = PROGRAM_BYTES + state_bytes(shape) + max(muon_bytes(shape), work)
        operations = found["batch_tokens"] * shape.flops_per_token() + muon_flops(shape)
        done = operations / found["step_s"] / 1e9 / found["matmul_gflops"]
        share = done if share is None else share
        expected = operations / 1e9 / found["matmul_gflops"] / share
        table.append(
            (
                config, f"{memory / 1e9:.2f}", f"{found['peak_rss_bytes'] / 1e9:.2f}", f"{memory / found['peak_rss_bytes'] - 1:+.0%}",
                f"{expected:.2f}", f"{found['step_s']:.2f}", f"{expected / found['step_s'] - 1:+.0%}", f"{done:.2f}",
                f"{muon_flops(shape) / operations:.1%}",
            )
        )  # fmt: skip
        say(f"{config}: {found['tok_per_s']:,.0f} tokens/s")
    head = ("preset", "memory GB, model", "measured", "off", "step s, model", "measured", "off", "share of plain products", "Muon's part")
    return paired.markdown(head, table), rows


# --- other machines -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """What a maker states: dense operations a second in bf16 and fp32, memory, bytes a second to its neighbours; and an assumed price."""

    name: str
    bf16: float
    fp32: float
    memory: float
    link: float
    dollars: float


GPUS = (
    Gpu("L4 24 GB, PCIe", 121e12, 30e12, 24e9, 12e9, 0.8),
    Gpu("A100 80 GB, NVLink", 312e12, 19.5e12, 80e9, 200e9, 1.8),
    Gpu("H100 80 GB, NVLink", 989e12, 67e12, 80e9, 350e9, 3.0),
)
SHARES = (0.15, 0.35)  # of bf16 that a model of this width reaches: assumed, nothing here has measured a GPU
FP32_SHARE = 0.6
BATCH_TOKENS = devices.BATCH_TOKENS["cuda"]
RUNS = {"SmallGPT": 1.1e9, "BaseGPT": 2.0e9}  # two epochs of TinyStories; about 20 tokens a parameter


def step_seconds(shape: ModelConfig, gpu: Gpu, count: int, share: float) -> tuple[float, float, float]:
    """Seconds of a step: the model, Muon (every process does all of it), and the exchange, nothing of it hidden behind the model."""
    model = BATCH_TOKENS / count * shape.flops_per_token() / (share * gpu.bf16)
    muon = muon_flops(shape) / (FP32_SHARE * gpu.fp32)
    wire = 2 * (count - 1) / count * 4 * shape.parameters / gpu.link
    return model, muon, wire


def plan() -> str:
    """The tables of docs/scale.md."""
    memory, time = [], []
    for name, tokens in RUNS.items():
        shape = shape_of(name)
        for gpu in GPUS:
            for count in (1, 8):
                rows = BATCH_TOKENS // shape.context_len // count
                micro = devices.micro_batch_rows(shape, shape.context_len, rows, "cuda", int(gpu.memory)) * shape.context_len
                activations = activation_bytes(shape, micro, half=True) + loss_bytes(shape, micro, chunked=False)
                held = GPU_PROGRAM_BYTES + state_bytes(shape) + max(muon_bytes(shape), activations)
                memory.append(
                    (
                        name,
                        gpu.name,
                        count,
                        f"{state_bytes(shape) / 1e9:.2f}",
                        f"{micro:,}",
                        f"{activations / 1e9:.1f}",
                        f"{held / 1e9:.1f}",
                    )
                )
                slow, fast = (step_seconds(shape, gpu, count, share) for share in SHARES)
                steps = tokens / BATCH_TOKENS
                hours = [steps * sum(parts) / 3600 for parts in (slow, fast)]
                time.append(
                    (
                        name, gpu.name, count, f"{fast[0] * 1e3:.0f} - {slow[0] * 1e3:.0f}", f"{slow[1] * 1e3:.0f}", f"{slow[2] * 1e3:.1f}",
                        f"{BATCH_TOKENS / sum(slow) / 1e6:.2f} - {BATCH_TOKENS / sum(fast) / 1e6:.2f}",
                        f"{hours[1]:.1f} - {hours[0]:.1f}", f"{hours[1] * gpu.dollars * count:.0f} - {hours[0] * gpu.dollars * count:.0f}",
                    )
                )  # fmt: skip
    first = paired.markdown(("preset", "GPU", "GPUs", "states GB", "tokens at once", "activations GB", "each GPU GB"), memory)
    head = ("preset", "GPU", "GPUs", "model ms", "Muon ms", "exchange ms", "M tokens/s", "hours", "dollars")
    return f"{first}\n\n{paired.markdown(head, time)}"


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "plan"))
    parser.add_argument("--configs", default="TinyGPT,SmallGPT,BaseGPT", help="check: presets, the first of which sets the share")
    parser.add_argument("--batch_tokens", type=int, default=8_192, help="check: tokens of a step")
    parser.add_argument("--out", type=Path, default=Path("results/scale-model.json"), help="check: where the figures go")
    flags = parser.parse_args()
    if flags.what == "plan":
        print(plan())
        return
    table, rows = check(flags.configs.split(","), flags.batch_tokens)
    print(table)
    paired.write({**paired.circumstances(devices.usable_cores()), "rows": rows}, flags.out)


if __name__ == "__main__":
    main()
