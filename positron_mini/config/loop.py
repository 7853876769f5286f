"""Settings that pretraining and fine-tuning share: the optimizer, the device, where to pause. The text below a field is its `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from positron_mini.config.checks import check_ranges, check_rates, parse_milestones
from positron_mini.errors import UsageError

_AT_LEAST = {
    "cooldown_steps": 0, "eval_every": 1, "max_skips": 0, "micro_batch": 1, "more_steps": 1, "resume_from_step": 0, "save_every": 1,
    "seed": 0, "threads": 1, "until_step": 1, "warmup_steps": 0,
}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run of either kind; None where the run, the device or the text decides."""

    tokenizer_path: str | None = None
    """SentencePiece model"""
    out_dir: str | None = None
    """run folder"""
    lr: float | None = None
    """peak learning rate, AdamW scale"""
    muon_lr: float | None = None
    """learning rate of the matrices, if it is to differ from --lr"""
    warmup_steps: int = 20
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
    seed: int = 0
    """seed of all that is drawn"""
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
    """native: the operations between matrix products in C++, on a CPU a third faster; auto: if it can be had; torch: as pytorch"""
    threads: int | None = None
    """CPU threads (default: all cores)"""
    micro_batch: int | None = None
    """rows computed at once (default: as many as suit the memory)"""
    save_every: int = 100
    """steps between checkpoints"""
    eval_every: int | None = None
    """steps between validations"""
    milestones: str = "none"
    """steps whose model is kept for ever: 0,100,1000, none or auto (0, 100, ... 1000, then every 500)"""
    track: Literal["none", "tensorboard", "trackio"] = "none"
    """also send the metrics to this local tracker"""

    def __post_init__(self) -> None:
        if self.kernels == "torch":  # the name of PyTorch's Python package
            object.__setattr__(self, "kernels", "pytorch")
        check_ranges(self, _AT_LEAST)
        check_rates(self, {"lr": 1.0, "muon_lr": 1.0, "grad_clip": 1e9, "grad_limit": 1e9})
        check_rates(self, {"weight_decay": 10.0, "dropout": 0.95}, zero=True)
        if self.until_step is not None and self.more_steps is not None:
            raise UsageError("--until_step and --more_steps both say where to pause", "give one of them")
        parse_milestones(self.milestones)
