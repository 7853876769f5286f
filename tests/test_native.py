"""Laws of the C++ parts: the loss and its gradients are those of the model, and what they do not cover is left to PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.models import lively_model, shape, text_like_ids
from helpers.runs import needs_compiler
from positron_mini import fast as native
from positron_mini.config import ModelConfig, SFTConfig, TrainConfig
from positron_mini.fast import training
from positron_mini.fast.training import begins_of, native_loss
from positron_mini.model import GPT, IGNORED
from positron_mini.store.run_record import RunRecord
from positron_mini.train.settings import choose_kernels

SHAPES = {
    "grouped heads": shape(n_head=4, n_kv_head=2, head_dim=32, context_len=64),
    "a head for each, narrower than the stream": shape(n_embd=96, n_head=2, n_kv_head=2, head_dim=32, ffn=160, context_len=64),
    "wide heads": shape(n_embd=64, n_head=2, n_kv_head=1, head_dim=64, ffn=128, context_len=96),
    "uneven vocabulary": shape(n_head=1, n_kv_head=1, head_dim=32, context_len=256, vocab_size=501),
    "few pieces, heads of three registers": shape(n_head=1, n_kv_head=1, head_dim=96, context_len=32, vocab_size=13),
}
SHAPE = SHAPES["grouped heads"]
Loss = Callable[..., Tensor]


# --- training ---------------------------------------------------------------------------------------------------------------------------


def batch(config: ModelConfig, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Ids and targets, (rows, context) each."""
    ids = text_like_ids(config.vocab_size, rows, config.context_len + 1)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def loss_and_gradients(model: GPT, loss_of: Loss, *parts: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """The loss, and a seventh of its gradients."""
    model.zero_grad(set_to_none=True)
    loss = loss_of(*parts)
    (loss / 7).backward()  # type: ignore[no-untyped-call]
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def same_as_the_model(model: GPT, *parts: Tensor | None) -> None:
    """Fails unless loss and gradients are the model's own in fp64, but for roundings of fp32."""
    exact = GPT(model.config).double()
    exact.load_state_dict(model.state_dict())
    exact.rope_cos, exact.rope_sin = model.rope_cos.double(), model.rope_sin.double()
    true, wanted = loss_and_gradients(exact, exact.loss, *parts)
    loss, found = loss_and_gradients(model, lambda *p: native_loss(model, *p), *parts)
    assert abs(float(loss) - float(true)) <= 2e-6 * abs(float(true))
    assert len(found) == len(wanted) == len(list(model.parameters()))
    for (name, _), gradient, right in zip(model.named_parameters(), found, wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert float((gradient - right).norm()) <= 1e-5 * max(float(right.norm()), 1e-30), name


@needs_compiler
@pytest.mark.parametrize("which", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_loss_and_gradients_are_those_of_the_model(which: str, threads: int) -> None:
    torch.set_num_threads(threads)
    same_as_the_model(lively_model(SHAPES[which]), *batch(SHAPES[which]))


@needs_compiler
@pytest.mark.parametrize("which", ["grouped heads", "uneven vocabulary"])
def test_segments_see_only_themselves_and_rows_may_predict_nothing(which: str) -> None:
    config = SHAPES[which]
    ids, targets = batch(config)
    segments = torch.arange(config.context_len).expand(3, -1) // torch.tensor([[50], [7], [1_000]]) + 1
    segments[1, -20:] = 0  # padding
    segments[0, :3] = 99
    assert begins_of(segments) is not None
    targets[torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) < 0.6] = IGNORED
    same_as_the_model(lively_model(config), ids, targets, segments)


@needs_compiler
def test_without_targets_nothing_is_learned() -> None:
    model = lively_model(SHAPE)
    ids, targets = batch(SHAPE)
    loss, gradients = loss_and_gradients(model, lambda *p: native_loss(model, *p), ids, torch.full_like(targets, IGNORED))
    assert float(loss) == 0 and all(not gradient.any() for gradient in gradients)


@needs_compiler
@pytest.mark.parametrize("numbers", [1, 20_000, 1 << 20])
def test_chunks_of_logits_do_not_show(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOGITS_AT_ONCE", numbers)
    same_as_the_model(lively_model(SHAPE), *batch(SHAPE))


@needs_compiler
def test_no_prediction_looks_at_a_later_token() -> None:
    model = lively_model(SHAPE)
    ids, targets = batch(SHAPE)
    targets[:, 40:] = IGNORED
    before = native_loss(model, ids, targets)
    ids[:, 40:] = 7
    assert torch.equal(native_loss(model, ids, targets), before)
    ids[:, 30] = 7
    assert not torch.equal(native_loss(model, ids, targets), before)


@needs_compiler
def test_the_same_comes_out_each_time() -> None:
    """However the threads share the work."""
    torch.set_num_threads(3)
    model = lively_model(SHAPE)
    loss, gradients = loss_and_gradients(model, lambda *p: native_loss(model, *p), *batch(SHAPE, 8))
    for _ in range(5):
        again, others = loss_and_gradients(model, lambda *p: native_loss(model, *p), *batch(SHAPE, 8))
        assert torch.equal(again, loss) and all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


@needs_compiler
def test_large_weights_give_finite_numbers() -> None:
    model = lively_model(SHAPE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= 100 if "norm" in name or "gate" in name else 1
    loss, gradients = loss_and_gradients(model, lambda *p: native_loss(model, *p), *batch(SHAPE))
    assert bool(loss.isfinite()) and all(bool(gradient.isfinite().all()) for gradient in gradients)


@needs_compiler
@pytest.mark.parametrize("place", range(13))
def test_a_weight_that_is_not_finite_shows_in_the_loss(place: int) -> None:
    """Else training would go on with it."""
    model = lively_model(shape(n_layer=1, head_dim=32))
    parameter = list(model.parameters())[place]
    with torch.no_grad():
        parameter.view(-1)[3] = float("nan")
    ids, targets = batch(model.config)
    assert not bool(native_loss(model, ids.fill_(0), targets).isfinite())


@needs_compiler
def test_bf16_is_as_near_to_fp32_as_the_model_under_autocast() -> None:
    model = lively_model(SHAPE)
    parts = batch(SHAPE)
    true, wanted = loss_and_gradients(model, model.loss, *parts)
    errors = {}
    for name, loss_of in (("model", model.loss), ("native", lambda *p: native_loss(model, *p))):
        with torch.autocast("cpu", torch.bfloat16):
            loss, found = loss_and_gradients(model, loss_of, *parts)
        assert all(gradient.dtype == torch.float32 for gradient in found)
        distance = sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True)) ** 0.5
        errors[name] = (abs(float(loss - true)), distance)
    assert errors["native"][0] <= 2 * errors["model"][0] + 1e-4 * float(true) and 0 < errors["native"][1] <= 1.2 * errors["model"][1]


@pytest.mark.parametrize("why", ["narrow heads", "uneven width", "uneven rows", "dropout", "scattered segments"])
def test_what_it_does_not_cover_is_left_to_pytorch(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_Loss", None)  # calling it would fail
    model = lively_model({"narrow heads": shape(context_len=64), "uneven width": shape(n_embd=48, head_dim=32)}.get(why, SHAPE))
    ids, targets = (part[:, :50] if why == "uneven rows" else part for part in batch(model.config))
    model.dropout = 0.5 if why == "dropout" else 0.0
    segments = torch.arange(ids.shape[1]).expand(3, -1) % 2 if why == "scattered segments" else None
    torch.manual_seed(0)
    found = native_loss(model, ids, targets, segments)
    torch.manual_seed(0)
    torch.testing.assert_close(found, model.loss(ids, targets, segments))


def test_a_position_may_see_from_where_its_segment_begins() -> None:
    wanted = torch.tensor([[0, 0, 2, 3, 3, 3], [0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    found = begins_of(torch.tensor([[1, 1, 2, 0, 0, 0], [5, 5, 5, 5, 5, 5]]))
    assert found is not None and torch.equal(found, wanted)
    assert begins_of(torch.tensor([[1, 2, 1]])) is None


NO_COMPILER = "there is no C++ compiler"


@pytest.mark.parametrize(
    ("settings", "where", "recorded", "trouble", "wanted", "said"),
    [
        ({}, "cpu", None, "", "native", ""),
        ({}, "cpu", None, NO_COMPILER, "pytorch", "kernels    PyTorch's: there is no C++ compiler"),
        ({}, "mps", None, "", "pytorch", ""),
        ({}, "mps", None, NO_COMPILER, "pytorch", ""),  # they would not be used there
        ({"kernels": "pytorch"}, "cpu", None, "", "pytorch", ""),
        ({"kernels": "torch"}, "cpu", None, "", "pytorch", ""),
        ({"kernels": "native"}, "cpu", None, NO_COMPILER, "pytorch", "warning: training with PyTorch's kernels: there is no C++ compiler"),
        ({"kernels": "native"}, "cuda", None, "", "pytorch", "not for cuda"),
        ({"kernels": "native", "compile": "on"}, "cpu", None, "", "pytorch", "torch.compile takes their place"),
        ({"kernels": "native", "dropout": 0.1}, "cpu", None, "", "pytorch", "no dropout"),
        ({"compile": "on"}, "cpu", None, "", "pytorch", ""),
        ({}, "cpu", {}, "", "pytorch", ""),  # a run from before there was a choice goes on as it was
        ({"kernels": "native"}, "cpu", {}, "", "native", ""),
        ({"kernels": "native"}, "cpu", {"kernels": "native"}, NO_COMPILER, "pytorch", NO_COMPILER),
    ],
)
def test_which_kernels_train_and_why_not_the_native_ones(
    settings: dict[str, Any],
    where: str,
    recorded: dict[str, Any] | None,
    trouble: str,
    wanted: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "why_not", lambda: trouble)
    lines: list[str] = []
    record = None if recorded is None else RunRecord(kind="pretrain", config=recorded)
    assert choose_kernels(TrainConfig(**settings), SHAPE, where, record, lines.append) == wanted
    assert (said in lines[0] and len(lines) == 1) if said else not lines
    if "compile" not in settings:
        config = SFTConfig(**settings)
        assert choose_kernels(config, SHAPE, where, record) == wanted


def test_sizes_that_do_not_fit_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "why_not", lambda: "")
    lines: list[str] = []
    assert choose_kernels(TrainConfig(kernels="native"), shape(), "cpu", None, lines.append) == "pytorch"
    assert "multiples of 32" in lines[0]
