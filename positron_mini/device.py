"""Where and how to compute: device, precision, batch, memory. The only file that names a backend; its decisions are pure functions.

What this machine offers is a `Machine`; everything else follows from it, so that tests can decide for machines they do not have.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from positron_mini.config import ModelConfig
from positron_mini.errors import UsageError

if TYPE_CHECKING:
    import torch

DeviceName = Literal["cpu", "mps", "cuda"]
BATCH_TOKENS: dict[str, int] = {"cpu": 65_536, "mps": 98_304, "cuda": 131_072}
MAX_LOGITS_BYTES = 1 << 30  # never more than 1 GiB of fp32 logits at once


@dataclass(frozen=True)
class Machine:
    """What the hardware and the PyTorch build offer."""

    devices: tuple[DeviceName, ...]
    bf16: tuple[DeviceName, ...]  # devices with fast bf16 products
    memory_bytes: int  # of the best device; shared with the system on a Mac
    cores: int
    has_compiler: bool
    system: str


def this_machine() -> Machine:
    """The machine this process runs on. Imports torch."""
    import torch

    devices: list[DeviceName] = []
    bf16: list[DeviceName] = []
    if torch.cuda.is_available():
        devices.append("cuda")
        if torch.cuda.is_bf16_supported(including_emulation=False):
            bf16.append("cuda")
    if torch.backends.mps.is_available():
        devices.append("mps")
        bf16.append("mps")
    devices.append("cpu")
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        bf16.append("cpu")
    memory = torch.cuda.get_device_properties(0).total_memory if devices[0] == "cuda" else total_memory()
    return Machine(tuple(devices), tuple(bf16), memory, usable_cores(), has_compiler(), platform.system())


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler for the CPU."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++", "cl")
    return any(name and shutil.which(name) for name in names)


def usable_cores() -> int:
    """Cores this process may use; fewer than the machine has inside a container."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of main memory; 8 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 << 30


def peak_memory() -> int:
    """Largest number of bytes this process has held in main memory so far."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


@dataclass(frozen=True)
class Choice:
    """Where and how to compute, and why."""

    device: DeviceName
    precision: Literal["fp32", "bf16"]
    reason: str
    fell_back: bool = False  # the precision is not the one that was asked for


def choose(machine: Machine, device: str = "auto", precision: str = "auto") -> Choice:
    """Device and precision for `machine`. Errors: UsageError when a device is asked for that is not there."""
    if device == "auto":
        chosen, why = machine.devices[0], "the fastest device here"
    elif device in machine.devices:
        chosen, why = next(d for d in machine.devices if d == device), "as asked"
    else:
        raise UsageError(
            f"--device {device}: PyTorch sees no such device here, only {', '.join(machine.devices)}", f"--device {machine.devices[0]}"
        )
    if precision == "fp32":
        return Choice(chosen, "fp32", f"{why}; fp32 as asked")
    fast = chosen in machine.bf16
    if precision == "bf16":
        if fast or chosen == "mps":
            return Choice(chosen, "bf16", f"{why}; bf16 as asked")
        return Choice(
            chosen, "fp32", f"{why}; fp32 because this {chosen.upper()} has no fast bf16, where it would be hundreds of times slower", True
        )
    if chosen == "cpu":
        return Choice("cpu", "fp32", f"{why}; fp32, the exact choice on a CPU")
    return Choice(
        chosen, "bf16" if fast else "fp32", f"{why}; {'bf16 products with fp32 master weights' if fast else 'fp32, it has no fast bf16'}"
    )


def micro_batch_rows(model: ModelConfig, context_len: int, rows: int, device: str, memory_bytes: int) -> int:
    """Rows to compute at once: the largest divisor of `rows` that the memory model allows.

    Counted per token, in fp32: three copies of the logits, and about 34 activations of the width and 10 of the ffn per layer. A CPU gains
    nothing beyond about 2,048 tokens, whose activations still fit its cache, a GPU wants many; all stay below a quarter of the memory
    and 1 GiB of logits.
    """
    logits = 4 * model.vocab_size
    per_token = 3 * logits + 4 * model.n_layer * (34 * model.n_embd + 10 * model.ffn)
    budget = min(memory_bytes // 4, 1_500_000_000) if device == "cpu" else memory_bytes // 4
    tokens = min(budget // per_token, MAX_LOGITS_BYTES // logits, 2_048 if device == "cpu" else 65_536)
    most = max(1, min(rows, tokens // context_len))
    return next(size for size in range(most, 0, -1) if rows % size == 0)


def should_compile(asked: str, machine: Machine, device: str, work_flops: float | None) -> tuple[bool, str]:
    """Whether to use torch.compile, and why. `work_flops` None: open-ended, so the start-up is repaid.

    Compiling takes 20 to 60 s on a laptop and saves a quarter of the time after it.
    """
    if asked == "off":
        return False, "off as asked"
    if device == "cpu" and not machine.has_compiler:
        return False, "off: no C++ compiler found; training is about a quarter slower without it"
    if asked == "on":
        return True, "on as asked"
    if device == "mps":
        return False, "off: PyTorch's compiler for MPS is not ready"
    rate = 60e9 * machine.cores if device == "cpu" else 2e13  # a cautious guess of operations per second
    if work_flops is not None and work_flops / rate < 240:
        return False, "off: its start-up is longer than what this run would gain"
    return True, "on"


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    """A context in which products run in `precision`; weights stay fp32."""
    import torch

    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device_type=device, dtype=torch.bfloat16)


def set_threads(threads: int | None) -> int:
    """The number of CPU threads now in force."""
    import torch

    torch.set_num_threads(threads or usable_cores())
    return torch.get_num_threads()


def describe_versions() -> dict[str, str]:
    """Versions that can change bytes, for `run.json`."""
    import torch

    from positron_mini import __version__

    return {
        "positron_mini": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


def synchronize(device: str) -> None:
    """Wait until the device has finished, so that a clock read afterwards means something."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def torch_device(name: str) -> torch.device:
    """The torch.device of that name."""
    import torch

    return torch.device(name)


OUT_OF_MEMORY_TEXTS = (
    "out of memory",  # CUDA and MPS
    "can't allocate memory",  # CPU
    "cannot allocate memory",
    "not enough memory",  # CPU on Windows
    "cublas_status_alloc_failed",
    "invalid buffer size",  # MPS, one tensor larger than Metal allows
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how CUDA, MPS or the CPU allocator say that memory is exhausted."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(t in str(error).lower() for t in OUT_OF_MEMORY_TEXTS))
