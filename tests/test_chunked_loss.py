"""Laws of the chunked loss: loss and gradients are those of the plain one, however the rows fall into chunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from helpers.models import lively_model, shape
from positron_mini.fast import chunked_loss as module
from positron_mini.fast.chunked_loss import chunked_loss
from positron_mini.model import IGNORED


def both(trained: float, segments: bool) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Loss and gradients of a lively model by the plain and by the chunked way."""
    model = lively_model(shape())
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, model.config.vocab_size, (3, 17), generator=generator)
    targets = torch.randint(0, model.config.vocab_size, (3, 17), generator=generator)
    targets[torch.rand(3, 17, generator=generator) >= trained] = IGNORED
    parts = torch.arange(17).expand(3, 17) // 6 if segments else None
    found = []
    for loss_of in (model.loss, lambda i, t, s: chunked_loss(model, model.hidden, i, t, s)):
        model.zero_grad(set_to_none=True)
        loss = loss_of(ids, targets, parts)
        (loss / 7).backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    return found


@pytest.mark.parametrize("numbers", [1, 1_000, 1 << 20])
@pytest.mark.parametrize("trained", [1.0, 0.4, 0.0])
def test_loss_and_gradients_are_those_of_the_plain_path(numbers: int, trained: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_NUMBERS", numbers)
    (plain, wanted), (chunked, found) = both(trained, segments=trained == 0.4)
    torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=0)
    assert len(wanted) == len(found)
    for a, b in zip(wanted, found, strict=True):
        assert float((a - b).norm()) <= 1e-5 * max(float(a.norm()), 1e-30)


def test_without_gradients_only_the_loss_is_made() -> None:
    model = lively_model(shape())
    ids = torch.arange(10).view(2, 5)
    with torch.no_grad():
        torch.testing.assert_close(chunked_loss(model, model.hidden, ids, ids), model.loss(ids, ids))


def test_products_of_bf16_give_the_plain_loss_of_bf16() -> None:
    """Loss and gradients as close to those of fp32 as the plain path is under the same autocast; gradients stay in fp32."""
    model = lively_model(shape())
    ids = torch.randint(0, model.config.vocab_size, (3, 17), generator=torch.Generator().manual_seed(3))

    def found(loss_of: Callable[..., torch.Tensor], bf16: bool) -> tuple[float, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(ids, ids)
        (loss / 7).backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
        return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    (exact, wanted), (plain, plain_gradient) = found(model.loss, False), found(model.loss, True)
    chunked, gradient = found(partial(chunked_loss, model, model.hidden), True)
    assert abs(chunked - exact) <= 2 * abs(plain - exact) + 1e-3 * exact
    assert float((gradient - wanted).norm()) <= 1.5 * float((plain_gradient - wanted).norm())
