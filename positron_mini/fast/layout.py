"""Functions of the library, and the structures of `decode_step.cpp`, field by field."""

from __future__ import annotations

import ctypes

_TYPED = ("attention", "attention_backward", "add_norm", "norm_backward", "swiglu", "swiglu_backward", "cross_entropy")
FUNCTIONS = ("decode_step", *(f"{name}_{dtype}" for name in _TYPED for dtype in ("float32", "bfloat16")))


def has_all(library: ctypes.CDLL) -> bool:
    """Whether the library exports every function."""
    return all(hasattr(library, name) for name in FUNCTIONS)


class Matrix(ctypes.Structure):
    """`Matrix` in decode_step.cpp."""

    _fields_ = [("blocks", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("inputs", ctypes.c_int), ("outputs", ctypes.c_int)]


class Layer(ctypes.Structure):
    """`Layer` in decode_step.cpp."""

    _fields_ = [("qkv", Matrix), ("o", Matrix), ("gate_up", Matrix), ("down", Matrix), ("gain", ctypes.c_void_p)]


class Model(ctypes.Structure):
    """`Model` in decode_step.cpp."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("layers", "C", "H", "K", "D", "F", "V", "context")), ("eps", ctypes.c_float),
        ("layer", ctypes.POINTER(Layer)), ("head", Matrix), ("embedding", ctypes.c_void_p), ("turns", ctypes.c_void_p),
    ]  # fmt: skip
