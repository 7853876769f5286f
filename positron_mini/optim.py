"""How weights change: Muon for the matrices, AdamW for the rest, the learning-rate schedule, the running average.

A new optimizer is a class with `step`, `state` and `load_state` like MuonAdamW, chosen in `build_optimizer`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """Warm-up, constant, cool-down, in steps. `horizon` None: open-ended, the rate stays constant.

    A horizon that moves while the rate is falling bends the line: from `bend_step` on it runs from `bend_multiplier` to the new end.
    """

    warmup_steps: int
    cooldown_steps: int = 0
    horizon: int | None = None
    bend_step: int | None = None
    bend_multiplier: float = 1.0

    @property
    def cooldown_start(self) -> int | None:
        """Finished steps after which the rate begins to fall, or None when it never does."""
        return None if self.horizon is None or self.cooldown_steps == 0 else self.horizon - self.cooldown_steps


def make_schedule(warmup_steps: int, cooldown_steps: int | None, horizon: int | None) -> Schedule:
    """A schedule that fits its horizon: 60 % cool-down by default; warm-up and cool-down shrink in proportion where they do not fit."""
    if horizon is None:
        return Schedule(warmup_steps)
    cooldown = round(0.6 * horizon) if cooldown_steps is None else cooldown_steps
    total = warmup_steps + cooldown
    if total > horizon:
        warmup_steps = warmup_steps * horizon // total
        cooldown = horizon - warmup_steps
    return Schedule(warmup_steps, cooldown, horizon)


def move_horizon(schedule: Schedule, step: int, horizon: int, cooldown_steps: int | None = None) -> Schedule:
    """The schedule that goes on from the rate this one has after finished step `step`, and ends at `horizon`.

    While the rate is constant, the cool-down is planned anew, `cooldown_steps` long or 60 % of the whole. Once the rate falls, it goes on
    falling from where it is, faster or slower.
    """
    start = schedule.cooldown_start
    if start is not None and step > start:
        fall = replace(schedule, horizon=horizon, cooldown_steps=horizon - start)
        return replace(fall, bend_step=step, bend_multiplier=lr_at(step, schedule))
    moved = make_schedule(schedule.warmup_steps, cooldown_steps, horizon)
    if moved.cooldown_start is not None and moved.cooldown_start < step:
        moved = replace(moved, cooldown_steps=horizon - step)
    return moved


def lr_at(step: int, schedule: Schedule) -> float:
    """Learning-rate multiplier in (0, 1] for the update after `step` finished ones: linear warm-up, constant, linear cool-down.

    Step 0 gives 1 / warmup_steps; the last step of the cool-down gives 1 / (cooldown_steps + 1), so that no update is wasted on a rate
    of zero. Source: Hägele et al. 2024 (arXiv 2405.18392).
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    start = schedule.cooldown_start
    if start is None or step < start:
        return 1.0
    assert schedule.horizon is not None
    left = max(schedule.horizon - step, 1)
    if schedule.bend_step is not None and step >= schedule.bend_step:
        return schedule.bend_multiplier * left / max(schedule.horizon - schedule.bend_step, 1)
    return left / (schedule.cooldown_steps + 1)


def newton_schulz(matrices: Tensor, steps: int = 5) -> Tensor:
    """The matrices (G, m, n) with all singular values moved near 1, each keeping its singular vectors.

    A quintic iteration X <- (aI + bG + cG²)X with G = XX', whose coefficients favour speed over exactness (singular values end between
    about 0.7 and 1.2). Every step is a polynomial of the first G, so for long matrices the steps are gathered in one small square matrix
    and X is read only twice: a third less work for those of the feed-forward layer. It runs in the dtype it is given: fp32 on a CPU, where
    bf16 may be hundreds of times slower. Source: Jordan et al. 2024 (Muon).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # wide: XX' is then the small one
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # spectral norm at most 1, where the iteration converges
    if x.shape[-1] < 1.5 * x.shape[-2]:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.mT if tall else x
    gram = x @ x.mT  # (G, m, m)
    gathered: Tensor | None = None  # (G, m, m), what all steps so far multiply X by
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # bG + cG²
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        gathered = factor if gathered is None else factor @ gathered
        if step < steps - 1:
            gram = factor @ (gram @ factor)  # G of the next step
    wide: Tensor = x if gathered is None else gathered @ x
    return wide.mT if tall else wide


class Optimizer(Protocol):
    """What the trainer asks of an optimizer."""

    def step(self, multiplier: float, done: int) -> None:
        """Update the weights from their `.grad`, after `done` updates, with every learning rate multiplied by `multiplier`."""

    def state(self) -> dict[str, Tensor]:
        """All tensors needed to go on, by name."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""


FIRST_MOMENTUM, MOMENTUM = 0.85, 0.95
MOMENTUM_WARMUP = 1_000  # steps, of a pretraining (docs/results/recipes.md)


def momentum_at(done: int, warmup_steps: int) -> float:
    """Muon's momentum after `done` updates: while the loss falls fast, old gradients point less well, so it begins low and rises."""
    return MOMENTUM if done >= warmup_steps else FIRST_MOMENTUM + (MOMENTUM - FIRST_MOMENTUM) * done / warmup_steps


