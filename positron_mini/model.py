"""The whole GPT and its key/value cache: Qwen3's block, small enough to read in one sitting.

Shapes: B batch, T time in tokens, C = n_embd, H heads, K key/value heads, D = head_dim, F = ffn, V vocabulary, P positions already cached.
Module and parameter names are Hugging Face's, so `state_dict()` is the checkpoint file and transformers loads it as it lies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from positron_mini.config import ModelConfig, self_logit_std

MATRIX_STD = 0.02  # small: Muon moves every matrix by a fixed amount a step, which turns a small one sooner (docs/results/recipes.md)
IGNORED = -100  # a target with this value is not predicted


class RMSNorm(nn.Module):
    """Scale a vector to root-mean-square 1, then by a learned weight per channel. Source: Zhang and Sennrich 2019 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`x` normalised over its last dimension, in fp32, returned in the dtype of `x`."""
        wide = x.float()  # bf16 has 8 significant bits: a sum of hundreds of squares would lose the small ones
        # no mean is subtracted and no bias added, as LayerNorm does: it costs time and has not been missed
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class KVCache:
    """Keys and values of the tokens read so far, for every layer: room for `context_len` positions, filled from the left."""

    # Attention is causal, so a token that comes later changes nothing about the keys and values of those before it. Kept here, they are
    # computed once a text, and writing a token takes a forward pass over that token alone.

    def __init__(self, config: ModelConfig, batch: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        shape = (config.n_layer, batch, config.n_kv_head, config.context_len, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (layers, B, K, context, D)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0  # P, advanced once per forward pass by GPT.hidden

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of `layer`, (B, K, P + T, D) each, after storing the new ones, (B, K, T, D)."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def repeat(self, batch: int) -> None:
        """Copy the one sequence that was read, so that `batch` sequences go on from it."""
        self.keys = self.keys.expand(-1, batch, -1, -1, -1).contiguous()
        self.values = self.values.expand(-1, batch, -1, -1, -1).contiguous()


def rope_table(config: ModelConfig, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position and channel, (context_len, D) each. Source: Su et al. 2021 (arXiv 2104.09864).

    "Half rotation": channel i is paired with channel i + D/2, as in Llama's Hugging Face layout, so both halves share one angle.
    """
    # The paper pairs neighbours, 2i and 2i + 1, which is the same model with its channels in another order. Halves are contiguous, so the
    # rotation needs one concatenation and no strided reads; and files of Qwen3 are laid out like this.
    # Pair i turns by position x theta^(-2i/D): the first pairs tell neighbours apart, the last ones the beginning of a text from its end.
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim  # 2i/D, (D/2,)
    angle = torch.outer(torch.arange(config.context_len, dtype=torch.float32, device=device), config.rope_theta**-half)  # (context, D/2)
    angle = torch.cat((angle, angle), dim=-1)  # (context, D)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` (B, heads, T, D) turned by the angles of its positions, (T, D): the dot product of two tokens then depends on their distance."""
    left, right = x.chunk(2, dim=-1)  # (B, heads, T, D/2) each: a pair (l, r) becomes (l cos - r sin, r cos + l sin)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention with a norm on queries and keys."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        q_size, kv_size = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.n_embd, q_size, bias=False)
        self.k_proj = nn.Linear(config.n_embd, kv_size, bias=False)
        self.v_proj = nn.Linear(config.n_embd, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, config.n_embd, bias=False)
        # A logit is a product of a query and a key, so it grows with the square of their size: at a high learning rate until the softmax
        # sees one position only, and gradients vanish. Normalised, no logit is larger than the two norms' weights allow.
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """What each position gathers from those it may see, (B, T, C). `mask` (.., T, P + T) is True where it may; None: causal."""
        B, T, _ = x.shape
        D = self.config.head_dim
        # one product for q, k and v would be faster (fast/ does that), but Hugging Face's files have three matrices
        q = self.q_norm(self.q_proj(x).view(B, T, -1, D)).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(self.k_proj(x).view(B, T, -1, D)).transpose(1, 2)  # (B, K, T, D)
        v = self.v_proj(x).view(B, T, -1, D).transpose(1, 2)  # (B, K, T, D)
        q, k = rotate(q, *rope).to(v.dtype), rotate(k, *rope).to(v.dtype)  # only where to look depends on positions, not what is read
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, K, P + T, D)
        causal = mask is None and T > 1  # a single new token may see everything
        # softmax(q k' / sqrt(D)) v, (B, H, T, D); q k' is a sum of D products, about sqrt(D) in size where they are about 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, H, T, D) -> (B, T, H*D) -> (B, T, C)
        return out


