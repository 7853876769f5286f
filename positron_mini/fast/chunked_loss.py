"""The loss of `GPT.loss` without holding all logits: a few hundred rows at a time, with gradients computed in the forward pass.

For a vocabulary of 16,000 the logits are the largest tensor of training, and cross-entropy needs three of them. Here a chunk of rows is
multiplied by the head, then turned into probabilities and its share of both gradients before the next chunk begins, while it is in the
cache. Rows without a target are left out: in fine-tuning that is most of them. Source of the idea: Wijmans et al. 2024 (arXiv
2411.09009), there as a GPU kernel.

Shapes: N rows, C = n_embd, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from positron_mini.model import GPT, IGNORED

CHUNK_NUMBERS = 8 << 20  # logits at once, 32 MB: smaller chunks reread the head's gradient too often, larger ones exceed the cache


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over rows of -ln softmax(hidden @ weight')[target], and its gradients, one chunk of logits at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum in nats for `hidden` (N, C), `weight` (V, C) and `targets` (N,), none of them IGNORED.

        Matmuls are in `dtype`, the softmax and both gradients in the dtype of `weight`.
        """
        wants_gradients = any(ctx.needs_input_grad)
        total = weight.new_zeros(())
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight) if wants_gradients else None
        factor, size = weight.to(dtype), max(1, CHUNK_NUMBERS // len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, len(hidden), size):
                rows, wanted = hidden[first : first + size].to(dtype), targets[first : first + size, None]  # (n, C), (n, 1)
                logprobs = torch.log_softmax(rows @ factor.t(), dim=-1, dtype=weight.dtype)  # (n, V)
                total -= logprobs.gather(1, wanted).sum()
                if d_weight is not None:
                    error = logprobs.exp_()  # gradient of the logits: probabilities, minus 1 at the target
                    error.scatter_add_(1, wanted, error.new_full(wanted.shape, -1.0))
                    error = error.to(dtype)
                    d_hidden[first : first + size] = error @ factor
                    if dtype == weight.dtype:
                        d_weight.addmm_(error.t(), rows)
                    else:
                        d_weight += error.t() @ rows
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of `hidden` and `weight`, computed in the forward pass, times the upstream gradient."""
        (scale,) = upstream
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden.mul_(scale), d_weight.mul_(scale), None, None


def chunked_loss(model: GPT, hidden: Callable[..., Tensor], ids: Tensor, targets: Tensor, segments: Tensor | None = None) -> Tensor:
    """The same value as `model.loss`. `hidden` is `model.hidden`, possibly compiled."""
    stream = hidden(ids, segments=segments).view(-1, model.config.n_embd)  # (N, C)
    flat = targets.reshape(-1)
    trained = (flat != IGNORED).nonzero().flatten()
    if len(trained) < len(flat):
        stream, flat = stream[trained], flat[trained]
    weight = model.model.embed_tokens.weight
    kind = stream.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    loss: Tensor = ChunkedCrossEntropy.apply(stream, weight, flat, dtype)  # type: ignore[no-untyped-call]
    return loss
