"""The subject of an examination, and the result of one check."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from positron_mini import device as devices
from positron_mini.device import DeviceName, Precision


@dataclass(frozen=True)
class Check:
    """One check and whether the device passes it. `condemns`: if it fails, the device computes wrongly and must not train."""

    name: str
    ok: bool
    detail: str
    condemns: bool = True
    reproduction: str = ""  # a script that shows a wrong operation by itself, for PyTorch's bug tracker


def _nothing() -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Subject:
    """A device in one precision. All its computations run inside `around()`, where tests inject faults."""

    device: DeviceName
    precision: Precision
    around: Callable[[], contextlib.AbstractContextManager[object]] = field(default=_nothing)

    @property
    def name(self) -> str:
        """Such as "mps bf16"."""
        return f"{self.device} {self.precision}"

    def take(self, tensor: Tensor) -> Tensor:
        """The tensor on the device."""
        return tensor.to(devices.torch_device(self.device))

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The autocast context for forward passes."""
        return devices.autocast(self.device, self.precision)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A context in which the CPU computes on one thread.

    More threads gain nothing for small tensors, and take several times as long on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


REFERENCE = Subject("cpu", "fp32")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers, the same on every machine: drawn on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1_000_003 * seed + len(shape)))
