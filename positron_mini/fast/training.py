"""Loss and gradients of a whole model without autograd: PyTorch does the matmuls, C++ kernels the rest.

`GPT.loss` does the same in a dozen small operations per block, each of which reads and writes memory and is recorded by autograd. Here a
block's forward pass is four matmuls and four kernel calls, and its backward pass is written out: a reader can follow the chain rule.

Shapes: B sequences, T time in tokens, N = B x T rows, C = n_embd, H heads, K key/value heads, D = head_dim, F = ffn, V vocabulary.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from positron_mini.config import ModelConfig
from positron_mini.fast import library
from positron_mini.fast.chunked_loss import chunked_loss
from positron_mini.model import GPT, IGNORED

TILE = 32  # the kernels need multiples of it for positions and channels
CHUNK = 64  # rows whose norm gradients are summed into one row
LOGITS_AT_ONCE = 16 << 20  # 64 MB in fp32: the table is re-packed for every matmul, so many rows should share it


def covers(config: ModelConfig, width: int) -> bool:
    """Whether the kernels can train rows of `width` tokens."""
    return all(size % TILE == 0 for size in (config.n_embd, config.head_dim, config.ffn, width))


# --- calls ------------------------------------------------------------------------------------------------------------------------------


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(library(), f"{name}_{str(dtype).removeprefix('torch.')}")
    function.restype = None
    return function


def _as_c(argument: Tensor | int | float | None) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else argument if argument is None else ctypes.c_int(argument)


def _call(name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> None:
    """Call the kernel `name` for `dtype`; tensors are passed as pointers, sizes as numbers."""
    _function(name, dtype)(*map(_as_c, arguments), ctypes.c_int(torch.get_num_threads()))


def _add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x + delta (N, C) in fp32, and its norm in `dtype`."""
    total = x if delta is None else torch.empty_like(x)
    h = torch.empty_like(x, dtype=dtype)
    _call("add_norm", dtype, x, delta, weight, eps, total, h, *x.shape)
    return total, h


