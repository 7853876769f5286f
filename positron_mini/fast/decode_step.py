"""Logits for one more token of each of N sequences, by `decode_step.cpp`.

Shapes as in the source: N sequences, L layers, K key/value heads, D channels of a head, V columns of the head.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from positron_mini.fast import library
from positron_mini.fast.layout import Layer, Matrix, Model

__all__ = ["DecodeStep", "Layer", "Matrix", "Model", "Step", "decode_step"]


DecodeStep = Callable[..., None]


class Step:
    """Compiled step of one model. It holds addresses, not tensors: the caller must keep the tensors alive."""

    def __init__(self, function: DecodeStep, model: Model) -> None:
        self.function, self.model = function, model

    def __call__(self, ids: Tensor, kv: Tensor, past: int) -> Tensor:
        """Logits (N, V) after `ids` (N,), int64. Writes their keys and values to `kv` (2 L, N, K, context, D) behind the `past` ones."""
        ids = ids.contiguous()
        logits = torch.empty(len(ids), self.model.V)
        assert kv.is_contiguous() and kv.shape[1] == len(ids) and past < self.model.context, (kv.shape, ids.shape, past)
        threads = torch.get_num_threads()
        self.function(self.model, ids.data_ptr(), len(ids), past, kv.data_ptr(), logits.data_ptr(), threads)
        return logits


@functools.cache
def decode_step() -> DecodeStep | None:
    """The C++ function `decode_step`; None if the library is not available."""
    found = library()
    if found is None:
        return None
    step = found.decode_step
    step.restype = None
    step.argtypes = [ctypes.POINTER(Model), ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    return step
