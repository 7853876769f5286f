"""TinyGPT's training step written in MLX, against the same step in PyTorch: losses over 20 steps, and the time of each.

    python benchmarks/mlx_step.py                       TinyGPT on this computer's CPU, mlx[cpu] or mlx
    python benchmarks/mlx_step.py --device gpu          on a Mac, MLX on its GPU (PyTorch stays on the CPU, as the reference)

Both begin with the same weights and read the same ids. What is shown is in docs/results/mlx.md. Shapes as in positron_mini/model.py.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import torch

from positron_mini.config import PRESETS, ModelConfig, TrainConfig, model_config
from positron_mini.device import set_threads
from positron_mini.model import GPT
from positron_mini.optim import Schedule, build_optimizer, lr_at

Weights = dict[str, mx.array]
LR, WEIGHT_DECAY, CLIP, WARMUP_STEPS = 4e-3, 0.1, 1.0, 5


# --- the model, as in model.py -----------------------------------------------------------------------------------------------------


def attention(w: Weights, prefix: str, x: mx.array, config: ModelConfig) -> mx.array:
    """Causal self-attention with normed and rotated queries and keys, (B, T, C)."""
    B, T, _ = x.shape

    def heads(name: str, norm: str | None) -> mx.array:
        y = (x @ w[f"{prefix}.{name}_proj.weight"].T).reshape(B, T, -1, config.head_dim)
        if norm is None:
            return y.transpose(0, 2, 1, 3)  # (B, H, T, D)
        y = mx.fast.rms_norm(y, w[f"{prefix}.{norm}.weight"], config.norm_eps).transpose(0, 2, 1, 3)
        return mx.fast.rope(y, config.head_dim, traditional=False, base=config.rope_theta, scale=1.0, offset=0)

    q, k, v = heads("q", "q_norm"), heads("k", "k_norm"), heads("v", None)
    y = mx.fast.scaled_dot_product_attention(q, k, v, scale=config.head_dim**-0.5, mask="causal")
    return y.transpose(0, 2, 1, 3).reshape(B, T, -1) @ w[f"{prefix}.o_proj.weight"].T


def mean_loss(w: Weights, ids: mx.array, targets: mx.array, config: ModelConfig) -> mx.array:
    """Mean of -ln p(target), in nats per token."""
    table = w["model.embed_tokens.weight"]
    x = table[ids]  # (B, T, C)
    for layer in range(config.n_layer):
        p = f"model.layers.{layer}"
        x = x + attention(w, f"{p}.self_attn", mx.fast.rms_norm(x, w[f"{p}.input_layernorm.weight"], config.norm_eps), config)
        y = mx.fast.rms_norm(x, w[f"{p}.post_attention_layernorm.weight"], config.norm_eps)
        gate = y @ w[f"{p}.mlp.gate_proj.weight"].T
        x = x + (gate * mx.sigmoid(gate) * (y @ w[f"{p}.mlp.up_proj.weight"].T)) @ w[f"{p}.mlp.down_proj.weight"].T
    logits = mx.fast.rms_norm(x, w["model.norm.weight"], config.norm_eps) @ table.T  # (B, T, V)
    picked = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (mx.logsumexp(logits, axis=-1) - picked).mean()


# --- the optimizer, as in optim.py -------------------------------------------------------------------------------------------------


def is_matrix(name: str, weight: mx.array) -> bool:
    """Whether Muon moves it; AdamW moves the rest."""
    return weight.ndim == 2 and "embed_tokens" not in name


def newton_schulz(matrices: mx.array, steps: int = 5) -> mx.array:
    """The matrices (G, m, n) with all singular values moved near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.swapaxes(-1, -2) if tall else matrices
    x = x / (mx.sqrt(mx.square(x).sum(axis=(-2, -1), keepdims=True)) + 1e-7)
    for _ in range(steps):
        gram = x @ x.swapaxes(-1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.swapaxes(-1, -2) if tall else x


def new_state(w: Weights) -> dict[str, Weights]:
    """Momentum of the matrices; first and second moments of the rest."""
    matrices = {name: mx.zeros_like(v) for name, v in w.items() if is_matrix(name, v)}
    rest = {name: mx.zeros_like(v) for name, v in w.items() if name not in matrices}
    return {"momentum": matrices, "mean": rest, "square": dict(rest)}


def update(w: Weights, gradients: Weights, state: dict[str, Weights], lr: mx.array, count: mx.array) -> tuple[Weights, dict[str, Weights]]:
    """Weights and state after one clipped step: Muon for the matrices, stacked by shape, AdamW without decay for the rest."""
    norm = mx.sqrt(sum(mx.square(g).sum() for g in gradients.values()))
    gradients = {name: g * mx.minimum(CLIP / (norm + 1e-6), 1.0) for name, g in gradients.items()}
    after, momentum, mean, square = dict(w), {}, {}, {}
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in state["momentum"]:
        groups.setdefault(w[name].shape, []).append(name)
    for shape, names in groups.items():
        gradient = mx.stack([gradients[name] for name in names])  # (G, m, n)
        buffer = mx.stack([state["momentum"][name] for name in names]) * 0.95 + gradient
        moved = newton_schulz(gradient + 0.95 * buffer) * (-lr * 0.2 * math.sqrt(max(shape)))  # Nesterov
        for i, name in enumerate(names):
            momentum[name], after[name] = buffer[i], w[name] * (1 - lr * WEIGHT_DECAY) + moved[i]
    for name in state["mean"]:
        mean[name] = 0.9 * state["mean"][name] + 0.1 * gradients[name]
        square[name] = 0.95 * state["square"][name] + 0.05 * mx.square(gradients[name])
        divisor = mx.sqrt(square[name]) / mx.sqrt(1 - 0.95**count) + 1e-8
        after[name] = w[name] - lr / (1 - 0.9**count) * mean[name] / divisor
    return after, {"momentum": momentum, "mean": mean, "square": square}


# --- twenty steps on both sides ----------------------------------------------------------------------------------------------------


def run_mlx(start: dict[str, Any], batches: list[np.ndarray], config: ModelConfig) -> tuple[list[float], list[float]]:
    """Losses and seconds of every step in MLX."""
    w = {name: mx.array(v) for name, v in start.items()}
    state = new_state(w)

    @mx.compile
    def step(w: Weights, state: Any, rows: mx.array, lr: mx.array, count: mx.array) -> tuple[mx.array, Weights, Any]:
        loss, gradients = mx.value_and_grad(lambda p: mean_loss(p, rows[:, :-1], rows[:, 1:], config))(w)
        return loss, *update(w, gradients, state, lr, count)

    def once(number: int, rows: np.ndarray) -> float:
        nonlocal w, state
        lr = LR * lr_at(number, Schedule(WARMUP_STEPS))
        loss, w, state = step(w, state, mx.array(rows), mx.array(lr), mx.array(float(number + 1)))
        mx.eval(loss, w, state)
        return float(loss)

    return timed(once, batches)


def run_torch(model: GPT, batches: list[np.ndarray]) -> tuple[list[float], list[float]]:
    """Losses and seconds of every step in PyTorch: the model and the optimizer of this project, on the CPU in fp32, not compiled."""
    optimizer = build_optimizer(model, "muon", lr=LR, muon_lr=None, weight_decay=WEIGHT_DECAY)

    def once(number: int, rows: np.ndarray) -> float:
        ids = torch.from_numpy(rows)
        loss = model.loss(ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step(lr_at(number, Schedule(WARMUP_STEPS)), number)
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    return timed(once, batches)


def timed(once: Callable[[int, np.ndarray], float], batches: list[np.ndarray]) -> tuple[list[float], list[float]]:
    """What `once` returns for every batch, and its seconds."""
    losses, seconds = [], []
    for number, rows in enumerate(batches):
        began = time.perf_counter()
        losses.append(once(number, rows))
        seconds.append(time.perf_counter() - began)
        print(f"step {number + 1}: {losses[-1]:.6f}, {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    return losses, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="TinyGPT")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256, help="tokens a row")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    flags = parser.parse_args()
    mx.set_default_device(mx.gpu if flags.device == "gpu" else mx.cpu)
    set_threads(None)
    config = model_config(TrainConfig(config=flags.config), PRESETS[flags.config].vocab_size)
    draw = np.random.default_rng(0)
    ranks = draw.zipf(1.3, (flags.steps, flags.rows, flags.tokens + 1))  # few frequent ids, many rare ones, as in a text
    batches = list((ranks % config.vocab_size).astype(np.int64))
    model = GPT(config).init_weights(0)
    start = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    theirs, ours = run_mlx(start, batches, config), run_torch(model, batches)
    print(f"{flags.config}, {flags.rows} x {flags.tokens} tokens a step; mlx {mx.__version__} on {flags.device}, torch {torch.__version__} "
          f"on cpu, {platform.system()} {platform.machine()}, {torch.get_num_threads()} threads\n")  # fmt: skip
    print("| step | PyTorch | MLX | difference |\n|---|---|---|---|")
    for number, (a, b) in enumerate(zip(ours[0], theirs[0], strict=True), 1):
        print(f"| {number} | {a:.6f} | {b:.6f} | {b - a:+.1e} |")
    for name, (_, seconds) in (("PyTorch", ours), ("MLX", theirs)):
        middle = sorted(seconds[2:])[len(seconds[2:]) // 2]
        print(f"\n{name}: {flags.rows * flags.tokens / middle:,.0f} tokens a second (median step {middle:.2f} s, first {seconds[0]:.2f} s)")


if __name__ == "__main__":
    main()