class Muon:
    """Momentum, orthogonalised: every direction of a weight matrix moves equally far. Source: Jordan et al. 2024.

    Updates are scaled to the size that AdamW's have (root-mean-square about 0.2; Liu et al. 2025, arXiv 2502.16982), so that one learning
    rate serves both. Matrices of equal shape are stacked and orthogonalised in one batched product. Shapes: G matrices of m x n.
    """

    def __init__(self, named: list[tuple[str, nn.Parameter]], lr: float, weight_decay: float, momentum_warmup: int = 0) -> None:
        self.lr, self.weight_decay, self.momentum_warmup = lr, weight_decay, momentum_warmup
        self.groups: dict[tuple[int, ...], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in named:
            self.groups.setdefault(tuple(parameter.shape), []).append((name, parameter))
        self.buffers = {
            shape: torch.zeros(len(group), *shape, device=group[0][1].device) for shape, group in self.groups.items()
        }  # (G, m, n) each

    @torch.no_grad()
    def step(self, multiplier: float, done: int) -> None:
        """One update of every matrix."""
        lr, momentum = self.lr * multiplier, momentum_at(done, self.momentum_warmup)
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad for _, p in group if p.grad is not None])  # (G, m, n)
            buffer = self.buffers[shape]
            buffer.mul_(momentum).add_(gradient)
            lookahead = gradient.add_(buffer, alpha=momentum)  # Nesterov
            update = newton_schulz(lookahead).mul_(-lr * 0.2 * math.sqrt(max(shape)))
            weights: list[Tensor] = [p for _, p in group]
            torch._foreach_mul_(weights, 1 - lr * self.weight_decay)
            torch._foreach_add_(weights, update.unbind())

    def state(self) -> dict[str, Tensor]:
        """The momentum of each parameter by name: files do not depend on how matrices are grouped."""
        return {
            f"muon.momentum.{name}": self.buffers[shape][i] for shape, group in self.groups.items() for i, (name, _) in enumerate(group)
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])


class AdamW:
    """Adam with decoupled weight decay. Source: Kingma and Ba 2014, Loshchilov and Hutter 2017 (arXiv 1711.05101)."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> None:
        self.lr, self.weight_decay, self.beta1, self.beta2, self.eps = lr, weight_decay, 0.9, 0.95, 1e-8
        self.named = named
        self.mean = [torch.zeros_like(p) for _, p in named]
        self.square = [torch.zeros_like(p) for _, p in named]
        self.count = torch.zeros(1)  # updates so far, for the bias correction

    @torch.no_grad()
    def step(self, multiplier: float, done: int) -> None:
        """One update of every parameter."""
        lr = self.lr * multiplier
        self.count += 1
        count = float(self.count)
        weights: list[Tensor] = [p for _, p in self.named]
        gradients = [p.grad for _, p in self.named if p.grad is not None]
        torch._foreach_mul_(self.mean, self.beta1)
        torch._foreach_add_(self.mean, gradients, alpha=1 - self.beta1)
        torch._foreach_mul_(self.square, self.beta2)
        torch._foreach_addcmul_(self.square, gradients, gradients, 1 - self.beta2)
        divisor = torch._foreach_sqrt(self.square)
        torch._foreach_div_(divisor, math.sqrt(1 - self.beta2**count))
        torch._foreach_add_(divisor, self.eps)
        if self.weight_decay:
            torch._foreach_mul_(weights, 1 - lr * self.weight_decay)
        torch._foreach_addcdiv_(weights, self.mean, divisor, -lr / (1 - self.beta1**count))

    def state(self) -> dict[str, Tensor]:
        """First and second moments of each parameter by name, and the number of updates."""
        names = [name for name, _ in self.named]
        return {
            **{f"adamw.mean.{name}": tensor for name, tensor in zip(names, self.mean, strict=True)},
            **{f"adamw.square.{name}": tensor for name, tensor in zip(names, self.square, strict=True)},
            f"adamw.count.{names[0]}": self.count,
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])


class Combined:
    """Several optimizers, each with its own parameters, as one."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts

    def step(self, multiplier: float, done: int) -> None:
        """One update of every part."""
        for part in self.parts:
            part.step(multiplier, done)

    def state(self) -> dict[str, Tensor]:
        """The state of all parts."""
        return {name: tensor for part in self.parts for name, tensor in part.state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for part in self.parts:
            part.load_state(tensors)


def build_optimizer(
    model: nn.Module, kind: str, *, lr: float, muon_lr: float | None, weight_decay: float, momentum_warmup: int = 0
) -> Optimizer:
    """The optimizer of `--optimizer kind` for this model.

    muon: matrices inside blocks by Muon; embedding and norms by AdamW without decay. adamw: everything by AdamW, matrices decayed.
    """
    named = list(model.named_parameters())
    matrices = [(name, p) for name, p in named if p.ndim == 2 and "embed_tokens" not in name]
    rest = [(name, p) for name, p in named if p.ndim != 2 or "embed_tokens" in name]
    first: Optimizer = (
        AdamW(matrices, lr, weight_decay)
        if kind == "adamw"
        else Muon(matrices, lr if muon_lr is None else muon_lr, weight_decay, momentum_warmup)
    )
    return Combined([first, AdamW(rest, lr, 0.0)])


def average_weight(step: int) -> float:
    """Share of the newest weights in the running average after finished step `step` (from 1): about 9 / step.

    Polynomial-decay averaging: the average covers about the last ninth of the run at any length, with no horizon to choose.
    Source: Shamir and Zhang 2013 (arXiv 1212.1824).
    """
    return min(1.0, 9.0 / (step + 8.0))


@torch.no_grad()
def update_average(average: list[Tensor], weights: list[Tensor], step: int) -> None:
    """Move `average` in place towards `weights`, after finished step `step`."""
    share = average_weight(step)
    torch._foreach_mul_(average, 1 - share)
    torch._foreach_add_(average, weights, alpha=share)
