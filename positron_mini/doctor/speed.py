"""The training speed of a device in fp32 and bf16, from a few seconds of work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from positron_mini import device as devices
from positron_mini.config import ModelConfig, preset_shape
from positron_mini.device import Machine
from positron_mini.device.quiet import Usage, disturbance, paired, share_had
from positron_mini.doctor.subject import Check, Subject, one_thread
from positron_mini.model import GPT
from positron_mini.optim import build_optimizer
from positron_mini.train.speed import fastest, measure_speed

HOPELESS = 2.0  # a bf16 matmul that takes this many times as long as in fp32 is emulated
QUIET_MACHINE, PAIRS_AGREE = "a quiet machine", "pairs that agree"
DISTURBANCES = (QUIET_MACHINE, PAIRS_AGREE)  # if one of these checks fails, the speeds are unreliable
Clock = Callable[[], float]


@dataclass(frozen=True)
class Pace:
    """The cost of a preset on a device: `tok_per_s` of forward and backward passes, `update_s` of one optimizer step."""

    tok_per_s: float
    update_s: float

    def training(self, batch_tokens: int) -> float:
        """Tokens per second of training with `batch_tokens` tokens per step."""
        return batch_tokens / (batch_tokens / self.tok_per_s + self.update_s)


def time_small_product(subject: Subject, dtype: torch.dtype, clock: Clock = time.perf_counter) -> float:
    """Seconds of one matmul of 256 x 256 matrices, the fastest of five after a warm-up, which may compile a kernel.

    A CPU uses one thread: on a busy machine, threads that wait for each other take a hundred times as long in any precision.
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
    return max(min(seconds[1:]), 1e-9)


def hopeless_bf16(times: float) -> str:
    """Why to skip bf16, if a small matmul takes `times` as long as in fp32; empty to examine it."""
    return f"is emulated here: one small product takes {times:,.0f} times as long as in fp32" if times >= HOPELESS else ""


def judge_quiet(before: Usage, after: Usage, threads: int, cores: int) -> Check:
    """Check that other programs left the CPU to this process during the measurement; see `quiet.disturbance`."""
    disturbed = disturbance(before, after, threads, cores)
    if disturbed:
        return Check(QUIET_MACHINE, False, f"{disturbed}: close other programs and run it again for the real speed", condemns=False)
    return Check(QUIET_MACHINE, True, f"{share_had(before, after, threads):.0%} of the processor was free for the measurement")


def compare_precisions(machine: Machine, preset: str) -> tuple[float, Check]:
    """The CPU's training speed in bf16 relative to fp32, by pairs, and a check that the pairs agree."""
    ways = [Subject("cpu", "fp32"), Subject("cpu", "bf16")]
    fp32, bf16 = (partial(_tok_per_s, way, preset, machine) for way in ways)
    found = paired(fp32, bf16, devices.BF16_GAIN)
    said = f"bf16 trains {found.median:.2f} times as fast as fp32, by pairs of measurements"
    return found.median, Check(PAIRS_AGREE, found.is_clear, said + ("" if found.is_clear else " that do not agree"), condemns=False)


def _tok_per_s(subject: Subject, preset: str, machine: Machine) -> float:
    return measure_pace(subject, preset, machine).tok_per_s


def rows_at_once(shape: ModelConfig, machine: Machine, device: str) -> int:
    """Rows of a micro-batch in training with the device's default tokens per step."""
    rows = max(1, round(devices.BATCH_TOKENS[device] / shape.context_len))
    return devices.micro_batch_rows(shape, shape.context_len, rows, device, machine.memory_bytes)


def measure_pace(subject: Subject, preset: str, machine: Machine, *, compiled: bool = False) -> Pace:
    """Training speed of `preset` with random weights: the best of three micro-batches, and the better of two optimizer steps.

    A CPU is timed on one row, which is as fast per token as several, within a few per cent.
    """
    shape = preset_shape(preset)
    model = GPT(shape).init_weights(0).to(devices.torch_device(subject.device))
    rows = 1 if subject.device == "cpu" else rows_at_once(shape, machine, subject.device)
    if compiled:
        part = "hidden" if subject.device == "cpu" else "loss"  # the part that training compiles
        setattr(model, part, devices.compiled(getattr(model, part)))
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
