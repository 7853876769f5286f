"""Whole models on the device compared with the CPU in fp32: causality, one pass, decoding, many steps, and memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from positron_mini import device as devices
from positron_mini.config import ModelConfig, preset_shape
from positron_mini.doctor.subject import REFERENCE, Check, Subject, drawn, one_thread
from positron_mini.model import GPT, IGNORED, KVCache
from positron_mini.optim import Optimizer, Schedule, build_optimizer, lr_at

ODD = ModelConfig(n_layer=3, n_embd=96, n_head=3, n_kv_head=3, head_dim=32, ffn=160, context_len=129, vocab_size=5_003)
SMALL = ModelConfig(n_layer=1, n_embd=64, n_head=2, n_kv_head=2, head_dim=32, ffn=128, context_len=33, vocab_size=499)
TINY = preset_shape("TinyGPT")
LEARNING_RATE = 4e-3


@dataclass(frozen=True)
class Allowed:
    """Allowed differences from the CPU in fp32: `values` and `gradients` as shares of their size, `loss` and `losses` of the loss."""

    values: float
    gradients: float
    loss: float  # in one pass
    losses: float  # in 20 steps
    weights: float  # after 20 steps, as a share of their change
    drift: float  # of the loss at the end of 200 steps


# room for rounding: matmuls in bf16, and in fp32 with the 10 bits of TF32, measured in docs/results/doctor.md
ALLOWED = {"fp32": Allowed(5e-3, 1e-2, 1e-3, 3e-3, 0.1, 0.01), "bf16": Allowed(0.05, 0.15, 0.01, 0.01, 0.2, 0.03)}
ENDING = 20  # last steps whose mean loss is compared
CHUNK = 10  # steps between two readings of the memory
GROWTH_BYTES = 256_000  # allowed growth of memory per step


def ids_like_text(shape: ModelConfig, rows: int, length: int, seed: int = 0) -> Tensor:
    """Ids (rows, length), few frequent and many rare, whose order follows a learnable rule."""
    noise = drawn(rows, length, seed=seed).abs()
    ids = (noise**3 * shape.vocab_size / 60).long() % shape.vocab_size
    ids[:, 1::2] = (ids[:, : length - length % 2 : 2] * 7 + 3) % shape.vocab_size
    return ids


def lively(shape: ModelConfig, subject: Subject) -> GPT:
    """A model on the device with random output projections; at initialisation they are zero, which would hide faults in the blocks."""
    model = GPT(shape).init_weights(0)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(drawn(*parameter.shape, seed=number), alpha=0.03)
    return model.to(devices.torch_device(subject.device))


def relative(found: Tensor, wanted: Tensor) -> float:
    """The error as a share of the typical value; infinite if a value is not finite."""
    error = (found.double() - wanted.double()).square().mean().sqrt()
    share = float(error / wanted.double().square().mean().sqrt().clamp_min(1e-30))
    return share if share == share else float("inf")


# --- looking ahead -----------------------------------------------------------------------------------------------------------------


WAYS = ("training", "evaluating", "packed")  # each uses other kernels


def check_causality(subject: Subject) -> Iterator[Check]:
    """Check that changing a token changes nothing before it: in training, in evaluation, and with texts packed into a row."""
    model = lively(ODD, subject)
    worst, where = 0.0, ""
    for length, way in product((129, 128, 64, 7), WAYS):
        ids = ids_like_text(ODD, 2, length)
        before = _predictions(subject, model, ids, way)
        for at in sorted({1, length // 2, length - 3, length - 1}):
            other = ids.clone()
            other[:, at:] = (other[:, at:] + 1 + torch.arange(length - at)) % ODD.vocab_size
            moved = relative(_predictions(subject, model, other, way)[:, :at], before[:, :at])
            if not moved <= worst:
                worst, where = moved, f"of {length} tokens, changing number {at + 1:,} and later while {way}"
    if worst <= (1e-5 if subject.precision == "fp32" else 1e-2):
        yield Check("causality", True, "no earlier prediction depends on a later token")
    else:
        yield Check("causality", False, f"attention sees later tokens: {where}: earlier predictions move by {worst:.2g} of their size")


def _predictions(subject: Subject, model: GPT, ids: Tensor, way: str) -> Tensor:
    segments = subject.take((torch.arange(ids.shape[1]) // 50).expand_as(ids)) if way == "packed" else None
    with torch.inference_mode(way == "evaluating"), subject.around(), subject.autocast():
        return model.logits(model.hidden(subject.take(ids), segments=segments)).detach().float().cpu().clone()


# --- one pass ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """The results of one forward and backward pass, on the CPU."""

    logits: Tensor
    loss: float
    gradients: dict[str, Tensor]


def one_pass(subject: Subject, shape: ModelConfig, rows: int) -> Pass:
    """Logits, loss and gradients of a lively model of `shape`."""
    model = lively(shape, subject)
    ids = ids_like_text(shape, rows, shape.context_len + 1)
    targets = ids[:, 1:].clone()
    targets[:, ::11] = IGNORED
    with subject.around():
        with torch.inference_mode(), subject.autocast():
            logits = model(subject.take(ids[:, :-1])).float().cpu().clone()
        with subject.autocast():
            loss = model.loss(subject.take(ids[:, :-1]), subject.take(targets))
        (loss / targets.numel()).backward()  # type: ignore[no-untyped-call]
    total = float(loss.detach())
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return Pass(logits, total / targets.numel(), gradients)


@cache
def reference_pass(shape: ModelConfig, rows: int) -> Pass:
    """The same on one thread of the CPU in fp32, computed once."""
    with one_thread():
        return one_pass(REFERENCE, shape, rows)


def check_pass(subject: Subject, shape: ModelConfig, rows: int, label: str) -> Iterator[Check]:
    """Check that logits, loss and gradients equal the CPU's."""
    allowed = ALLOWED[subject.precision]
    found, wanted = one_pass(subject, shape, rows), reference_pass(shape, rows)
    error = relative(found.logits, wanted.logits)
    yield Check(f"forward pass, {label}", error <= allowed.values, f"predictions differ by {error:.1g} of their size")
    error = abs(found.loss - wanted.loss) / wanted.loss
    yield Check(f"loss, {label}", error <= allowed.loss, f"{found.loss:.6f}, on the CPU {wanted.loss:.6f}")
    errors = {name: relative(found.gradients[name], gradient) for name, gradient in wanted.gradients.items()}
    name = max(errors, key=lambda n: errors[n])
    yield Check(f"gradients, {label}", errors[name] <= allowed.gradients, f"the worst is {name}, off by {errors[name]:.1g} of its size")


