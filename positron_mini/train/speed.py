"""Training speed of this machine, measured in a short trial, and the time that a run will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import torch

from positron_mini import device as devices
from positron_mini.config import preset_shape
from positron_mini.config.units import spell_time
from positron_mini.errors import OutOfMemoryError
from positron_mini.fast.losses import loss_function
from positron_mini.model import GPT
from positron_mini.optim import build_optimizer
from positron_mini.train.plan import Plan
from positron_mini.train.settings import Settings

PATIENCE_S = 4.0  # for timing one candidate


def measure_speed(model: GPT, device: str, precision: str, *, rows: int, compiled: bool = False, native: bool = False) -> float:
    """Tokens per second of training, measured in a short trial with `rows` rows, without changing the model.

    The plain model is measured for `compiled` training too: what the compiler saves, the optimizer and the validations take again. With
    `native` kernels a Muon update is included. Rows that do not fit the memory are halved, as the first step will halve them. Errors:
    OutOfMemoryError when a single row does not fit.
    """
    while True:
        try:
            return _measure(model, device, precision, rows, compiled, native)
        except (RuntimeError, MemoryError) as error:
            if not devices.is_out_of_memory(error):
                raise
            if rows == 1:
                raise OutOfMemoryError(
                    f"out of memory with a single row of {model.config.context_len:,} tokens",
                    "close other programs, or choose a smaller --context_len or --config",
                ) from error
            model.zero_grad(set_to_none=True)
        rows //= 2


def _measure(model: GPT, device: str, precision: str, rows: int, compiled: bool, native: bool) -> float:
    batch = torch.zeros(rows, model.config.context_len, dtype=torch.long, device=device)
    loss_of = loss_function(model, device, compiled=False, native=native)
    optimizer = build_optimizer(model, "muon", lr=0.0, muon_lr=None, weight_decay=0.0) if native else None

    def once() -> None:
        with devices.autocast(device, precision):
            loss = loss_of(batch, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step(0.0, 0)
            model.zero_grad(set_to_none=True)
        devices.synchronize(device)

    speed = batch.numel() / fastest(once, warms_up=compiled or device != "cpu")
    model.zero_grad(set_to_none=True)
    return speed


def fastest(once: Callable[[], None], calls: int = 3, *, warms_up: bool, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the fastest of `calls` calls; of fewer on a slow or busy machine, as no call begins after PATIENCE_S.

    `warms_up`: the first call may compile something, so a second is always made, and the limit counts from its start.
    """
    least = 2 if warms_up else 1
    marks = [clock()]
    while len(marks) <= least or (len(marks) <= calls and marks[-1] - marks[least - 1] < PATIENCE_S):
        once()
        marks.append(clock())
    return min(end - began for began, end in pairwise(marks))


def time_lines(model: GPT, settings: Settings, plan: Plan, processes: int) -> list[str]:
    """Expected time of the planned steps, from a short measurement; over an hour, also a shorter command."""
    # measured without compiling, where a row needs more memory than in training
    rows = (settings.micro_batch + 1) // 2 if settings.compile else settings.micro_batch
    native, choice = settings.kernels == "native", settings.choice
    speed = processes * measure_speed(model, choice.device, choice.precision, rows=rows, compiled=settings.compile, native=native)
    end = min((e for e in (plan.until, plan.schedule.horizon) if e is not None), default=None)
    if end is None:
        return [f"time       open-ended, about {spell_time(settings.step_tokens / speed)} a step; stop with Ctrl-C, end with --finish"]
    seconds = (end - plan.start) * settings.step_tokens / speed
    lines = [f"time       about {spell_time(seconds)} for steps {plan.start + 1:,} to {end:,} at about {speed:,.0f} tokens a second"]
    if seconds > 3_600:
        micro = preset_shape("MicroGPT")
        micro_speed = speed * settings.shape.flops_per_token() / micro.flops_per_token()
        steps = max(100, round(600 * micro_speed / 2_048 / 50) * 50)
        lines.append(
            f"           for a first model in about 10 min: positron train --config MicroGPT --batch_tokens 2048 --max_steps {steps}"
        )
    return lines
