"""Settings of pretraining. The text below a field is its `--help`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from positron_mini.config.checks import check_ranges, check_rates, parse_duration
from positron_mini.config.loop import RunConfig
from positron_mini.config.shape import ModelConfig, preset

DEFAULT_TEXT = "data/tinystories.txt"  # where --dataset_path is not given


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Train a model from a text, or go on training the run that `out_dir` holds."""

    config: str = "TinyGPT"
    """preset: PicoGPT, MicroGPT, TinyGPT, SmallGPT or BaseGPT"""
    dataset_path: str | None = None
    """a .txt, .jsonl, .parquet, .csv or .gz file, or a folder of them (default: data/tinystories.txt)"""
    tokenizer_path: str | None = None
    """SentencePiece model; trained from the text if it is missing (default: tokenizer/spm.bpe[.<V>].model)"""
    vocab_size: int | None = None
    """pieces of a new tokenizer (default: the preset's; an existing tokenizer file decides for itself)"""
    out_dir: str | None = None
    """run folder (default: runs/positron-mini-<N>M-v1-base)"""
    budget: str | None = None
    """time to train, such as 15m or 1h30m: preset, batch and steps are chosen for the best model in that time, and the run ends on time"""
    max_steps: int | None = None
    """horizon in steps: the cool-down ends there (default: open-ended, stop with Ctrl-C, end with --finish)"""
    finish: bool = False
    """cool an open-ended run down and end it"""
    batch_tokens: int | None = None
    """tokens per optimizer step (default: CPU 65,536, MPS 98,304, CUDA 131,072; 2,048 learns fastest on a CPU)"""
    micro_batch: int | None = None
    """rows of context_len tokens computed at once (default: as many as suit the memory)"""
    context_len: int | None = None
    """tokens the model sees at once (default: the preset's)"""
    short_steps: int | None = None
    """first steps, in which rows are half a context long: that learns faster (default: 60 % of --max_steps, at most 2,000)"""
    align_rows: bool = False
    """begin every row with a document, so that the names a story gives early are in sight; beginnings are then read more often than ends"""
    lr: float | None = None
    """peak learning rate, AdamW scale (default: by --batch_tokens)"""
    cooldown_steps: int | None = None
    """steps of linear cool-down at the end (default: 60 % of --max_steps; with --finish a quarter of the steps done)"""
    embedding_std: float | None = None
    """standard deviation of the new embedding table (default: 0.02, less beyond a width of 200; with 0.3 names are copied sooner)"""
    copy_init: float = 0.0
    """how strongly a new model's attention copies what it looks at (0: not at all; with 0.2 it learns to copy sooner)"""
    seed: int = 0
    """seed of the weights, the data order and the samples"""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile: auto uses it where its start-up is repaid"""
    threads: int | None = None
    """CPU threads of each process (default: all cores, shared among the processes)"""
    nproc: int | None = None
    """start this many processes on this machine, which share every step, by torchrun (default: 1)"""
    keep_awake: bool = False
    """on a Mac, prevent sleep while training (caffeinate); closing the lid still pauses it, and opening the lid goes on"""
    eval_every: int | None = None
    """steps between validations, at most 5 % of the time (default: 100; 50, 20 or 10 where that reads a short text more than once)"""
    milestones: str = "auto"
    """steps whose model is kept for ever: 0,100,1000 or none (auto: 0, 100, ... 1000, then every 500)"""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least = {"vocab_size": 1, "max_steps": 1, "batch_tokens": 1, "context_len": 8, "short_steps": 0, "nproc": 1}
        check_ranges(self, at_least)
        check_rates(self, {"embedding_std": 10.0})
        check_rates(self, {"copy_init": 10.0}, zero=True)
        if self.budget is not None:
            parse_duration(self.budget, "budget")


def model_config(config: TrainConfig, vocab_size: int) -> ModelConfig:
    """Shape from a preset and its overrides, with the vocabulary of the tokenizer in use."""
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


def preset_shape(name: str) -> ModelConfig:
    """Shape of a preset with its own vocabulary. Errors: UsageError for an unknown name."""
    return model_config(TrainConfig(config=name), preset(name).vocab_size)


def default_short_steps(max_steps: int | None) -> int:
    """Number of first steps with half windows: 60 % of the horizon, at most 2,000; 500 for an open-ended run."""
    return 500 if max_steps is None else min(2_000, round(0.6 * max_steps))


def default_eval_every(text_tokens: int, step_tokens: int) -> int:
    """Steps between validations: 100, or the larger of 50 and 20 that reads a short text no more than once, else 10."""
    return next((steps for steps in (100, 50, 20) if steps * step_tokens <= text_tokens), 10)


def default_lr(batch_tokens: int) -> float:
    """Peak learning rate for a batch of that many tokens: 4e-3 at 2,048, growing with the square root, at most 1e-2."""
    return round(min(1e-2, 4e-3 * math.sqrt(batch_tokens / 2_048)), 6)
