"""The same arithmetic as `model.py`, faster: held to it by tests, and used for exactly the model that it computes (`plain`).

`decoder` writes tokens with weights packed for it, `chunked_loss` never holds all logits. The rest is C++ for operations that are slow in
PyTorch on a CPU, compiled at its first use (`build`), tried in a process apart (`trial`), kept in the user's cache and called through
ctypes: `decode_step` writes a token; `attention` and `pointwise` are the kernels of `training`. Where they cannot be had, `why_not` says
why, and PyTorch does the same.
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
    """The functions of all sources, whose calls release Python's lock; None where there is no library."""
    return _found().library


def why_not() -> str:
    """Why there is no library, as the rest of a sentence; empty when there is one."""
    error = _found().error
    return "" if error is None else f"{error.message}; {error.hint}" if error.hint else error.message


def compiler_fails() -> bool:
    """Whether the C++ compiler that is here does not do its work, so that torch.compile would fare no better."""
    return isinstance(_found().error, CompilerError)


def forget() -> None:
    """Try anew what is remembered to have failed."""
    if forget_failure():
        _found.cache_clear()
