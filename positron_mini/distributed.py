"""Several processes, one run: each holds the whole model and computes its share of the rows of every step.

The processes are started by torchrun, on one machine or many. A step is what it is with one process: the same rows in the same order, the
gradient of the mean over all of them, one update, which every process makes for itself from the same numbers. PyTorch's
DistributedDataParallel adds the gradients up during the backward pass of the last micro-batch; those before it add up locally. The first
process alone writes. A run with one process has `ALONE` in place of all this, and Trainer in place of SharedTrainer.
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
# The first process may write samples and a checkpoint meanwhile, or prepare a text; one that is gone is noticed at once by its connection.
_STEP_TIMEOUT, _START_TIMEOUT = timedelta(minutes=30), timedelta(days=7)


class PeerError(PositronError):
    """Another process of the run is gone; what the run had saved is intact."""


class Processes:
    """The processes of a run, seen from one of them. This class is a run with a single process."""

    rank = 0
    size = 1
    per_machine = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes, and talks."""
        return self.rank == 0

    def trainer(self, *parts: Any, **settings: Any) -> Trainer:
        """A `Trainer` with these arguments, whose steps all processes make together."""
        return Trainer(*parts, **settings)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes."""
        return list(numbers)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block in the first process, then in the others, which can use the files it wrote; return when all are through."""
        yield

    def check_equal(self, tensors: Sequence[Tensor]) -> None:
        """Raise DataError if another process holds other numbers."""

    def explain(self, error: Exception) -> PositronError | None:
        """The error of this run that `error` stands for when the processes lost each other; None for any other error."""
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
    _given: _Count = field(default_factory=_Count, repr=False)  # an object of its own: PyTorch keeps it alive, and would keep all of this
    _parts: _LossOf | None = field(default=None, repr=False)
    _shared: Any = field(default=None, repr=False)
    _control: Any = field(default=None, repr=False)  # a few numbers at a time, on the CPU, whatever computes the rest
    _stopped: bool = False

    def trainer(self, *parts: Any, **settings: Any) -> Trainer:
        """A `SharedTrainer` with these arguments."""
        return SharedTrainer(self, *parts, **settings)

    def share(self, rows: int) -> range:
        """The rows of a step that this process computes."""
        return range(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def shared_loss(self, model: nn.Module, loss: Loss) -> Loss:
        """`loss` by way of DistributedDataParallel, which is made by `meet`: a process may be alone here, with the others yet to come."""
        self._parts = _LossOf(model, loss)
        return lambda *batch: self._shared(*batch)

    def meet(self) -> None:
        """Make DistributedDataParallel of the loss, once; it talks to the others as it is made."""
        if self._shared is not None or self._parts is None:
            return
        from torch.nn.parallel import DistributedDataParallel

        # gradients live in the buffers that are sent: nothing is held twice
        self._shared = DistributedDataParallel(self._parts, gradient_as_bucket_view=True)
        self._shared.register_comm_hook(self._given, lambda given, bucket: _add_up(given, bucket))
        self._settle_buckets(self._parts)

    def _settle_buckets(self, parts: _LossOf) -> None:
        """Let gradients be sorted into buffers now, which PyTorch does after the first of them have come.

        Three numbers have another sum in another order, and the order depends on the buffers: a run that goes on must not sort them anew.
        """
        nothing = torch.zeros(1, 8, dtype=torch.int64, device=next(parts.parameters()).device)
        self._shared(nothing, nothing, None, plain=True).backward()
        parts.zero_grad(set_to_none=True)
        self._given.bytes = 0

    @property
    def exchanged_bytes(self) -> int:
        """Bytes of gradients that this process has given to be added up."""
        return self._given.bytes

    def exchange(self, now: bool) -> contextlib.AbstractContextManager[object]:
        """Nothing where gradients are exchanged `now`, which is what happens by itself; else a context in which they wait."""
        context: contextlib.AbstractContextManager[object] = contextlib.nullcontext() if now else self._shared.no_sync()
        return context

    def step_total(self, total: Tensor, stop: StopFlag) -> float:
        """The sum of `total`, in order of ranks."""
        rows = self._gather([float(total), float(stop.signal_number or 0)])
        signal = int(max(row[1] for row in rows))
        if signal:
            stop.signal_number, self._stopped = signal, True
        return math.fsum(row[0] for row in rows)

    @property
    def has_stopped(self) -> bool:
        """Whether all have agreed to stop: a process that left alone would be waited for."""
        return self._stopped

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, exactly rounded."""
        return [math.fsum(column) for column in zip(*self._gather(numbers), strict=True)]

    def _gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of every process, by rank."""
        mine = torch.tensor(list(numbers), dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=self._control)
        return [row.tolist() for row in found]

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process, then the others at once."""
        if not self.is_first:
            dist.barrier(group=self._control)
        yield
        if self.is_first:
            dist.barrier(group=self._control)
        dist.barrier(group=self._control)

    def check_equal(self, tensors: Sequence[Tensor]) -> None:
        """By a hash of the sums of all tensors."""
        sums = torch.stack([tensor.detach().sum(dtype=torch.float64).cpu() for tensor in tensors])
        digest = hashlib.sha256(sums.numpy().tobytes()).digest()[:6]  # 48 bits, which a float64 holds
        if len({row[0] for row in self._gather([float(int.from_bytes(digest, "big"))])}) > 1:
            raise DataError(
                "the processes of this run do not begin with the same weights", "let all of them see the same files, and the same version"
            )

    def explain(self, error: Exception) -> PositronError | None:
        """A PeerError for what PyTorch raises when a connection breaks or nothing comes for too long."""
        if isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in _LOST):
            return PeerError("another process of this run has ended", "start the same command again: it goes on from the newest checkpoint")
        return None

    def leave(self) -> None:
        """Close the connections, and let go of what holds on to them."""
        self._parts = self._shared = self._control = None
        gc.collect()  # DistributedDataParallel refers to itself
        if dist.is_initialized():
            dist.destroy_process_group()


class SharedTrainer(Trainer):
    """A Trainer that computes its share of each step and adds up gradients and loss with those of the other processes."""

    may_halve = False  # all would have to agree

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
        """The share of this process; once `stop` is set, only the last micro-batch: the others are waiting to exchange its gradients."""
        parts = self._cut(batch, self.processes.share(len(batch.ids)))
        for rows in parts:
            if stop.signal_number is None or rows is parts[-1]:
                yield rows

    def _backward(self, batch: Batch, rows: range, count: int) -> Tensor:
        """Gradients of all micro-batches but the last stay here; the last one's backward pass exchanges their sum."""
        with self.processes.exchange(rows.stop == self.processes.share(len(batch.ids)).stop):
            return super()._backward(batch, rows, count)

    def _sum(self, total: Tensor, stop: StopFlag) -> float:
        return self.processes.step_total(total, stop)

    def _has_stopped(self, stop: StopFlag) -> bool:
        return self.processes.has_stopped


_LOST = ("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe", "gloo", "nccl", "timed out waiting")


class _LossOf(nn.Module):
    """The loss of a model as a module, which is what DistributedDataParallel takes."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.weights = nn.ParameterList(model.parameters())
        self._loss, self._plain = loss, model.loss

    def forward(self, *batch: Tensor | None, plain: bool = False) -> Tensor:
        """The loss of some rows; `plain`: not compiled."""
        loss: Loss = self._plain if plain else self._loss  # type: ignore[assignment]
        return loss(*batch)


def _add_up(given: _Count, bucket: Any) -> Any:
    """Add a bucket of gradients up over all processes; DistributedDataParallel alone would take their mean."""
    given.bytes += bucket.buffer().nbytes
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def join(device: str) -> Processes:
    """This process's place among those that torchrun has started, `device` being cpu or cuda; `ALONE` when it has started none.

    Errors: UsageError for a device of which there is one for all, PeerError when the others cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if device not in ("cpu", "cuda"):
        raise UsageError(f"{size} processes cannot share --device {device}", "--device cpu, or a single process")
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=_STEP_TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=_START_TIMEOUT)
        dist.barrier(control)  # the first one may end at once, with an error of its own, while others are still being connected
    except (RuntimeError, ValueError) as error:
        raise PeerError(f"the {size} processes of this run did not find each other ({error})", "start them with torchrun") from error
    return Group(dist.get_rank(), size, int(os.environ.get("LOCAL_WORLD_SIZE", size)), _control=control)
