"""The only training loop. Pretraining and fine-tuning differ in the batches they give it.

Shapes: R rows of a step, T time in tokens. A step is one optimizer update from R x T tokens, computed `micro_batch` rows at a time.
Everything a step does is a function of (weights, optimizer state, seed, step): stopping and going on leaves no trace.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from positron_mini import device as devices
from positron_mini.errors import CheckpointError, NonFiniteError, OutOfMemoryError
from positron_mini.model import GPT, IGNORED
from positron_mini.optim import Optimizer, Schedule, lr_at, update_average
from positron_mini.store.run_logs import StepReport


class Batch(NamedTuple):
    """The rows of one step, int64 on the CPU."""

    ids: Tensor  # (R, T)
    targets: Tensor  # (R, T), IGNORED where nothing is predicted
    segments: Tensor | None = None  # (R, T), attention stays inside equal numbers


class BatchSource(Protocol):
    """Rows as a pure function of the step."""

    # An iterator would be simpler, but a run that goes on would have to wind it forward, or save how far it was.

    def batch(self, step: int) -> Batch:
        """The rows of the update after `step` finished ones."""


@dataclass
class StopFlag:
    """Set by a signal handler; the loop looks at it after every micro-batch."""

    # a handler runs between any two instructions, in the middle of an update too: it may say that something happened, and no more
    signal_number: int | None = None


@dataclass(frozen=True)
class LoopConfig:
    """What the loop needs to know, all decided before it starts."""

    lr: float
    schedule: Schedule
    micro_batch: int  # rows at once, as the memory allows; the tokens of a step do not depend on it
    grad_clip: float  # the largest gradient norm that an update is made with
    dropout: float
    seed: int
    device: str
    precision: str  # bf16: of products only; weights, gradients and optimizer stay fp32, where a small update is not rounded away
    grad_limit: float | None = None  # a gradient norm above it counts as not finite
    max_skips: int = 0  # steps of the run that may be skipped because they are not finite


def _mix(*numbers: int) -> int:
    """One seed from several numbers, the same on every platform."""
    # a sum would do, but then seed 4 at step 1 would draw what seed 3 draws at step 2
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


class Clock:
    """Seconds of work. A step that takes far longer than the others was interrupted (a closed lid, SIGSTOP) and counts as a usual one."""

    def __init__(self, elapsed_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.elapsed_s, self.now = elapsed_s, now
        self._mark = now()
        self._usual: deque[float] = deque(maxlen=20)

    def lap(self) -> float:
        """Seconds since the last lap without pauses; they are added to `elapsed_s`."""
        mark = self.now()
        seconds, self._mark = mark - self._mark, mark
        if len(self._usual) >= 3 and seconds > max(5.0, 5 * statistics.median(self._usual)):
            seconds = statistics.median(self._usual)  # a budget and the time to the end go by this clock
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

    may_halve = True  # compute half as many rows at once where the first step does not fit into memory

    def __init__(
        self,
        model: GPT,
        optimizer: Optimizer,
        source: BatchSource,
        config: LoopConfig,
        *,  # none of them changes what a step computes
        loss: Callable[..., Tensor] | None = None,
        elapsed_s: float = 0.0,
    ) -> None:
        self.model, self.optimizer, self.source, self.config = model, optimizer, source, config
        self.step = 0
        self.tokens = 0  # tokens read by finished steps
        self.skipped = 0  # steps skipped so far
        self.is_whole = True  # False from the first changed weight of an update to its last: an error between leaves a step half made
        self.tell: Callable[[dict[str, Any]], None] = lambda event: None  # told what happens besides steps, for events.jsonl
        self.parameters = dict(model.named_parameters())  # the head is the embedding, and is in it once
        # What is saved, sampled and scored while the rate is constant is this average of the weights. The weights themselves jump from
        # side to side with every batch, as far as the rate makes them; their mean lies between, and is better at once than they will be
        # before the rate falls. Training goes on from the weights, so a checkpoint holds both. None once the rate falls.
        self.average: list[Tensor] | None = [p.detach().clone() for p in model.parameters()]
        self.clock = Clock(elapsed_s)
        self._loss: Callable[..., Tensor] = loss or model.loss  # the model's own, or a faster one with the same values (fast/losses.py)
        self._look: Callable[[], str] = getattr(loss, "look", lambda: "")  # such a one may have to give way to the model's own

    @property
    def is_cooling(self) -> bool:
        """Whether an update at a falling rate has been made; from then on the raw weights are the model."""
        start = self.config.schedule.cooldown_start
        return start is not None and self.step > start

    def run(self, until: int | None, stop: StopFlag) -> Iterator[StepReport]:
        """One report per finished update, up to step `until` or the horizon, or until `stop` is set.

        A step during which `stop` is set is dropped: nothing has changed yet. Where the first step does not fit into memory, half as
        many rows are computed at once. Raise NonFiniteError before the weights are touched, OutOfMemoryError if a single row does not fit.
        """
        self._begin()
        self.clock.lap_other()
        may_halve = self.may_halve
        while not self._is_at(until) and not self._is_at(self.config.schedule.horizon) and not self._has_stopped(stop):
            try:
                report = self._update(stop)
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
                # This could be simpler if one knew beforehand what fits, but other programs and the allocator have a say in it.
                self.model.zero_grad(set_to_none=True)
                if not (may_halve and self.is_whole and self.config.micro_batch > 1):
                    rows = self.config.micro_batch
                    raise OutOfMemoryError(
                        f"out of memory at step {self.step + 1:,} with {rows:,} rows at once",
                        f"add --micro_batch {max(1, rows // 2)}; tokens per step and results stay the same",
                    ) from error
                self._halve_micro_batch()
                continue
            may_halve = False  # what was enough for a step is enough for all, unless another program has taken it since
            if report is not None:
                yield report

    def _begin(self) -> None:
        """Tell if the loss is computed in another way from now on."""
        if text := self._look():
            self.tell({"kind": "kernels", "step": self.step, "text": text})

    def _is_at(self, end: int | None) -> bool:
        return end is not None and self.step >= end

    def _update(self, stop: StopFlag) -> StepReport | None:
        """One update; None when `stop` was set on the way, or when the step was skipped because it is not finite."""
        batch = self.source.batch(self.step)  # on the CPU: the device gets a micro-batch at a time
        # not by model.train(), which stays in force until somebody remembers eval(): dropout lasts as long as this block
        self.model.dropout = self.config.dropout
        try:
            gradients = self._gradients(batch, stop)
        finally:
            self.model.dropout = 0.0  # validation and samples between steps are without dropout
        if gradients is None:
            return None
        loss, grad_norm = gradients
        multiplier = lr_at(self.step, self.config.schedule)  # one for all rates: those of Muon and AdamW keep their proportion
        self.is_whole = False  # here the weights change; all that can fail of its own accord is behind
        self.optimizer.step(multiplier, self.step)
        self.model.zero_grad(set_to_none=True)  # None, not zeros: their memory is free for a validation
        self.step += 1
        self.tokens += batch.ids.numel()
        self._update_average()
        devices.synchronize(self.config.device)  # a GPU computes behind Python's back: without this the clock would stop too soon
        self.is_whole = True
        seconds = self.clock.lap()
        speed = batch.ids.numel() / max(seconds, 1e-9)
        return StepReport(self.step, self.tokens, loss, self.config.lr * multiplier, grad_norm, speed, self.clock.elapsed_s)

    def _gradients(self, batch: Batch, stop: StopFlag) -> tuple[float, float] | None:
        """Mean loss and gradient norm, with the clipped gradient in `.grad`; None (and no gradient) when there is to be no update.

        Each micro-batch adds its share of the mean over the whole step, so how the step is cut changes the order of additions only.
        """
        # The sum over a micro-batch is divided by the targets of the whole step, not by its own: micro-batches have different numbers of
        # targets (answers are short or long), and in a mean of means a token would count more for standing among few.
        count = max(1, int((batch.targets != IGNORED).sum()))
        total = torch.zeros((), device=self.config.device)  # added up there: reading it after every micro-batch would make the CPU wait
        for rows in self._micro_batches(batch, stop):
            total += self._backward(batch, rows, count)
        mean = self._sum(total, stop) / count
        # A step that was interrupted is dropped whole. An update from some of its rows would be a step that no other run makes: going on
        # would no longer give the bytes of never having stopped. What it costs is the work of one step.
        if self._has_stopped(stop):
            self.model.zero_grad(set_to_none=True)
            return None
        # Clipped once all micro-batches are summed: clipped one by one, the result would depend on how many there are. Muon makes updates
        # of one size from any gradient; it is the averages in its momentum and in AdamW that one wild batch would fill for many steps.
        # One norm for all parameters together: scaled by it, the gradient keeps its direction.
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        grad_norm = float(norm)
        limit = float("inf") if self.config.grad_limit is None else self.config.grad_limit
        # looked at before the update, since afterwards there is no way back: one NaN in a weight is in all logits at the next step
        if not (abs(mean) < float("inf") and grad_norm < limit):  # false for NaN too
            self._skip(mean, grad_norm)
            return None
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.grad_clip, norm)
        return mean, grad_norm

    def _micro_batches(self, batch: Batch, stop: StopFlag) -> Iterator[range]:
        """The rows of a step, as many at a time as are computed at once; no more once `stop` is set."""
        for rows in self._cut(batch, range(len(batch.ids))):
            yield rows
            if stop.signal_number is not None:
                return

    def _cut(self, batch: Batch, rows: range) -> list[range]:
        """`rows` in order, in parts that are computed at once."""
        size = self.config.micro_batch * max(1, self.model.config.context_len // batch.ids.shape[1])  # shorter rows, as many tokens
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def _backward(self, batch: Batch, rows: range, count: int) -> Tensor:
        """The summed loss of some rows, whose gradient, divided by `count`, is added to `.grad`."""
        if self.config.dropout:  # seeded anew for each micro-batch: whatever was drawn before, a run that goes on draws the same
            torch.manual_seed(_mix(self.config.seed, self.step, rows.start))
        # ids, targets and segments of these rows, (rows, T) each
        part = [None if t is None else t[rows.start : rows.stop].to(self.config.device) for t in batch]
        with devices.autocast(self.config.device, self.config.precision):
            loss = self._loss(*part)
        # outside of autocast: each operation goes back in the dtype it went forward in
        (loss / count).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _sum(self, total: Tensor, stop: StopFlag) -> float:
        """`total`, the loss summed over a step, as a number."""
        return float(total)  # sync point

    def _has_stopped(self, stop: StopFlag) -> bool:
        return stop.signal_number is not None

    def _skip(self, loss: float, grad_norm: float) -> None:
        """Count this step as done without an update; raise NonFiniteError if `max_skips` does not allow it."""
        evidence = self._evidence(loss, grad_norm)
        self.model.zero_grad(set_to_none=True)
        what = f"step {self.step + 1:,}: the loss is {loss:g} and the gradient norm {grad_norm:g}"
        if self.skipped >= self.config.max_skips or evidence["bad_weights"]:  # such weights would spoil every step after this one
            raise NonFiniteError(
                f"{what}; nothing was updated" + (f" ({self.skipped:,} steps were skipped before)" if self.skipped else ""),
                f"--on_nan skip --max_skips {self.skipped + 3} goes on without it; a new run with --lr {self.config.lr / 2:g} may avoid it",
                evidence={"kind": "non_finite", **evidence},
            )
        self.step += 1  # it counts as a step, or the same rows would come again and give the same
        self.skipped += 1
        self.clock.lap_other()
        self.tell({"kind": "skipped", "text": f"{what}; skipped ({self.skipped:,} of at most {self.config.max_skips:,})", **evidence})

    def _evidence(self, loss: float, grad_norm: float) -> dict[str, Any]:
        """What there is to know about a step that is not finite; numbers as text where JSON has none."""
        weights, gradients = [], []
        for name, parameter in self.parameters.items():
            if not bool(torch.isfinite(parameter).all()):
                weights.append(name)
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                gradients.append(name)
        return {
            "step": self.step + 1,
            "loss": f"{loss:g}",
            "grad_norm": f"{grad_norm:g}",
            "lr": self.config.lr * lr_at(self.step, self.config.schedule),
            "bad_weights": weights,
            "bad_gradients": gradients,
        }

    def _halve_micro_batch(self) -> None:
        """Compute half as many rows at once. The tokens of a step stay the same, and its result up to the order of additions."""
        before, now = self.config.micro_batch, self.config.micro_batch // 2
        self.config = replace(self.config, micro_batch=now)
        text = f"out of memory with {before:,} rows at once; going on with {now:,}, which gives the same tokens per step"
        self.tell({"kind": "micro_batch", "step": self.step, "before": before, "now": now, "text": text})

    def _update_average(self) -> None:
        if self.is_cooling:  # the weights come to rest by themselves; an average would hold them back
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
            self._swap()  # also after an error: a training that goes on from the average is another one

    def _swap(self) -> None:
        assert self.average is not None
        for i, parameter in enumerate(self.model.parameters()):
            # the tensors change places, nothing is copied; the optimizer knows the parameter, not its tensor, and notices nothing
            parameter.data, self.average[i] = self.average[i], parameter.data

    def model_weights(self) -> dict[str, Tensor]:
        """The tensors of `model.safetensors`."""
        if self.average is None:
            return {name: p.detach() for name, p in self.parameters.items()}
        return dict(zip(self.parameters, self.average, strict=True))

    def state_tensors(self) -> dict[str, Tensor]:
        """All tensors needed to go on exactly: raw weights, optimizer, average."""
        average = {} if self.average is None else {f"average.{n}": t for n, t in zip(self.parameters, self.average, strict=True)}
        # the rate, the order of the data and the draws of dropout are not among them: they follow from seed and step
        return {**{f"weights.{n}": p.detach() for n, p in self.parameters.items()}, **self.optimizer.state(), **average}

    def state_numbers(self) -> dict[str, Any]:
        """The numbers of `state.json`. No times: the same training gives the same bytes."""
        kind = "raw" if self.average is None else "average"
        return {"step": self.step, "tokens": self.tokens, "skipped": self.skipped, "weights": kind}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go on from what `state_tensors` and `state_numbers` returned. Raise CheckpointError if they do not fit this model."""
        step, tokens, skipped = numbers.get("step"), numbers.get("tokens"), numbers.get("skipped", 0)
        kind = numbers.get("weights")
        if not (_is_count(step) and _is_count(tokens) and _is_count(skipped) and kind in ("raw", "average")):
            raise CheckpointError(f"state.json is damaged: {numbers!r:.200}", "resume from another step")
        if kind == "raw":
            self.average = None
        # names and shapes are compared first: an error must not leave half of the tensors loaded
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
        self.step, self.tokens, self.skipped = step, tokens, skipped
