"""Views into a model: its tokens, its surprise at each token, its attention, and the prediction of each layer.

All are pure functions that repeat the forward pass of `model.py` with the model's own modules, so they show what is really computed.
`ids` are one sequence, bos first. Shapes: T tokens, V vocabulary, L layers, H heads, K key/value heads, D head_dim, C width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from positron_mini.errors import UsageError
from positron_mini.evaluate.bits import token_logprobs
from positron_mini.fast.plain import changed
from positron_mini.generate import Reader, check_finite
from positron_mini.model import GPT, Attention, Block, rotate
from positron_mini.text.chat_format import Message, encode_chat
from positron_mini.text.tokenizer import SPACE, UNK, Tokenizer
from positron_mini.text.tokenizer.model_file import FIRST_BYTE, FIRST_NORMAL

# --- tokens -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenView:
    """One token for display. `text` is None if its bytes are not whole characters; `kind` is text, byte, control or unknown."""

    id: int
    piece: str
    text: str | None
    bytes: bytes
    kind: str


def token_views(tokenizer: Tokenizer, ids: Sequence[int]) -> list[TokenView]:
    """The token of each id. Their bytes, joined, decode to the text. Errors: TokenizerError for an unknown id."""
    return [_token_view(tokenizer, index) for index in ids]


def _token_view(tokenizer: Tokenizer, index: int) -> TokenView:
    piece = tokenizer.piece(index)
    if index in tokenizer.control_ids or index == UNK:
        return TokenView(index, piece, None, b"", "control" if index != UNK else "unknown")
    is_byte = FIRST_BYTE <= index < FIRST_NORMAL
    data = bytes([index - FIRST_BYTE]) if is_byte else piece.replace(SPACE, " ").encode()
    text = data.decode() if not is_byte or data < b"\x80" else None
    return TokenView(index, piece, text, data, "byte" if is_byte else "text")


@dataclass(frozen=True)
class MaskedToken:
    """A token of a conversation, and whether fine-tuning trains on it; the model reads all of them."""

    token: TokenView
    is_trained: bool


def fine_tuning_mask(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[MaskedToken]:
    """The tokens of a conversation with fine-tuning's loss mask: only the assistant's text and the end of its turn are learned."""
    encoded = encode_chat(tokenizer, messages)
    views = token_views(tokenizer, encoded.ids)
    return [MaskedToken(view, trained) for view, trained in zip(views, encoded.trained, strict=True)]


# --- predictions ------------------------------------------------------------------------------------------------------------------------


def next_token_distribution(model: GPT, ids: Sequence[int]) -> Tensor:
    """The logits (V,), fp32, of the token after `ids`, before sampling. Of a text longer than the context, as in generation, bos and the
    newest three quarters of a context are read. Errors: ValueError for no ids."""
    if not ids:
        raise ValueError("there are no tokens to continue; begin with bos")
    return Reader(model, 1).read(torch.tensor([list(ids)]))[0]


def surprise(model: GPT, ids: Sequence[int]) -> list[float]:
    """-ln p, in nats, of every token after the first, each predicted from those before it; `positron score` prints their negated sum.

    A text longer than the context is read in windows that advance by half a context, as in evaluate/bits.
    """
    (logprobs,) = token_logprobs(model, [list(ids)])
    return (-logprobs).tolist()


# --- attention --------------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def attention_maps(model: GPT, ids: Sequence[int]) -> Tensor:
    """The attention weights (L, H, T, T) of each token (row) on each token up to itself (column); each row sums to 1.

    Errors: ValueError if the text is longer than the context, NotFiniteOutput.
    """
    streams, rope = _streams(model, ids), _angles(model, len(ids))
    blocks = cast(Iterable[Block], model.model.layers)
    layers = zip(blocks, streams, strict=False)  # the last stream is unused: no layer reads it
    maps = torch.stack([attention_weights(block.self_attn, block.input_layernorm(x), rope) for block, x in layers])
    check_finite(maps, model)
    return maps


def attention_weights(attention: Attention, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """The attention weights (H, T, T) of `attention` for input `x` (1, T, C), which the fused kernel does not return: softmax of
    q . k / sqrt(D) over the tokens so far."""
    T, D = x.shape[1], attention.config.head_dim
    q = attention.q_norm(attention.q_proj(x).view(1, T, -1, D)).transpose(1, 2)  # (1, H, T, D)
    k = attention.k_norm(attention.k_proj(x).view(1, T, -1, D)).transpose(1, 2)  # (1, K, T, D)
    q, k = rotate(q, *rope), rotate(k, *rope)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (1, H, T, D): neighbouring heads share a key
    scores = (q @ k.transpose(-1, -2))[0] / D**0.5  # (H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
    weights: Tensor = scores.masked_fill(future, float("-inf")).softmax(-1)
    return weights


# --- layers -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerGuess:
    """The next-token prediction from the residual stream after some layers, for each token: the k likeliest ids and their probabilities,
    (T, k) each, the entropy in bits (T,), and the probability (T,) of the whole model's likeliest token."""

    ids: Tensor
    probabilities: Tensor
    entropy: Tensor
    final: Tensor


@torch.inference_mode()
def logit_lens(model: GPT, ids: Sequence[int], k: int = 5) -> list[LayerGuess]:
    """The L + 1 guesses after the embedding and each layer: the final norm and the head applied to the residual stream there, as if the
    later layers did nothing. The last one is the model's own prediction. Source: nostalgebraist 2020, "the logit lens".

    Errors: ValueError if the text is longer than the context, NotFiniteOutput.
    """
    final = model(_row(model, ids))[0].argmax(-1)  # (T,)
    guesses = []
    for logits in layer_logits(model, ids):
        logprobs = logits.log_softmax(-1)  # (T, V)
        check_finite(logprobs, model)
        guesses.append(_guess(logprobs, final, k))
    return guesses


@torch.inference_mode()
def layer_logits(model: GPT, ids: Sequence[int]) -> Iterator[Tensor]:
    """Yield the logits (T, V) from the residual stream after the embedding and after each layer."""
    for x in _streams(model, ids):
        yield model.logits(model.model.norm(x))[0]


def _guess(logprobs: Tensor, final: Tensor, k: int) -> LayerGuess:
    top = logprobs.topk(min(k, logprobs.shape[-1]), dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1) / torch.log(torch.tensor(2.0))
    return LayerGuess(top.indices, top.values.exp(), entropy, logprobs.gather(-1, final[:, None])[:, 0].exp())


@torch.inference_mode()
def _streams(model: GPT, ids: Sequence[int]) -> Iterator[Tensor]:
    """Yield the residual stream (1, T, C) after the embedding and each block. Errors: UsageError if the model is not the built-in one."""
    if why := changed(model):
        raise UsageError(f"this model is not the built-in one ({why}), whose inside is another", "generate and score know it as it is")
    row = _row(model, ids)
    rope = _angles(model, row.shape[1])
    x = model.model.embed_tokens(row)
    yield x
    for block in model.model.layers:
        x = block(x, rope, None, None, 0.0)
        yield x


def _angles(model: GPT, T: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (T, D) of the first T positions."""
    return model.rope_cos[:T], model.rope_sin[:T]


def _row(model: GPT, ids: Sequence[int]) -> Tensor:
    """`ids` as a batch of one on the model's device. Errors: ValueError if there are none, or more than the context holds."""
    if not 0 < len(ids) <= model.config.context_len:
        raise ValueError(f"{len(ids)} tokens; the context holds from 1 to {model.config.context_len}")
    return torch.tensor([list(ids)], device=model.rope_cos.device)
