"""`decode_step.cpp` for this machine: compiled at its first use, kept in the user's cache, called through ctypes.

Without a C++ compiler there is none, and `decoder.py` does the same with PyTorch's operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from positron_mini import device as devices

SOURCE = Path(__file__).with_name("decode_step.cpp")
# Sums may be taken in another order, which vector registers need; NaN and infinity keep their meaning, as -ffast-math would not let them.
FLAGS = (
    "-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-shared", "-fPIC",
)  # fmt: skip
COMPILE_SECONDS = 60


class Matrix(ctypes.Structure):
    """`Matrix` of the source."""

    _fields_ = [("blocks", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("inputs", ctypes.c_int), ("outputs", ctypes.c_int)]


class Layer(ctypes.Structure):
    """`Layer` of the source."""

    _fields_ = [("qkv", Matrix), ("o", Matrix), ("gate_up", Matrix), ("down", Matrix), ("gain", ctypes.c_void_p)]


class Model(ctypes.Structure):
    """`Model` of the source."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("layers", "C", "H", "K", "D", "F", "V", "context")), ("eps", ctypes.c_float),
        ("layer", ctypes.POINTER(Layer)), ("head", Matrix), ("embedding", ctypes.c_void_p), ("turns", ctypes.c_void_p),
    ]  # fmt: skip


DecodeStep = Callable[..., None]


class Step:
    """The compiled step of one model. It knows places, not tensors: whoever makes it keeps them."""

    def __init__(self, function: DecodeStep, model: Model) -> None:
        self.function, self.model = function, model

    def __call__(self, ids: Tensor, kv: Tensor, past: int) -> Tensor:
        """Logits (N, V) after `ids` (N,), int64, whose keys and values join the `past` ones in `kv` (2 L, N, K, context, D)."""
        ids = ids.contiguous()
        logits = torch.empty(len(ids), self.model.V)
        assert kv.is_contiguous() and kv.shape[1] == len(ids) and past < self.model.context, (kv.shape, ids.shape, past)
        threads = torch.get_num_threads()
        self.function(self.model, ids.data_ptr(), len(ids), past, kv.data_ptr(), logits.data_ptr(), threads)
        return logits


@functools.cache
def decode_step() -> DecodeStep | None:
    """`decode_step` of the source, which releases Python's lock; None where it cannot be compiled or loaded."""
    compiler = devices.compiler()
    if compiler is None:
        return None
    with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):
        step = ctypes.CDLL(str(_compiled(compiler))).decode_step
        step.restype = None
        step.argtypes = [ctypes.POINTER(Model), ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        return step
    return None


def _compiled(compiler: Path) -> Path:
    """The library, compiled if it is not there yet. Another compiler, processor or source makes another one."""
    is_arm = platform.machine() in ("arm64", "aarch64")
    words = [str(compiler), *FLAGS, "-mcpu=native" if is_arm else "-march=native", *_openmp()]
    stamp = compiler.stat()
    key = (SOURCE.read_bytes(), words, stamp.st_size, stamp.st_mtime_ns, devices.processor_name(), platform.system())
    folder = devices.cache_folder(platform.system(), os.environ, Path.home())
    library = folder / f"decode_step-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as scratch:
            made = Path(scratch) / library.name
            subprocess.run([*words, str(SOURCE), "-o", str(made)], capture_output=True, timeout=COMPILE_SECONDS, check=True)
            made.replace(library)
    return library


def _openmp() -> list[str]:
    """Flags for the threads that PyTorch has already: two sets of them would wait for each other's cores."""
    folder = Path(torch.__file__).parent / "lib"
    own = next((path for name in ("libgomp*", "libomp*", "libiomp5*") for path in sorted(folder.glob(name))), None)
    compile_only = ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
    return [*compile_only, str(own), f"-Wl,-rpath,{folder}"] if own else ["-fopenmp"]