def check_decoding(subject: Subject) -> Iterator[Check]:
    """Check that decoding token by token with a cache predicts the same as one pass."""
    model, ids = lively(ODD, subject), ids_like_text(ODD, 2, 40)
    cache = KVCache(ODD, 2, devices.torch_device(subject.device), torch.bfloat16 if subject.precision == "bf16" else torch.float32)
    with torch.inference_mode(), subject.around(), subject.autocast():
        parts = [model(subject.take(ids[:, :33]), cache)]
        parts += [model(subject.take(ids[:, i : i + 1]), cache) for i in range(33, 40)]
        found = torch.cat([part.float().cpu() for part in parts], dim=1)
    with torch.inference_mode():
        wanted = lively(ODD, REFERENCE)(ids)
    error = relative(found, wanted)
    yield Check("decoding with a cache", error <= ALLOWED[subject.precision].values, f"predictions differ by {error:.1g} of their size")


# --- many steps --------------------------------------------------------------------------------------------------------------------


class Course:
    """A model in training on the device, with the real optimizer."""

    def __init__(self, subject: Subject, shape: ModelConfig, rows: int) -> None:
        self.subject, self.shape, self.rows = subject, shape, rows
        self.model = GPT(shape).init_weights(0).to(devices.torch_device(subject.device))
        self.optimizer: Optimizer = build_optimizer(self.model, "muon", lr=LEARNING_RATE, muon_lr=None, weight_decay=0.1)
        self.step = 0

    def train(self, steps: int) -> list[float]:
        """Train `steps` more steps; return their losses in nats per token."""
        losses = []
        for _ in range(steps):
            ids = ids_like_text(self.shape, self.rows, self.shape.context_len + 1, seed=self.step)
            with self.subject.around():
                with self.subject.autocast():
                    loss = self.model.loss(self.subject.take(ids[:, :-1]), self.subject.take(ids[:, 1:]))
                (loss / ids[:, 1:].numel()).backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step(lr_at(self.step, Schedule(warmup_steps=5)), self.step)
                self.model.zero_grad(set_to_none=True)
                losses.append(float(loss.detach()) / ids[:, 1:].numel())
            self.step += 1
        return losses

    def weights(self) -> Tensor:
        """All weights as one vector on the CPU."""
        return torch.cat([p.detach().cpu().flatten() for p in self.model.parameters()])


