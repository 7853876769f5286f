"""`positron info`: the table of presets, or the shape of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.terminal import print
from positron_mini.config import PRESETS, ModelConfig, preset_shape


@dataclass(frozen=True)
class InfoFlags:
    """Show the presets, or with --ckpt the shape of a checkpoint."""

    ckpt: str | None = None
    """checkpoint: a step folder, a run folder or runs/x/latest"""
    json: bool = False
    """print one JSON object"""


def shape_row(name: str, shape: ModelConfig) -> str:
    """One line of the table of shapes."""
    heads = f"{shape.n_head} x {shape.head_dim} / {shape.n_kv_head}"
    sizes = f"{shape.ffn:>6} {shape.context_len:>8,} {shape.vocab_size:>8,} {shape.parameters:>12,}"
    return f"{name:<10} {shape.n_layer:>6} {shape.n_embd:>6} {heads:>12} {sizes}"


def run(argv: Sequence[str]) -> int:
    """Show; 0 when done."""
    flags = parse(InfoFlags, argv, "info")
    if flags.ckpt is not None:
        from positron_mini.store.find import find_checkpoint

        checkpoint = find_checkpoint(flags.ckpt, say=note)
        shapes = {checkpoint.folder.name: checkpoint.config}
    else:
        shapes = {name: preset_shape(name) for name in PRESETS}
    if flags.json:
        print_json({name: {**asdict(shape), "parameters": shape.parameters} for name, shape in shapes.items()})
        return 0
    print(f"{'':<10} {'layers':>6} {'width':>6} {'heads/kv':>12} {'ffn':>6} {'context':>8} {'pieces':>8} {'parameters':>12}")
    for name, shape in shapes.items():
        print(shape_row(name, shape))
    return 0
