"""Laws of the decoder: it gives what the model gives, with the compiled step and with PyTorch's operations, whatever shape and rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.models import lively_model, shape
from positron_mini.fast import decode_step as native_step
from positron_mini.fast.decoder import BLOCK_COLUMNS, BLOCK_ROWS, Decoder, Dense, Weights
from positron_mini.generate import Plain
from positron_mini.model import GPT

SHAPES = {
    "grouped heads": shape(),
    "vocabulary of no whole blocks": shape(vocab_size=501),
    "a head for each": shape(n_kv_head=4, head_dim=32),
    "wide heads": shape(n_head=2, n_kv_head=1, head_dim=64, n_embd=64, ffn=128),
}
UNEVEN = shape(n_embd=24, ffn=40)  # has no whole blocks of columns


@pytest.fixture(params=["compiled", "PyTorch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two ways a decoder takes in a test."""
    if request.param == "PyTorch":
        monkeypatch.setattr(native_step, "decode_step", lambda: None)
    elif native_step.decode_step() is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


def logprobs(engine: Plain | Decoder, ids: Tensor, *, prompt: int) -> Tensor:
    """ln p (N, T - prompt + 1, V) after every token of `ids` (N, T) from the last of the prompt on."""
    cache = engine.new_cache(len(ids))
    found = [engine.next_logits(ids[:, :prompt], cache)]
    found += [engine.next_logits(ids[:, t : t + 1], cache) for t in range(prompt, ids.shape[1])]
    return torch.stack(found, dim=1).log_softmax(-1)


def rounded(model: GPT) -> GPT:
    """`model` with each matrix as the int8 decoder holds it: rows of q, k, v, gate and up with the gain of their norm, a scale each."""

    def in_eight_bits(weight: Tensor) -> Tensor:
        scales = (weight.abs().amax(1, keepdim=True) / 127).bfloat16().float()
        return (weight / scales).round().clamp(-127, 127) * scales

    copy = GPT(model.config)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for block in copy.model.layers:
            for norm, matrices in (
                (block.input_layernorm, (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)),
                (block.post_attention_layernorm, (block.mlp.gate_proj, block.mlp.up_proj)),
            ):
                for matrix in matrices:
                    matrix.weight.copy_(in_eight_bits(matrix.weight * norm.weight))
                norm.weight.fill_(1.0)
            for matrix in (block.self_attn.o_proj, block.mlp.down_proj):
                matrix.weight.copy_(in_eight_bits(matrix.weight))
    return copy


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("rows", "prompt"), [(1, 1), (1, 5), (2, 1), (3, 4), (4, 1), (5, 1), (6, 1), (7, 1), (8, 3), (9, 1), (19, 2)])
def test_log_probabilities_are_those_of_the_model(name: str, rows: int, prompt: int, path: str) -> None:
    model = lively_model(SHAPES[name])
    ids = torch.randint(6, model.config.vocab_size, (rows, model.config.context_len))
    decoder = Decoder(model)
    assert (decoder.step is not None) == (path == "compiled")
    wanted = logprobs(Plain(model), ids, prompt=prompt)
    torch.testing.assert_close(logprobs(decoder, ids, prompt=prompt), wanted, rtol=1e-5, atol=1e-5)


def test_a_shape_without_whole_blocks_takes_pytorch() -> None:
    model = lively_model(UNEVEN)
    decoder, ids = Decoder(model), torch.randint(6, 512, (3, 20))
    assert decoder.step is None
    torch.testing.assert_close(logprobs(decoder, ids, prompt=4), logprobs(Plain(model), ids, prompt=4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 8, 11])
def test_int8_of_the_compiled_step_computes_exactly_with_the_rounded_matrices(rows: int) -> None:
    if native_step.decode_step() is None:
        pytest.skip("no C++ compiler")
    model = lively_model(shape(vocab_size=501))
    ids = torch.randint(6, 501, (rows, 24))
    decoder, twin = Decoder(model, "int8"), rounded(model)
    head = twin.model.embed_tokens.weight * twin.model.norm.weight
    scales = (head.abs().amax(1, keepdim=True) / 127).bfloat16().float()
    plain = Plain(twin)
    plain.model.logits = lambda hidden: (hidden / twin.model.norm.weight) @ ((head / scales).round().clamp(-127, 127) * scales).t()  # type: ignore[method-assign]
    torch.testing.assert_close(logprobs(decoder, ids, prompt=3), logprobs(plain, ids, prompt=3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", ["f32", "int8"])
@pytest.mark.parametrize("rows", [1, 8])
def test_the_number_of_threads_changes_no_bit(weights: Weights, rows: int) -> None:
    model = lively_model(shape(n_kv_head=4))
    ids = torch.randint(6, 512, (rows, 20))
    decoder = Decoder(model, weights)
    if decoder.step is None:
        pytest.skip("no C++ compiler")
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(logprobs(decoder, ids, prompt=1))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_numbers_that_are_not_finite_stay_visible(path: str) -> None:
    model = lively_model(shape())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")  # type: ignore[union-attr, index]
    found = logprobs(Decoder(model), torch.randint(6, 512, (2, 6)), prompt=2)
    assert bool(found.isnan().all())


def test_a_full_context_is_refused_before_anything_is_written(path: str) -> None:
    decoder = Decoder(lively_model(shape()))
    cache = decoder.new_cache(1)
    decoder.next_logits(torch.full((1, 32), 7), cache)
    before = cache.kv.clone()
    with pytest.raises(ValueError, match="exceed the context of 32"):
        decoder.next_logits(torch.full((1, 1), 7), cache)
    assert torch.equal(cache.kv, before) and cache.length == 32


# --- matrices ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 8, BLOCK_ROWS, BLOCK_ROWS + 1])
@pytest.mark.parametrize("outputs", [BLOCK_COLUMNS, 3 * BLOCK_COLUMNS, 3 * BLOCK_COLUMNS + 1])
@pytest.mark.parametrize("has_mkl", [True, False])
@pytest.mark.parametrize("is_for_step", [True, False])
def test_products_are_those_of_the_whole_matrix(
    rows: int, outputs: int, has_mkl: bool, is_for_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_for_step and outputs % BLOCK_COLUMNS:
        return  # the step takes whole blocks only
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    x, weight, before = torch.randn(rows, 24), torch.randn(24, outputs), torch.randn(rows, outputs)
    matrix = Dense(weight, is_for_step)
    is_cut = is_for_step or (has_mkl and outputs % BLOCK_COLUMNS == 0)
    assert len(matrix.blocks) == (outputs // BLOCK_COLUMNS if is_cut else 1)
    out, added = torch.empty(rows, outputs), before.clone()
    with torch.inference_mode():
        matrix.into(out, x)
        matrix.add_to(added, x)
    torch.testing.assert_close(out, x @ weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(added, before + x @ weight, rtol=1e-5, atol=1e-5)
