"""Fast token generation on a CPU: the model of `model.py` with its weights packed for one token at a time.

One token takes little arithmetic: the time goes into reading every weight once and into the overhead of each operation. Hence:
- q, k and v are one matmul, gate and up another, and the weights of each norm are multiplied into the matrix that follows it;
- a matrix is cut into blocks of columns, which are shared out among the threads;
- the two channels that RoPE rotates together are adjacent, so that a rotation is one complex multiplication;
- where there is a C++ compiler, one token of each sequence is one call of `decode_step.cpp`, which runs all layers;
- otherwise, and for prefill, PyTorch's operations do it; their buffers and views are allocated once.
`GPT` remains the reference: tests hold log-probabilities within 1e-5 of its own, relative.

Shapes: N sequences, T new tokens of each, R = N * T rows, P positions already cached; C, H, K, D, F, V as in `model.py`; L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from positron_mini import device as devices
from positron_mini.config import ModelConfig, Weights
from positron_mini.errors import UsageError
from positron_mini.fast import decode_step as native
from positron_mini.fast import why_not
from positron_mini.fast.plain import changed
from positron_mini.model import GPT, Attention, Block, rope_table

REPAID_TOKENS = 16  # packing the weights pays off after about ten tokens
BLOCK_COLUMNS = 16  # columns of a matrix per block: wider blocks are slower, narrower ones no faster
BLOCK_ROWS = 128  # for more rows MKL is faster with the whole matrix
INT8_ROWS = 2  # for more rows the matmuls are compute-bound, where PyTorch's int8 kernel loses to f32
BYTES_PER_THREAD = 256 << 10  # a thread that reads less of a matrix than this costs more in synchronisation than it saves


# --- matrices ---------------------------------------------------------------------------------------------------------------------------


class Matrix(Protocol):
    """A weight matrix (in, out) and the two matmuls that decoding needs."""

    def into(self, out: Tensor, x: Tensor) -> None:
        """Write x @ matrix, (R, out), to `out`."""

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add x @ matrix, (R, out), to `out`."""

    def place(self) -> native.Matrix:
        """Pointers for the compiled step."""


def in_blocks(weight: Tensor, width: int) -> Tensor:
    """Columns of `weight` (in, out) in consecutive blocks: (blocks, in, width)."""
    return weight.reshape(len(weight), -1, width).transpose(0, 1).contiguous()


class Dense:
    """Matrix in fp32, cut into blocks of a few columns that are multiplied as one batched matmul.

    For a few rows MKL multiplies a whole matrix with one thread, at half the memory bandwidth; blocks as wide as a vector register are
    shared out among the threads and read two to four times as fast (docs/results/speed.md).
    """

    def __init__(self, weight: Tensor, is_for_step: bool) -> None:
        outputs = weight.shape[1]
        has_mkl = devices.multiplies_by_mkl()  # other libraries: not measured
        is_cut = is_for_step or (has_mkl and outputs % BLOCK_COLUMNS == 0)
        self.width = BLOCK_COLUMNS if is_cut else outputs
        self.block_rows = BLOCK_ROWS if has_mkl else 0
        self.blocks = in_blocks(weight, self.width)

    def place(self) -> native.Matrix:
        """Pointers for the compiled step."""
        blocks, inputs, width = self.blocks.shape
        return native.Matrix(self.blocks.data_ptr(), None, inputs, blocks * width)

    def _whole(self) -> Tensor:
        """The whole matrix (in, out)."""
        blocks, inputs, width = self.blocks.shape
        return self.blocks.transpose(0, 1).reshape(inputs, blocks * width)

    def _product(self, x: Tensor) -> Tensor:
        """x @ matrix as (R, blocks, width)."""
        return torch.bmm(x.expand(len(self.blocks), -1, -1), self.blocks).transpose(0, 1)

    def into(self, out: Tensor, x: Tensor) -> None:
        """Write x @ matrix to `out`."""
        if len(x) == 1:
            torch.bmm(x.expand(len(self.blocks), -1, -1), self.blocks, out=out.view(-1, 1, self.width))
        elif len(x) <= self.block_rows:
            out.view(len(x), -1, self.width).copy_(self._product(x))
        else:
            torch.mm(x, self._whole(), out=out)

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add x @ matrix to `out`."""
        if len(x) == 1:
            out.view(-1, 1, self.width).baddbmm_(x.expand(len(self.blocks), -1, -1), self.blocks)
        elif len(x) <= self.block_rows:
            out.view(len(x), -1, self.width).add_(self._product(x))
        else:
            out.addmm_(x, self._whole())


class Int8:
    """Matrix rounded to 8 bits with one scale per output: a quarter of the bytes to read.

    Many rows at once, as in prefill, use the same rounded numbers in fp32. Without the compiled step a few rows use PyTorch's int8 kernel,
    which rounds its input and output to bf16.
    """

    def __init__(self, weight: Tensor, is_for_step: bool) -> None:
        by_output = weight.t()  # (out, in)
        # PyTorch's kernel needs its scales in bf16: rounding them first adds no second rounding to the weights
        self.scales = (by_output.abs().amax(1).clamp(min=1e-30) / 127).bfloat16()  # (out,)
        self.wide_scales = self.scales.float()
        rounded = (by_output / self.wide_scales[:, None]).round().clamp(-127, 127)  # (out, in)
        self.dense = Dense((rounded * self.wide_scales[:, None]).t(), is_for_step)  # for many rows
        self.few_rows = 0 if is_for_step else INT8_ROWS
        numbers = rounded.to(torch.int8)
        self.rounded = in_blocks(numbers.t(), BLOCK_COLUMNS) if is_for_step else numbers.contiguous()

    def place(self) -> native.Matrix:
        """Pointers for the compiled step."""
        blocks, inputs, width = self.rounded.shape
        return native.Matrix(self.rounded.data_ptr(), self.wide_scales.data_ptr(), inputs, blocks * width)

    def _few(self, x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x.bfloat16(), self.rounded, self.scales)  # (R, out) in bf16, summed in fp32

    def into(self, out: Tensor, x: Tensor) -> None:
        """Write x @ matrix to `out`."""
        if len(x) > self.few_rows:
            self.dense.into(out, x)
        else:
            out.copy_(self._few(x))

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add x @ matrix to `out`."""
        if len(x) > self.few_rows:
            self.dense.add_to(out, x)
        else:
            out.add_(self._few(x))