@cache
def reference_course(shape: ModelConfig, rows: int, steps: int) -> tuple[list[float], Tensor]:
    """The losses and final weights of that many steps on the CPU in fp32."""
    course = Course(REFERENCE, shape, rows)
    return course.train(steps), course.weights()


def check_steps(subject: Subject, steps: int) -> Iterator[Check]:
    """Check that losses and weights after some optimizer steps equal the CPU's, and that the same steps twice give the same bytes."""
    allowed = ALLOWED[subject.precision]
    found, again = Course(subject, ODD, 2), Course(subject, ODD, 2)
    start, losses = found.weights(), found.train(steps)
    right, wanted = reference_course(ODD, 2, steps)
    apart = max(abs(a - b) / b if a == a else float("inf") for a, b in zip(losses, right, strict=True))
    moved = relative(found.weights() - start, wanted - start)
    ok = apart <= allowed.losses and moved <= allowed.weights
    detail = f"losses differ by at most {apart:.1g}, weights by {moved:.1g} of their way; loss {losses[0]:.3f} to {losses[-1]:.3f}"
    yield Check(f"{steps} optimizer steps", ok, detail)
    same = again.train(min(steps, 5)) == losses[:5] and (steps > 5 or torch.equal(again.weights(), found.weights()))
    detail = "the same steps give the same bytes" if same else "the same steps give other bytes: an interrupted run may differ afterwards"
    yield Check("determinism", same, detail, condemns=False)


def check_drift(subject: Subject, steps: int) -> Iterator[Check]:
    """Check that after many steps the loss equals the CPU's, and that memory does not grow."""
    found = Course(subject, SMALL, 8)
    losses, held = _train_watching(found, steps)
    right, _ = reference_course(SMALL, 8, steps)
    end = min(ENDING, steps)
    ours, theirs = sum(losses[-end:]) / end, sum(right[-end:]) / end
    apart = abs(ours - theirs) / theirs if ours == ours else float("inf")
    detail = f"the loss fell from {losses[0]:.3f} to {ours:.4f}, on the CPU to {theirs:.4f}"
    yield Check(f"drift over {steps} steps", apart <= ALLOWED[subject.precision].drift, detail)
    yield judge_memory(held)


def _train_watching(course: Course, steps: int) -> tuple[list[float], list[int]]:
    """Train; return the losses, and the bytes held after every CHUNK of steps."""
    losses: list[float] = []
    held: list[int] = []
    while len(losses) < steps:
        losses += course.train(min(CHUNK, steps - len(losses)))
        held.append(devices.used_memory(course.subject.device))
    return losses, held


def judge_memory(held: list[int]) -> Check:
    """Check that memory, read after every CHUNK of steps, does not grow after the first quarter, in which caches fill."""
    settled = held[len(held) // 4 :]
    growth = (settled[-1] - settled[0]) / max(1, CHUNK * (len(settled) - 1))
    late = (settled[-1] - settled[len(settled) // 2]) / max(1, CHUNK * (len(settled) - 1 - len(settled) // 2))
    grows = growth > GROWTH_BYTES and late > GROWTH_BYTES
    detail = f"memory grows by {growth / 1e6:.2f} MB a step" if grows else f"memory stays at {held[-1] / 1e6:,.0f} MB"
    return Check("memory", not grows, detail, condemns=False)
