"""Laws of the model: counts, first loss, causality, the cache, rotary positions, norms, the loss."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers.models import lively_model, shape, text_like_ids
from positron_mini.config import PRESETS, ModelConfig, TrainConfig, model_config
from positron_mini.device import autocast
from positron_mini.model import GPT, IGNORED, KVCache, RMSNorm, rope_table, rotate

# embedding + layers x (attention + its two norms + feed-forward + two norms) + last norm, worked out by hand
COUNTS = {
    "PicoGPT": 262_144 + 4 * (65_536 + 64 + 147_456 + 256) + 128,
    "MicroGPT": 786_432 + 6 * (147_456 + 64 + 294_912 + 384) + 192,
    "TinyGPT": 5_120_000 + 8 * (327_680 + 64 + 921_600 + 640) + 320,
    "SmallGPT": 8_192_000 + 8 * (1_048_576 + 128 + 2_359_296 + 1_024) + 512,
    "BaseGPT": 12_288_000 + 12 * (2_359_296 + 128 + 4_718_592 + 1_536) + 768,
}
MILLIONS = {"PicoGPT": 1.1, "MicroGPT": 3.4, "TinyGPT": 15.1, "SmallGPT": 35.5, "BaseGPT": 97.2}


def preset_shape(name: str) -> ModelConfig:
    return model_config(TrainConfig(config=name), PRESETS[name].vocab_size)


# --- shape and start ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_that_the_design_says(name: str) -> None:
    with torch.device("meta"):
        model = GPT(preset_shape(name))
    count = sum(p.numel() for p in model.parameters())
    assert count == COUNTS[name] == preset_shape(name).parameters
    assert round(count / 1e6, 1) == MILLIONS[name]


@pytest.mark.parametrize("copy_init", [0.0, 0.2])
@pytest.mark.parametrize("name", PRESETS)
def test_the_first_loss_is_within_two_percent_of_the_logarithm_of_the_vocabulary(name: str, copy_init: float) -> None:
    config = replace(preset_shape(name), n_layer=2)  # new blocks are the identity (below), so two stand for all
    ids = text_like_ids(config.vocab_size, 4, 65)
    with torch.no_grad():
        loss = float(GPT(config).init_weights(0, copy_init=copy_init).loss(ids[:, :-1], ids[:, 1:])) / ids[:, 1:].numel()
    assert loss == pytest.approx(math.log(config.vocab_size), rel=0.02)


def test_new_blocks_are_the_identity() -> None:
    model = GPT(shape(n_layer=3)).init_weights(0)
    ids = text_like_ids(512, 2, 9)
    torch.testing.assert_close(model.hidden(ids), model.model.norm(model.model.embed_tokens(ids)), rtol=0, atol=0)


@pytest.mark.parametrize("spread", [None, 0.3])
def test_copy_init_writes_what_is_looked_at_as_large_as_it_says(spread: float | None) -> None:
    model = (
        GPT(shape(n_layer=1, n_embd=192, n_head=8, n_kv_head=4, head_dim=32)).init_weights(0, spread, copy_init=0.25).requires_grad_(False)
    )
    x = model.model.embed_tokens(torch.arange(6, 506)[:, None])  # 500 texts of one token, which sees nothing but itself
    block = model.model.layers[0]
    written = block.self_attn(block.input_layernorm(x), (model.rope_cos[:1], model.rope_sin[:1]), None, None).squeeze()
    x = x.squeeze()
    along = (written * x).sum(-1) / x.square().sum(-1)
    assert along.mean() == pytest.approx(0.25, rel=0.1)
    likeness = torch.nn.functional.normalize(written) @ torch.nn.functional.normalize(x).mT  # (looked at, any token)
    assert (likeness.argmax(-1) == torch.arange(500)).float().mean() > 0.99


def test_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = GPT(shape()).init_weights(5).state_dict()
    torch.manual_seed(2)
    again, other = GPT(shape()).init_weights(5).state_dict(), GPT(shape()).init_weights(6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_names_and_shapes_are_those_of_qwen3() -> None:
    found = {name: tuple(tensor.shape) for name, tensor in GPT(shape(n_layer=1)).state_dict().items()}
    layer = "model.layers.0."
    assert found == {
        "model.embed_tokens.weight": (512, 32),
        layer + "self_attn.q_proj.weight": (64, 32),
        layer + "self_attn.k_proj.weight": (32, 32),
        layer + "self_attn.v_proj.weight": (32, 32),
        layer + "self_attn.o_proj.weight": (32, 64),
        layer + "self_attn.q_norm.weight": (16,),
        layer + "self_attn.k_norm.weight": (16,),
        layer + "mlp.gate_proj.weight": (64, 32),
        layer + "mlp.up_proj.weight": (64, 32),
        layer + "mlp.down_proj.weight": (32, 64),
        layer + "input_layernorm.weight": (32,),
        layer + "post_attention_layernorm.weight": (32,),
        "model.norm.weight": (32,),
    }


# --- what a position may see -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [0, 1, 7, 19])
def test_a_later_token_changes_no_earlier_logit(tiny_model: GPT, changed: int) -> None:
    ids = text_like_ids(512, 2, 20)
    other = ids.clone()
    other[:, changed] = (other[:, changed] + 1) % 512
    before, after = tiny_model(ids), tiny_model(other)
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-6)
    assert bool(((after - before)[:, changed:].abs().amax(-1) > 1e-4).all()), "every later position must see the change"


def test_a_packed_segment_reads_as_it_does_alone(tiny_model: GPT) -> None:
    ids = text_like_ids(512, 1, 20)
    segments = torch.tensor([[0] * 7 + [1] * 9 + [2] * 4])
    packed = tiny_model.logits(tiny_model.hidden(ids, segments=segments))
    for start, end in ((0, 7), (7, 16), (16, 20)):
        torch.testing.assert_close(packed[:, start:end], tiny_model(ids[:, start:end]), rtol=0, atol=2e-5)


def test_one_row_of_a_batch_never_sees_another(tiny_model: GPT) -> None:
    ids = text_like_ids(512, 3, 12)
    torch.testing.assert_close(tiny_model(ids)[1:2], tiny_model(ids[1:2]), rtol=0, atol=1e-5)


# --- the cache ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("chunks", [[20], [1] * 20, [5, 1, 7, 7], [19, 1], [1, 19], [2, 16, 2]])
def test_cached_logits_equal_uncached_ones(kv_heads: int, chunks: list[int]) -> None:
    model = lively_model(shape(n_kv_head=kv_heads))
    ids = text_like_ids(512, 2, 20)
    cache = KVCache(model.config, 2)
    with torch.no_grad():
        parts = [model(part, cache) for part in torch.split(ids, chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=0, atol=1e-5)
    assert cache.length == 20


def test_a_repeated_cache_serves_different_continuations(tiny_model: GPT) -> None:
    prompt, ends = text_like_ids(512, 1, 6), text_like_ids(512, 3, 2, seed=1)
    cache = KVCache(tiny_model.config, 1)
    with torch.no_grad():
        tiny_model(prompt, cache)
        cache.repeat(3)
        steps = [tiny_model(ends[:, i : i + 1], cache) for i in range(2)]
        whole = tiny_model(torch.cat((prompt.expand(3, -1), ends), dim=1))
    torch.testing.assert_close(torch.cat(steps, dim=1), whole[:, 6:], rtol=0, atol=1e-5)


def test_the_context_is_the_limit_with_and_without_a_cache(tiny_model: GPT) -> None:
    full = text_like_ids(512, 1, 32)
    cache = KVCache(tiny_model.config, 1)
    tiny_model(full, cache)
    with pytest.raises(ValueError, match=r"32 cached \+ 1 new tokens exceed the context of 32"):
        tiny_model(full[:, :1], cache)
    with pytest.raises(ValueError, match="exceed the context of 32"):
        tiny_model(text_like_ids(512, 1, 33))


def test_grouped_heads_equal_full_heads_with_copied_keys() -> None:
    grouped = lively_model(shape(n_kv_head=2))
    full = lively_model(shape(n_kv_head=4))
    state = grouped.state_dict()
    for name in state:
        if "k_proj" in name or "v_proj" in name:
            state[name] = state[name].view(2, 16, 32).repeat_interleave(2, dim=0).reshape(64, 32)
    full.load_state_dict(state)
    ids = text_like_ids(512, 2, 15)
    torch.testing.assert_close(full(ids), grouped(ids), rtol=0, atol=1e-5)


# --- parts -------------------------------------------------------------------------------------------------------------------------


def test_rmsnorm_is_the_formula() -> None:
    norm = RMSNorm(3, 1e-6)
    norm.weight.data = torch.tensor([1.0, 2.0, -1.0])
    size = math.sqrt((1 + 4 + 4) / 3 + 1e-6)
    torch.testing.assert_close(norm(torch.tensor([1.0, -2.0, 2.0])), torch.tensor([1 / size, -4 / size, -2 / size]))
    assert norm(torch.zeros(3)).tolist() == [0, 0, 0]


def test_rmsnorm_computes_in_fp32_and_keeps_the_dtype() -> None:
    norm, x = RMSNorm(64, 1e-6), 300 * torch.randn(4, 64).to(torch.float16)  # squares overflow fp16
    assert norm(x).dtype == torch.float16
    torch.testing.assert_close(norm(x), norm(x.float()).half())


def turned(vector: Tensor, position: int, config: ModelConfig) -> Tensor:
    cos, sin = rope_table(config)
    return rotate(vector.view(1, 1, 1, -1), cos[position : position + 1], sin[position : position + 1]).flatten()


def test_rotary_dot_products_depend_on_the_distance_only() -> None:
    config = shape()
    q, k = torch.randn(16), torch.randn(16)
    for distance in (0, 1, 5, 17):
        products = [float(turned(q, start + distance, config) @ turned(k, start, config)) for start in (0, 3, 14)]
        assert products == pytest.approx([products[0]] * 3, abs=1e-4)
    assert float(turned(q, 9, config) @ turned(k, 4, config)) != pytest.approx(float(turned(q, 4, config) @ turned(k, 9, config)), abs=1e-3)


def test_rotation_pairs_channel_i_with_its_half_neighbour() -> None:
    config = shape(head_dim=6)
    x = torch.randn(6)
    for position in (0, 1, 13):
        expected = [0.0] * 6
        for i in range(3):
            z = complex(x[i], x[i + 3]) * cmath.exp(1j * position * 10_000.0 ** (-2 * i / 6))
            expected[i], expected[i + 3] = z.real, z.imag
        assert turned(x, position, config).tolist() == pytest.approx(expected, abs=1e-5)


# --- loss --------------------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_sum_of_nats_over_targets_that_count(tiny_model: GPT) -> None:
    ids = text_like_ids(512, 2, 9)
    targets = text_like_ids(512, 2, 9, seed=1)
    targets[0, 3:] = IGNORED
    logprobs = tiny_model(ids).detach().double().log_softmax(-1)
    expected = -sum(float(logprobs[b, t, targets[b, t]]) for b in range(2) for t in range(9) if targets[b, t] != IGNORED)
    assert float(tiny_model.loss(ids, targets).detach()) == pytest.approx(expected, rel=1e-5)
    assert float(tiny_model.loss(ids, torch.full_like(ids, IGNORED)).detach()) == 0.0


def test_dropout_acts_only_where_it_is_set() -> None:
    model, ids = lively_model(shape()), text_like_ids(512, 2, 9)
    plain = model(ids)
    assert torch.equal(model.train()(ids), plain), "train() alone drops nothing"
    model.dropout = 0.5
    assert not torch.equal(model(ids), plain)
    model.dropout = 0.0
    assert torch.equal(model(ids), plain)


def test_logits_are_fp32_where_products_are_bf16(tiny_model: GPT) -> None:
    ids = text_like_ids(512, 1, 5)
    with torch.no_grad(), autocast("cpu", "bf16"):
        mixed = tiny_model(ids)
    assert mixed.dtype == torch.float32
    assert 1e-4 < float((mixed - tiny_model(ids).detach()).abs().max()) < 0.5
