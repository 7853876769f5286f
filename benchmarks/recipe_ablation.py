"""Validation loss at equal tokens for variants of the training recipe, one after the other.

python benchmarks/recipe_ablation.py --text FILE [--tokens 245760] [--config MicroGPT] [--vocab_size N] [--seed 0] [--only "NAME;NAME"]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from positron_mini.config import TrainConfig
from positron_mini.optim import Combined, Muon
from positron_mini.train.open_run import open_session
from positron_mini.train.session import Session

Patch = Callable[[Session], None]


def redraw(std: float) -> Patch:
    """A patch that draws the matrices inside blocks anew with this standard deviation; output projections stay zero."""

    def patch(session: Session) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, p in session.trainer.model.named_parameters():
                if p.ndim == 2 and "embed" not in name and not name.endswith(("o_proj.weight", "down_proj.weight")):
                    p.copy_(torch.randn(p.shape, generator=generator) * std)
        session.trainer.average = [p.detach().clone() for p in session.trainer.model.parameters()]

    return patch


def muon(change: Callable[[Muon], None]) -> Patch:
    """A patch of the optimizer of the matrices."""

    def patch(session: Session) -> None:
        assert isinstance(session.trainer.optimizer, Combined)
        first = session.trainer.optimizer.parts[0]
        assert isinstance(first, Muon)
        change(first)

    return patch


def from_the_start(optimizer: Muon) -> None:
    """Momentum does not rise."""
    optimizer.momentum_warmup = 0


HALF_WINDOWS = {"batch_tokens": 2_048, "lr": 4e-3, "short_steps": 0.6}
VARIANTS: dict[str, tuple[dict[str, Any], Patch | None]] = {
    "wide first matrices": ({"batch_tokens": 4_096, "lr": 4e-3, "short_steps": 0}, redraw(192**-0.5)),
    "wide first matrices, lr 8e-3": ({"batch_tokens": 4_096, "lr": 8e-3, "short_steps": 0}, redraw(192**-0.5)),
    "std 0.02": ({"batch_tokens": 4_096, "lr": 4e-3, "short_steps": 0}, None),
    "std 0.02, lr 8e-3": ({"batch_tokens": 4_096, "lr": 8e-3, "short_steps": 0}, None),
    "2,048 tokens a step": ({"batch_tokens": 2_048, "lr": 4e-3, "short_steps": 0}, None),
    "context 256": ({"batch_tokens": 4_096, "lr": 4e-3, "short_steps": 0, "context_len": 256}, None),
    "context 256, 2,048 tokens": ({"batch_tokens": 2_048, "lr": 4e-3, "short_steps": 0, "context_len": 256}, None),
    "half windows 40 %": ({"batch_tokens": 2_048, "lr": 4e-3, "short_steps": 0.4}, None),
    "half windows 60 %": (HALF_WINDOWS, None),
    "half windows 80 %": ({"batch_tokens": 2_048, "lr": 4e-3, "short_steps": 0.8}, None),
    "momentum 0.95 from the start": (HALF_WINDOWS, muon(from_the_start)),
    "embedding at 4 times the rate": ({**HALF_WINDOWS, "lr": 1.6e-2, "muon_lr": 4e-3}, None),
}


def measure(name: str, flags: argparse.Namespace, folder: str) -> str:
    """A row of the table."""
    settings, patch = VARIANTS[name]
    steps = flags.tokens // settings["batch_tokens"]
    settings = {**settings, "short_steps": round(settings["short_steps"] * steps)}
    config = TrainConfig(
        config=flags.config, dataset_path=str(flags.text), max_steps=steps, eval_every=steps, save_every=10**6, milestones="none",
        compile="off", seed=flags.seed, vocab_size=flags.vocab_size,
        out_dir=str(Path(folder) / name.replace(" ", "-").replace("%", "")), **settings,
    )  # fmt: skip
    session = open_session(config)
    if patch is not None:
        patch(session)
    began = time.perf_counter()
    *_, last = session.steps()
    return f"| {name} | {last.val_loss:.3f} | {last.val_bpb:.3f} | {time.perf_counter() - began:.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=245_760)
    parser.add_argument("--config", default="MicroGPT")
    parser.add_argument("--vocab_size", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=";".join(VARIANTS), help="names of variants, separated by ; (default: all)")
    flags = parser.parse_args()
    names = [name for name in VARIANTS if name in flags.only.split(";")]
    print("| change | validation loss | bits per byte | seconds |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(measure(name, flags, folder), flush=True)


if __name__ == "__main__":
    main()