# --- layers -----------------------------------------------------------------------------------------------------------------------------


def paired(head_dim: int) -> Tensor:
    """Channels of a head in the order 0, D/2, 1, D/2 + 1, ...: those that RoPE rotates together are adjacent."""
    return torch.arange(head_dim).view(2, -1).t().flatten()


class Layer:
    """The four matrices of a block, and the gain of each channel of queries and keys, (H + K, D)."""

    def __init__(self, block: Block, config: ModelConfig, matrix: Callable[[Tensor], Matrix]) -> None:
        attention: Attention = block.self_attn
        order = paired(config.head_dim)

        def heads(weight: Tensor) -> Tensor:
            """Rows of q or k with the channels of each head in pairs; the same order in both leaves their dot products unchanged."""
            return weight.view(-1, config.head_dim, config.n_embd)[:, order].flatten(0, 1)

        qkv = torch.cat((heads(attention.q_proj.weight), heads(attention.k_proj.weight), attention.v_proj.weight))  # ((H + 2K) D, C)
        gate_up = torch.cat((block.mlp.gate_proj.weight, block.mlp.up_proj.weight))  # (2F, C)
        self.qkv = matrix(qkv.t() * block.input_layernorm.weight[:, None])
        self.o = matrix(attention.o_proj.weight.t())
        self.gate_up = matrix(gate_up.t() * block.post_attention_layernorm.weight[:, None])
        self.down = matrix(block.mlp.down_proj.weight.t())
        q_gain, k_gain = attention.q_norm.weight[order], attention.k_norm.weight[order]
        self.gain = torch.cat((q_gain.expand(config.n_head, -1), k_gain.expand(config.n_kv_head, -1))).contiguous()

    def place(self) -> native.Layer:
        """Pointers for the compiled step."""
        return native.Layer(self.qkv.place(), self.o.place(), self.gate_up.place(), self.down.place(), self.gain.data_ptr())


