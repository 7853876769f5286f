"""This machine: its hardware, and the few operations that differ between backends."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from positron_mini.device.children import find_program
from positron_mini.device.verdict import DeviceName, Verdict, read_verdict, verdict_path
from positron_mini.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Machine:
    """The hardware, the system, the PyTorch build, and the doctor's verdict on them."""

    devices: tuple[DeviceName, ...]  # the fastest first
    bf16: tuple[DeviceName, ...]  # devices with fast bf16 matmuls
    memory_bytes: int  # of the best device; shared with the system on a Mac
    cores: int
    has_compiler: bool
    system: str
    chip: str = ""  # "Apple M3 Max", "NVIDIA L4", the processor's name
    os_version: str = ""  # "15.5" of macOS, the kernel's elsewhere
    torch: str = ""
    vector: str = ""  # the widest instructions of the processor, as PyTorch names them
    verdict: Verdict | None = None
    note: str = ""  # why an existing verdict is not used

    @property
    def key(self) -> dict[str, str]:
        """The PyTorch, system and chip that a verdict is valid for."""
        return {"torch": self.torch, "system": f"{self.system} {self.os_version}", "chip": self.chip}


def this_machine() -> Machine:
    """The machine of this process, with the doctor's verdict if there is one. Imports torch."""
    import torch

    devices: list[DeviceName] = []
    bf16: list[DeviceName] = []
    chip, memory = processor_name(), total_memory()
    if torch.cuda.is_available():
        devices.append("cuda")
        properties = torch.cuda.get_device_properties(0)
        chip, memory = properties.name, properties.total_memory
        if torch.cuda.is_bf16_supported(including_emulation=False):
            bf16.append("cuda")
    if torch.backends.mps.is_available():
        devices.append("mps")
        bf16.append("mps")
    devices.append("cpu")
    has_amx = torch.cpu._is_amx_tile_supported()
    if torch.cpu._is_avx512_bf16_supported() or has_amx:
        bf16.append("cpu")
    system = platform.system()
    version = platform.mac_ver()[0] if system == "Darwin" else platform.release()
    vector = "AMX" if has_amx else torch.backends.cpu.get_cpu_capability()
    compiles = compiler() is not None
    machine = Machine(tuple(devices), tuple(bf16), memory, usable_cores(), compiles, system, chip, version, torch.__version__, vector)
    verdict, note = read_verdict(verdict_path(machine.key, system), machine.key)
    return replace(machine, verdict=verdict, note=note)


def prepare_environment(environ: Mapping[str, str], system: str) -> dict[str, str]:
    """Environment settings that torch reads once, at its import; none except on a Mac.

    An operation that MPS lacks must be an error, not silently run on the CPU. Memory beyond what Metal recommends must be an error too:
    PyTorch's limit is 1.7 times as high, which a Mac reaches by swapping. Both watermarks are set together: at the lower one (1.4 by
    default) unused buffers are freed. A user's own watermarks stay.
    """
    if system != "Darwin":
        return {}
    settings = {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}
    if not any("WATERMARK_RATIO" in name for name in environ):
        settings |= {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "1.0", "PYTORCH_MPS_LOW_WATERMARK_RATIO": "0.9"}
    return settings


def processor_name() -> str:
    """The processor's name; its architecture if the system does not report one."""
    name = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError, UnicodeDecodeError):
        if sys.platform == "darwin":
            asked = subprocess.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, encoding="utf-8", timeout=5)
            name = asked.stdout.strip()
        elif sys.platform == "linux":
            with open("/proc/cpuinfo", encoding="utf-8") as handle:
                name = next((line.partition(":")[2].strip() for line in handle if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def compiler() -> Path | None:
    """The C++ compiler that torch.compile uses for the CPU; None if there is none."""
    return find_program(filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++", "cl")))


def usable_cores() -> int:
    """Cores this process may use; fewer than the machine has inside a container."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def multiplies_by_mkl() -> bool:
    """Whether PyTorch's matmuls on the CPU use MKL."""
    import torch

    found: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return found


def total_memory() -> int:
    """Bytes of main memory; 8 GiB if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 << 30


def peak_memory(*, of_children: bool = False) -> int:
    """Largest number of bytes this process, or any single one of its ended children, has held in main memory so far."""
    if not of_children:
        with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/self/status", encoding="ascii") as status:
            # on Linux ru_maxrss includes the parent's memory at the start of this process
            return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_CHILDREN if of_children else resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def used_memory(device: str) -> int:
    """Bytes held now on `device`; on a CPU whose system does not report that, the peak of this process."""
    import torch

    synchronize(device)
    if device == "cuda":
        return torch.cuda.memory_allocated()
    if device == "mps":
        return torch.mps.driver_allocated_memory()  # includes Metal's memory for kernels
    try:
        with open("/proc/self/statm", encoding="ascii") as handle:
            return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()


def forget_cached_memory(device: str) -> None:
    """Free the memory that the device's allocator has cached."""
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


@functools.cache
def keep_freed_memory() -> None:
    """Keep freed memory in this process if its C library can (glibc): every training step needs the same amount again.

    Memory returned to the system comes back as pages that must be cleared first, which made steps an eighth longer.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold, largest = -1, -3, (1 << 31) - 1  # the constants of malloc.h
        mallopt(m_trim_threshold, largest)
        for size in (1 << 30, 1 << 25):  # some releases accept at most the second
            if mallopt(m_mmap_threshold, size):
                break


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    """A context in which matmuls run in `precision`; weights stay fp32."""
    import torch

    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device_type=device, dtype=torch.bfloat16)


def set_threads(threads: int | None) -> int:
    """Set the number of CPU threads (None: all usable cores) and return the number in force."""
    import torch

    torch.set_num_threads(threads or usable_cores())
    return torch.get_num_threads()


def describe_versions() -> dict[str, str]:
    """Versions and hardware that can change bytes, for `run.json`."""
    import torch

    from positron_mini import __version__

    return {
        "positron_mini": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "processor": f"{usable_cores()} cores, {processor_name()}",
    }


def synchronize(device: str) -> None:
    """Wait until the device has finished its queue; needed before reading a clock."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def take_local(device: str, number: int) -> None:
    """Make "cuda" mean the `number`-th GPU in this process. Errors: UsageError if there are fewer."""
    import torch

    if device != "cuda":
        return
    count = torch.cuda.device_count()
    if number >= count:
        raise UsageError(f"process {number + 1:,} of this machine has no GPU: there are {count:,}", f"--nproc {count}")
    torch.cuda.set_device(number)


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
    """Whether the error is an out-of-memory error of CUDA, MPS or the CPU allocator."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(t in str(error).lower() for t in OUT_OF_MEMORY_TEXTS))
