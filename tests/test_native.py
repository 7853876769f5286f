"""Laws of the C++ parts: attention and its gradients are PyTorch's, each is compiled once, and done without where it cannot be."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import lively_model, shape, text_like_ids
from torch import Tensor
from torch.nn import functional as F

from positron_mini import device, native
from positron_mini.config import TrainConfig
from positron_mini.native import attention
from positron_mini.native.attention import attend, quicken
from positron_mini.resolve import choose_attention

needs_compiler = pytest.mark.skipif(device.compiler() is None, reason="no C++ compiler")


# --- attention --------------------------------------------------------------------------------------------------------------------------


def heads(B: int, T: int, H: int, K: int, D: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """q, k, v and the gradient of y, (B, heads, T, D) each, as the model lays them out. The queries are large: some softmax is sharp."""
    sizes = ((H, 4.0), (K, 1.0), (K, 1.0), (H, 1.0))
    return tuple((scale * torch.randn(B, T, n, D)).to(dtype).transpose(1, 2).requires_grad_() for n, scale in sizes)


def value_and_gradients(function: Callable[..., Tensor], parts: tuple[Tensor, ...]) -> list[Tensor]:
    """y and the gradients of q, k and v."""
    q, k, v, dy = parts
    y = function(q, k, v, attn_mask=None, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return [y.detach(), *torch.autograd.grad(y, (q, k, v), dy)]


@needs_compiler
@pytest.mark.parametrize(
    ("B", "T", "H", "K", "D"), [(1, 32, 1, 1, 32), (2, 64, 4, 2, 32), (1, 96, 2, 2, 64), (2, 256, 4, 4, 32), (1, 512, 2, 1, 32)]
)
@pytest.mark.parametrize("threads", [1, 3])
def test_attention_and_its_gradients_are_those_of_pytorch(B: int, T: int, H: int, K: int, D: int, threads: int) -> None:
    torch.set_num_threads(threads)
    parts = heads(B, T, H, K, D)
    wanted = value_and_gradients(F.scaled_dot_product_attention, tuple(t.detach().double().requires_grad_() for t in parts))
    for found, true in zip(value_and_gradients(attend, parts), wanted, strict=True):
        assert float((found - true).abs().max() / true.abs().max()) < 5e-6


@needs_compiler
def test_attention_looks_at_no_later_position() -> None:
    q, k, v, _ = (t.detach() for t in heads(1, 64, 2, 2, 32))
    before = attend(q, k, v, attn_mask=None, is_causal=True, enable_gqa=False)
    k[:, :, 40:], v[:, :, 40:] = 1e4, -1e4
    after = attend(q, k, v, attn_mask=None, is_causal=True, enable_gqa=False)
    assert torch.equal(before[:, :, :40], after[:, :, :40]) and not torch.equal(before[:, :, 40:], after[:, :, 40:])


@needs_compiler
def test_scores_of_every_size_stay_finite() -> None:
    q, k, v, dy = heads(1, 64, 1, 1, 32)
    with torch.no_grad():
        q *= 1e3
    for found in value_and_gradients(attend, (q, k, v, dy)):
        assert bool(found.isfinite().all())


@needs_compiler
@pytest.mark.parametrize("which", range(4))
def test_a_number_that_is_not_finite_stays_visible(which: int) -> None:
    """Else training would go on with it."""
    parts = heads(1, 64, 1, 1, 32)
    with torch.no_grad():
        parts[which][0, 0, 10, 3] = float("nan")
    y, *gradients = value_and_gradients(attend, parts)
    assert which == 3 or bool(y[0, 0, 10].isnan().all() if which < 2 else y[0, 0, 10, 3].isnan())
    assert not all(bool(gradient.isfinite().all()) for gradient in gradients)


@needs_compiler
def test_bf16_comes_back_as_bf16_and_is_computed_in_fp32() -> None:
    parts = heads(1, 64, 2, 2, 32, torch.bfloat16)
    wide = tuple(t.detach().float().requires_grad_() for t in parts)
    for found, true in zip(value_and_gradients(attend, parts), value_and_gradients(attend, wide), strict=True):
        assert found.dtype == torch.bfloat16 and torch.equal(found, true.bfloat16())


@pytest.mark.parametrize("why", ["a mask", "single tokens", "uneven positions", "narrow heads", "fp64", "a cache"])
def test_what_it_does_not_cover_is_left_to_pytorch(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_forward", None)  # calling it would fail
    T, D = {"uneven positions": 40, "single tokens": 1}.get(why, 64), 16 if why == "narrow heads" else 32
    q, k, v, _ = (t.detach() for t in heads(1, T, 2, 2, D, torch.float64 if why == "fp64" else torch.float32))
    mask = torch.ones(T, T, dtype=torch.bool).tril() if why == "a mask" else None
    q = q[:, :, -32:] if why == "a cache" else q
    settings = {"attn_mask": mask, "is_causal": mask is None and T > 1, "enable_gqa": False}
    assert torch.equal(attend(q, k, v, **settings), F.scaled_dot_product_attention(q, k, v, **settings))  # type: ignore[arg-type]


@needs_compiler
def test_the_loss_and_gradients_of_a_model_stay_the_same() -> None:
    config = shape(n_head=2, n_kv_head=1, head_dim=32, context_len=64)
    ids = text_like_ids(config.vocab_size, 3, 65)
    found = []
    for quick in (False, True):
        model = lively_model(config)
        if quick:
            quicken(model)
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.item(), {name: p.grad for name, p in model.named_parameters()}))
    (plain, plain_gradients), (quick_loss, quick_gradients) = found
    assert quick_loss == pytest.approx(plain, rel=1e-6)
    for name, gradient in plain_gradients.items():
        assert gradient is not None and quick_gradients[name] is not None
        torch.testing.assert_close(quick_gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@needs_compiler
def test_a_compiled_model_takes_it_too() -> None:
    """With the tracing of torch.compile but without its code generator, which would take half a minute."""
    config = shape(n_head=2, n_kv_head=2, head_dim=32, context_len=64)
    ids = text_like_ids(config.vocab_size, 2, 65)
    gradients = []
    for compiled in (False, True):
        model = lively_model(config)
        quicken(model)
        loss_of = torch.compile(model.loss, dynamic=False, backend="aot_eager") if compiled else model.loss
        loss_of(ids[:, :-1], ids[:, 1:]).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "where", "recorded", "works", "wanted", "said"),
    [
        ("auto", "cpu", None, True, "native", ""),
        ("auto", "cpu", None, False, "pytorch", ""),
        ("auto", "mps", None, True, "pytorch", ""),
        ("pytorch", "cpu", None, True, "pytorch", ""),
        ("native", "cpu", None, False, "pytorch", "no C++ compiler"),
        ("native", "cuda", None, True, "pytorch", "not for cuda"),
        ("auto", "cpu", {"config": {}}, True, "pytorch", ""),  # a run from before there was a choice goes on as it was
        ("native", "cpu", {"config": {}}, True, "native", ""),
        ("native", "cpu", {"config": {"attention": "native"}}, False, "pytorch", "no C++ compiler"),
    ],
)
def test_who_computes_attention(
    asked: Any, where: str, recorded: dict[str, Any] | None, works: bool, wanted: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "is_there", lambda: works)
    lines: list[str] = []
    assert choose_attention(TrainConfig(attention=asked), where, recorded, lines.append) == wanted
    assert (said in lines[0]) if said else not lines


# --- the library ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ctypes.CDLL | None]:
    """`library("attention")` as a new process with an empty cache folder would find it."""
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path / "cache"))
    return lambda: native.library.__wrapped__("attention")


def made(tmp_path: Path) -> set[str]:
    """What lies in the cache folder."""
    return {entry.name for entry in (tmp_path / "cache").iterdir()}


@needs_compiler
def test_a_part_is_compiled_once_and_again_for_another_source(
    fresh: Callable[[], ctypes.CDLL | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fresh() is not None
    first = made(tmp_path)
    assert len(first) == 1
    with monkeypatch.context() as patch:
        patch.setattr(native.subprocess, "run", None)  # a second compilation would fail
        assert fresh() is not None
    shutil.copy(native.SOURCES / "vectors.h", tmp_path)
    changed = tmp_path / "attention.cpp"
    changed.write_bytes((native.SOURCES / "attention.cpp").read_bytes() + b"\n// changed\n")
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    assert fresh() is not None
    assert len(made(tmp_path)) == 2 and first < made(tmp_path)


@pytest.mark.parametrize("trouble", ["no compiler", "it fails", "it makes nothing of use", "no folder"])
def test_what_cannot_be_compiled_is_done_without(
    trouble: str, fresh: Callable[[], ctypes.CDLL | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble == "no compiler":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    elif trouble == "no folder":
        (tmp_path / "cache").write_text("a file")
    else:
        compiler = tmp_path / "c++"
        nonsense = 'for last; do :; done\necho nonsense > "$last"\n'
        compiler.write_text("#!/bin/sh\n" + ("exit 1\n" if trouble == "it fails" else nonsense))
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
    assert fresh() is None
