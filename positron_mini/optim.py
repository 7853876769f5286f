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

    # A cosine must know the last step when it takes the first one. This line does not: any step of the constant part can be gone on
    # from, or be cooled down from. The two bend fields could go, but then a run that is late could not still end on time.
    warmup_steps: int  # short steps while the loss is steep and AdamW's averages are of a few gradients only
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
    # long: the loss falls fastest while the rate falls, as the weights stop jumping from side to side of the valley that they follow
    cooldown = round(0.6 * horizon) if cooldown_steps is None else cooldown_steps
    total = warmup_steps + cooldown
    if total > horizon:  # a run of 20 steps has no room for a warm-up of 100
        warmup_steps = warmup_steps * horizon // total
        cooldown = horizon - warmup_steps
    return Schedule(warmup_steps, cooldown, horizon)


def move_horizon(schedule: Schedule, step: int, horizon: int, cooldown_steps: int | None = None) -> Schedule:
    """The schedule that goes on from the rate this one has after finished step `step`, and ends at `horizon`.

    While the rate is constant, the cool-down is planned anew, `cooldown_steps` long or 60 % of the whole. Once the rate falls, it goes on
    falling from where it is, faster or slower.
    """
    start = schedule.cooldown_start
    if start is not None and step > start:  # never up again: the average has ended, and what the low rate has gained would be lost
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
        return (step + 1) / schedule.warmup_steps  # + 1: a first step at rate 0 would change nothing
    start = schedule.cooldown_start
    if start is None or step < start:
        return 1.0
    assert schedule.horizon is not None
    left = max(schedule.horizon - step, 1)
    if schedule.bend_step is not None and step >= schedule.bend_step:
        return schedule.bend_multiplier * left / max(schedule.horizon - schedule.bend_step, 1)
    return left / (schedule.cooldown_steps + 1)


COEFFICIENTS = 3.4445, -4.7750, 2.0315  # a, b, c: they lift small singular values fast, at the price of ending near 1, not at it


def newton_schulz(matrices: Tensor, steps: int = 5) -> Tensor:
    """The matrices (G, m, n) with all singular values moved near 1, each keeping its singular vectors.

    The iteration X <- aX + (bG + cG²)X with G = XX' applies s <- as + bs³ + cs⁵ to each singular value s, five times: they end between
    about 0.7 and 1.2. It runs in the dtype it is given: fp32 on a CPU, where bf16 may be hundreds of times slower. Source: Jordan et al.
    2024 (Muon).
    """
    # a singular value decomposition would give exactly 1, but takes many times as long: products are what hardware is built for
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices  # (G, m, n) with m <= n: XX', m x m, is then the smaller of XX' and X'X
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above 1, where the iteration converges
    if x.shape[-1] >= 1.5 * x.shape[-2]:
        x = _gathered(x, steps)
    else:
        for _ in range(steps):
            gram = x @ x.mT  # G, (G, m, m)
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # bG + cG²
            x = torch.baddbmm(x, factor, x, beta=a)  # aX + (bG + cG²)X
    return x.mT if is_tall else x


def _gathered(x: Tensor, steps: int) -> Tensor:
    """The iteration of `newton_schulz` for `x` (G, m, n) with n well above m: same result, faster.

    Every step multiplies X by a polynomial of the first G. So the steps are gathered in one m x m matrix, and the long X is in two
    products in all instead of two a step: a third less work for the matrices of a feed-forward layer.
    """
    a, b, c = COEFFICIENTS
    gram = x @ x.mT  # (G, m, m)
    gathered: Tensor | None = None  # (G, m, m), what all steps so far multiply X by
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # bG + cG²
        factor.diagonal(dim1=-2, dim2=-1).add_(a)  # aI + bG + cG²
        gathered = factor if gathered is None else factor @ gathered
        if step < steps - 1:
            gram = factor @ (gram @ factor)  # G of the next step: (FX)(FX)' = FGF, as F is symmetric
    return x if gathered is None else gathered @ x


