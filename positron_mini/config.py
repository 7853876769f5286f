"""Every setting with its default, unit and meaning: what a model is, how it is trained, how it speaks.

The dataclasses are frozen; the command line is generated from them, so the text below a field is its `--help`.
`None` means "decide by preset, device or recorded run"; 0 and 0.0 are real values.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from positron_mini.errors import CheckpointError, UsageError

MAX_PARAMETERS = 20_000_000_000  # a config that asks for more is damaged or hostile; refused before anything is allocated
# a shape of few parameters can still ask for endless layers or a position table of any size
MAX_SIZES = {"n_layer": 1_000, "head_dim": 1_024, "context_len": 1 << 18}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. Names are ours; `to_huggingface` gives transformers' names."""

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
        """Weights of all blocks, the part that matrix products run through."""
        attention = self.n_embd * self.head_dim * (2 * self.n_head + 2 * self.n_kv_head) + 2 * self.head_dim
        return self.n_layer * (attention + 3 * self.n_embd * self.ffn + 2 * self.n_embd)

    @property
    def parameters(self) -> int:
        """All weights, the tied embedding counted once."""
        return self.vocab_size * self.n_embd + self.block_parameters + self.n_embd

    def flops_per_token(self, context_len: int | None = None) -> float:
        """Floating-point operations of one training token, forward and backward: 6 x weights used in products + causal attention.

        The tied embedding counts once (as the head). Attention: 6 x layers x heads x head_dim x mean visible keys x 2 products.
        """
        length = context_len or self.context_len
        products = 6 * (self.block_parameters + self.vocab_size * self.n_embd)
        return float(products + 12 * self.n_layer * self.n_head * self.head_dim * (length + 1) / 2)

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers 4 and 5, mlx-lm and vLLM read as Qwen3. Both spellings of moved keys are given."""
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
            "initializer_range": embedding_std(self.n_embd),
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
            "dtype": "float32",
            "torch_dtype": "float32",
            "use_cache": True,
        }

    @classmethod
    def from_huggingface(cls, data: Any, name: str) -> ModelConfig:
        """The shape in a `config.json`'s content. Errors: CheckpointError when it is not one of ours, or its numbers are absurd."""
        hint = "use a folder written by positron train, or a Qwen3 folder with a tied head"
        if not isinstance(data, dict) or data.get("model_type") != "qwen3" or data.get("tie_word_embeddings") is not True:
            raise CheckpointError(f"{name}: not the configuration of a Qwen3 model with a tied head", hint)
        if data.get("attention_bias") or data.get("use_sliding_window") or data.get("rope_scaling"):
            raise CheckpointError(f"{name}: biases, sliding windows and scaled positions are not part of this model", hint)
        rope = data.get("rope_parameters")
        theta = rope.get("rope_theta") if isinstance(rope, dict) else data.get("rope_theta", 10_000.0)
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
                rope_theta=float(theta or 10_000.0),
                norm_eps=float(data["rms_norm_eps"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{name}: a setting is missing or not a number ({error})", hint) from error
        except UsageError as error:
            raise CheckpointError(f"{name}: {error.message}", hint) from error


def embedding_std(n_embd: int) -> float:
    """Standard deviation of a new embedding for this width.

    The head is tied and the output projections start at zero, so the logit of a token for itself starts near width x std; 4 keeps
    the first loss within 2 % of ln(vocabulary) at every width.
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
    """The preset of that name; case does not matter. Errors: UsageError with the nearest names."""
    by_lower = {known.lower(): known for known in PRESETS}
    if name.lower() in by_lower:
        return PRESETS[by_lower[name.lower()]]
    near = get_close_matches(name.lower(), by_lower, 1, 0.3)
    raise UsageError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}", f"--config {by_lower[near[0]] if near else 'TinyGPT'}")


@dataclass(frozen=True)
class TrainConfig:
    """Train a model from a text, or go on training the run that `out_dir` holds."""

    config: str = "TinyGPT"
    """preset: PicoGPT, MicroGPT, TinyGPT, SmallGPT or BaseGPT"""
    dataset_path: str | None = None
    """a .txt, .jsonl, .parquet, .csv or .gz file, or a folder of them (default data/tinystories.txt)"""
    tokenizer_path: str | None = None
    """SentencePiece model; trained from the text if it is missing (default tokenizer/spm.bpe[.<V>].model)"""
    vocab_size: int | None = None
    """pieces of a new tokenizer (default: the preset's; an existing tokenizer file decides for itself)"""
    out_dir: str | None = None
    """run folder (default runs/positron-mini-<N>M-v1-base)"""
    max_steps: int | None = None
    """horizon in steps: the cool-down ends there (default: open-ended, stop with Ctrl-C, end with --finish)"""
    until_step: int | None = None
    """pause after this step; the horizon stays"""
    more_steps: int | None = None
    """pause this many steps after the newest one"""
    resume_from_step: int | None = None
    """start again at this saved step; later ones move to superseded/"""
    finish: bool = False
    """cool an open-ended run down and end it"""
    batch_tokens: int | None = None
    """tokens per optimizer step (default: CPU 65,536, MPS 98,304, CUDA 131,072; 4,096 learns fastest on a CPU)"""
    micro_batch: int | None = None
    """rows of context_len tokens that are computed at once (default: from the memory model)"""
    context_len: int | None = None
    """tokens the model sees at once (default: the preset's)"""
    lr: float | None = None
    """peak learning rate, AdamW scale (default: by --batch_tokens)"""
    muon_lr: float | None = None
    """learning rate of the matrices, if it is to differ from --lr"""
    warmup_steps: int = 20
    """steps of linear warm-up"""
    cooldown_steps: int | None = None
    """steps of linear cool-down at the end (default 60 % of --max_steps; with --finish a quarter of the steps done)"""
    weight_decay: float = 0.1
    """decoupled weight decay of the matrices"""
    grad_clip: float = 1.0
    """gradient norm above which the gradient is scaled down"""
    dropout: float = 0.0
    """share of residual activations dropped while training"""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for matrices and AdamW for the rest; adamw: AdamW for all"""
    seed: int = 0
    """seed of the weights, the data order and the samples"""
    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    """where to compute"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: fp32 master weights with bf16 products"""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile: auto uses it where its start-up is repaid"""
    threads: int | None = None
    """CPU threads (default: all cores)"""
    save_every: int = 100
    """steps between checkpoints"""
    eval_every: int = 100
    """steps between validations; validation takes at most 5 % of the time"""
    milestones: str = "auto"
    """steps kept for ever, as 0,100,1000 or none (default 0, 100, ... 1000, then every 500)"""
    n_layer: int | None = None
    """override: layers"""
    n_embd: int | None = None
    """override: width"""
    n_head: int | None = None
    """override: attention heads"""
    n_kv_head: int | None = None
    """override: key/value heads"""
    head_dim: int | None = None
    """override: channels per head"""
    ffn: int | None = None
    """override: width of the feed-forward layer"""
    track: Literal["none", "tensorboard", "trackio"] = "none"
    """also send the metrics to this local tracker"""

    def __post_init__(self) -> None:
        at_least = {
            "vocab_size": 1, "max_steps": 1, "until_step": 1, "more_steps": 1, "resume_from_step": 0, "batch_tokens": 1, "micro_batch": 1,
            "context_len": 8, "warmup_steps": 0, "cooldown_steps": 0, "save_every": 1, "eval_every": 1, "seed": 0, "threads": 1,
        }  # fmt: skip
        check_ranges(self, at_least)
        for name, low, high in (
            ("lr", 0.0, 1.0),
            ("muon_lr", 0.0, 1.0),
            ("weight_decay", -1e-9, 10.0),
            ("grad_clip", 0.0, 1e9),
            ("dropout", -1e-9, 0.95),
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low < value <= high):
                raise UsageError(
                    f"--{name} {value} is out of range; it must be above {max(low, 0.0):g} and at most {high:g}",
                    f"leave --{name} out for the default",
                )
        if self.until_step is not None and self.more_steps is not None:
            raise UsageError("--until_step and --more_steps both say where to pause", "give one of them")
        parse_milestones(self.milestones)


def check_ranges(config: Any, at_least: dict[str, int]) -> None:
    """Nothing, or UsageError naming the first flag whose whole number is below its least value or above 10^12."""
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= 10**12:
            raise UsageError(
                f"--{name} is {value:,}, it must be at least {least:,} and at most 10^12", f"leave --{name} out for the default"
            )


def parse_milestones(text: str) -> frozenset[int] | None:
    """The steps named by `--milestones`, or None for the default series. Errors: UsageError."""
    if text == "auto":
        return None
    if text == "none":
        return frozenset()
    try:
        steps = frozenset(int(part) for part in text.replace(" ", "").split(","))
    except ValueError:
        raise UsageError(f"--milestones {text!r} is not a list of steps", "--milestones 0,100,1000  or  --milestones none") from None
    if min(steps) < 0:
        raise UsageError(f"--milestones {text!r} holds a negative step", "--milestones 0,100,1000")
    return steps


def is_milestone(step: int, milestones: frozenset[int] | None) -> bool:
    """Whether the model of this step is kept for ever: 0, 100, ... 1,000, then every 500, unless `milestones` names the steps."""
    if milestones is not None:
        return step in milestones
    return step % 100 == 0 if step <= 1_000 else step % 500 == 0


def model_config(config: TrainConfig, vocab_size: int) -> ModelConfig:
    """The shape that a preset and its overrides ask for, with the vocabulary of the tokenizer in use."""
    base = preset(config.config)

    def chosen(name: str, default: int) -> int:
        value: int | None = getattr(config, name)
        return default if value is None else value

    n_head = chosen("n_head", base.n_head)
    return ModelConfig(
        n_layer=chosen("n_layer", base.n_layer),
        n_embd=chosen("n_embd", base.n_embd),
        n_head=n_head,
        n_kv_head=chosen("n_kv_head", n_head),
        head_dim=chosen("head_dim", base.head_dim),
        ffn=chosen("ffn", base.ffn),
        context_len=chosen("context_len", base.context_len),
        vocab_size=vocab_size,
    )


def default_lr(batch_tokens: int) -> float:
    """Peak learning rate for a batch of that many tokens: 4e-3 at 4,096, growing with the square root, at most 1e-2."""
    return round(min(1e-2, 4e-3 * math.sqrt(batch_tokens / 4_096)), 6)


@dataclass(frozen=True)
class SampleConfig:
    """How the next token is drawn."""

    max_tokens: int = 80
    """tokens to write at the most"""
    temperature: float = 0.7
    """0 always takes the likeliest token; 1 draws from the model's own probabilities"""
    top_k: int = 0
    """keep only the k likeliest tokens (0: all)"""
    top_p: float = 1.0
    """keep the likeliest tokens that make up this share of the probability"""
    min_p: float = 0.0
    """drop tokens below this share of the likeliest one's probability"""
    repetition_penalty: float = 1.0
    """divide the logits of tokens that already occurred (1: off)"""
    seed: int = 0
    """seed of the draws"""
    stop: tuple[str, ...] = ()
    """end before any of these strings"""

    def __post_init__(self) -> None:
        check_ranges(self, {"max_tokens": 1, "top_k": 0, "seed": 0})
        limits = {"temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "repetition_penalty": (0.01, 100.0)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise UsageError(
                    f"--{name} is {value}, it must lie between {low:g} and {high:g}", f"--{name} {getattr(SampleConfig, name)}"
                )
        if any(not text for text in self.stop):
            raise UsageError("--stop is an empty string, which every text contains", 'name a string, such as --stop "The end"')


def given_flags(argv: list[str]) -> frozenset[str]:
    """Names of the flags that a command line spells out, in snake_case: these must agree with a recorded run, defaults need not."""
    names = (word[2:].split("=", 1)[0].replace("-", "_") for word in argv if word.startswith("--"))
    return frozenset(name.removeprefix("no_") for name in names)


def changed_fields(config: Any) -> frozenset[str]:
    """Names of the fields whose value differs from the default; stands in for `given_flags` when Python code calls."""
    return frozenset(field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default)
