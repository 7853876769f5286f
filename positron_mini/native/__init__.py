"""C++ for what PyTorch's operations are slow at on a CPU: compiled at its first use, kept in the user's cache, called through ctypes.

`decode_step` writes a token; `attention` and `pointwise` are what training does between products. Without a C++ compiler there are none of
them, and PyTorch does the same.
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
from pathlib import Path

import torch

from positron_mini import device as devices

SOURCES = Path(__file__).parent
# Sums may be taken in another order, which vector registers need; NaN and infinity keep their meaning, as -ffast-math would not let them.
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-shared", "-fPIC")
COMPILE_SECONDS = 60
TRAINING = ("attention", "pointwise")  # what training needs


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The functions of `name`.cpp, whose calls release Python's lock; None where it cannot be compiled or loaded."""
    compiler = devices.compiler()
    if compiler is None:
        return None
    with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):
        return ctypes.CDLL(str(_compiled(compiler, SOURCES / f"{name}.cpp")))
    return None


def _compiled(compiler: Path, source: Path) -> Path:
    """The library, compiled if it is not there yet. Another compiler, processor or source makes another one."""
    is_arm = platform.machine() in ("arm64", "aarch64")
    words = [str(compiler), *FLAGS, "-mcpu=native" if is_arm else "-march=native", *_openmp()]
    stamp = compiler.stat()
    key = (
        source.read_bytes(),
        (source.parent / "vectors.h").read_bytes(),
        words,
        stamp.st_size,
        stamp.st_mtime_ns,
        devices.processor_name(),
        platform.system(),
    )
    folder = devices.cache_folder(platform.system(), os.environ, Path.home())
    made = folder / f"{source.stem}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as scratch:
            new = Path(scratch) / made.name
            subprocess.run([*words, str(source), "-o", str(new)], capture_output=True, timeout=COMPILE_SECONDS, check=True)
            new.replace(made)
    return made


def _openmp() -> list[str]:
    """Flags for the threads that PyTorch has already: two sets of them would wait for each other's cores."""
    folder = Path(torch.__file__).parent / "lib"
    own = next((path for name in ("libgomp*", "libomp*", "libiomp5*") for path in sorted(folder.glob(name))), None)
    compile_only = ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
    return [*compile_only, str(own), f"-Wl,-rpath,{folder}"] if own else ["-fopenmp"]
