"""Devices that compute wrong, made of the CPU: while a fault is planted, some of PyTorch's operations give what a bad kernel would."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from positron_mini.device import Machine
from positron_mini.doctor.examine import Scope
from positron_mini.doctor.subject import Check, Subject

Spoil = Callable[..., Any]  # (operation, arguments, keywords) -> result
GIB = 1 << 30
MAC = Machine(("mps", "cpu"), ("mps",), 16 * GIB, 8, True, "Darwin")
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


class Faulty(TorchDispatchMode):
    """While active, the operations named in `spoils` are computed by their functions there."""

    def __init__(self, spoils: dict[str, Spoil]) -> None:
        super().__init__()
        self.spoils = spoils

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        spoil = self.spoils.get(operation._schema.name.removeprefix("aten::"))
        if spoil is not None:
            return spoil(operation, args, kwargs)
        if operation._can_decompose():  # in inference mode whole layers arrive here; what they are made of is to be seen too
            with self:
                result = operation.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return operation(*args, **kwargs)


def subject(spoils: dict[str, Spoil], precision: Any = "fp32") -> Subject:
    """A CPU with these faults."""
    return Subject("cpu", precision, lambda: Faulty(spoils))


# --- attention ---------------------------------------------------------------------------------------------------------------------


def leak_in_fours(operation: Any, args: Any, kwargs: Any) -> Any:
    """The causal mask once for every four queries (pytorch#195910)."""
    query, key, value, *rest = args
    is_causal = rest[1] if len(rest) > 1 else kwargs.get("is_causal", False)
    T = query.shape[2]
    if not is_causal or T < 8:
        return operation(*args, **kwargs)
    at = torch.arange(T)
    mask = torch.zeros(T, T).masked_fill(at[None, :] > (at // 4 * 4 + 3)[:, None], float("-inf"))
    return operation(query, key, value, 0.0, False, attn_mask=mask.to(query.dtype))


def leak_in_half(operation: Any, args: Any, kwargs: Any) -> Any:
    """The same, but only in half precision, where rounding could hide it."""
    return leak_in_fours(operation, args, kwargs) if args[0].dtype == torch.bfloat16 else operation(*args, **kwargs)


def leak_when_evaluating(operation: Any, args: Any, kwargs: Any) -> Any:
    """The same, but only where no gradient is asked for: evaluation and writing go through other kernels than training."""
    return leak_in_fours(operation, args, kwargs) if torch.is_inference_mode_enabled() else operation(*args, **kwargs)


def odd_attention(operation: Any, args: Any, kwargs: Any) -> Any:
    """The last query of an odd number of them sees nothing but itself."""
    out, *rest = operation(*args, **kwargs)
    if args[0].shape[2] % 2 and args[0].shape[2] > 1:
        out = torch.cat((out[:, :, :-1], args[2][:, :, -1:]), dim=2)
    return (out, *rest)


def attention_key_gradient(operation: Any, args: Any, kwargs: Any) -> Any:
    """The gradient of the keys lacks a factor."""
    to_q, to_k, to_v = operation(*args, **kwargs)
    return to_q, to_k * 0.9, to_v


def ignored_mask(operation: Any, args: Any, kwargs: Any) -> Any:
    """A mask is not looked at."""
    return operation(*args, **{**kwargs, "attn_mask": None})


def masked_nan(operation: Any, args: Any, kwargs: Any) -> Any:
    """Rows that are nearly all masked become NaN."""
    out = operation(*args, **kwargs)
    hidden = torch.isneginf(args[0]).float().mean(-1, keepdim=True) > 0.9
    return torch.where(hidden, torch.nan, out)


# --- products ----------------------------------------------------------------------------------------------------------------------


def large_product(operation: Any, args: Any, kwargs: Any) -> Any:
    """Rows beyond a number of results are those of the beginning again (pytorch#122045)."""
    out = operation(*args, **kwargs)
    rows = (1 << 23) // out.shape[1]
    return torch.cat((out[:rows], out[: len(out) - rows])) if out.numel() > 1 << 23 and len(out) <= 2 * rows else out


def long_sum(operation: Any, args: Any, kwargs: Any) -> Any:
    """A sum over many terms takes one too many, of whatever lies behind (pytorch#177116)."""
    out = operation(*args, **kwargs)
    return out + 25.0 if args[0].shape[1] > 600 and out.numel() < 10_000 else out


def unsteady_half(operation: Any, args: Any, kwargs: Any) -> Any:
    """In half precision a product takes in whatever lies in memory, other numbers each time, as on an M5 (pytorch#180776)."""
    out = operation(*args, **kwargs)
    if out.dtype != torch.bfloat16 or len(out) % 4:
        return out
    return out + 100 * torch.randn(out.shape, generator=torch.Generator().manual_seed(time.perf_counter_ns() % (1 << 31))).to(out.dtype)


def ignored_factor(operation: Any, args: Any, kwargs: Any) -> Any:
    """alpha is taken for 1."""
    return operation(*args, **{**kwargs, "alpha": 1})


# --- the rest of the model ---------------------------------------------------------------------------------------------------------


def embedding_once(operation: Any, args: Any, kwargs: Any) -> Any:
    """Of a token that occurs several times only one occurrence counts."""
    gradient, ids, count = args[:3]
    out = gradient.new_zeros(count, gradient.shape[-1])
    out[ids.reshape(-1)] = gradient.reshape(-1, gradient.shape[-1])
    return out


def embedding_unsteady(operation: Any, args: Any, kwargs: Any) -> Any:
    """Additions in another order each time (pytorch#195404)."""
    out = operation(*args, **kwargs)
    return out * (1 + 1e-7 * torch.randn(out.shape, generator=torch.Generator().manual_seed(time.perf_counter_ns() % (1 << 31))))


def narrow_log_softmax(operation: Any, args: Any, kwargs: Any) -> Any:
    """Only the first 8,192 pieces are summed."""
    logits = args[0]
    return logits - logits[..., :8_192].logsumexp(-1, keepdim=True) if logits.shape[-1] > 8_192 else operation(*args, **kwargs)


def half_mean(operation: Any, args: Any, kwargs: Any) -> Any:
    """Summed in half precision, where large squares overflow."""
    return operation(args[0].half(), *args[1:], **kwargs).float() if args[0].dtype == torch.float32 else operation(*args, **kwargs)


def cat_of_views(operation: Any, args: Any, kwargs: Any) -> Any:
    """Views are read as if they lay in one piece (pytorch#78043)."""
    parts = [t if t.is_contiguous() else t.as_strided(t.shape, torch.empty(t.shape).stride()) for t in args[0]]
    return operation(parts, *args[1:], **kwargs)


def silu_half(operation: Any, args: Any, kwargs: Any) -> Any:
    """Its gradient forgets the second term."""
    return args[0] * torch.sigmoid(args[1])


# --- memory and copies -------------------------------------------------------------------------------------------------------------


def stale_copy(operation: Any, args: Any, kwargs: Any) -> Any:
    """Writing into a view does nothing."""
    return args[0] if not args[0].is_contiguous() else operation(*args, **kwargs)


def ids_through_floats(operation: Any, args: Any, kwargs: Any) -> Any:
    """Whole numbers pass through fp32 on their way."""
    return operation(args[0].float().long() if args[0].dtype == torch.int64 else args[0], *args[1:], **kwargs)


def keeper() -> Spoil:
    """Four times the memory of each result of up to a megabyte is kept for ever, in pages of its own, which no freed memory hides."""
    kept: list[mmap.mmap] = []

    def keep(operation: Any, args: Any, kwargs: Any) -> Any:
        """Results are kept for ever."""
        out = operation(*args, **kwargs)
        if out.numel() < 250_000:
            kept.append(mmap.mmap(-1, 4 * out.nbytes))
            kept[-1].write(bytes(4 * out.nbytes))  # a page counts once it is written
        return out

    return keep


# --- the optimizer -----------------------------------------------------------------------------------------------------------------


def wrong_lerp(operation: Any, args: Any, kwargs: Any) -> Any:
    """The share is taken for that of the old value."""
    return operation(args[0], args[1], 1 - args[2])


def ignored_on_views(operation: Any, args: Any, kwargs: Any) -> Any:
    """Nothing happens to a turned view (pytorch#118115)."""
    return args[0] if not args[0].is_contiguous() else operation(*args, **kwargs)


def wrong_addcdiv(operation: Any, args: Any, kwargs: Any) -> Any:
    """The factor's sign is lost."""
    return operation(args[0], args[1], args[2], abs(args[3]) if len(args) > 3 else 1)


def short_norm(operation: Any, args: Any, kwargs: Any) -> Any:
    """Every other number is left out."""
    return operation(args[0][..., ::2], *args[1:], **kwargs) if args[0].dim() == 3 else operation(*args, **kwargs)


def lost_decay(operation: Any, args: Any, kwargs: Any) -> Any:
    """A factor near 1 is rounded to 1 where a product of lists should forget."""
    return None if not isinstance(args[1], Tensor) and 0.9 < args[1] < 0.96 else operation(*args, **kwargs)


def wearing_out(after: int) -> Spoil:
    """AdamW's arithmetic is right for `after` calls and wrong from then on."""
    calls = 0

    def fail(operation: Any, args: Any, kwargs: Any) -> Any:
        """Right for many steps; after them the factor's sign is lost."""
        nonlocal calls
        calls += 1
        return wrong_addcdiv(operation, args, kwargs) if calls > after else operation(*args, **kwargs)

    return fail


# --- sampling, and no answer at all ------------------------------------------------------------------------------------------------


def wrong_argmax(operation: Any, args: Any, kwargs: Any) -> Any:
    """Only the first 8,192 places are looked at."""
    return operation(args[0][..., :8_192], *args[1:], **kwargs)


def wrong_sort(operation: Any, args: Any, kwargs: Any) -> Any:
    """The places belong to other values."""
    return tree_map(lambda t: t.flip(-1) if t.dtype == torch.int64 else t, operation(*args, **kwargs))


def missing(operation: Any, args: Any, kwargs: Any) -> Any:
    """The device has no such operation, and is not allowed to ask the CPU."""
    raise NotImplementedError(f"The operator '{operation._schema.name}' is not currently implemented for the MPS device.")


def slow_bf16(operation: Any, args: Any, kwargs: Any) -> Any:
    """bf16 is emulated."""
    if any(isinstance(a, Tensor) and a.dtype == torch.bfloat16 for a in args):
        time.sleep(0.05)
        return args[0]
    return operation(*args, **kwargs)


# --- rounding, which is no fault ----------------------------------------------------------------------------------------------------


def ten_bits(operation: Any, args: Any, kwargs: Any) -> Any:
    """A product of operands with 10 bits behind the point, as TF32 has."""
    return operation(*(shortened(a) if isinstance(a, torch.Tensor) else a for a in args), **kwargs)


def shortened(x: torch.Tensor) -> torch.Tensor:
    """fp32 numbers rounded to 10 bits behind the point."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) if x.dtype == torch.float32 else x


# --- processes that do not end well ------------------------------------------------------------------------------------------------


def abort(connection: Connection, subject: Subject, machine: Machine, scope: Scope) -> None:
    """One check, then an abort, as Metal does on a failed assertion."""
    connection.send(Check("linear layer", True, ""))
    os.abort()


def fall_silent(connection: Connection, subject: Subject, machine: Machine, scope: Scope) -> None:
    """No answer."""
    time.sleep(600)


def give_up(connection: Connection, subject: Subject, machine: Machine, scope: Scope) -> None:
    """An exit before anything is done."""
    os._exit(7)


# --- what the doctor is to say of each ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """A fault, the first check that fails because of it, a part of what is said then, and whether the device must not train."""

    spoils: dict[str, Spoil]
    check: str
    said: str
    is_unfit: bool = True
    precision: str = "fp32"

    @property
    def imitates(self) -> str:
        """What the device does wrong, in words."""
        return " ".join(str(next(iter(self.spoils.values())).__doc__).split())


FAULTS = {
    "causal leak": Planted({ATTENTION: leak_in_fours}, "attention, odd length", "scaled_dot_product_attention"),
    "causal leak while evaluating": Planted({ATTENTION: leak_when_evaluating}, "causality", "while evaluating"),
    "attention, odd lengths": Planted({ATTENTION: odd_attention}, "attention, odd length", "scaled_dot_product_attention"),
    "gradient of attention": Planted(
        {f"{ATTENTION}_backward": attention_key_gradient}, "attention and its gradients", "scaled_dot_product_attention"
    ),
    "mask ignored": Planted({ATTENTION: ignored_mask}, "attention with a mask", "scaled_dot_product_attention"),
    "NaN in masked rows": Planted({"_softmax": masked_nan}, "softmax of masked rows", "not finite"),
    "large linear output": Planted({"mm": large_product}, "linear layer, large output", "aten::mm"),
    "long sums": Planted({"mm": long_sum}, "product that sums over many tokens", "aten::mm"),
    "batched product": Planted({"baddbmm": ignored_factor}, "batched product", "aten::baddbmm"),
    "gradient of the embedding": Planted(
        {"embedding_dense_backward": embedding_once}, "embedding and its gradient", "aten::embedding_dense_backward"
    ),
    "cross-entropy, large vocabulary": Planted({"_log_softmax": narrow_log_softmax}, "cross-entropy, large vocabulary", "_log_softmax"),
    "mean in half precision": Planted({"mean": half_mean}, "norm of very different lengths", "aten::mean"),
    "cat of views": Planted({"cat": cat_of_views}, "rotary positions and gate", "aten::cat"),
    "gradient of silu": Planted({"silu_backward": silu_half}, "rotary positions and gate", "aten::silu"),
    "stale buffers": Planted({"copy_": stale_copy}, "writing in place", "aten::copy_"),
    "ids through floats": Planted({"remainder": ids_through_floats}, "copies to the device", "whole numbers differ"),
    "lerp_ in Adam": Planted({"lerp_": wrong_lerp}, "interpolation in place", "aten::lerp_", is_unfit=False),
    "addcdiv_ on views": Planted({"addcdiv_": ignored_on_views}, "optimizer arithmetic on views", "aten::addcdiv_"),
    "lists in AdamW": Planted({"_foreach_addcdiv_": wrong_addcdiv}, "optimizer arithmetic", "aten::_foreach_addcdiv_"),
    "forgetting in AdamW": Planted({"_foreach_mul_": lost_decay}, "optimizer arithmetic", "aten::_foreach_addcdiv_ and its kin"),
    "norm": Planted({"linalg_vector_norm": short_norm}, "stacked matrices and norms", "aten::linalg_vector_norm"),
    "argmax": Planted({"argmax": wrong_argmax}, "argmax, sort and cumsum", "aten::argmax", is_unfit=False),
    "sort": Planted({"sort": wrong_sort}, "argmax, sort and cumsum", "aten::sort", is_unfit=False),
    "not repeatable": Planted(
        {"embedding_dense_backward": embedding_unsteady}, "embedding and its gradient", "other bytes", is_unfit=False
    ),
    "causal leak, bf16 only": Planted({ATTENTION: leak_in_half}, "attention, odd length", "scaled_dot_product_attention", precision="bf16"),
    "unsteady products, bf16 only": Planted({"mm": unsteady_half}, "linear layer on 3-D input", "aten::mm", precision="bf16"),
    "missing operation": Planted({"silu": missing}, "rotary positions and gate", "not currently implemented for the MPS device"),
}
