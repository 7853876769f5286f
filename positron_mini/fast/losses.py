"""Choice of the function that computes the loss: `model.loss` itself, or a faster one with the same values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from positron_mini import device as devices
from positron_mini.fast.chunked_loss import chunked_loss
from positron_mini.fast.plain import changed, has_plain_head, is_plain
from positron_mini.fast.training import native_loss
from positron_mini.model import GPT


def loss_function(model: GPT, device: str, *, compiled: bool, native: bool = False) -> Callable[..., Tensor]:
    """`model.loss`, by the fastest implementation that has been tested on `device`; all give the same values."""
    if device == "cpu":
        devices.keep_freed_memory()
    if native and is_plain(model):
        return NativeLoss(model)
    if device == "cpu" and has_plain_head(model):  # not measured on other devices
        hidden = devices.compiled(model.hidden) if compiled else model.hidden
        return partial(chunked_loss, model, hidden)
    return devices.compiled(model.loss) if compiled else model.loss


class NativeLoss:
    """Loss by native kernels, which compute the built-in model only: PyTorch takes over when `model` has been changed."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.compute: Callable[..., Tensor] = partial(native_loss, model)
        self.is_native = True

    def __call__(self, *batch: Tensor | None) -> Tensor:
        """The same value as `model.loss`."""
        return self.compute(*batch)

    def look(self) -> str:
        """Give up the native kernels if the model was changed, and return a sentence that says so; empty if it was not."""
        why = changed(self.model) if self.is_native else ""
        if not why:
            return ""
        self.is_native = False
        self.compute = loss_function(self.model, "cpu", compiled=False)
        return f"training with PyTorch's kernels: this model is not the built-in one ({why})"
