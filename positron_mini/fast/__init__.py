"""The arithmetic of `model.py`, faster. Tests compare the two, and only the unchanged built-in model (`plain`) is computed this way.

`decoder` generates tokens with packed weights, `chunked_loss` never holds all logits. The rest is C++ kernels for operations that are slow
in PyTorch on a CPU: compiled at first use (`build`), tried in a separate process (`trial`), cached for the user and called through ctypes.
`decode_step` generates a token; `attention` and `pointwise` are the kernels of `training`. Where they are not available, `why_not` gives
the reason and PyTorch does the work.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

from positron_mini.errors import PositronError
from positron_mini.fast.build import CompilerError, forget_failure, open_library

__all__ = ["compiler_fails", "forget", "library", "why_not"]


@dataclass(frozen=True)
class _Found:
    library: ctypes.CDLL | None = None
    error: PositronError | None = None


@functools.cache
def _found() -> _Found:
    try:
        return _Found(open_library())
    except PositronError as error:
        return _Found(error=error)


def library() -> ctypes.CDLL | None:
    """The loaded library, whose calls release Python's GIL; None if it is not available."""
    return _found().library


def why_not() -> str:
    """Why there is no library, as the rest of a sentence; empty when there is one."""
    error = _found().error
    return "" if error is None else f"{error.message}; {error.hint}" if error.hint else error.message


def compiler_fails() -> bool:
    """Whether the installed C++ compiler does not work, so that torch.compile would fail too."""
    return isinstance(_found().error, CompilerError)


def forget() -> None:
    """Forget remembered failures, so that the next call tries again."""
    if forget_failure():
        _found.cache_clear()
