"""Data-parallel training: each process holds the whole model and computes its share of the rows of every step.

torchrun starts the processes, on one machine or many. A step is the same as with one process: the same rows in the same order, the
gradient of the mean over all of them, and one update, which every process computes for itself from the same numbers. PyTorch's
DistributedDataParallel sums the gradients during the backward pass of the last micro-batch; earlier ones accumulate locally. Only the
first process writes files. `ALONE` is the stand-in for a run with one process, and does nothing.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from positron_mini.errors import DataError, PositronError, UsageError
from positron_mini.store.run_logs import StepReport
from positron_mini.trainer import Batch, StopFlag, Trainer

Loss = Callable[..., Tensor]
# Long, because the first process may be writing samples or preparing a text. The loss of a process is noticed at once, by its connection.
_STEP_TIMEOUT, _START_TIMEOUT = timedelta(minutes=30), timedelta(days=7)


class PeerError(PositronError):
    """Another process of the run died; the last checkpoint is intact."""


class Processes:
    """The processes of a run, seen from one of them. This base class is a run with a single process."""

    rank = 0
    size = 1
    per_machine = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks to the person."""
        return self.rank == 0

    def trainer(self, *parts: Any, **settings: Any) -> Trainer:
        """Make the `Trainer` for these arguments, whose steps all processes compute together."""
        return Trainer(*parts, **settings)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Sum of each number over all processes."""
        return list(numbers)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block in the first process, then in the others, which can use the files it wrote; return when all are through."""
        yield

    def check_equal(self, tensors: Sequence[Tensor]) -> None:
        """Raise DataError if the tensors of another process differ."""

    def explain(self, error: Exception) -> PositronError | None:
        """The error to show for `error` if it means that the processes lost each other; None for any other error."""
        return None

    def leave(self) -> None:
        """Leave the process group."""


ALONE = Processes()


@dataclass
class _Count:
    bytes: int = 0


@dataclass
class Group(Processes):
    """One of several processes."""

    rank: int
    size: int
    per_machine: int = 1
    _given: _Count = field(default_factory=_Count, repr=False)  # separate: PyTorch keeps a reference to it, and should not keep all of this
    _parts: _LossOf | None = field(default=None, repr=False)
    _shared: Any = field(default=None, repr=False)
    _control: Any = field(default=None, repr=False)  # a gloo group on the CPU for a few numbers at a time, whatever the device
    _stopped: bool = False

    def trainer(self, *parts: Any, **settings: Any) -> Trainer:
        """Make the `SharedTrainer` for these arguments."""
        return SharedTrainer(self, *parts, **settings)

    def share(self, rows: int) -> range:
        """Rows of a step that this process computes."""
        return range(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def shared_loss(self, model: nn.Module, loss: Loss) -> Loss:
        """`loss`, computed through DistributedDataParallel; `meet` makes that later, because the other processes may not have started yet.
        """
        self._parts = _LossOf(model, loss)
        return lambda *batch: self._shared(*batch)

    def meet(self) -> None:
        """Wrap the loss in DistributedDataParallel, once; the constructor talks to the other processes."""
        if self._shared is not None or self._parts is None:
            return
        from torch.nn.parallel import DistributedDataParallel

        # gradients live in the exchange buffers: no second copy
        self._shared = DistributedDataParallel(self._parts, gradient_as_bucket_view=True)
        self._shared.register_comm_hook(self._given, lambda given, bucket: _add_up(given, bucket))
        self._settle_buckets(self._parts)

    def _settle_buckets(self, parts: _LossOf) -> None:
        """Let PyTorch sort the gradients into buffers now; by default it does so after the first backward pass.

        Rounding depends on the order of summation, and that on the buffers: a resumed run must not sort them differently.
        """
        nothing = torch.zeros(1, 8, dtype=torch.int64, device=next(parts.parameters()).device)
        self._shared(nothing, nothing, None, plain=True).backward()
        parts.zero_grad(set_to_none=True)
        self._given.bytes = 0

    @property
    def exchanged_bytes(self) -> int:
        """Bytes of gradients that this process has sent for summing."""
        return self._given.bytes

    def exchange(self, now: bool) -> contextlib.AbstractContextManager[object]:
        """A context for a backward pass: with `now` gradients are exchanged in it, otherwise they accumulate locally."""
        context: contextlib.AbstractContextManager[object] = contextlib.nullcontext() if now else self._shared.no_sync()
        return context

    def step_total(self, total: Tensor, stop: StopFlag) -> float:
        """Sum of `total` over all processes, added in order of rank."""
        rows = self._gather([float(total), float(stop.signal_number or 0)])
        signal = int(max(row[1] for row in rows))
        if signal:
            stop.signal_number, self._stopped = signal, True
        return math.fsum(row[0] for row in rows)

    @property
    def has_stopped(self) -> bool:
        """Whether all processes have agreed to stop: the others would wait for one that left alone."""
        return self._stopped

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Sum of each number over all processes, exactly rounded."""
        return [math.fsum(column) for column in zip(*self._gather(numbers), strict=True)]

    def _gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of every process, by rank."""
        mine = torch.tensor(list(numbers), dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=self._control)
        return [row.tolist() for row in found]

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block in the first process, then in all others at once."""
        if not self.is_first:
            dist.barrier(group=self._control)
        yield
        if self.is_first:
            dist.barrier(group=self._control)
        dist.barrier(group=self._control)

    def check_equal(self, tensors: Sequence[Tensor]) -> None:
        """Raise DataError if a hash of the sums of all tensors differs."""
        sums = torch.stack([tensor.detach().sum(dtype=torch.float64).cpu() for tensor in tensors])
        digest = hashlib.sha256(sums.numpy().tobytes()).digest()[:6]  # 48 bits, which a float64 holds
        if len({row[0] for row in self._gather([float(int.from_bytes(digest, "big"))])}) > 1:
            raise DataError(
                "the processes of this run do not begin with the same weights", "let all of them see the same files, and the same version"
            )

    def explain(self, error: Exception) -> PositronError | None:
        """A PeerError for PyTorch's errors about broken connections and timeouts."""
        if isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in _LOST):
            return PeerError("another process of this run has ended", "start the same command again: it goes on from the newest checkpoint")
        return None

    def leave(self) -> None:
        """Leave the process group: close the connections and free what refers to them."""
        self._parts = self._shared = self._control = None
        gc.collect()  # DistributedDataParallel is in a reference cycle
        if dist.is_initialized():
            dist.destroy_process_group()