class MLP(nn.Module):
    """SwiGLU: one branch decides how much of the other passes. Source: Shazeer 2020 (arXiv 2002.05202)."""

    # Three matrices, not two: besides what a hidden unit says (up) there is whether it applies here (gate), and their product is something
    # that no sum of inputs is. For the same number of weights F is 2/3 of what it is with two; the loss is lower all the same.

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Each position by itself, (B, T, C) -> (B, T, C)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # (B, T, F) inside
        return out


class Block(nn.Module):
    """Attention, then MLP; each reads a normalised copy of the stream and adds its result to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None, dropout: float) -> Tensor:
        """The stream after this block, (B, T, C)."""
        # the stream itself is never normalised nor multiplied, so gradients reach the first block through the sums, as they are
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), rope, mask, cache), dropout, training=dropout > 0)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), dropout, training=dropout > 0)


class Backbone(nn.Module):
    """Embedding, blocks and final norm; a module of its own only because Hugging Face's names say `model.layers...`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # from_pretrained draws nothing; drawing on the meta device, where shapes are checked first, would import PyTorch's compiler
        empty = torch.empty(config.vocab_size, config.n_embd)
        self.embed_tokens: nn.Embedding = nn.Embedding.from_pretrained(empty, freeze=False)  # type: ignore[no-untyped-call]
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd, config.norm_eps)


