"""Laws of changed models: what is trained, written, shown and exported is the model that is there, never the built-in one in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.models import lively_model, shape, text_like_ids
from helpers.runs import TINY, positron, tiny_train
from positron_mini import fast as native
from positron_mini import model as source
from positron_mini.config import SampleConfig, SFTConfig, TrainConfig
from positron_mini.errors import PositronError, UsageError
from positron_mini.evaluate import lens
from positron_mini.export import model_files as export
from positron_mini.fast import plain
from positron_mini.fast.chunked_loss import chunked_loss
from positron_mini.fast.decoder import Decoder, quickest
from positron_mini.fast.losses import NativeLoss, loss_function
from positron_mini.generate import Plain, draws
from positron_mini.model import GPT, MLP, Attention, Block, RMSNorm
from positron_mini.optim import build_optimizer, make_schedule
from positron_mini.store import checkpoint as ckpt
from positron_mini.train.settings import choose_kernels
from positron_mini.trainer import Batch, LoopConfig, StopFlag, Trainer

PLAIN = ("--milestones", "none", "--save_every", "2")
SHAPE = shape(n_head=2, n_kv_head=1, head_dim=32, context_len=32, n_embd=64)  # one that the native kernels cover
Way = Callable[[pytest.MonkeyPatch], GPT]
WAYS: dict[str, Way] = {}


def way(function: Way) -> Way:
    """Keep a way to change a model under its name."""
    WAYS[function.__name__.replace("_", " ")] = function
    return function


def relu_squared(self: MLP, x: Tensor) -> Tensor:
    """Another feed-forward layer of the same weights."""
    out: Tensor = self.down_proj(F.relu(self.gate_proj(x)).square() * self.up_proj(x))
    return out


def first(model: GPT) -> Any:
    """The first block."""
    return model.model.layers[0]


class OtherMLP(MLP):
    """A subclass."""

    forward = relu_squared


class OtherAttention(Attention):
    """Twice what attention gathers."""

    def forward(self, *args: Any) -> Tensor:
        """Twice as much."""
        return 2 * super().forward(*args)


class OtherNorm(RMSNorm):
    """A norm with an offset."""

    def forward(self, x: Tensor) -> Tensor:
        """One more."""
        return super().forward(x) + 1


class OtherBlock(Block):
    """A block that adds less."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Half of what a block adds."""
        return (x + super().forward(x, *args)) / 2


class OtherGPT(GPT):
    """A model whose stream is turned round."""

    def hidden(self, *args: Any, **settings: Any) -> Tensor:
        """The other way."""
        return -super().hidden(*args, **settings)


class OtherLoss(GPT):
    """A model that is to be unsure: label smoothing."""

    def loss(self, ids: Tensor, targets: Tensor, segments: Tensor | None = None) -> Tensor:
        """Half of it."""
        return super().loss(ids, targets, segments) / 2


@way
def the_forward_of_the_class(patch: pytest.MonkeyPatch) -> GPT:
    patch.setattr(MLP, "forward", relu_squared)
    return lively_model(SHAPE)


