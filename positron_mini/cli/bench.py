"""`positron bench`: measure this machine, one part of the work at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.terminal import print
from positron_mini.config import TrainConfig, check_ranges, preset
from positron_mini.errors import UsageError


@dataclass(frozen=True)
class BenchFlags:
    """Measure training, decoding, preparation or start-up, beside what the machine could do at most. Close other programs first."""

    what: tyro.conf.Positional[Literal["train", "decode", "prepare", "startup"]]
    """train: steps on made text; decode: writing tokens; prepare: cleaning and encoding a text; startup: whole processes"""
    config: str = "TinyGPT"
    """preset: PicoGPT, MicroGPT, TinyGPT, SmallGPT or BaseGPT"""
    ckpt: str | None = None
    """decode: this checkpoint instead of a preset with random weights"""
    weights: Literal["f32", "int8"] = "f32"
    """decode: the weights as they are, or rounded to 8 bits"""
    n: int = 1
    """decode: samples drawn at once"""
    tokens: int = 128
    """decode: tokens of a sample"""
    text: str | None = None
    """prepare: a text file or folder (default: stories of the story world)"""
    stories: int = 5_000
    """prepare: stories to make where no --text is given"""
    batch_tokens: int = 8_192
    """train: tokens per optimizer step"""
    micro_batch: int | None = None
    """train: rows computed at once (default: as many as suit the memory)"""
    compile: Literal["auto", "on", "off"] = "auto"
    """train: torch.compile, as for an open-ended run"""
    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    """train: where to compute (decoding is measured on the CPU)"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """train: bf16 or fp32 products"""
    threads: int | None = None
    """CPU threads (default: all cores; decode: as many as help a model of this size)"""
    seconds: float = 10.0
    """seconds to measure at least; the first step comes on top"""
    json: bool = False
    """print one JSON object"""
    out: str | None = None
    """also write the JSON object to this file"""

    def __post_init__(self) -> None:
        check_ranges(self, {"n": 1, "tokens": 2, "stories": 10, "batch_tokens": 1, "micro_batch": 1, "threads": 1})
        if not 0 < self.seconds <= 3600:
            raise UsageError(f"--seconds is {self.seconds:g}, it must be above 0 and at most 3,600", "--seconds 10")
        if self.n > 1024:
            raise UsageError(f"--n {self.n:,} samples at once is more than 1,024", "--n 8")
        if self.ckpt is not None and self.what != "decode":
            raise UsageError("--ckpt belongs to decode", f"positron bench {self.what} --config {self.config}")
        preset(self.config)


def run(argv: Sequence[str]) -> int:
    """Measure; 0 when done."""
    flags = parse(BenchFlags, argv, "bench")
    record = {"train": _train, "decode": _decode, "prepare": _prepare, "startup": _startup}[flags.what](flags)
    if flags.out is not None:
        from positron_mini.files import write_json

        write_json(Path(flags.out), record)
    if flags.json:
        print_json(record)
        return 0
    for name, value in record.items():
        if name != "versions":
            print(f"{name:<20} {_shown(value)}")
    return 0


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if value >= 100 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _train(flags: BenchFlags) -> dict[str, Any]:
    from positron_mini.doctor.bench import bench_train
    from positron_mini.train.find_run import batch_checks

    config = TrainConfig(
        config=flags.config,
        batch_tokens=flags.batch_tokens,
        micro_batch=flags.micro_batch,
        compile=flags.compile,
        device=flags.device,
        precision=flags.precision,
        threads=flags.threads,
    )
    batch_checks(config)
    return bench_train(config, seconds=flags.seconds, say=note)


def _decode(flags: BenchFlags) -> dict[str, Any]:
    from positron_mini.doctor.bench import bench_decode, made_model
    from positron_mini.fast.decoder import set_decode_threads
    from positron_mini.store.find import find_model

    if flags.ckpt is None:
        model, name = made_model(flags.config), flags.config
    else:
        checkpoint, model = find_model(flags.ckpt, say=note)
        name = checkpoint.folder.name
    set_decode_threads(model.config, flags.threads, samples=flags.n)
    return bench_decode(model, name, weights=flags.weights, n=flags.n, tokens=flags.tokens, seconds=flags.seconds)


def _prepare(flags: BenchFlags) -> dict[str, Any]:
    from positron_mini.doctor.bench import bench_prepare

    text = None if flags.text is None else Path(flags.text)
    # the story world has too few words for more pieces
    vocab = preset(flags.config).vocab_size if text is not None else min(preset(flags.config).vocab_size, 2_048)
    return bench_prepare(vocab, text=text, stories=flags.stories, threads=flags.threads or 0, say=note)


def _startup(flags: BenchFlags) -> dict[str, Any]:
    from positron_mini.doctor.bench import bench_startup

    return bench_startup(flags.config, say=note)
