"""The only training loop. Pretraining and fine-tuning differ in the batches they give it.

Shapes: R rows a step, T time in tokens. A step is one optimizer update from R x T tokens, computed `micro_batch` rows at a time.
Everything a step does is a function of (weights, optimizer state, seed, step): stopping and going on leaves no trace.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from positron_mini import device as devices
from positron_mini.errors import CheckpointError, NonFiniteError, OutOfMemoryError
from positron_mini.model import GPT, IGNORED
from positron_mini.optim import Optimizer, Schedule, lr_at, update_average


class Batch(NamedTuple):
    """The rows of one step, int64 on the CPU."""

    ids: Tensor  # (R, T)
    targets: Tensor  # (R, T), IGNORED where nothing is predicted
    segments: Tensor | None = None  # (R, T), attention stays inside equal numbers


class BatchSource(Protocol):
    """Rows as a pure function of the step."""

    def batch(self, step: int) -> Batch:
        """The rows of the update after `step` finished ones."""


@dataclass(frozen=True)
class StepReport:
    """One finished update. `loss` is the mean over the step's targets before the update, in nats per token."""

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tok_per_s: float
    elapsed_s: float
    val_loss: float | None = None
    val_bpb: float | None = None

    def record(self) -> dict[str, Any]:
        """The line for metrics.jsonl; validation only where there was one."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "loss": round(self.loss, 6),
            "lr": float(f"{self.lr:.6g}"),
            "grad_norm": round(self.grad_norm, 6),
            "tok_per_s": round(self.tok_per_s, 1),
            "elapsed_s": round(self.elapsed_s, 3),
            **({} if self.val_loss is None else {"val_loss": round(self.val_loss, 6)}),
            **({} if self.val_bpb is None else {"val_bpb": round(self.val_bpb, 6)}),
        }


@dataclass
class StopFlag:
    """Set by a signal handler; the loop looks at it after every micro-batch."""

    signal_number: int | None = None


@dataclass(frozen=True)
class LoopConfig:
    """What the loop needs to know, all decided before it starts."""

    lr: float
    schedule: Schedule
    micro_batch: int  # rows
    grad_clip: float
    dropout: float
    seed: int
    device: str
    precision: str
    compile: bool


def _mix(*numbers: int) -> int:
    """One seed from several numbers, the same on every platform."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Clock:
    """Seconds of work; a pause (a closed lid, SIGSTOP) is recognised by a step that takes far longer than the others and does not count."""

    def __init__(self, elapsed_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.elapsed_s, self.now = elapsed_s, now
        self._mark = now()
        self._usual: deque[float] = deque(maxlen=20)

    def lap(self) -> float:
        """Seconds since the last lap, pauses taken out, added to `elapsed_s`."""
        mark = self.now()
        seconds, self._mark = mark - self._mark, mark
        if len(self._usual) >= 3 and seconds > max(5.0, 5 * statistics.median(self._usual)):
            seconds = statistics.median(self._usual)
        self._usual.append(seconds)
        self.elapsed_s += seconds
        return seconds

    def lap_other(self) -> None:
        """Count the time since the last lap as work that is not training: evaluation, samples, saving."""
        mark = self.now()
        self.elapsed_s += mark - self._mark
        self._mark = mark


class Trainer:
    """A model, its optimizer, its running average and the number of finished steps; `run` does the work."""

    def __init__(self, model: GPT, optimizer: Optimizer, source: BatchSource, config: LoopConfig, *, elapsed_s: float = 0.0) -> None:
        self.model, self.optimizer, self.source, self.config = model, optimizer, source, config
        self.step = 0
        self.tokens = 0  # tokens read by finished steps
        self.parameters = dict(model.named_parameters())
        self.average: list[Tensor] | None = [p.detach().clone() for p in model.parameters()]  # None once the rate falls
        self.clock = Clock(elapsed_s)
        self._loss: Callable[..., Tensor] = torch.compile(model.loss, dynamic=False) if config.compile else model.loss

    @property
    def is_cooling(self) -> bool:
        """Whether an update at a falling rate has been made; from then on the raw weights are the model."""
        start = self.config.schedule.cooldown_start
        return start is not None and self.step > start

    def run(self, until: int | None, stop: StopFlag) -> Iterator[StepReport]:
        """One report per finished update, up to step `until` or the horizon, or until `stop` is set.

        A step during which `stop` is set is dropped: nothing has changed yet. Errors: NonFiniteError before the weights are touched,
        OutOfMemoryError.
        """
        horizon = self.config.schedule.horizon
        last = min((end for end in (until, horizon) if end is not None), default=None)
        self.clock.lap_other()
        while (last is None or self.step < last) and stop.signal_number is None:
            try:
                report = self._update(stop)
            except (RuntimeError, MemoryError) as error:
                if devices.is_out_of_memory(error):
                    raise OutOfMemoryError(
                        f"out of memory at step {self.step + 1:,} with {self.config.micro_batch} rows at once",
                        f"add --micro_batch {max(1, self.config.micro_batch // 2)}; tokens per step and results stay the same",
                    ) from error
                raise
            if report is None:
                return
            yield report

    def _update(self, stop: StopFlag) -> StepReport | None:
        """One update, or None when `stop` was set on the way."""
        batch = self.source.batch(self.step)
        self.model.dropout = self.config.dropout
        try:
            gradients = self._gradients(batch, stop)
        finally:
            self.model.dropout = 0.0  # whoever uses the model between steps, or after a stop, gets it without
        if gradients is None:
            return None
        loss, grad_norm = gradients
        multiplier = lr_at(self.step, self.config.schedule)
        self.optimizer.step(multiplier)
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.ids.numel()
        self._update_average()
        devices.synchronize(self.config.device)
        seconds = self.clock.lap()
        speed = batch.ids.numel() / max(seconds, 1e-9)
        return StepReport(self.step, self.tokens, loss, self.config.lr * multiplier, grad_norm, speed, self.clock.elapsed_s)

    def _gradients(self, batch: Batch, stop: StopFlag) -> tuple[float, float] | None:
        """Mean loss and gradient norm, with the clipped gradient in `.grad`; None (and no gradient) when `stop` was set on the way.

        Each micro-batch adds its share of the mean over the whole step, so the result does not depend on how the step is cut.
        """
        count = int((batch.targets != IGNORED).sum())
        total = torch.zeros((), device=self.config.device)
        rows = self.config.micro_batch * max(1, self.model.config.context_len // batch.ids.shape[1])  # shorter rows, as many tokens
        for first in range(0, len(batch.ids), rows):
            if self.config.dropout:
                torch.manual_seed(_mix(self.config.seed, self.step, first))
            part = [None if t is None else t[first : first + rows].to(self.config.device) for t in batch]
            with devices.autocast(self.config.device, self.config.precision):
                loss = self._loss(*part)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            if stop.signal_number is not None:
                self.model.zero_grad(set_to_none=True)
                return None
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        mean, grad_norm = float(total) / count, float(norm)  # sync point
        self._check_finite(mean, grad_norm)
        return mean, grad_norm

    def _check_finite(self, loss: float, grad_norm: float) -> None:
        if not (abs(loss) < float("inf") and grad_norm < float("inf")):  # false for NaN too
            self.model.zero_grad(set_to_none=True)
            raise NonFiniteError(
                f"step {self.step + 1:,}: the loss is {loss:g} and the gradient norm {grad_norm:g}; nothing was updated",
                f"lower the learning rate (--lr {self.config.lr / 2:g}), or use --precision fp32, then start again",
            )

    def _update_average(self) -> None:
        if self.is_cooling:
            self.average = None
        elif self.average is not None:
            update_average(self.average, [p.detach() for p in self.model.parameters()], self.step)

    @contextlib.contextmanager
    def best_weights(self) -> Iterator[GPT]:
        """The model as it would be saved now: with averaged weights while the rate is constant. The raw ones come back afterwards."""
        if self.average is None:
            yield self.model
            return
        self._swap()
        try:
            yield self.model
        finally:
            self._swap()

    def _swap(self) -> None:
        assert self.average is not None
        for i, parameter in enumerate(self.model.parameters()):
            parameter.data, self.average[i] = self.average[i], parameter.data

    def model_weights(self) -> dict[str, Tensor]:
        """The tensors of `model.safetensors`."""
        if self.average is None:
            return {name: p.detach() for name, p in self.parameters.items()}
        return dict(zip(self.parameters, self.average, strict=True))

    def state_tensors(self) -> dict[str, Tensor]:
        """All tensors needed to go on exactly: raw weights, optimizer, average."""
        average = {} if self.average is None else {f"average.{n}": t for n, t in zip(self.parameters, self.average, strict=True)}
        return {**{f"weights.{n}": p.detach() for n, p in self.parameters.items()}, **self.optimizer.state(), **average}

    def state_numbers(self) -> dict[str, Any]:
        """The numbers of `state.json`. No times: the same training gives the same bytes."""
        return {"step": self.step, "tokens": self.tokens, "weights": "raw" if self.average is None else "average"}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go on from what `state_tensors` and `state_numbers` returned. Errors: CheckpointError when they do not fit this model."""
        step, tokens, kind = numbers.get("step"), numbers.get("tokens"), numbers.get("weights")
        if not (type(step) is int and type(tokens) is int and step >= 0 and tokens >= 0 and kind in ("raw", "average")):
            raise CheckpointError(f"state.json is damaged: step {step!r}, tokens {tokens!r}, weights {kind!r}", "resume from another step")
        if kind == "raw":
            self.average = None
        expected = {name: tuple(t.shape) for name, t in self.state_tensors().items()}
        found = {name: tuple(t.shape) for name, t in tensors.items()}
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
            raise CheckpointError(
                f"the training state does not fit this model and optimizer (first difference: {wrong})", "resume from another step"
            )
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"weights.{name}"])
        self.optimizer.load_state(tensors)
        if self.average is not None:
            for name, average in zip(self.parameters, self.average, strict=True):
                average.copy_(tensors[f"average.{name}"])
        self.step, self.tokens = step, tokens
