"""The library of the C++ sources: compiled once, tried in a process apart, and kept whole, under a name that says what is in it.

    KEY-SHA256.so    KEY stands for sources, compiler, flags and processor; the file is used only while its content has that checksum
    KEY.failed       why it could not be made: the next start does not wait for it again

They lie in a folder of this user alone (`device.private_folder`): a library is code.
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
# Sums may be taken in another order, which vector registers need; NaN and infinity keep their meaning, as -ffast-math would not let them.
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-shared", "-fPIC")
COMPILE_SECONDS = 120
TRIAL_SECONDS = 60
RETRY = "positron doctor tries again"
log = logging.getLogger(__name__)  # where nobody listens Python writes warnings to stderr, the sentence alone


class CompilerError(PositronError):
    """The C++ compiler does not do its work."""


def open_library() -> ctypes.CDLL:
    """The library, made if it is not there yet or damaged. Errors: PositronError that says why there is none."""
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
    """Whether a library that could not be made was remembered; it no longer is."""
    failures: list[Path] = []
    with contextlib.suppress(PositronError, OSError, RuntimeError):
        there = (devices.cache_folder(platform.system(), os.environ, Path.home()) / "kernels").is_dir()  # asking makes no folder
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
    """How a library is compiled for the processor of this machine, without its sources."""
    is_arm = platform.machine() in ("arm64", "aarch64")
    return [str(compiler), *FLAGS, "-mcpu=native" if is_arm else "-march=native", *_openmp()]


def _openmp() -> list[str]:
    """Flags for the threads that PyTorch has already: two sets of them would wait for each other's cores."""
    torch = importlib.util.find_spec("torch")  # found, not imported: trying a library takes no time then
    assert torch is not None and torch.origin is not None
    folder = Path(torch.origin).parent / "lib"
    own = next((path for name in ("libgomp*", "libomp*", "libiomp5*") for path in sorted(folder.glob(name))), None)
    compile_only = ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
    return [*compile_only, str(own), f"-Wl,-rpath,{folder}"] if own else ["-fopenmp"]


def key_of(compiler: Path, words: list[str]) -> str:
    """16 digits that are others for another source, compiler, flag or processor."""
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
    """What a Linux processor can do, as the system says it: a virtual machine may hide some of what the name promises."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as handle:
        return next((line for line in handle if line.startswith(("flags", "Features"))), "")
    return ""


def _opened(made: Path) -> ctypes.CDLL | None:
    """A library that was kept; None when its content is not what its name says, or it cannot be loaded."""
    content = devices.own_file(made)
    if content is None or made.stem.partition("-")[2] != hashlib.sha256(content).hexdigest():
        return None
    try:
        found = ctypes.CDLL(str(made))
    except OSError:
        return None
    return found if has_all(found) else None


def _make(folder: Path, key: str, words: list[str]) -> Path:
    """The kept library, compiled by `words` and tried. Errors: PositronError; what costs much time or may end a process is remembered."""
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
    with contextlib.suppress(PositronError):  # it is said again next time
        files.write_text(folder / f"{key}.failed", why)
    raise CompilerError(why, RETRY)


def _end_of(code: int | None, said: str) -> str:
    """How a trial ended, in words."""
    if code is None:
        return f"no answer for {TRIAL_SECONDS} s"
    if code < 0 and os.name != "nt":
        return f"ended by {signal.Signals(-code).name}"
    return (said.splitlines() or [f"ended with code {code}"])[-1][:200]
