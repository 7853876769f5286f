"""How fast a device trains, in fp32 and bf16, from a few seconds of work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from positron_mini import device as devices
from positron_mini.announce import fastest, measure_speed
from positron_mini.config import ModelConfig, preset_shape
from positron_mini.device import Machine
from positron_mini.doctor.subject import Check, Subject, one_thread
from positron_mini.model import GPT
from positron_mini.optim import build_optimizer

HOPELESS = 2.0  # times as long as in fp32 for one product: bf16 is emulated
QUIET = 0.6  # share of the processor that this program has at least, where no other takes it away
Clock = Callable[[], float]


@dataclass(frozen=True)
class Pace:
    """What a preset costs on a device: `tok_per_s` of forward and backward passes, and `update_s` of one optimizer step."""

    tok_per_s: float
    update_s: float

    def training(self, batch_tokens: int) -> float:
        """Tokens per second of training with steps of that many tokens."""
        return batch_tokens / (batch_tokens / self.tok_per_s + self.update_s)


def time_small_product(subject: Subject, dtype: torch.dtype, clock: Clock = time.perf_counter) -> float:
    """Seconds of one product of 256 x 256 matrices, the fastest of five; the first, which may compile a kernel, is left out.

    On one thread of the CPU: two that wait for each other on a busy machine take a hundred times as long in any precision.
    """
    a = subject.take(torch.ones(256, 256)).to(dtype)
    seconds = []
    with one_thread():
        for _ in range(6):
            devices.synchronize(subject.device)
            began = clock()
            with subject.around():
                _ = a @ a
            devices.synchronize(subject.device)
            seconds.append(clock() - began)
    return min(seconds[1:])


def hopeless_bf16(fp32_s: float, bf16_s: float) -> str:
    """Why bf16 is not worth an examination, from the times of one small product; empty where it may be."""
    times = bf16_s / max(fp32_s, 1e-9)
    return f"is emulated here: one small product takes {times:,.0f} times as long as in fp32" if times >= HOPELESS else ""


def judge_quiet(wall_s: float, cpu_s: float, threads: int) -> Check:
    """Whether the CPU worked for this process alone while speeds were measured: of `threads` cores for `wall_s`, it had `cpu_s`."""
    share = cpu_s / max(wall_s * threads, 1e-9)
    if share >= QUIET:
        return Check("a quiet machine", True, f"{min(share, 1):.0%} of the processor was free for the measurement")
    detail = f"only {share:.0%} of the processor was free for the measurement: close other programs and run it again for the real speed"
    return Check("a quiet machine", False, detail, condemns=False)


def rows_at_once(shape: ModelConfig, machine: Machine, device: str) -> int:
    """Rows that training computes at once with the device's tokens a step."""
    rows = max(1, round(devices.BATCH_TOKENS[device] / shape.context_len))
    return devices.micro_batch_rows(shape, shape.context_len, rows, device, machine.memory_bytes)


def measure_pace(subject: Subject, preset: str, machine: Machine, *, compiled: bool = False) -> Pace:
    """Speed of training `preset` from random weights, in the best of three micro-batches, and of the optimizer, in the better of two.

    A CPU computes one row at a time as fast as several, within a few per cent, so it is timed on one.
    """
    shape = preset_shape(preset)
    model = GPT(shape).init_weights(0).to(devices.torch_device(subject.device))
    rows = 1 if subject.device == "cpu" else rows_at_once(shape, machine, subject.device)
    if compiled:
        model.loss = torch.compile(model.loss, dynamic=False)  # type: ignore[method-assign]
    with subject.around():
        tok_per_s = measure_speed(model, subject.device, subject.precision, rows=rows, compiled=compiled)
        update_s = _time_update(model, subject)
    devices.forget_cached_memory(subject.device)
    return Pace(tok_per_s, update_s)


def _time_update(model: GPT, subject: Subject) -> float:
    optimizer = build_optimizer(model, "muon", lr=1e-3, muon_lr=None, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    def once() -> None:
        optimizer.step(1.0, 0)
        devices.synchronize(subject.device)

    devices.synchronize(subject.device)
    return fastest(once, calls=2, warms_up=subject.device != "cpu")