class Work:
    """Buffers for N sequences of T new tokens, and named views of them for the forward pass."""

    def __init__(self, config: ModelConfig, N: int, T: int) -> None:
        H, K, D = config.n_head, config.n_kv_head, config.head_dim
        self.qkv = torch.empty(N * T, (H + 2 * K) * D)
        by_head = self.qkv.view(N, T, H + 2 * K, D)
        self.qk = by_head[:, :, : H + K]
        self.turning = torch.view_as_complex(by_head.view(N, T, H + 2 * K, D // 2, 2))[:, :, : H + K]  # (N, T, H + K, D / 2)
        self.q = by_head[:, :, :H].transpose(1, 2)  # (N, H, T, D)
        self.kv = by_head[:, :, H:].view(N, T, 2, K, D).permute(2, 0, 3, 1, 4)  # (2, N, K, T, D)
        self.gate_up = torch.empty(N * T, 2 * config.ffn)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)


class DecoderCache:
    """Keys and values of N sequences, for every layer, and the buffers for their next tokens."""

    def __init__(self, config: ModelConfig, batch: int) -> None:
        self.config, self.length = config, 0
        # keys and values of one layer after the other: (2 L, N, K, context, D)
        self.kv = torch.empty(2 * config.n_layer, batch, config.n_kv_head, config.context_len, config.head_dim)
        self.work = Work(config, batch, 1)

    def repeat(self, batch: int) -> None:
        """Copy the keys and values of one sequence to `batch` sequences that begin with it."""
        if batch > 1:
            self.kv = self.kv.expand(-1, batch, -1, -1, -1).contiguous()
            self.work = Work(self.config, batch, 1)


class Decoder:
    """A packed copy of a model's current weights for generation on the CPU. Several caches may use it, also in turn.

    `before_layer` is called before every layer; an error that it raises ends the pass, so that a long prefill can be cancelled. Errors:
    UsageError for a model that is not the built-in one.
    """

    def __init__(self, model: GPT, weights: Weights = "f32") -> None:
        if why := changed(model):
            raise UsageError(f"this model is not the built-in one ({why}), so only itself can write its tokens", "let quickest() choose")
        self.before_layer: Callable[[], None] | None = None
        with torch.inference_mode():
            self.config, self.name, self.weights = model.config, model.name, weights
            step = native.decode_step() if has_whole_blocks(model.config) else None
            is_for_step = step is not None
            kind = Dense if weights == "f32" else Int8
            model = model.to("cpu")
            self.embedding = model.model.embed_tokens.weight.detach()  # (V, C), shared with the model
            self.layers = [Layer(cast(Block, block), model.config, lambda w: kind(w, is_for_step)) for block in model.model.layers]
            head = F.pad(self.embedding.t() * model.model.norm.weight[:, None], (0, -len(self.embedding) % BLOCK_COLUMNS))
            # PyTorch's int8 kernel returns 8 significant bits, which would make ties among the likeliest tokens
            self.head: Matrix = kind(head, True) if is_for_step else Dense(head, False)
            self.head_columns = head.shape[1]  # V, or a little more
            cos, sin = (table[:, : model.config.head_dim // 2] for table in rope_table(model.config))
            self.turns = torch.complex(cos, sin)[:, None]  # (context, 1, D / 2)
            self.eps = torch.tensor(model.config.norm_eps)
            self.step = native.Step(step, self._place()) if step is not None else None

    def _place(self) -> native.Model:
        """Pointers for the compiled step."""
        c = self.config
        layers = (native.Layer * c.n_layer)(*(layer.place() for layer in self.layers))
        return native.Model(
            c.n_layer, c.n_embd, c.n_head, c.n_kv_head, c.head_dim, c.ffn, self.head_columns, c.context_len, c.norm_eps, layers,
            self.head.place(), self.embedding.data_ptr(), self.turns.data_ptr(),
        )  # fmt: skip

    @property
    def bytes_per_step(self) -> int:
        """Bytes of weights that are read to generate one token of one sequence."""
        size = 4 if self.weights == "f32" else 1
        head_size = 4 if self.step is None else size
        return head_size * self.config.vocab_size * self.config.n_embd + size * self.config.block_parameters

    def new_cache(self, batch: int) -> DecoderCache:
        """An empty cache for `batch` sequences."""
        return DecoderCache(self.config, batch)

    @torch.inference_mode()
    def next_logits(self, ids: Tensor, cache: DecoderCache) -> Tensor:
        """Logits (N, V) of the token after `ids` (N, T), which continue the sequences in `cache`: a prompt, or one token of each sequence.

        Errors: ValueError when P + T exceeds context_len, or when several tokens continue a sequence that has begun.
        """
        N, T = ids.shape
        past, end = cache.length, cache.length + T
        if end > self.config.context_len:
            raise ValueError(f"{past} cached + {T} new tokens exceed the context of {self.config.context_len}")
        if past and T > 1:
            raise ValueError(f"{T} tokens at once after {past} others: only the beginning of a text is read in one pass")
        if self.step is not None and T == 1:
            if self.before_layer is not None:
                self.before_layer()
            cache.length = end
            return self.step(ids.flatten(), cache.kv, past)[:, : self.config.vocab_size]
        work = cache.work if T == 1 else Work(self.config, N, T)
        turns = self.turns[past:end]  # (T, 1, D / 2)
        seen = cache.kv.narrow(3, 0, end).unbind()  # keys and values of each layer in turn, (N, K, P + T, D)
        new = cache.kv.view(-1, 2, *cache.kv.shape[1:]).narrow(4, past, T).unbind()  # (2, N, K, T, D) of each layer
        x = F.embedding(ids.flatten(), self.embedding)  # (R, C)
        for i, layer in enumerate(self.layers):
            if self.before_layer is not None:
                self.before_layer()
            self._attend(layer, x, work, turns, new[i], seen[2 * i], seen[2 * i + 1])
            layer.gate_up.into(work.gate_up, x * self._inverse_rms(x))
            layer.down.add_to(x, F.silu(work.gate).mul_(work.up))
        cache.length = end
        last = x if T == 1 else x.view(N, T, -1)[:, -1]  # only the last position needs the head
        logits = torch.empty(N, self.head_columns)
        self.head.into(logits, last * self._inverse_rms(last))
        return logits[:, : self.config.vocab_size]

    def _attend(self, layer: Layer, x: Tensor, work: Work, turns: Tensor, new: Tensor, keys: Tensor, values: Tensor) -> None:
        """Add the output of attention to the stream `x` (R, C), after storing the keys and values of these tokens in `new`."""
        layer.qkv.into(work.qkv, x * self._inverse_rms(x))
        work.qk.mul_(self._inverse_rms(work.qk)).mul_(layer.gain)
        work.turning.mul_(turns)
        new.copy_(work.kv)
        causal = work.q.shape[2] > 1
        y = F.scaled_dot_product_attention(work.q, keys, values, is_causal=causal, enable_gqa=work.q.shape[1] != keys.shape[1])
        layer.o.add_to(x, y.transpose(1, 2).reshape(len(x), -1))

    def _inverse_rms(self, x: Tensor) -> Tensor:
        """1 / root-mean-square of `x` over its last dimension, which is kept."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.addcmul(self.eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


# --- choices ----------------------------------------------------------------------------------------------------------------------------


def has_whole_blocks(config: ModelConfig) -> bool:
    """Whether every matrix of a layer divides into whole blocks of columns, as the compiled step requires."""
    widths = (config.n_embd, config.ffn, config.n_head * config.head_dim, config.n_kv_head * config.head_dim)
    return not any(width % BLOCK_COLUMNS for width in widths)


def why_no_decoder(model: GPT) -> str:
    """Why only `model` itself can write its tokens, as the rest of a sentence; empty where a Decoder can."""
    if not all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in model.parameters()):
        return "its weights are not fp32 on the CPU"
    why = changed(model)
    return f"it is not the built-in model ({why})" if why else ""


def why_not_int8(model: GPT) -> str:
    """Why `model` cannot write with 8-bit weights, as the rest of a sentence; empty where it can.

    Without the compiled step it could, by PyTorch's kernel, which rounds activations to bf16: neither exact nor fast on most CPUs.
    """
    if why := why_no_decoder(model):
        return why
    if not has_whole_blocks(model.config):
        return f"its widths are no multiples of {BLOCK_COLUMNS}"
    return "" if native.decode_step() is not None else f"the native kernels cannot be had ({why_not()})"


def quickest(model: GPT, tokens: int, weights: Weights = "f32") -> GPT | Decoder:
    """What writes `tokens` tokens soonest: a Decoder of `model` where laying out its weights is repaid, else `model` itself.

    With 8-bit weights, where they can be had, a Decoder in any case: what is written must not depend on how much.
    """
    if weights == "int8" and not why_not_int8(model):
        return Decoder(model, weights)
    return Decoder(model) if tokens >= REPAID_TOKENS and not why_no_decoder(model) else model


def useful_threads(config: ModelConfig, samples: int = 1) -> int:
    """Most threads that speed up decoding: with small matrices, others have finished before one more thread starts."""
    products = 4 * config.n_layer + 1
    bytes_read = 4 * (config.block_parameters + config.vocab_size * config.n_embd)
    return max(2, samples * bytes_read // products // BYTES_PER_THREAD)


def set_decode_threads(config: ModelConfig, threads: int | None = None, *, samples: int = 1) -> int:
    """Set PyTorch's CPU threads to `threads`, else to the useful number up to its default (one per physical core); return the number."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), useful_threads(config, samples)))
    return torch.get_num_threads()
