"""Settings of fine-tuning. The text below a field is its `--help`."""

from __future__ import annotations

from dataclasses import dataclass

from positron_mini.config.checks import check_ranges, check_rates
from positron_mini.config.loop import RunConfig


@dataclass(frozen=True)
class SFTConfig(RunConfig):
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
    warmup_steps: int = 10
    """steps of linear warm-up"""
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
    eval_every: int = 50
    """steps between validations on the held-out conversations"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"epochs": 1, "batch_size": 1})
        check_rates(self, {"replay": 0.95, "val_share": 0.5}, zero=True)