def _norm_backward(x: Tensor, weight: Tensor, dh: Tensor, eps: float, past: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of x (N, C) in fp32 and in the dtype of dh, and that of the weight; `past` is the gradient that bypasses the norm."""
    dx = torch.empty_like(x) if past is None else past
    narrow = dx if dh.dtype == dx.dtype else torch.empty_like(dh)
    sums = x.new_empty(-(-len(x) // CHUNK), x.shape[1])
    _call("norm_backward", dh.dtype, x, weight, dh, eps, past, dx, None if narrow is dx else narrow, sums, *x.shape)
    return dx, narrow, sums.sum(0)


def _swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, (N, F), from the two side by side, (N, 2 F)."""
    act = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    _call("swiglu", act.dtype, gate_up, act, *act.shape)
    return act


def _swiglu_backward(gate_up: Tensor, dact: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of gate_up, and the output of `_swiglu`, which overwrites dact."""
    dgate_up = torch.empty_like(gate_up)
    _call("swiglu_backward", dact.dtype, gate_up, dact, dgate_up, *dact.shape)
    return dgate_up, dact


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-ln of the probability of each target, (N,); overwrites logits (N, V) with their gradient."""
    losses = torch.empty(len(logits))
    _call("cross_entropy", logits.dtype, logits, targets, losses, *logits.shape)
    return losses


# --- the model --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """Values that all blocks share."""

    config: ModelConfig
    rope: tuple[Tensor, Tensor]  # (T, D) each
    begins: Tensor | None  # (B, T) int32: first position that each one may attend to
    dtype: torch.dtype  # of the matmuls
    sizes: tuple[int, ...]  # B, T, H, K, D


@dataclass
class _Weights:
    """Weights of a block in the matmul dtype; those that multiply the same rows are one matrix."""

    norm: Tensor  # (C,)
    qkv: Tensor  # ((H + 2 K) D, C)
    o: Tensor  # (C, H D)
    q_norm: Tensor  # (D,)
    k_norm: Tensor  # (D,)
    mlp_norm: Tensor  # (C,)
    gate_up: Tensor  # (2 F, C)
    down: Tensor  # (C, F)

    @classmethod
    def of(cls, parameters: Sequence[Tensor], dtype: torch.dtype) -> _Weights:
        """Make them from the parameters of a `Block`, in its order."""
        norm, q, k, v, o, q_norm, k_norm, mlp_norm, gate, up, down = parameters
        qkv, gate_up = torch.cat((q, k, v)).to(dtype), torch.cat((gate, up)).to(dtype)
        return cls(norm, qkv, o.to(dtype), q_norm, k_norm, mlp_norm, gate_up, down.to(dtype))


@dataclass
class _Kept:
    """Activations saved for the backward pass: x and x_mlp in fp32, the rest in the matmul dtype."""

    x: Tensor  # (N, C), the stream
    h: Tensor  # (N, C), its norm
    qkv: Tensor  # (N, (H + 2 K) D)
    lse: Tensor  # (B, H, T)
    y: Tensor  # (N, H D), output of attention
    x_mlp: Tensor  # (N, C), the stream before the MLP
    h_mlp: Tensor  # (N, C), its norm
    gate_up: Tensor  # (N, 2 F)


def _block(w: _Weights, b: _Batch, x: Tensor, h: Tensor) -> tuple[_Kept, Tensor]:
    """Saved activations of a block with the stream x and its norm h, and the output of its MLP, (N, C), still to be added to x_mlp."""
    qkv = h @ w.qkv.t()
    y = qkv.new_empty(len(x), w.o.shape[1])
    lse = x.new_empty(b.sizes[0], b.config.n_head, b.sizes[1])
    eps = b.config.norm_eps
    _call("attention", b.dtype, qkv, w.q_norm, w.k_norm, *b.rope, eps, b.begins, y, lse, *b.sizes)
    x_mlp, h_mlp = _add_norm(x, y @ w.o.t(), w.mlp_norm, eps, b.dtype)
    gate_up = h_mlp @ w.gate_up.t()
    return _Kept(x, h, qkv, lse, y, x_mlp, h_mlp, gate_up), _swiglu(gate_up) @ w.down.t()


def _block_backward(w: _Weights, b: _Batch, kept: _Kept, dx: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Turn the gradient of the stream after a block, in place, into that before it; also return the gradients of the block's weights.

    Both gradients of the stream are (N, C): dx in fp32 and narrow in the matmul dtype. Weights in the order of `Block.parameters()`.
    """
    c, eps = b.config, b.config.norm_eps
    dgate_up, act = _swiglu_backward(kept.gate_up, narrow @ w.down)
    d_down, d_gate_up = narrow.t() @ act, dgate_up.t() @ kept.h_mlp
    dx, narrow, d_mlp_norm = _norm_backward(kept.x_mlp, w.mlp_norm, dgate_up @ w.gate_up, eps, dx)
    dy, d_o = narrow @ w.o, narrow.t() @ kept.y
    dqkv = torch.empty_like(kept.qkv)
    dq_norm, dk_norm = (dx.new_empty(b.sizes[0] * n, c.head_dim) for n in (c.n_head, c.n_kv_head))  # to be summed
    arguments = (kept.qkv, w.q_norm, w.k_norm, *b.rope, eps, b.begins, kept.y, kept.lse, dy, dqkv, dq_norm, dk_norm)
    _call("attention_backward", b.dtype, *arguments, *b.sizes)
    d_qkv = dqkv.t() @ kept.h
    dx, narrow, d_norm = _norm_backward(kept.x, w.norm, dqkv @ w.qkv, eps, dx)
    heads = [c.n_head * c.head_dim, c.n_kv_head * c.head_dim, c.n_kv_head * c.head_dim]
    gradients = [d_norm, *torch.split(d_qkv, heads), d_o, dq_norm.sum(0), dk_norm.sum(0), d_mlp_norm, *d_gate_up.chunk(2), d_down]
    return dx, narrow, gradients


class _Loss(torch.autograd.Function):
    """Cross-entropy summed over the rows with a target. All weights are arguments, in the order of `GPT.parameters()`."""

    @staticmethod
    def forward(ctx: Any, b: _Batch, ids: Tensor, targets: Tensor, *parameters: Tensor) -> Tensor:
        """Sum in nats for `ids` and `targets` (N,)."""
        table, *inner, last_norm = parameters
        size, eps = len(inner) // b.config.n_layer, b.config.norm_eps
        weights = [_Weights.of(inner[i : i + size], b.dtype) for i in range(0, len(inner), size)]
        kept = []
        x, delta = F.embedding(ids, table), None
        for w in weights:
            x, h = _add_norm(x, delta, w.norm, eps, b.dtype)
            block, delta = _block(w, b, x, h)
            kept.append(block)
            x = block.x_mlp
        x, h = _add_norm(x, delta, last_norm, eps, b.dtype)
        trained = None if bool((targets != IGNORED).all()) else (targets != IGNORED).nonzero().flatten()
        loss, dh, d_table = head_loss(h if trained is None else h[trained], table, targets if trained is None else targets[trained])
        if trained is not None:
            dh = torch.zeros_like(h).index_copy_(0, trained, dh)
        ctx.rest = b, ids, weights, last_norm, kept, x, dh, d_table
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all weights."""
        b, ids, weights, last_norm, kept, x, dh, d_table = ctx.rest
        del ctx.rest  # activations are freed as the backward pass goes on
        dh *= upstream[0]
        d_table *= upstream[0]
        dx, narrow, d_last_norm = _norm_backward(x, last_norm, dh, b.config.norm_eps, None)
        gradients = [d_last_norm]
        while kept:
            dx, narrow, of_block = _block_backward(weights.pop(), b, kept.pop(), dx, narrow)
            gradients[:0] = of_block
        d_table.index_add_(0, ids, dx)
        return None, None, None, d_table, *(gradient.float() for gradient in gradients)


def head_loss(h: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of the normalised stream h (N, C), its gradient and that of the table (V, C), one chunk of logits at a time."""
    head, total, dh = table.to(h.dtype), table.new_zeros(()), torch.empty_like(h)
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(table):
        raise IndexError(f"a target is not one of the {len(table):,} pieces")
    chunks = max(1, -(-len(h) * len(table) // LOGITS_AT_ONCE))
    size = max(1, -(-len(h) // chunks))
    room, d_table = h.new_empty(size, len(table)), None
    for rows, wanted, into in zip(torch.split(h, size), torch.split(targets, size), torch.split(dh, size), strict=True):
        logits = torch.mm(rows, head.t(), out=room[: len(rows)])  # (n, V)
        total += _cross_entropy(logits, wanted).sum()
        torch.mm(logits, head, out=into)
        if d_table is None:
            d_table = (logits.t() @ rows).float()
        elif h.dtype == d_table.dtype:
            d_table.addmm_(logits.t(), rows)
        else:
            d_table += logits.t() @ rows
    assert d_table is not None
    return total, dh, d_table


def native_loss(model: GPT, ids: Tensor, targets: Tensor, segments: Tensor | None = None) -> Tensor:
    """The loss of `GPT.loss`, with gradients, for a model on the CPU without dropout; in bf16 under autocast.

    Falls back to PyTorch for rows that the kernels cannot compute (`covers`) and for segments whose positions are not contiguous.
    """
    T, dtype = ids.shape[1], torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    begins = None if segments is None else begins_of(segments)
    if model.dropout or not covers(model.config, T) or (segments is not None and begins is None):
        return chunked_loss(model, model.hidden, ids, targets, segments)
    c = model.config
    batch = _Batch(c, (model.rope_cos[:T], model.rope_sin[:T]), begins, dtype, (*ids.shape, c.n_head, c.n_kv_head, c.head_dim))
    with torch.autocast("cpu", enabled=False):
        summed: Tensor = _Loss.apply(batch, ids.flatten(), targets.flatten(), *model.parameters())  # type: ignore[no-untyped-call]
    return summed


def begins_of(segments: Tensor) -> Tensor | None:
    """First position of each position's segment, (B, T) int32; None if a segment's positions are not contiguous."""
    changes = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0))  # (B, T)
    in_order = segments.sort(dim=1).values
    if int(changes.sum()) != int((in_order[:, 1:] != in_order[:, :-1]).sum()):
        return None
    return (changes * torch.arange(segments.shape[1])).cummax(dim=1).values.int()
