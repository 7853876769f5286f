"""`python -m positron_mini.fast.trial FILE`: call every kind of function of a compiled library once and check the results, known by hand.

A library compiled wrongly or for another processor crashes or hangs this process and not a training.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from typing import Any

from positron_mini.fast.layout import Layer, Matrix, Model, has_all

N = 32  # positions, channels and vocabulary of every case
THREADS = 2


def _floats(*values: float, size: int = 0) -> Any:
    """A C array of these numbers, the last one repeated up to `size`."""
    return (ctypes.c_float * max(size, len(values)))(*values, *[values[-1]] * (size - len(values)))


def _is_close(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5) for a, b in zip(found, wanted, strict=True))


def wrong(library: ctypes.CDLL) -> list[str]:
    """Kinds of functions that return wrong results."""
    tries = {"pointwise": _try_pointwise, "attention": _try_attention, "decode_step": _try_decode_step}
    return [name for name, is_right in tries.items() if not is_right(library)]


def _try_pointwise(library: ctypes.CDLL) -> bool:
    """The norm of a stream of 3 is 1; silu(1) x 2; the loss of even odds is ln 32."""
    x, ones, total, h, act, loss = (_floats(value, size=N) for value in (3.0, 1.0, 0.0, 0.0, 0.0, 0.0))
    library.add_norm_float32(x, None, ones, ctypes.c_float(0), total, h, 1, N, THREADS)
    library.swiglu_float32(_floats(*[1.0] * N, 2.0, size=2 * N), act, 1, N, THREADS)
    library.cross_entropy_float32(_floats(0.0, size=N), (ctypes.c_int64 * 1)(5), loss, 1, N, THREADS)
    return _is_close(h, ones) and _is_close(act, [2 / (1 + math.exp(-1))] * N) and _is_close(loss[:1], [math.log(N)])


def _try_attention(library: ctypes.CDLL) -> bool:
    """With equal keys position t attends to the mean of the values 0 ... t; each value's gradient is its share in later positions."""
    qkv = _floats(*(number for t in range(N) for number in (*[0.0] * 2 * N, *[float(t)] * N)))
    ones, zeros = _floats(1.0, size=N * N), _floats(0.0, size=N * N)
    y, lse, dqkv, dq, dk = (_floats(0.0, size=size) for size in (N * N, N, 3 * N * N, N, N))
    given, sizes = (qkv, ones, ones, ones, zeros, ctypes.c_float(1e-6), None, y, lse), (1, N, 1, 1, N, THREADS)
    library.attention_float32(*given, *sizes)
    library.attention_backward_float32(*given, ones, dqkv, dq, dk, *sizes)
    shares = [sum(1 / (t + 1) for t in range(s, N)) for s in range(N)]
    return _is_close(y[::N], [t / 2 for t in range(N)]) and _is_close(dqkv[2 * N :: 3 * N], shares)


def _try_decode_step(library: ctypes.CDLL) -> bool:
    """Blocks of zeros add nothing to an embedding of ones; its dot product with a head of ones is the width."""
    ones, zeros = _floats(1.0, size=N * N), _floats(0.0, size=3 * N * N)

    def matrix(numbers: Any, outputs: int) -> Matrix:
        return Matrix(ctypes.addressof(numbers), None, N, outputs)

    square = matrix(zeros, N)
    layer = (Layer * 1)(Layer(matrix(zeros, 3 * N), square, matrix(zeros, 2 * N), square, ctypes.addressof(ones)))
    head, turns = matrix(ones, N), _floats(*[1.0, 0.0] * (N // 2))
    model = Model(1, N, 1, 1, N, N, N, 1, 1e-6, layer, head, ctypes.addressof(ones), ctypes.addressof(turns))
    logits = _floats(0.0, size=N)
    library.decode_step(ctypes.byref(model), (ctypes.c_int64 * 1)(5), 1, 0, _floats(0.0, size=2 * N), logits, THREADS)
    return _is_close(logits, [float(N)] * N)


if __name__ == "__main__":
    opened = ctypes.CDLL(sys.argv[1])
    faults = wrong(opened) if has_all(opened) else ["a function is missing"]
    if faults:
        raise SystemExit(f"wrong: {', '.join(faults)}")
