"""Shape of a model, its presets, and its Hugging Face spelling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from positron_mini.errors import CheckpointError, UsageError

MAX_PARAMETERS = 20_000_000_000  # a config that asks for more is damaged or hostile; refused before anything is allocated
# a shape with few parameters can still ask for endless layers or a huge position table
MAX_SIZES = {"n_layer": 1_000, "head_dim": 1_024, "context_len": 1 << 18}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model. The names are ours; `to_huggingface` translates them."""

    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    head_dim: int
    ffn: int
    context_len: int
    vocab_size: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_embd", "n_head", "n_kv_head", "head_dim", "ffn", "context_len", "vocab_size"):
            value = getattr(self, name)
            most = MAX_SIZES.get(name, 10_000_000)
            if type(value) is not int or not 1 <= value <= most:
                shown = repr(value) if type(value) is not int or value < 10**18 else "far too large"  # printing a huge number takes minutes
                raise UsageError(
                    f"--{name} is {shown}, it must be a whole number from 1 to {most:,}", f"leave --{name} out to take the preset's"
                )
        if self.n_head % self.n_kv_head:
            raise UsageError(
                f"--n_head {self.n_head} is not a multiple of --n_kv_head {self.n_kv_head}",
                f"--n_kv_head {self.n_head} gives every head its own key",
            )
        if self.head_dim % 2:
            raise UsageError(f"--head_dim {self.head_dim} is odd; rotary positions turn pairs of channels", "--head_dim 32 or 64")
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0 and 0 < self.norm_eps < 1):
            raise UsageError(f"rope_theta {self.rope_theta} or norm_eps {self.norm_eps} is out of range", "rope_theta 10000, norm_eps 1e-6")
        if self.parameters > MAX_PARAMETERS:
            raise UsageError(f"this shape has {self.parameters:,} parameters, more than {MAX_PARAMETERS:,}", "choose a smaller shape")

    @property
    def block_parameters(self) -> int:
        """Weights of all blocks, without the embedding."""
        attention = self.n_embd * self.head_dim * (2 * self.n_head + 2 * self.n_kv_head) + 2 * self.head_dim
        return self.n_layer * (attention + 3 * self.n_embd * self.ffn + 2 * self.n_embd)

    @property
    def parameters(self) -> int:
        """All weights, the tied embedding counted once."""
        return self.vocab_size * self.n_embd + self.block_parameters + self.n_embd

    @property
    def size_name(self) -> str:
        """Parameter count as in the names of runs and exports: 15M, 3M, 1M."""
        return f"{max(1, self.parameters // 1_000_000)}M"

    def flops_per_token(self, context_len: int | None = None) -> float:
        """Floating-point operations to train on one token, forward and backward: 6 x weights in matmuls + causal attention.

        The tied embedding counts once (as the head). Attention: 6 x layers x heads x head_dim x mean visible keys x 2 matmuls.
        """
        length = context_len or self.context_len
        products = 6 * (self.block_parameters + self.vocab_size * self.n_embd)
        return float(products + 12 * self.n_layer * self.n_head * self.head_dim * (length + 1) / 2)

    def to_huggingface(self) -> dict[str, Any]:
        """A `config.json` that transformers 4 and 5, mlx-lm and vLLM read as Qwen3. Keys that moved between versions are given twice."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.n_embd,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_kv_head,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context_len,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": True,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "initializer_range": 0.02,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
            "dtype": "float32",
            "torch_dtype": "float32",
            "use_cache": True,
        }

    @classmethod
    def from_huggingface(cls, data: Any, name: str) -> ModelConfig:
        """Read a shape from the content of a `config.json`. Errors: CheckpointError when it is not one of ours, or its numbers are absurd.
        """
        hint = "use a folder written by positron train, or a Qwen3 folder with a tied head"
        if not isinstance(data, dict) or data.get("model_type") != "qwen3" or data.get("tie_word_embeddings") is not True:
            raise CheckpointError(f"{name}: not the configuration of a Qwen3 model with a tied head", hint)
        rope = data.get("rope_parameters")
        rope = rope if isinstance(rope, dict) else {}
        is_scaled = data.get("rope_scaling") or rope.get("rope_type", "default") != "default"
        if data.get("attention_bias") or data.get("use_sliding_window") or is_scaled or data.get("hidden_act", "silu") != "silu":
            raise CheckpointError(
                f"{name}: biases, sliding windows, scaled positions and other activations are not part of this model", hint
            )
        try:
            return cls(
                n_layer=data["num_hidden_layers"],
                n_embd=data["hidden_size"],
                n_head=data["num_attention_heads"],
                n_kv_head=data["num_key_value_heads"],
                head_dim=data["head_dim"],
                ffn=data["intermediate_size"],
                context_len=data["max_position_embeddings"],
                vocab_size=data["vocab_size"],
                rope_theta=float(rope["rope_theta"] if "rope_theta" in rope else data["rope_theta"]),
                norm_eps=float(data["rms_norm_eps"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{name}: a setting is missing or not a number ({error})", hint) from error
        except UsageError as error:
            raise CheckpointError(f"{name}: {error.message}", hint) from error


def self_logit_std(n_embd: int) -> float:
    """Standard deviation of a new embedding times the weight of a new final norm.

    The head is tied and the output projections start at zero, so a token's logit for itself starts near width times this value; 4 keeps the
    first loss within 2 % of ln(vocabulary) at every width.
    """
    return min(0.02, 4.0 / n_embd)


@dataclass(frozen=True)
class Preset:
    """A named shape and the vocabulary it is meant for."""

    n_layer: int
    n_embd: int
    n_head: int
    head_dim: int
    ffn: int
    context_len: int
    vocab_size: int


PRESETS: dict[str, Preset] = {
    "PicoGPT": Preset(4, 128, 4, 32, 384, 256, 2_048),
    "MicroGPT": Preset(6, 192, 6, 32, 512, 512, 4_096),
    "TinyGPT": Preset(8, 320, 8, 32, 960, 512, 16_000),
    "SmallGPT": Preset(8, 512, 8, 64, 1_536, 512, 16_000),
    "BaseGPT": Preset(12, 768, 12, 64, 2_048, 1_024, 16_000),
}


def preset(name: str) -> Preset:
    """Look up a preset; case does not matter. Errors: UsageError with the nearest names."""
    by_lower = {known.lower(): known for known in PRESETS}
    if name.lower() in by_lower:
        return PRESETS[by_lower[name.lower()]]
    near = get_close_matches(name.lower(), by_lower, 1, 0.3)
    raise UsageError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}", f"--config {by_lower[near[0]] if near else 'TinyGPT'}")
