"""Causal attention and its gradients, by `attention.cpp`: about twice as fast on a CPU as PyTorch's operation (docs/results/speed.md).

Shapes: B sequences, T positions, H heads, K key/value heads, D channels of a head.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from positron_mini.native import library

TILE = 32  # positions and channels come in multiples of it


def attend(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, is_causal: bool, enable_gqa: bool) -> Tensor:
    """`F.scaled_dot_product_attention` of q (B, H, T, D) and k, v (B, K, T, D), by the compiled functions wherever they apply.

    They compute in fp32 whatever the dtype. A mask, single tokens and uneven sizes are left to PyTorch.
    """
    is_even = q.shape[2] % TILE == 0 and q.shape[3] % TILE == 0 and q.shape[2] == k.shape[2]
    if not (is_causal and is_even and q.device.type == "cpu" and q.dtype in (torch.float32, torch.bfloat16)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=enable_gqa)
    wide = [t.transpose(1, 2).float().contiguous() for t in (q, k, v)]  # (B, T, heads, D)
    y: Tensor = _operation(*wide)[0] if torch.compiler.is_compiling() else _Attention.apply(*wide)  # type: ignore[no-untyped-call]
    return y.transpose(1, 2).to(v.dtype)


def quicken(model: nn.Module) -> None:
    """Make every attention of `model` use `attend`."""
    for module in model.modules():
        if hasattr(module, "attend"):
            module.attend = attend  # type: ignore[assignment]


def is_there() -> bool:
    """Whether the functions could be compiled."""
    return library("attention") is not None


@functools.cache
def _function(name: str) -> Any:
    function = getattr(library("attention"), name)
    function.restype = None
    return function


def _call(name: str, tensors: tuple[Tensor, ...]) -> None:
    """Call a function with places and sizes of `tensors`, of which the first is q and the second k, each (B, T, heads, D)."""
    (B, T, H, D), K = tensors[0].shape, tensors[1].shape[2]
    places = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
    _function(name)(*places, *map(ctypes.c_int, (B, T, H, K, D, torch.get_num_threads())))


# --- for autograd -----------------------------------------------------------------------------------------------------------------------


def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q.shape
    y, lse = torch.empty_like(q), q.new_empty(B, H, T)
    _call("attention_forward", (q, k, v, y, lse))
    return y, lse


def _backward(q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _call("attention_backward", (q, k, v, y, lse, dy.contiguous(), dq, dk, dv))
    return dq, dk, dv


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y, lse = _forward(q, k, v)
        ctx.save_for_backward(q, k, v, y, lse)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        return _backward(*ctx.saved_tensors, *upstream)


# --- for torch.compile, which sees operations by name; outside of it they take twice as long to start -----------------------------------

_operation = torch.library.custom_op("positron::attention", _forward, mutates_args=())
_operation_backward = torch.library.custom_op("positron::attention_backward", _backward, mutates_args=())


@_operation.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[0], q.shape[2], q.shape[1])


@_operation_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = _operation_backward(*ctx.saved_tensors, dy)
    return gradients


_operation.register_autograd(_gradients, setup_context=_keep)
