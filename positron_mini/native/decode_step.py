"""One token of each of N sequences, by `decode_step.cpp`: its structures, and the call.

Shapes as there: N sequences, L layers, K key/value heads, D channels of a head, V columns of the head.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from positron_mini.native import library


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
    """`decode_step` of the source; None where there is no compiler for it."""
    found = library("decode_step")
    if found is None:
        return None
    step = found.decode_step
    step.restype = None
    step.argtypes = [ctypes.POINTER(Model), ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    return step