@way
def the_forward_of_the_class_after_the_model_was_made(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    patch.setattr(MLP, "forward", relu_squared)
    return model


@way
def the_forward_of_attention(patch: pytest.MonkeyPatch) -> GPT:
    forward = source.BUILT_IN["Attention.forward"]
    patch.setattr(Attention, "forward", lambda self, *args: 2 * forward(self, *args))
    return lively_model(SHAPE)


@way
def the_forward_of_a_norm(patch: pytest.MonkeyPatch) -> GPT:
    forward = source.BUILT_IN["RMSNorm.forward"]
    patch.setattr(RMSNorm, "forward", lambda self, x: forward(self, x) + 1)
    return lively_model(SHAPE)


@way
def the_forward_of_a_block(patch: pytest.MonkeyPatch) -> GPT:
    forward = source.BUILT_IN["Block.forward"]
    patch.setattr(Block, "forward", lambda self, x, *args: (x + forward(self, x, *args)) / 2)
    return lively_model(SHAPE)


@way
def a_method_of_the_model(patch: pytest.MonkeyPatch) -> GPT:
    hidden = source.BUILT_IN["GPT.hidden"]
    patch.setattr(GPT, "hidden", lambda self, *args, **settings: -hidden(self, *args, **settings))
    return lively_model(SHAPE)


@way
def the_loss_of_the_model(patch: pytest.MonkeyPatch) -> GPT:
    loss = source.BUILT_IN["GPT.loss"]
    patch.setattr(GPT, "loss", lambda self, *args: loss(self, *args) / 2)
    return lively_model(SHAPE)


@way
def the_logits_of_the_model(patch: pytest.MonkeyPatch) -> GPT:
    logits = source.BUILT_IN["GPT.logits"]
    patch.setattr(GPT, "logits", lambda self, hidden: logits(self, hidden).clamp(-3, 3))
    return lively_model(SHAPE)


@way
def a_call_of_a_class(patch: pytest.MonkeyPatch) -> GPT:
    patch.setattr(MLP, "__call__", lambda self, x: relu_squared(self, x), raising=False)
    return lively_model(SHAPE)


@way
def a_class_by_another(patch: pytest.MonkeyPatch) -> GPT:
    patch.setattr(source, "MLP", OtherMLP)
    return lively_model(SHAPE)


@way
def a_function_of_the_source(patch: pytest.MonkeyPatch) -> GPT:
    patch.setattr(source, "rotate", lambda x, cos, sin: x)
    return lively_model(SHAPE)


@way
def an_operation_of_torch(patch: pytest.MonkeyPatch) -> GPT:
    patch.setattr(F, "silu", F.gelu)
    return lively_model(SHAPE)


@way
def the_forward_of_one_part(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).mlp.forward = relu_squared.__get__(first(model).mlp)
    return model


@way
def a_part_by_a_subclass(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).mlp.__class__ = OtherMLP
    return model


@way
def an_attention_by_a_subclass(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).self_attn.__class__ = OtherAttention
    return model


@way
def a_norm_by_a_subclass(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    model.model.norm.__class__ = OtherNorm
    return model


@way
def a_block_by_a_subclass(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).__class__ = OtherBlock
    return model


@way
def the_model_by_a_subclass(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    model.__class__ = OtherGPT
    return model


@way
def the_model_by_a_subclass_with_another_loss(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    model.__class__ = OtherLoss
    return model


@way
def the_loss_of_one_model(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    model.loss = lambda *args: GPT.loss(model, *args) / 2  # type: ignore[method-assign]
    return model


@way
def a_part_by_a_layer_of_torch(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).mlp = nn.Linear(64, 64)
    return model


@way
def a_part_by_nothing(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).post_attention_layernorm = nn.Identity()
    return model


@way
def a_hook_on_a_part(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).mlp.register_forward_hook(lambda module, args, out: 2 * out)
    return model


@way
def a_hook_before_a_part(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).mlp.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return model


@way
def a_hook_on_gradients(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).mlp.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] / 2,))
    return model


@way
def a_parametrization(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    nn.utils.parametrizations.orthogonal(first(model).self_attn.q_proj)
    return model


@way
def an_extra_parameter(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).mlp.scale = nn.Parameter(torch.ones(()))
    first(model).mlp.forward = lambda x: MLP.forward(first(model).mlp, x) * first(model).mlp.scale
    return model


@way
def a_bias(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).mlp.down_proj.bias = nn.Parameter(torch.ones(64))
    return model


@way
def a_part_that_two_blocks_share(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    layers: Any = model.model.layers
    layers[1].mlp = layers[0].mlp
    return model


@way
def a_block_more(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    model.model.layers.append(copy.deepcopy(first(model)))
    return model


@way
def a_block_less(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    del model.model.layers[1]
    return model


@way
def an_epsilon(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    first(model).input_layernorm.eps = 0.5
    return model


@way
def a_buffer_more(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    model.register_buffer("bias", torch.ones(3))
    return model


@way
def the_angles_of_positions(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    model.rope_cos, model.rope_sin = torch.ones_like(model.rope_cos), torch.zeros_like(model.rope_sin)
    return model


@way
def a_width_that_only_the_weights_know(patch: pytest.MonkeyPatch) -> GPT:
    model = lively_model(SHAPE)
    for name, sizes in {"gate_proj": (64, 96), "up_proj": (64, 96), "down_proj": (96, 64)}.items():
        setattr(first(model).mlp, name, nn.Linear(*sizes, bias=False))
    return model


@pytest.fixture(params=WAYS)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], GPT]]:
    """Makes a model that is changed in one of the ways, the same one each time."""
    with monkeypatch.context() as patch:
        yield lambda: WAYS[request.param](patch)


@pytest.fixture
def other(make: Callable[[], GPT]) -> GPT:
    """A model that has been changed in one of the ways."""
    return make()


class Batches:
    """Four rows, others at each step."""

    def batch(self, step: int) -> Batch:
        """The rows of a step."""
        ids = text_like_ids(SHAPE.vocab_size, 4, SHAPE.context_len + 1, seed=step)
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def trainer_of(model: GPT, *, is_native: bool) -> Trainer:
    """A trainer of `model`."""
    loop = LoopConfig(
        lr=1e-2, schedule=make_schedule(1, None, None), micro_batch=2, grad_clip=1.0, dropout=0.0, seed=0, device="cpu", precision="fp32",
    )  # fmt: skip
    optimizer = build_optimizer(model, "adamw", lr=1e-2, muon_lr=None, weight_decay=0.0)
    return Trainer(model, optimizer, Batches(), loop, loss=loss_function(model, "cpu", compiled=False, native=is_native))


def trained(model: GPT, *, is_native: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of two steps."""
    trainer = trainer_of(model, is_native=is_native)
    losses = [report.loss for report in trainer.run(2, StopFlag())]
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}


# --- the model as it is -----------------------------------------------------------------------------------------------------------------


def test_the_built_in_model_is_known_as_it_is_made_loaded_trained_and_moved(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(SHAPE)
    assert plain.changed(model) == "" and plain.is_plain(model.train()) and plain.is_plain(model.double()) and plain.has_plain_head(model)
    model = lively_model(SHAPE)
    model.dropout, model.note = 0.1, "a note"  # type: ignore[assignment]
    trained(model, is_native=False)
    assert plain.changed(model) == ""
    assert plain.changed(ckpt.load_model(ckpt.open_checkpoint(workshop / "runs" / "base" / "latest"))) == ""
    assert plain.changed(copy.deepcopy(model)) == ""
    with monkeypatch.context() as patch:
        WAYS["the forward of the class"](patch)
        assert plain.changed(model) == "MLP.forward is replaced"
    assert plain.changed(model) == ""


def test_every_way_to_change_a_model_is_seen(other: GPT) -> None:
    assert plain.changed(other) != "" and not plain.is_plain(other)


def test_a_model_that_is_only_watched_is_still_the_built_in_one() -> None:
    model, seen = lively_model(SHAPE), []
    first(model).register_forward_pre_hook(plain.Watch(lambda: seen.append(1)))
    assert plain.changed(model) == ""
    model(torch.tensor([[1, 2, 3]]))
    assert seen == [1]
    first(model).register_forward_pre_hook(lambda module, args: None)
    assert plain.changed(model) == "model.layers.0 has a hook"


def test_a_hook_on_all_modules_is_seen() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    try:
        assert plain.changed(lively_model(SHAPE)) == "there is a hook on all modules"
    finally:
        handle.remove()


# --- training ---------------------------------------------------------------------------------------------------------------------------


def test_a_changed_model_trains_alike_whatever_the_kernels(make: Callable[[], GPT]) -> None:
    """Byte for byte as PyTorch trains it: with native kernels asked for, and without."""
    torch.manual_seed(0)
    losses, weights = trained(make(), is_native=True)
    torch.manual_seed(0)
    wanted, right = trained(make(), is_native=False)
    assert losses == wanted and list(weights) == list(right)
    assert all(torch.equal(weights[name], right[name]) for name in right)


def test_the_loss_that_is_trained_is_that_of_the_changed_model(other: GPT) -> None:
    batch = Batches().batch(0)
    wanted = other.loss(*batch[:2])
    for is_native in (True, False):
        found = loss_function(other, "cpu", compiled=False, native=is_native)(*batch[:2])
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("way", ["the loss of the model", "the logits of the model", "the model by a subclass with another loss"])
def test_an_own_loss_is_not_left_to_the_chunked_one(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = WAYS[way](monkeypatch)
    batch = Batches().batch(0)
    assert not plain.has_plain_head(model)
    assert torch.equal(loss_function(model, "cpu", compiled=False)(*batch[:2]), model.loss(*batch[:2]))
    assert not torch.allclose(chunked_loss(model, model.hidden, *batch[:2]), model.loss(*batch[:2]))


@pytest.mark.skipif(native.library() is None, reason="no native kernels here")
def test_the_built_in_model_is_trained_by_native_kernels_until_it_is_changed() -> None:
    model = lively_model(SHAPE)
    trainer = trainer_of(model, is_native=True)
    assert isinstance(trainer._loss, NativeLoss) and trainer._loss.is_native
    events: list[dict[str, Any]] = []
    trainer.tell = events.append
    list(trainer.run(1, StopFlag()))
    assert not events
    first(model).mlp.register_forward_hook(lambda module, args, out: 2 * out)
    list(trainer.run(2, StopFlag()))
    assert not trainer._loss.is_native
    assert [(event["kind"], event["step"]) for event in events] == [("kernels", 1)]
    assert events[0]["text"].endswith("this model is not the built-in one (model.layers.0.mlp has a hook)")


@pytest.mark.parametrize(
    ("kernels", "said"),
    [
        ("auto", ["kernels    PyTorch's: this model is not the built-in one (MLP.forward is replaced)"]),
        ("native", ["warning: training with PyTorch's kernels: this model is not the built-in one (MLP.forward is replaced)"]),
        ("torch", []),
        ("pytorch", []),
    ],
)
def test_the_first_lines_of_a_run_say_why_pytorch_trains_a_changed_model(
    kernels: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "why_not", lambda: "")
    monkeypatch.setattr(MLP, "forward", relu_squared)
    lines: list[str] = []
    assert choose_kernels(TrainConfig(kernels=kernels), SHAPE, "cpu", None, lines.append) == "pytorch"
    assert lines == said


@pytest.mark.parametrize("kind", [TrainConfig, SFTConfig])
def test_torch_is_another_word_for_pytorch(kind: type[TrainConfig] | type[SFTConfig]) -> None:
    assert kind(kernels="torch") == kind(kernels="pytorch") and kind(kernels="torch").kernels == "pytorch"


# --- writing ----------------------------------------------------------------------------------------------------------------------------

SAMPLING = SampleConfig(max_tokens=20, temperature=0.8, seed=3)


def test_a_changed_model_writes_its_own_tokens(other: GPT) -> None:
    assert quickest(other, 1_000) is other
    with pytest.raises(UsageError, match="not the built-in one"):
        Decoder(other)
    ids = text_like_ids(SHAPE.vocab_size, 1, 8)
    engine = Plain(other)
    torch.testing.assert_close(engine.next_logits(ids, engine.new_cache(1)), other(ids)[:, -1].detach())


def test_what_is_drawn_from_a_changed_model_is_what_it_says_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(engine: Any) -> list[int]:
        return [index for ids, _ in draws(engine, [1, 7, 8, 9], SAMPLING, n=1, banned=torch.tensor([0])) for index in ids]

    before = drawn(quickest(lively_model(SHAPE), 20))
    monkeypatch.setattr(MLP, "forward", relu_squared)
    model = lively_model(SHAPE)
    assert drawn(quickest(model, 20)) == drawn(model) != before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_type_are_left_to_the_model(dtype: torch.dtype) -> None:
    model = lively_model(SHAPE).to(dtype)
    assert quickest(model, 1_000) is model


def test_the_inside_of_a_changed_model_is_not_shown_as_that_of_the_built_in_one(other: GPT) -> None:
    for look in (lens.attention_maps, lens.logit_lens):
        with pytest.raises(UsageError, match="not the built-in one"):
            look(other, [1, 7, 8])


# --- files ------------------------------------------------------------------------------------------------------------------------------


def test_what_a_changed_model_has_learned_is_not_read_or_exported_as_the_built_in_one(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MLP, "forward", relu_squared)
        done = tiny_train("runs/other", "--max_steps", "2", *PLAIN).ok()
        step = ckpt.open_checkpoint(workshop / "runs" / "other" / "latest")
        assert step.changed == "MLP.forward is replaced"
        assert plain.changed(ckpt.load_model(step)) == "MLP.forward is replaced"  # here it is the same model
        for write in (export.export_huggingface, export.export_gguf):
            with pytest.raises(UsageError, match=r"not the built-in one \(MLP.forward is replaced\)"):
                write(step, workshop / "out")
        assert tiny_train("runs/other", "--max_steps", "2", "--more_steps", "1", *PLAIN).code == 0
    assert '"qwen3"' not in (workshop / "runs" / "other" / "latest" / "config.json").read_text()
    step = ckpt.open_checkpoint(workshop / "runs" / "other" / "latest")
    with pytest.raises(PositronError, match=r"not the built-in one \(MLP.forward is replaced\)"):
        ckpt.load_model(step)
    for words in (["export", "--format", "hf"], ["generate", "--prompt", "x"]):
        done = positron(*words, "--ckpt", "runs/other")
        assert done.code != 0 and "not the built-in one (MLP.forward is replaced)" in done.err and "Traceback" not in done.err
    assert not (workshop / "out").exists() and not list(workshop.rglob("export"))


def test_an_export_of_an_unchanged_run_is_refused_while_the_source_is_changed(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = ckpt.open_checkpoint(workshop / "runs" / "base" / "latest")
    assert step.changed == ""
    monkeypatch.setattr(MLP, "forward", relu_squared)
    with pytest.raises(UsageError, match="not the built-in one"):
        export.export_huggingface(step, workshop / "out")


def test_runs_of_a_changed_model_are_the_same_with_all_kernels(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a person runs them: the whole command, in a shape that native kernels cover."""
    monkeypatch.setattr(MLP, "forward", relu_squared)
    size = ("--n_embd", "64", "--head_dim", "32", "--n_head", "2", "--ffn", "64", "--context_len", "32")
    folders = {}
    for kernels in ("auto", "native", "pytorch"):
        done = positron("train", *TINY, *size, "--out_dir", f"runs/{kernels}", "--max_steps", "2", "--kernels", kernels, *PLAIN).ok()
        said = "this model is not the built-in one (MLP.forward is replaced)" in done.err
        assert said is (kernels != "pytorch")
        folders[kernels] = (workshop / "runs" / kernels / "latest" / "model.safetensors").read_bytes()
    assert folders["auto"] == folders["native"] == folders["pytorch"]
