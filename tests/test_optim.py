"""Laws of the optimizers, the schedule and the running average, against naive twins and tables worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.models import lively_model, shape
from positron_mini.optim import (
    AdamW,
    Combined,
    Muon,
    Schedule,
    average_weight,
    build_optimizer,
    lr_at,
    make_schedule,
    newton_schulz,
    update_average,
)

SHAPES = [(48, 48), (32, 96), (96, 32), (1, 7)]


def quintic(s: float) -> float:
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


# --- Newton-Schulz -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SHAPES)
def test_newton_schulz_changes_singular_values_and_nothing_else(size: tuple[int, int]) -> None:
    matrix = torch.randn(2, *size)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    wanted = (s / s.square().sum(-1, keepdim=True).sqrt()).apply_(quintic)
    torch.testing.assert_close(newton_schulz(matrix).double(), u @ wanted.diag_embed() @ vh, rtol=0, atol=2e-4)


def test_newton_schulz_brings_singular_values_near_one() -> None:
    u, _, vh = torch.linalg.svd(torch.randn(16, 16))
    matrix = u @ torch.linspace(0.1, 1.0, 16).diag_embed() @ vh  # the smallest is 0.04 of the norm
    found = torch.linalg.svdvals(newton_schulz(matrix[None])[0])
    assert float(found.min()) > 0.68 and float(found.max()) < 1.14  # the least and the largest value of the fivefold quintic


@pytest.mark.parametrize("size", SHAPES)
def test_newton_schulz_of_a_stack_equals_one_by_one(size: tuple[int, int]) -> None:
    stack = torch.randn(5, *size) * torch.tensor([1e-3, 0.1, 1.0, 10.0, 1e3]).view(5, 1, 1)
    torch.testing.assert_close(newton_schulz(stack), torch.stack([newton_schulz(m[None])[0] for m in stack]), rtol=0, atol=1e-5)


def test_newton_schulz_of_a_transpose_is_the_transpose() -> None:
    matrix = torch.randn(1, 20, 50)
    torch.testing.assert_close(newton_schulz(matrix.mT), newton_schulz(matrix).mT, rtol=0, atol=1e-6)


# --- Muon --------------------------------------------------------------------------------------------------------------------------


def parameters(sizes: list[tuple[int, ...]], seed: int = 0) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    return [(f"p{i}", nn.Parameter(torch.randn(size, generator=generator))) for i, size in enumerate(sizes)]


def give_gradients(named: list[tuple[str, nn.Parameter]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (96, 32), (64, 256)])
def test_muon_updates_have_the_size_of_adamw_updates(size: tuple[int, int]) -> None:
    named = parameters([size])
    before = named[0][1].detach().clone()
    give_gradients(named, 1)
    Muon(named, 0.01, 0.0).step(0.5, 0)
    rms = float((named[0][1].detach() - before).square().mean().sqrt())
    assert rms / (0.01 * 0.5) == pytest.approx(0.2, rel=0.2)


def test_muon_is_its_formula_over_several_steps_and_mixed_shapes() -> None:
    named = parameters([(8, 12), (12, 8), (8, 12)])
    twins: list[Tensor] = [p.detach().clone() for _, p in named]
    momenta = [torch.zeros_like(p) for p in twins]
    muon = Muon(named, 0.02, 0.1, momentum_warmup=2)
    for step, (multiplier, momentum) in enumerate(((0.25, 0.85), (1.0, 0.9), (0.5, 0.95), (0.5, 0.95))):
        give_gradients(named, step)
        gradients = [p.grad.clone() for _, p in named if p.grad is not None]
        muon.step(multiplier, step)
        lr = 0.02 * multiplier
        for i, gradient in enumerate(gradients):
            momenta[i] = momentum * momenta[i] + gradient
            direction = newton_schulz((gradient + momentum * momenta[i])[None])[0]
            twins[i] = twins[i] * (1 - lr * 0.1) - lr * 0.2 * math.sqrt(12) * direction
    for (_, parameter), twin in zip(named, twins, strict=True):
        torch.testing.assert_close(parameter.detach(), twin, rtol=0, atol=1e-5)


def test_a_zero_gradient_leaves_only_the_decay() -> None:
    named = parameters([(6, 9)])
    before = named[0][1].detach().clone()
    named[0][1].grad = torch.zeros(6, 9)
    Muon(named, 0.1, 0.5).step(1.0, 0)
    torch.testing.assert_close(named[0][1].detach(), before * 0.95)


# --- AdamW -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_equals_the_one_of_torch_over_20_steps(decay: float) -> None:
    ours, theirs = parameters([(5, 3), (4,)]), parameters([(5, 3), (4,)])
    optimizer = AdamW(ours, 0.01, decay)
    reference = torch.optim.AdamW([p for _, p in theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    for step in range(20):
        multiplier = (step % 4 + 1) / 4
        for named in (ours, theirs):
            give_gradients(named, step)
            tiny = named[1][1].grad
            assert tiny is not None
            tiny.mul_(torch.tensor([0.0, 1e-9, 1e-8, 1.0]))  # where epsilon decides
        optimizer.step(multiplier, 0)
        reference.param_groups[0]["lr"] = 0.01 * multiplier
        reference.step()
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# --- building and state ------------------------------------------------------------------------------------------------------------


def test_muon_gets_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    model = lively_model(shape())
    built = build_optimizer(model, "muon", lr=0.01, muon_lr=0.03, weight_decay=0.1)
    assert isinstance(built, Combined)
    muon, adamw = built.parts
    assert isinstance(muon, Muon) and isinstance(adamw, AdamW)
    matrices = {name for group in muon.groups.values() for name, _ in group}
    ends = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    kinds = ("self_attn",) * 4 + ("mlp",) * 3
    assert matrices == {f"model.layers.{i}.{kind}.{end}.weight" for i in range(2) for kind, end in zip(kinds, ends, strict=True)}
    assert matrices | {name for name, _ in adamw.named} == {name for name, _ in model.named_parameters()}
    assert (muon.lr, muon.weight_decay, adamw.lr, adamw.weight_decay) == (0.03, 0.1, 0.01, 0.0)


def test_one_rate_serves_both_unless_another_is_given_even_for_plain_adamw() -> None:
    muon, adamw = build_optimizer(lively_model(shape()), "muon", lr=0.01, muon_lr=None, weight_decay=0.1).parts  # type: ignore[attr-defined]
    assert muon.lr == adamw.lr == 0.01
    first, second = build_optimizer(lively_model(shape()), "adamw", lr=0.01, muon_lr=None, weight_decay=0.1).parts  # type: ignore[attr-defined]
    assert isinstance(first, AdamW) and (first.weight_decay, second.weight_decay) == (0.1, 0.0)
    assert all(p.ndim == 2 and "embed" not in name for name, p in first.named) and len(first.named) == 14


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_going_on_from_a_copied_state_is_bitwise_the_same(kind: str) -> None:
    def fresh() -> tuple[list[tuple[str, nn.Parameter]], Combined]:
        model = lively_model(shape())
        return list(model.named_parameters()), build_optimizer(model, kind, lr=0.01, muon_lr=None, weight_decay=0.1)  # type: ignore[return-value]

    named, optimizer = fresh()
    for step in range(3):
        give_gradients(named, step)
        optimizer.step(1.0, 0)
    other_named, other = fresh()
    for (_, target), (_, source) in zip(other_named, named, strict=True):
        target.data.copy_(source.data)
    other.load_state({name: tensor.clone() for name, tensor in optimizer.state().items()})
    for each, its_optimizer in ((named, optimizer), (other_named, other)):
        give_gradients(each, 3)
        its_optimizer.step(0.5, 0)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(named, other_named, strict=True))
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in optimizer.state().items())


def test_the_state_does_not_depend_on_how_matrices_are_grouped() -> None:
    named = parameters([(4, 6), (6, 4), (4, 6)])
    backwards = list(reversed(parameters([(4, 6), (6, 4), (4, 6)])))
    one, two = Muon(named, 0.01, 0.0), Muon(backwards, 0.01, 0.0)
    give_gradients(named, 5)
    for (_, a), (_, b) in zip(named, reversed(backwards), strict=True):
        b.grad = a.grad.clone() if a.grad is not None else None
    one.step(1.0, 0)
    two.step(1.0, 0)
    assert sorted(one.state()) == [f"muon.momentum.p{i}" for i in range(3)] == sorted(two.state())
    assert all(torch.equal(one.state()[name], two.state()[name]) for name in one.state())
    assert all(torch.equal(one.state()[f"muon.momentum.{name}"], p.grad) for name, p in named if p.grad is not None), "the first momentum"


# --- schedule ----------------------------------------------------------------------------------------------------------------------


def test_the_schedule_is_the_table_worked_out_by_hand() -> None:
    schedule = Schedule(4, 5, 12)
    assert schedule.cooldown_start == 7
    table = [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [lr_at(step, schedule) for step in range(12)] == pytest.approx(table)


def test_an_open_schedule_stays_constant_after_its_warm_up() -> None:
    schedule = make_schedule(2, 500, None)
    assert schedule.cooldown_start is None
    assert [lr_at(step, schedule) for step in (0, 1, 2, 10**9)] == [0.5, 1, 1, 1]
    assert [lr_at(step, Schedule(0, 0, 3)) for step in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ((20, None, 100), (20, 60)),  # 60 % by default
        ((20, 10, 100), (20, 10)),
        ((20, 0, 100), (20, 0)),
        ((20, 80, 100), (20, 80)),  # fits exactly
        ((300, 100, 200), (150, 50)),  # both halved
        ((20, None, 10), (7, 3)),  # 20 : 6 of 10
        ((20, None, 1), (0, 1)),
        ((50, 0, 10), (10, 0)),
        ((0, 50, 10), (0, 10)),
    ],
)
def test_warm_up_and_cool_down_shrink_in_proportion(asked: tuple[int, int | None, int], wanted: tuple[int, int]) -> None:
    assert make_schedule(*asked) == Schedule(*wanted, asked[2])


@given(st.integers(0, 300), st.none() | st.integers(0, 300), st.integers(1, 300))
def test_every_schedule_fits_its_horizon_and_wastes_no_step(warmup: int, cooldown: int | None, horizon: int) -> None:
    schedule = make_schedule(warmup, cooldown, horizon)
    assert 0 <= schedule.warmup_steps <= warmup and schedule.warmup_steps + schedule.cooldown_steps <= horizon
    rates = [lr_at(step, schedule) for step in range(horizon)]
    assert all(0 < rate <= 1 for rate in rates)
    start = schedule.warmup_steps
    assert rates[:start] == sorted(rates[:start]) and rates[start:] == sorted(rates[start:], reverse=True)


# --- running average ---------------------------------------------------------------------------------------------------------------


def test_the_running_average_is_the_explicit_weighted_mean() -> None:
    weights = [torch.randn(3, dtype=torch.float64) for _ in range(40)]
    average = [torch.full((3,), 1e9, dtype=torch.float64)]  # forgotten at the first step
    for step, weight in enumerate(weights, start=1):
        update_average(average, [weight], step)
        shares = [math.comb(t + 7, 8) for t in range(1, step + 1)]  # polynomial decay of power 8
        mean = sum(share * w for share, w in zip(shares, weights, strict=False)) / sum(shares)
        torch.testing.assert_close(average[0], mean, rtol=1e-6, atol=1e-6)
    assert average_weight(1) == 1.0 and average_weight(1_000) == pytest.approx(9 / 1_008)