class GPT(nn.Module):
    """A decoder-only transformer whose output head is its embedding table."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.name = "the model"  # what an error calls it; load_model writes the checkpoint's folder here
        # A number, not nn.Dropout and train(): the trainer sets it for the time of a step, so that nothing else, such as a validation or
        # samples between two steps, can be computed with dropout because somebody forgot eval(). Never stored.
        self.dropout = 0.0
        self.model = Backbone(config)
        cos, sin = rope_table(config)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int, embedding_std: float | None = None, copy_init: float = 0.0) -> GPT:
        """This model with fresh weights, the same on every device: drawn on the CPU, one generator, in the order of the parameters.

        `embedding_std` and `copy_init` are other beginnings, which suit some texts (`widen_embedding`, `begin_by_copying`).
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()  # what a block adds to the stream: nothing at first, so the loss starts at ln(V), a guess among all V
            elif parameter.ndim == 2:
                std = self_logit_std(self.config.n_embd) if "embed_tokens" in name else MATRIX_STD
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
            else:
                parameter.fill_(1.0)
        if embedding_std is not None:
            widen_embedding(self, seed, embedding_std)
        if copy_init:
            begin_by_copying(self, copy_init * (embedding_std or self_logit_std(self.config.n_embd)))
        return self

    def hidden(self, ids: Tensor, cache: KVCache | None = None, segments: Tensor | None = None) -> Tensor:
        """The final, normalised stream, (B, T, C), for `ids` (B, T).

        With `cache`, `ids` continue the P tokens it holds. With `segments` (B, T), a position sees only positions of its own segment.
        Raise ValueError if P + T exceeds context_len.
        """
        T = ids.shape[1]
        past = cache.length if cache is not None else 0
        if past + T > self.config.context_len:
            raise ValueError(f"{past} cached + {T} new tokens exceed the context of {self.config.context_len}")
        rope = (self.rope_cos[past : past + T], self.rope_sin[past : past + T])
        mask = self._mask(T, past, segments)
        x = self.model.embed_tokens(ids)  # (B, T, C), the stream
        for block in self.model.layers:
            x = block(x, rope, mask, cache, self.dropout)
        if cache is not None:
            cache.length += T  # here and not in a block: all of them must still find the old length
        out: Tensor = self.model.norm(x)
        return out

    def _mask(self, T: int, past: int, segments: Tensor | None) -> Tensor | None:
        """None where plain causal attention serves, else True where a query (row) may see a key (column)."""
        if segments is None and (past == 0 or T == 1):
            return None  # PyTorch's kernels for causal attention skip half of the work; with a mask they cannot know
        causal = torch.ones(T, past + T, dtype=torch.bool, device=self.rope_cos.device).tril(past)  # (T, P + T)
        if segments is None:
            return causal
        return (causal & (segments[:, :, None] == segments[:, None, :]))[:, None]  # (B, 1, T, T)

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next token, (..., V) in fp32. The head is the embedding table."""
        # "Which token comes next?" is asked of the rows that say what tokens mean: one table learns from both uses, and what would
        # be there twice is a third of TinyGPT. In fp32 from here on: a softmax adds up V numbers, and bf16 would lose the small ones.
        flat = hidden.reshape(-1, hidden.shape[-1])  # 2-D: MPS computes large 3-D products wrongly in some releases
        return F.linear(flat, self.model.embed_tokens.weight).float().view(*hidden.shape[:-1], -1)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `ids` (B, T)."""
        return self.logits(self.hidden(ids, cache))

    def loss(self, ids: Tensor, targets: Tensor, segments: Tensor | None = None) -> Tensor:
        """Sum over positions of -ln p(target), in nats: a scalar. Targets equal to IGNORED do not count; the caller divides."""
        logits = self.logits(self.hidden(ids, segments=segments)).view(-1, self.config.vocab_size)  # (B*T, V)
        return F.cross_entropy(logits, targets.reshape(-1), ignore_index=IGNORED, reduction="sum")


# --- other beginnings -------------------------------------------------------------------------------------------------------------------
# Nothing above needs these two. They save steps where a text has many names in the same places (docs/results/recipes.md).


@torch.no_grad()
def widen_embedding(model: GPT, seed: int, std: float) -> None:
    """Draw the embedding with standard deviation `std`, and let the final norm make up for it: the loss still starts at ln(V).

    Words that stand in the same places, such as names, get the same push at every step. In a table of small vectors they soon look
    alike; in one of large vectors they stay apart, and copying them is learned sooner.
    """
    table = model.model.embed_tokens.weight  # (V, C), what `init_weights` draws first
    table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(seed)) * std)
    model.model.norm.weight.fill_(self_logit_std(model.config.n_embd) / std)


@torch.no_grad()
def begin_by_copying(model: GPT, size: float) -> None:
    """Make each o_proj the transpose of its v_proj, scaled so that the heads add what they look at with a root-mean-square of `size`.

    As the output head is the embedding table, a token that is looked at becomes likelier at once; only where to look is left to
    learn. In the spirit of Trockman and Kolter 2023 (arXiv 2305.09828).
    """
    H, K, D = model.config.n_head, model.config.n_kv_head, model.config.head_dim
    for block in model.model.layers:
        assert isinstance(block, Block)
        values = block.self_attn.v_proj.weight.view(K, D, -1).repeat_interleave(H // K, dim=0)  # (H, D, C)
        block.self_attn.o_proj.weight.copy_(values.flatten(0, 1).mT * (size / (H * D * MATRIX_STD**2)))  # (C, H*D)


# What a person may replace to try another model. Whatever computes the same faster looks first whether it is still this one (`plain.py`).
BUILT_IN = {
    **{name: value for name, value in globals().items() if getattr(value, "__module__", None) == __name__},
    **{f"{cls.__name__}.{name}": value for cls in (RMSNorm, Attention, MLP, Block, Backbone, GPT) for name, value in vars(cls).items()},
}
