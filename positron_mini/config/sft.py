"""Settings of fine-tuning. The text below a field is its `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from positron_mini.config.checks import check_ranges, check_rates, parse_milestones
from positron_mini.errors import UsageError


@dataclass(frozen=True)
class SFTConfig:
    """Fine-tune a base model on conversations, or go on with the fine-tuning that `out_dir` holds."""

    base_ckpt: str | None = None
    """base model: a step folder, a run folder or runs/x/latest (default: the newest base run)"""
    tokenizer_path: str | None = None
    """checked against the base model's own tokenizer, if given"""
    sft_data: str = "tiny_instruct_sample.jsonl"
    """conversations: JSON Lines, a JSON array, CSV or Parquet, also .gz, in the usual formats (docs/fine-tuning-data.md)"""
    out_dir: str | None = None
    """run folder (default: the base run's with -sft for -base)"""
    epochs: int = 2
    """how often every conversation is seen"""
    batch_size: int = 8
    """conversations per optimizer step"""
    lr: float = 1e-3
    """peak learning rate, AdamW scale"""
    muon_lr: float | None = None
    """learning rate of the matrices, if it is to differ from --lr"""
    warmup_steps: int = 10
    """steps of linear warm-up"""
    cooldown_steps: int | None = None
    """steps of linear cool-down at the end (default: 60 % of all)"""
    weight_decay: float = 0.1
    """decoupled weight decay of the matrices"""
    grad_clip: float = 1.0
    """gradient norm above which the gradient is scaled down"""
    on_nan: Literal["stop", "skip"] = "stop"
    """a loss or gradient that is not finite: stop before the update, or leave that step out and go on"""
    max_skips: int = 3
    """how many steps of a run --on_nan skip may leave out before training stops after all"""
    grad_limit: float | None = None
    """gradient norm above which a step counts as not finite (default: none; above --grad_clip it is scaled down)"""
    dropout: float = 0.0
    """share of residual activations dropped while training"""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for matrices and AdamW for the rest; adamw: AdamW for all"""
    replay: float = 0.1
    """share of trained tokens that come from whole stories of the base text, against forgetting"""
    replay_path: str | None = None
    """text of these stories (default: the one that the base model was trained on)"""
    val_share: float = 0.05
    """share of the conversations held out for validation"""
    skip_bad: bool = False
    """leave out and list bad lines instead of stopping at the first"""
    show_mask: str | None = None
    """print the first conversations of this file with the trained tokens coloured, and stop"""
    seed: int = 0
    """seed of the order and of the stories replayed"""
    until_step: int | None = None
    """pause after this step; the horizon stays"""
    more_steps: int | None = None
    """pause this many steps after the newest one"""
    resume_from_step: int | None = None
    """start again at this saved step; later ones move to superseded/"""
    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    """where to compute"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: fp32 master weights with bf16 products"""
    kernels: Literal["auto", "native", "pytorch", "torch"] = "auto"
    """native: what lies between products in C++, on a CPU a third faster; auto takes it there if it can; torch: as pytorch"""
    threads: int | None = None
    """CPU threads (default: all cores)"""
    micro_batch: int | None = None
    """rows computed at once (default: as many as suit the memory)"""
    save_every: int = 100
    """steps between checkpoints"""
    eval_every: int = 50
    """steps between validations on the held-out conversations"""
    milestones: str = "none"
    """steps whose model is kept for ever: 0,100,1000, none or auto"""
    track: Literal["none", "tensorboard", "trackio"] = "none"
    """also send the metrics to this local tracker"""

    def __post_init__(self) -> None:
        if self.kernels == "torch":  # what PyTorch is called in Python
            object.__setattr__(self, "kernels", "pytorch")
        at_least = {
            "epochs": 1, "batch_size": 1, "warmup_steps": 0, "cooldown_steps": 0, "seed": 0, "until_step": 1, "more_steps": 1,
            "resume_from_step": 0, "max_skips": 0, "threads": 1, "micro_batch": 1, "save_every": 1, "eval_every": 1,
        }  # fmt: skip
        check_ranges(self, at_least)
        check_rates(self, {"lr": 1.0, "muon_lr": 1.0, "grad_clip": 1e9, "grad_limit": 1e9})
        check_rates(self, {"weight_decay": 10.0, "dropout": 0.95, "replay": 0.95, "val_share": 0.5}, zero=True)
        if self.until_step is not None and self.more_steps is not None:
            raise UsageError("--until_step and --more_steps both say where to pause", "give one of them")
        parse_milestones(self.milestones)
