"""Compile the C++ sources once, try the library in a separate process, and cache it under a name that identifies its content.

KEY-SHA256.so    KEY: hash of sources, compiler, flags and processor; the file is used only while its content has that checksum
KEY.failed       why compiling failed: the next start does not wait for it again

The files are in a folder that only this user can access (`device.private_folder`): a library is code.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path

from positron_mini import device as devices
from positron_mini import files
from positron_mini.device import children
from positron_mini.errors import PositronError
from positron_mini.fast.layout import has_all

SOURCES = Path(__file__).parent
PARTS = ("attention.cpp", "decode_step.cpp", "pointwise.cpp")
# Sums may be reordered, as vector registers require; NaN and infinity keep their meaning, unlike with -ffast-math.
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-shared", "-fPIC")
COMPILE_SECONDS = 120
TRIAL_SECONDS = 60
RETRY = "positron doctor tries again"
log = logging.getLogger(__name__)  # without a handler Python prints warnings to stderr, just the sentence


class CompilerError(PositronError):
    """The C++ compiler does not work."""


def open_library() -> ctypes.CDLL:
    """Load the library, compiling it if it is missing or damaged. Errors: PositronError with the reason when it is not available."""
    compiler, folder = _compiler(), devices.private_folder("kernels")
    words = command(compiler)
    key = key_of(compiler, words)
    with files.translate_os_errors(f"reading {folder}"):
        for made in sorted(folder.glob(f"{key}-*.so")):
            found = _opened(made)
            if found is not None:
                return found
            made.unlink()
        failed = folder / f"{key}.failed"
        if failed.exists():
            raise CompilerError(failed.read_text(encoding="utf-8", errors="replace")[:500], RETRY)
    log.warning("compiling the native kernels for this processor, once: some seconds, %d at the most", COMPILE_SECONDS)
    try:
        made = _make(folder, key, [*words, *(str(SOURCES / part) for part in PARTS)])
    except PositronError as error:
        log.warning("going on with PyTorch's kernels: %s", error.message)
        raise
    found = _opened(made)
    if found is None:
        raise PositronError(f"{made} cannot be loaded")
    return found


def forget_failure() -> bool:
    """Delete the record of a failed compilation; return whether there was one."""
    failures: list[Path] = []
    with contextlib.suppress(PositronError, OSError, RuntimeError):
        there = (devices.cache_folder(platform.system(), os.environ, Path.home()) / "kernels").is_dir()  # only looks: creates no folder
        failures = list(devices.private_folder("kernels").glob("*.failed")) if there else []
        for failed in failures:
            failed.unlink()
    return bool(failures)


def _compiler() -> Path:
    found = devices.compiler()
    if found is None:
        raise PositronError("there is no C++ compiler")
    return found


def command(compiler: Path) -> list[str]:
    """Compiler command for the processor of this machine, without the sources."""
    is_arm = platform.machine() in ("arm64", "aarch64")
    return [str(compiler), *FLAGS, "-mcpu=native" if is_arm else "-march=native", *_openmp()]


def _openmp() -> list[str]:
    """Flags to use the OpenMP runtime that PyTorch has loaded: two runtimes would compete for the cores."""
    torch = importlib.util.find_spec("torch")  # found without importing it, which saves the trial's start-up time
    assert torch is not None and torch.origin is not None
    folder = Path(torch.origin).parent / "lib"
    own = next((path for name in ("libgomp*", "libomp*", "libiomp5*") for path in sorted(folder.glob(name))), None)
    compile_only = ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
    return [*compile_only, str(own), f"-Wl,-rpath,{folder}"] if own else ["-fopenmp"]


def key_of(compiler: Path, words: list[str]) -> str:
    """Hash of sources, compiler, flags and processor, 16 digits."""
    stamp = compiler.stat()
    parts = (
        *((SOURCES / name).read_bytes() for name in (*PARTS, "vectors.h")),
        words,
        stamp.st_size,
        stamp.st_mtime_ns,
        devices.processor_name(),
        _instructions(),
        platform.system(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _instructions() -> str:
    """Instruction sets of a Linux processor as the system reports them: a virtual machine may hide some that the model name promises."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as handle:
        return next((line for line in handle if line.startswith(("flags", "Features"))), "")
    return ""


def _opened(made: Path) -> ctypes.CDLL | None:
    """Load a cached library; None if its content does not match its name, or it does not load."""
    content = devices.own_file(made)
    if content is None or made.stem.partition("-")[2] != hashlib.sha256(content).hexdigest():
        return None
    try:
        found = ctypes.CDLL(str(made))
    except OSError:
        return None
    return found if has_all(found) else None


def _make(folder: Path, key: str, words: list[str]) -> Path:
    """Compile the library with the command `words`, try it and cache it. Errors: PositronError; slow or fatal failures are remembered."""
    with (
        files.translate_os_errors(f"writing {folder}"),
        tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-", ignore_cleanup_errors=True) as scratch,
    ):
        new = Path(scratch) / "kernels.so"
        code, said = children.finish([*words, "-o", str(new)], Path(scratch), COMPILE_SECONDS)
        if code is None:
            _fail(folder, key, f"the C++ compiler {words[0]} had not finished after {COMPILE_SECONDS} s")
        if code != 0 or not new.is_file():
            why = next((line for line in said.splitlines() if "error" in line), "").strip() or f"it ended with code {code}"
            raise CompilerError(f"the C++ compiler {words[0]} fails ({why:.200})")
        code, said = children.finish(children.python("positron_mini.fast.trial", str(new)), Path(scratch), TRIAL_SECONDS)
        if code != 0:
            _fail(folder, key, f"the kernels that {words[0]} has compiled do not work ({_end_of(code, said)})")
        content = new.read_bytes()
    made = folder / f"{key}-{hashlib.sha256(content).hexdigest()}.so"
    files.write_bytes(made, content)
    return made


def _fail(folder: Path, key: str, why: str) -> None:
    with contextlib.suppress(PositronError):  # if it cannot be remembered, it is reported again next time
        files.write_text(folder / f"{key}.failed", why)
    raise CompilerError(why, RETRY)


def _end_of(code: int | None, said: str) -> str:
    """How a trial ended, in words."""
    if code is None:
        return f"no answer for {TRIAL_SECONDS} s"
    if code < 0 and os.name != "nt":
        return f"ended by {signal.Signals(-code).name}"
    return (said.splitlines() or [f"ended with code {code}"])[-1][:200]
