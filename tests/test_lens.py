"""The views of a model agree with the model: each is checked against its forward pass, its sampler, its scorer or a naive twin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from helpers.models import lively_model, shape, text_like_ids
from positron_mini.config import ModelConfig, SampleConfig
from positron_mini.errors import TokenizerError
from positron_mini.evaluate.bits import line_logprobs
from positron_mini.evaluate.lens import (
    attention_maps,
    fine_tuning_mask,
    layer_logits,
    logit_lens,
    next_token_distribution,
    surprise,
    token_views,
)
from positron_mini.generate import distribution, draw, stream
from positron_mini.model import GPT, Attention
from positron_mini.text.chat_format import Message, encode_chat, show_mask_lines
from positron_mini.text.tokenizer import BOS, UNK, Tokenizer


@pytest.fixture(scope="module", params=[2, 4], ids=["grouped heads", "a key for every head"])
def model(request: pytest.FixtureRequest) -> GPT:
    return lively_model(shape(n_kv_head=request.param, n_layer=3))


@pytest.fixture(scope="module")
def ids(model: GPT) -> list[int]:
    return [BOS, *text_like_ids(model.config.vocab_size, 1, 20)[0].tolist()]


# --- tokens -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Once upon a time", "a\n\tb  c", "naïve 猫 🐱", "<s> is no token", "\x00\x7f"])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tiny_tokenizer: Tokenizer, text: str) -> None:
    views = token_views(tiny_tokenizer, [BOS, *tiny_tokenizer.encode(text)])
    assert b"".join(view.bytes for view in views) == text.encode()
    assert views[0].kind == "control" and views[0].text is None and not any(view.kind == "control" for view in views[1:])
    assert all(view.text is None or view.text.encode() == view.bytes for view in views)


def test_part_of_a_character_has_bytes_and_no_text(tiny_tokenizer: Tokenizer) -> None:
    views = token_views(tiny_tokenizer, tiny_tokenizer.encode("🐱\n"))
    assert [(view.kind, view.text) for view in views] == [("byte", None)] * 4 + [("byte", "\n")]
    assert views[0].bytes == b"\xf0" and views[0].piece == "<0xF0>"


def test_a_token_shows_what_decoding_it_gives(tiny_tokenizer: Tokenizer) -> None:
    for view in token_views(tiny_tokenizer, range(tiny_tokenizer.vocab_size)):
        assert view.bytes.decode(errors="replace") == tiny_tokenizer.decode([view.id])
        assert (view.kind in ("control", "unknown")) == (view.id in tiny_tokenizer.control_ids or view.id == UNK)


def test_an_id_outside_the_vocabulary_is_refused(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="does not exist"):
        token_views(tiny_tokenizer, [512])


def test_the_mask_is_the_one_that_training_uses(tiny_tokenizer: Tokenizer) -> None:
    messages = [Message("system", "Be kind."), Message("user", "Who are you?"), Message("assistant", "A cat."), Message("user", "Oh.")]
    mask = fine_tuning_mask(tiny_tokenizer, messages)
    encoded = encode_chat(tiny_tokenizer, messages)
    assert [token.token.id for token in mask] == encoded.ids and [token.is_trained for token in mask] == encoded.trained
    learned = [span.text for span in show_mask_lines(tiny_tokenizer, encoded) if span.trained]
    assert learned == ["A cat.<|im_end|>"]
    assert "".join(token.token.text or token.token.piece for token in mask if token.is_trained) == learned[0]


# --- predictions ------------------------------------------------------------------------------------------------------------------------


def test_the_next_token_distribution_is_the_forward_pass_at_the_last_position(model: GPT, ids: list[int]) -> None:
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0, -1]
    torch.testing.assert_close(next_token_distribution(model, ids), expected)


def test_drawing_from_the_distribution_draws_what_generation_draws(model: GPT, tiny_tokenizer: Tokenizer, ids: list[int]) -> None:
    settings = SampleConfig(max_tokens=1, temperature=0.8, top_k=40, top_p=0.9, min_p=0.02)
    for seed in range(5):
        (token,) = stream(model, tiny_tokenizer, ids, replace(settings, seed=seed))
        logits = next_token_distribution(model, ids).clone()
        logits[sorted((tiny_tokenizer.control_ids | {UNK}) - {2})] = float("-inf")
        uniform = float(torch.rand((), generator=torch.Generator().manual_seed(seed * 1_000_003), dtype=torch.float64))
        assert draw(distribution(logits, torch.tensor(ids), settings)[None], [uniform]) == [token.id]


def test_a_text_longer_than_the_context_is_read_as_generation_reads_it(model: GPT) -> None:
    long = [BOS, *text_like_ids(model.config.vocab_size, 1, 60)[0].tolist()]
    newest = [BOS, *long[-3 * model.config.context_len // 4 :]]
    assert torch.equal(next_token_distribution(model, long), next_token_distribution(model, newest))
    with pytest.raises(ValueError, match="bos"):
        next_token_distribution(model, [])


@pytest.mark.parametrize("length", [1, 2, 20, 90])
def test_surprises_are_minus_ln_p_under_the_forward_pass_and_sum_to_the_score(model: GPT, length: int) -> None:
    ids = [BOS, *text_like_ids(model.config.vocab_size, 1, length)[0].tolist()]
    values = surprise(model, ids)
    assert len(values) == length
    inside = min(length, model.config.context_len)
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids[:inside]]))[0].log_softmax(-1)
    expected = [-float(logprobs[t, ids[t + 1]]) for t in range(inside)]
    assert values[:inside] == pytest.approx(expected, abs=1e-4)


def test_surprises_sum_to_the_score_of_the_line(model: GPT, tiny_tokenizer: Tokenizer) -> None:
    text = "Once there was a girl. She had a ball. " * 4
    ((logprob, tokens),) = line_logprobs(model, tiny_tokenizer, [text])
    values = surprise(model, [BOS, *tiny_tokenizer.encode(text)])
    assert len(values) == tokens and -sum(values) == pytest.approx(logprob, abs=1e-4)
    assert surprise(model, [BOS]) == []


# --- attention --------------------------------------------------------------------------------------------------------------------------


def test_attention_maps_are_causal_and_each_row_is_a_distribution(model: GPT, ids: list[int]) -> None:
    maps = attention_maps(model, ids)
    assert maps.shape == (model.config.n_layer, model.config.n_head, len(ids), len(ids))
    assert not maps.triu(1).any() and (maps >= 0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))


def test_mixing_the_values_by_the_maps_gives_what_the_model_computes(model: GPT, ids: list[int]) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append((given[0], out))

    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    hooks = [attention.register_forward_hook(keep) for attention in attentions]
    with torch.inference_mode():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    with torch.inference_mode():
        for attention, (x, out), maps in zip(attentions, seen, attention_maps(model, ids), strict=True):
            values = attention.v_proj(x).view(len(ids), -1, model.config.head_dim)  # (T, K, D)
            group = model.config.n_head // model.config.n_kv_head
            mixed = torch.stack([maps[h] @ values[:, h // group] for h in range(model.config.n_head)], dim=1)  # (T, H, D)
            torch.testing.assert_close(attention.o_proj(mixed.reshape(len(ids), -1))[None], out, atol=1e-5, rtol=1e-4)


# --- layers -----------------------------------------------------------------------------------------------------------------------------


def test_the_last_layer_of_the_lens_is_the_model_itself_and_the_first_is_the_embedding(model: GPT, ids: list[int]) -> None:
    layers = list(layer_logits(model, ids))
    assert len(layers) == model.config.n_layer + 1
    with torch.inference_mode():
        torch.testing.assert_close(layers[-1], model(torch.tensor([ids]))[0])
        torch.testing.assert_close(layers[0], model.logits(model.model.norm(model.model.embed_tokens(torch.tensor([ids]))))[0])


def test_a_layer_of_the_lens_is_a_model_without_the_layers_above(model: GPT, ids: list[int]) -> None:
    for depth, logits in enumerate(layer_logits(model, ids)):
        if depth > 0:
            shorter = GPT(replace_layers(model.config, depth))
            shorter.load_state_dict(model.state_dict(), strict=False)
            with torch.inference_mode():
                torch.testing.assert_close(shorter(torch.tensor([ids]))[0], logits)


def replace_layers(config: ModelConfig, n_layer: int) -> ModelConfig:
    return replace(config, n_layer=n_layer)


def test_guesses_are_the_likeliest_tokens_with_their_probabilities(model: GPT, ids: list[int]) -> None:
    guesses = logit_lens(model, ids, 3)
    with torch.inference_mode():
        final = model(torch.tensor([ids]))[0].argmax(-1)
    for guess, logits in zip(guesses, layer_logits(model, ids), strict=True):
        p = logits.double().softmax(-1)
        assert guess.ids.shape == guess.probabilities.shape == (len(ids), 3)
        assert torch.equal(guess.ids[:, 0], logits.argmax(-1))
        torch.testing.assert_close(guess.probabilities.double(), p.gather(-1, guess.ids), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(guess.entropy.double(), -(p * p.log2()).sum(-1), atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(guess.final.double(), p[torch.arange(len(ids)), final], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(guesses[-1].final, guesses[-1].probabilities[:, 0])


@pytest.mark.parametrize("count", [0, 33])
def test_views_of_a_whole_text_want_a_text_that_fits_the_context(model: GPT, count: int) -> None:
    for view in (attention_maps, logit_lens):
        with pytest.raises(ValueError, match="context"):
            view(model, [BOS] * count)


def test_looking_changes_nothing(model: GPT, ids: list[int]) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = next_token_distribution(model, ids).clone()
    attention_maps(model, ids), logit_lens(model, ids), surprise(model, ids)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(next_token_distribution(model, ids), first)