class Optimizer(Protocol):
    """What the trainer asks of an optimizer."""

    def step(self, multiplier: float, done: int) -> None:
        """Update the weights from their `.grad` as step `done` + 1, with every learning rate multiplied by `multiplier`."""

    def state(self) -> dict[str, Tensor]:
        """All tensors needed to go on, by name."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""


FIRST_MOMENTUM, MOMENTUM = 0.85, 0.95  # the buffer then holds about the last 7 gradients, or 20
MOMENTUM_WARMUP = 1_000  # steps, of a pretraining (docs/results/recipes.md)


def momentum_at(done: int, warmup_steps: int) -> float:
    """Muon's momentum after `done` steps: while the loss falls fast, old gradients point less well, so it begins low and rises."""
    # Muon could count its updates itself, as AdamW does, but the count would be one more tensor in each training state
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
            # one matrix after the other would be simpler, but a small product takes less time than starting it: equal ones go together
            self.groups.setdefault(tuple(parameter.shape), []).append((name, parameter))
        self.buffers = {
            shape: torch.zeros(len(group), *shape, device=group[0][1].device) for shape, group in self.groups.items()
        }  # (G, m, n) each: one number a weight, where AdamW keeps two

    @torch.no_grad()
    def step(self, multiplier: float, done: int) -> None:
        """One update of every matrix."""
        lr, momentum = self.lr * multiplier, momentum_at(done, self.momentum_warmup)
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad for _, p in group if p.grad is not None])  # (G, m, n), a copy
            buffer = self.buffers[shape]  # (G, m, n), all gradients so far, each worth `momentum` times the next one
            buffer.mul_(momentum).add_(gradient)
            # Nesterov: whatever comes next, the next update will hold momentum x buffer. That part of it is taken now already, so the
            # direction is the one that is seen from where the weights are about to be, not from where they are
            lookahead = gradient.add_(buffer, alpha=momentum)
            # m x n with singular values 1 has a root-mean-square of 1 / sqrt(max(m, n)); this makes it 0.2 lr, AdamW's size
            update = newton_schulz(lookahead).mul_(-lr * 0.2 * math.sqrt(max(shape)))
            weights: list[Tensor] = [p for _, p in group]
            # weights shrink on their own: decay that was added to the gradient would be orthogonalised away with it
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
            tensor.copy_(tensors[name])  # into the views that `state` gave, so the stacked buffers are filled


class AdamW:
    """Adam with decoupled weight decay. Source: Kingma and Ba 2014, Loshchilov and Hutter 2017 (arXiv 1711.05101)."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> None:
        # beta2 0.95 averages about 20 squares, PyTorch's usual 0.999 about 1,000: too long a memory for runs of some hundred steps
        self.lr, self.weight_decay, self.beta1, self.beta2, self.eps = lr, weight_decay, 0.9, 0.95, 1e-8
        self.named = named
        self.mean = [torch.zeros_like(p) for _, p in named]  # where the gradient points: the first moment
        self.square = [torch.zeros_like(p) for _, p in named]  # how large it usually is: the second moment
        self.count = torch.zeros(1)  # updates so far, for the bias correction; a tensor, to be saved with the others

    @torch.no_grad()
    def step(self, multiplier: float, done: int) -> None:
        """One update of every parameter."""
        lr = self.lr * multiplier
        self.count += 1
        count = float(self.count)
        # a loop over parameters would be simpler; a _foreach_ call does the same to a whole list and is started once, not once for each
        weights: list[Tensor] = [p for _, p in self.named]
        gradients = [p.grad for _, p in self.named if p.grad is not None]
        torch._foreach_mul_(self.mean, self.beta1)
        torch._foreach_add_(self.mean, gradients, alpha=1 - self.beta1)
        torch._foreach_mul_(self.square, self.beta2)
        torch._foreach_addcmul_(self.square, gradients, gradients, 1 - self.beta2)
        divisor = torch._foreach_sqrt(self.square)
        # both averages begin at zero and are too small at first, each by its own 1 - beta^count; divided by it, the first is the gradient
        torch._foreach_div_(divisor, math.sqrt(1 - self.beta2**count))
        torch._foreach_add_(divisor, self.eps)  # where every gradient so far was zero
        if self.weight_decay:
            torch._foreach_mul_(weights, 1 - lr * self.weight_decay)
        # each weight moves about `lr` at most, whatever the size of its gradients: that is what the square is for
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
        return {name: tensor for part in self.parts for name, tensor in part.state().items()}  # a parameter is in one part only

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
    # Muon is for matrices that multiply a vector. The embedding is a table of rows that are looked up, each with its own history; norms
    # are vectors. Neither decays: a rare word's row would fade between its occurrences, and a norm belongs near 1, not near 0
    matrices = [(name, p) for name, p in named if p.ndim == 2 and "embed_tokens" not in name]
    rest = [(name, p) for name, p in named if p.ndim != 2 or "embed_tokens" in name]
    first: Optimizer = (
        AdamW(matrices, lr, weight_decay)
        if kind == "adamw"
        else Muon(matrices, lr if muon_lr is None else muon_lr, weight_decay, momentum_warmup)
    )
    return Combined([first, AdamW(rest, lr, 0.0)])  # one rate for both kinds, as Muon's updates have AdamW's size


def average_weight(step: int) -> float:
    """Share of the newest weights in the running average after finished step `step` (from 1): about 9 / step.

    Polynomial-decay averaging: the average covers about the last ninth of the run at any length, with no horizon to choose.
    Source: Shamir and Zhang 2013 (arXiv 1212.1824).
    """
    return min(1.0, 9.0 / (step + 8.0))  # a fixed share would reach back too far in a short run and too little in a long one


@torch.no_grad()
def update_average(average: list[Tensor], weights: list[Tensor], step: int) -> None:
    """Move `average` in place towards `weights`, after finished step `step`."""
    # at a constant rate the weights circle around a better point, and their mean lies nearer to it; at a falling one they get there
    # themselves, so the trainer ends the average with the first step of the cool-down
    share = average_weight(step)  # 1 after the first step: the untrained weights do not count
    torch._foreach_mul_(average, 1 - share)
    torch._foreach_add_(average, weights, alpha=share)