class SharedTrainer(Trainer):
    """A Trainer that computes its share of each step and sums gradients and loss with the other processes."""

    may_halve = False  # all processes would have to agree on it

    def __init__(self, processes: Group, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.processes = processes
        self._loss = processes.shared_loss(self.model, self._loss)

    def _begin(self) -> None:
        self.processes.meet()

    def _update(self, stop: StopFlag) -> StepReport | None:
        try:
            return super()._update(stop)
        except (RuntimeError, MemoryError) as error:
            if lost := self.processes.explain(error):
                raise lost from error
            raise

    def _micro_batches(self, batch: Batch, stop: StopFlag) -> Iterator[range]:
        """Micro-batches of this process; once `stop` is set only the last one: the other processes are waiting to exchange its gradients.
        """
        parts = self._cut(batch, self.processes.share(len(batch.ids)))
        for rows in parts:
            if stop.signal_number is None or rows is parts[-1]:
                yield rows

    def _backward(self, batch: Batch, rows: range, count: int) -> Tensor:
        """Accumulate gradients locally for all micro-batches but the last, whose backward pass exchanges their sum."""
        with self.processes.exchange(rows.stop == self.processes.share(len(batch.ids)).stop):
            return super()._backward(batch, rows, count)

    def _sum(self, total: Tensor, stop: StopFlag) -> float:
        return self.processes.step_total(total, stop)

    def _has_stopped(self, stop: StopFlag) -> bool:
        return self.processes.has_stopped


_LOST = ("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe", "gloo", "nccl", "timed out waiting")


class _LossOf(nn.Module):
    """The loss of a model as a module, as DistributedDataParallel requires."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.weights = nn.ParameterList(model.parameters())
        self._loss, self._plain = loss, model.loss

    def forward(self, *batch: Tensor | None, plain: bool = False) -> Tensor:
        """Loss of some rows; `plain`: not compiled."""
        loss: Loss = self._plain if plain else self._loss  # type: ignore[assignment]
        return loss(*batch)


def _add_up(given: _Count, bucket: Any) -> Any:
    """Sum a bucket of gradients over all processes; DistributedDataParallel by itself would take the mean."""
    given.bytes += bucket.buffer().nbytes
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def join(device: str) -> Processes:
    """Join the process group that torchrun started, for the device cpu or cuda; return `ALONE` if there is none.

    Errors: UsageError for a device that the processes cannot share, PeerError when the others cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if device not in ("cpu", "cuda"):
        raise UsageError(f"{size} processes cannot share --device {device}", "--device cpu, or a single process")
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=_STEP_TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=_START_TIMEOUT)
        dist.barrier(control)  # otherwise the first process could exit with an error of its own while others are still connecting
    except (RuntimeError, ValueError) as error:
        raise PeerError(f"the {size} processes of this run did not find each other ({error})", "start them with torchrun") from error
    return Group(dist.get_rank(), size, int(os.environ.get("LOCAL_WORLD_SIZE", size)), _control=control)
