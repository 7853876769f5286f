"""Laws of the training loop: what a step computes, what stops it, and that stopping and going on leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers.models import TextLikeRows, lively_model, shape, text_like_ids
from positron_mini.errors import CheckpointError, NonFiniteError, OutOfMemoryError
from positron_mini.model import GPT, IGNORED
from positron_mini.optim import Schedule, build_optimizer
from positron_mini.trainer import Batch, Clock, LoopConfig, StepReport, StopFlag, Trainer

COUNT, LENGTH = 8, 12
ROWS = TextLikeRows(COUNT, LENGTH)
LOOP = LoopConfig(lr=0.01, schedule=Schedule(2), micro_batch=8, grad_clip=1e9, dropout=0.0, seed=3, device="cpu", precision="fp32")


class Gradients:
    """An optimizer that keeps the gradients it is given and changes nothing."""

    def __init__(self, model: GPT) -> None:
        self.model, self.seen = model, dict[str, Tensor]()

    def step(self, multiplier: float, done: int) -> None:
        self.seen = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        pass


def trainer(**changes: object) -> Trainer:
    model = lively_model(shape(context_len=LENGTH))
    return Trainer(model, build_optimizer(model, "muon", lr=0.01, muon_lr=None, weight_decay=0.1), ROWS, replace(LOOP, **changes))  # type: ignore[arg-type]


def recording(**changes: object) -> tuple[Trainer, Gradients]:
    model = lively_model(shape(context_len=LENGTH))
    optimizer = Gradients(model)
    return Trainer(model, optimizer, ROWS, replace(LOOP, **changes)), optimizer  # type: ignore[arg-type]


def train(each: Trainer, until: int | None) -> list[StepReport]:
    return list(each.run(until, StopFlag()))


def state_of(each: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in each.state_tensors().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- what a step computes ----------------------------------------------------------------------------------------------------------


def test_a_step_reports_the_mean_loss_and_gradient_norm_before_its_update() -> None:
    each, optimizer = recording()
    ids, targets, _ = ROWS.batch(0)
    model = lively_model(shape())
    logprobs = model(ids).log_softmax(-1)
    picked = [logprobs[r, t, targets[r, t]] for r in range(COUNT) for t in range(LENGTH) if targets[r, t] != IGNORED]
    loss = -torch.stack(picked).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
    (report,) = train(each, 1)
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5) and report.grad_norm == pytest.approx(norm, rel=1e-4)
    assert (report.step, report.tokens, report.lr) == (1, COUNT * LENGTH, 0.005)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(optimizer.seen[name], parameter.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4])
def test_C9_micro_batches_give_equal_gradients_and_updates(micro_batch: int) -> None:
    whole, expected = recording()
    cut, found = recording(micro_batch=micro_batch)
    (a,), (b,) = train(whole, 1), train(cut, 1)
    assert (a.loss, a.grad_norm) == pytest.approx((b.loss, b.grad_norm), rel=1e-5)
    for name, gradient in expected.seen.items():
        torch.testing.assert_close(found.seen[name], gradient, rtol=0, atol=1e-6)
    whole_real, cut_real = trainer(), trainer(micro_batch=micro_batch)
    train(whole_real, 1)
    train(cut_real, 1)
    for name, weight in whole_real.parameters.items():
        torch.testing.assert_close(cut_real.parameters[name], weight, rtol=0, atol=1e-5 if "embed" in name else 1e-6)


def test_no_more_than_a_micro_batch_of_whole_contexts_is_computed_at_once() -> None:
    for context_len, micro_batch, least in ((LENGTH, 2, 4), (LENGTH, 3, 3), (2 * LENGTH, 2, 2)):  # half as long: twice as many
        model = lively_model(shape(context_len=context_len))
        each = Trainer(model, Gradients(model), ROWS, replace(LOOP, micro_batch=micro_batch))
        sizes: list[int] = []
        loss = each._loss
        each._loss = lambda *part, loss=loss, sizes=sizes: (sizes.append(part[0].numel()), loss(*part))[1]
        train(each, 1)
        assert max(sizes) <= micro_batch * context_len and sum(sizes) == COUNT * LENGTH and len(sizes) >= least


def test_T2_the_gradient_is_scaled_down_to_the_clip_and_reported_unclipped() -> None:
    free, unclipped = recording()
    bound, clipped = recording(grad_clip=0.25)
    (a,), (b,) = train(free, 1), train(bound, 1)
    assert a.grad_norm > 0.25 and b.grad_norm == a.grad_norm
    for name, gradient in unclipped.seen.items():
        torch.testing.assert_close(clipped.seen[name], gradient * 0.25 / a.grad_norm, rtol=1e-4, atol=1e-8)


def test_dropout_follows_from_seed_and_step_alone() -> None:
    def gradient(seed: int, noise: int) -> Tensor:
        each, optimizer = recording(dropout=0.3, seed=seed, micro_batch=4)
        torch.manual_seed(noise)
        train(each, 1)
        return optimizer.seen["model.embed_tokens.weight"]

    assert torch.equal(gradient(3, 1), gradient(3, 2))
    assert not torch.equal(gradient(3, 1), gradient(4, 1))
    each, _ = recording(dropout=0.3)
    each.source = type("Same", (), {"batch": lambda self, step: ROWS.batch(0)})()
    first, second = train(each, 2)
    assert first.loss != second.loss, "another step drops other activations"


def test_nothing_that_happens_between_steps_disturbs_training() -> None:
    plain, disturbed = trainer(dropout=0.1), trainer(dropout=0.1)
    train(plain, 4)
    for _ in disturbed.run(4, StopFlag()):
        torch.manual_seed(99)
        with disturbed.best_weights() as model, torch.no_grad():
            assert model.dropout == 0.0
            model(text_like_ids(512, 2, 5))
    assert same(state_of(plain), state_of(disturbed))


# --- what stops it -----------------------------------------------------------------------------------------------------------------


def poison_weight(each: Trainer) -> None:
    each.parameters["model.norm.weight"].data[0] = float("nan")


def poison_gradient(each: Trainer) -> None:
    each.parameters["model.norm.weight"].register_hook(lambda gradient: gradient * float("inf"))


def poison_one_gradient_by_nan(each: Trainer) -> None:
    each.parameters["model.layers.0.mlp.up_proj.weight"].register_hook(lambda gradient: gradient * float("nan"))


@pytest.mark.parametrize("poison", [poison_weight, poison_gradient, poison_one_gradient_by_nan])
def test_T1_a_value_that_is_not_finite_raises_before_any_weight_changes(poison: Callable[[Trainer], None]) -> None:
    each = trainer()
    train(each, 2)
    poison(each)
    before = {name: tensor.nan_to_num(7) for name, tensor in state_of(each).items()}
    with pytest.raises(NonFiniteError, match=r"step 3: the loss is .* nothing was updated") as caught:
        train(each, 3)
    assert caught.value.exit_code == 3 and "--lr 0.005" in caught.value.hint
    assert caught.value.evidence["step"] == 3 and (caught.value.evidence["bad_weights"] or caught.value.evidence["bad_gradients"])
    assert same({name: tensor.nan_to_num(7) for name, tensor in state_of(each).items()}, before)
    assert each.step == 2 and all(p.grad is None for p in each.model.parameters())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.96 GB, max allowed: 18.13 GB)."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
        ),
        MemoryError(),
    ],
)
def test_T3_a_first_step_without_memory_is_halved_down_to_a_row_and_a_later_one_stops(error: Exception) -> None:
    each, told = trainer(micro_batch=4, dropout=0.1), list[dict[str, object]]()
    each.tell = told.append

    def exhausted(*_: object) -> Tensor:
        raise error

    loss, each._loss = each._loss, exhausted
    with pytest.raises(OutOfMemoryError, match="out of memory at step 1 with 1 rows at once") as caught:
        train(each, 1)
    assert [(event["before"], event["now"]) for event in told] == [(4, 2), (2, 1)]
    assert caught.value.__cause__ is error and each.model.dropout == 0.0 and each.is_whole
    each.config, each._loss = replace(each.config, micro_batch=4), loss
    reports = each.run(3, StopFlag())
    next(reports)
    each._loss = exhausted
    with pytest.raises(OutOfMemoryError, match="out of memory at step 2 with 4 rows at once") as caught:
        next(reports)
    assert "--micro_batch 2" in caught.value.hint and each.step == 1 and len(told) == 2


def test_a_step_without_a_target_learns_nothing_and_is_no_error() -> None:
    each = trainer(grad_clip=1.0)
    each.source = type("Empty", (), {"batch": lambda self, step: Batch(ROWS.batch(0).ids, torch.full((COUNT, LENGTH), IGNORED))})()
    (report,) = train(each, 1)
    assert (report.loss, report.grad_norm) == (0.0, 0.0)
    assert all(bool(torch.isfinite(p).all()) for p in each.model.parameters())


def test_another_runtime_error_is_not_disguised() -> None:
    each = trainer()

    def broken(*_: object) -> Tensor:
        raise RuntimeError("shapes differ")

    each._loss = broken
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(each, 1)


@pytest.mark.parametrize("signalled_at", [0, 1, 3])
def test_a_stop_drops_the_unfinished_step_and_leaves_no_trace(signalled_at: int) -> None:
    each, plain = trainer(micro_batch=2, dropout=0.1), trainer(micro_batch=2, dropout=0.1)
    train(each, 2)
    train(plain, 4)
    before, stop, calls = state_of(each), StopFlag(), []
    loss = each._loss

    def signalled(*arguments: object) -> Tensor:
        if len(calls) == signalled_at:
            stop.signal_number = 2
        calls.append(1)
        return loss(*arguments)

    each._loss = signalled
    assert list(each.run(4, stop)) == []
    assert len(calls) == signalled_at + 1, "the loop looks at the flag after every micro-batch"
    assert same(state_of(each), before) and (each.step, each.tokens) == (2, 2 * COUNT * LENGTH)
    assert all(p.grad is None for p in each.model.parameters()) and each.model.dropout == 0.0
    each._loss = loss
    train(each, 4)
    assert same(state_of(each), state_of(plain))


def test_a_flag_that_is_set_already_starts_nothing() -> None:
    each = trainer()
    assert list(each.run(5, StopFlag(signal_number=15))) == [] and each.step == 0


def test_the_loop_ends_at_the_nearer_of_horizon_and_until() -> None:
    assert [report.step for report in train(trainer(schedule=Schedule(1, 0, 3)), 5)] == [1, 2, 3]
    assert [report.step for report in train(trainer(schedule=Schedule(1, 0, 5)), 2)] == [1, 2]
    assert [report.step for report in train(trainer(schedule=Schedule(1, 0, 2)), None)] == [1, 2]


# --- going on ----------------------------------------------------------------------------------------------------------------------

COOLING = Schedule(1, 3, 6)  # cool-down begins after step 3


@pytest.mark.parametrize("pause", [1, 2, 3, 4, 5])
def test_C1_going_on_equals_never_having_stopped_bitwise(pause: int) -> None:
    whole, first, second = (trainer(schedule=COOLING, micro_batch=4, dropout=0.1) for _ in range(3))
    reports = train(whole, None)
    train(first, pause)
    torch.manual_seed(123)
    second.restore(state_of(first), first.state_numbers())
    assert same(state_of(second), state_of(first))
    later = train(second, None)
    assert same(state_of(second), state_of(whole)) and second.state_numbers() == whole.state_numbers()
    assert [(r.step, r.tokens, r.loss, r.lr, r.grad_norm) for r in later] == [
        (r.step, r.tokens, r.loss, r.lr, r.grad_norm) for r in reports[pause:]
    ]


def test_the_first_cool_down_step_ends_the_average() -> None:
    each = trainer(schedule=COOLING)
    kinds = []
    for _ in each.run(None, StopFlag()):
        raw = {name: p.detach() for name, p in each.parameters.items()}
        kinds.append(
            (each.state_numbers()["weights"], same(each.model_weights(), raw), any(n.startswith("average.") for n in each.state_tensors()))
        )
    assert kinds == [("average", True, True)] + [("average", False, True)] * 2 + [("raw", True, False)] * 3  # the average begins at step 1


def test_the_saved_average_is_the_weighted_mean_of_all_steps() -> None:
    each = trainer()
    seen = [each.parameters["model.norm.weight"].detach().clone() for _ in each.run(6, StopFlag())]
    shares = [math.comb(t + 7, 8) for t in range(1, 7)]
    mean = sum(share * weight for share, weight in zip(shares, seen, strict=True)) / sum(shares)
    torch.testing.assert_close(each.model_weights()["model.norm.weight"], mean)


def test_best_weights_are_the_average_and_the_raw_ones_come_back() -> None:
    each = trainer()
    train(each, 3)
    raw, average = state_of(each), {name: tensor.clone() for name, tensor in each.model_weights().items()}
    with each.best_weights() as model:
        assert same(dict(model.state_dict()), average)
        assert not torch.equal(model.model.norm.weight, raw["weights.model.norm.weight"])
    assert same(state_of(each), raw)
    with pytest.raises(KeyError), each.best_weights():
        raise KeyError
    assert same(state_of(each), raw)


def broken_state(each: Trainer, change: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    tensors, numbers = state_of(each), each.state_numbers()
    if change == "missing":
        del tensors["muon.momentum.model.layers.1.mlp.up_proj.weight"]
    elif change == "extra":
        tensors["foreign"] = torch.zeros(1)
    elif change == "shape":
        tensors["average.model.norm.weight"] = torch.zeros(33)
    elif change == "kind":
        numbers["weights"] = "raw"
    else:
        numbers.update({"text": {"step": "2"}, "negative": {"tokens": -1}, "absent": {"weights": None}}[change])
    return tensors, numbers


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "kind", "text", "negative", "absent"])
def test_a_state_that_does_not_fit_is_refused_with_nothing_changed(change: str) -> None:
    source, target = trainer(), trainer()
    train(source, 2)
    weights = {name: p.detach().clone() for name, p in target.parameters.items()}
    with pytest.raises(CheckpointError, match=r"does not fit|is damaged"):
        target.restore(*broken_state(source, change))
    assert target.step == 0 and same({name: p.detach() for name, p in target.parameters.items()}, weights)


# --- records -----------------------------------------------------------------------------------------------------------------------


def test_a_report_has_the_promised_names_and_validation_only_where_there_was_one() -> None:
    report = StepReport(3, 300, 1.23456789, 0.0012345678, 0.5, 1234.56, 7.89123)
    record = {"step": 3, "tokens": 300, "loss": 1.234568, "lr": 0.00123457, "grad_norm": 0.5, "tok_per_s": 1234.6, "elapsed_s": 7.891}
    assert report.record() == record
    assert replace(report, val_loss=2.0, val_bpb=0.5).record() == {**record, "val_loss": 2.0, "val_bpb": 0.5}


def test_C12_the_clock_does_not_count_a_closed_lid() -> None:
    times = iter([0.0, 1.0, 2.0, 3.0, 4.0, 3604.0, 3605.0, 3615.0])
    clock = Clock(100.0, now=lambda: next(times))
    assert [clock.lap() for _ in range(6)] == [1, 1, 1, 1, 1, 1]  # the hour counts as a usual step
    clock.lap_other()  # evaluation is work
    assert clock.elapsed_s == 100 + 6 + 10
