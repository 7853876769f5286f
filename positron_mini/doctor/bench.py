"""The speed of this machine: matmuls, training, decoding, preparation, start-up. Each function returns one record for `--json`.

Each figure is reported with a ceiling measured in the same minute: for training the speed of plain matmuls, for decoding the memory
bandwidth.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from positron_mini import device as devices
from positron_mini import storyworld
from positron_mini.config import ModelConfig, SampleConfig, TrainConfig, Weights, model_config, preset, preset_shape
from positron_mini.device import children
from positron_mini.errors import PositronError, Say
from positron_mini.fast.decoder import Decoder
from positron_mini.fast.losses import loss_function
from positron_mini.generate import draws
from positron_mini.model import GPT
from positron_mini.optim import MOMENTUM_WARMUP, build_optimizer, make_schedule
from positron_mini.store import checkpoint
from positron_mini.text.corpus.files import list_files
from positron_mini.text.prepare import prepare_corpus
from positron_mini.text.tokenizer import BOS, Tokenizer, train_tokenizer
from positron_mini.train.settings import Settings, decide
from positron_mini.trainer import Batch, LoopConfig, StopFlag, Trainer

PRODUCT_SIZES = (512, 1024, 2048)
PROMPT_TOKENS = 16


# --- ceilings ---------------------------------------------------------------------------------------------------------------------------


def _best(work: Callable[[], object], seconds: float, device: str = "cpu") -> float:
    """Least time in seconds of `work` over all repetitions within `seconds`, at least three."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        devices.synchronize(device)
        start = time.perf_counter()
        work()
        devices.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def product_gflops(device: str = "cpu", precision: str = "fp32", *, seconds: float = 0.7) -> dict[int, float]:
    """GFLOP/s of square matmuls, by their size; `seconds` are spent on each size."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    found = {}
    for size in PRODUCT_SIZES:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        with torch.inference_mode():
            found[size] = 2e-9 * size**3 / _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), seconds, device)  # type: ignore[misc]
    return found


def read_rate(byte_count: int, *, seconds: float = 0.7) -> float:
    """Bytes a second at which the CPU reads a block of that size repeatedly."""
    numbers = torch.ones(max(1, byte_count // 4))
    with torch.inference_mode():
        return 4 * numbers.numel() / _best(numbers.sum, seconds)


# --- training ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MadeBatches:
    """Rows of random ids with the frequencies of words in a text (Zipf), a pure function of the step."""

    rows: int
    context_len: int
    vocab_size: int

    def batch(self, step: int) -> Batch:
        """The rows of the update after `step` finished ones."""
        weights = 1 / (np.arange(self.vocab_size) + 2.7)
        ids = np.random.default_rng(step).choice(self.vocab_size, (self.rows, self.context_len + 1), p=weights / weights.sum())
        drawn = torch.from_numpy(ids)
        return Batch(drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous())


def training(config: TrainConfig, shape: ModelConfig, say: Say) -> tuple[Settings, Trainer]:
    """The settings as `positron train` decides them, and a trainer with them, on random text."""
    settings = decide(config, shape, None, None, devices.this_machine(), say)
    model = GPT(shape).init_weights(config.seed).to(devices.torch_device(settings.choice.device))
    optimizer = build_optimizer(
        model,
        config.optimizer,
        lr=settings.lr,
        muon_lr=config.muon_lr,
        weight_decay=config.weight_decay,
        momentum_warmup=MOMENTUM_WARMUP,
    )
    loop = LoopConfig(
        lr=settings.lr,
        schedule=make_schedule(config.warmup_steps, None, None),
        micro_batch=settings.micro_batch,
        grad_clip=config.grad_clip,
        dropout=config.dropout,
        seed=config.seed,
        device=settings.choice.device,
        precision=settings.choice.precision,
    )
    loss = loss_function(model, settings.choice.device, compiled=settings.compile, native=settings.kernels == "native")
    return settings, Trainer(model, optimizer, MadeBatches(settings.rows, shape.context_len, shape.vocab_size), loop, loss=loss)


def bench_train(config: TrainConfig, *, seconds: float = 20.0, say: Say = lambda _: None) -> dict[str, Any]:
    """Speed and memory of `positron train` with `config`, on random text: at least three steps after the first.

    `fraction_of_ceiling` counts per token 6 x parameters, plus attention. Errors: those of training.
    """
    shape = model_config(config, config.vocab_size or preset(config.config).vocab_size)
    settings, trainer = training(config, shape, say)
    choice = settings.choice
    ceiling = max(product_gflops(choice.device, choice.precision).values())
    began = time.perf_counter()
    step_times: list[float] = []
    first = 0.0
    for report in trainer.run(None, StopFlag()):
        if report.step == 1:
            began, first = time.perf_counter(), time.perf_counter() - began
            say(f"first step: {first:.1f} s")
            continue
        step_times.append(report.tokens / report.step / report.tok_per_s)
        if len(step_times) >= 3 and time.perf_counter() - began >= seconds:
            break
    step_s = statistics.median(step_times)
    speed = trainer.tokens / trainer.step / step_s
    gflops = speed * shape.flops_per_token() / 1e9
    return {
        **_shared("train", shape, config.config),
        "device": choice.device,
        "precision": choice.precision,
        "compile": "on" if settings.compile else "off",
        "batch_tokens": trainer.tokens // trainer.step,
        "micro_batch": trainer.config.micro_batch,
        "steps": len(step_times),
        "step_s": step_s,
        "first_step_s": first,
        "tok_per_s": speed,
        "train_gflops": gflops,
        "matmul_gflops": ceiling,
        "fraction_of_ceiling": gflops / ceiling,
        "peak_rss_bytes": devices.peak_memory(),
    }


# --- decoding ---------------------------------------------------------------------------------------------------------------------------


def made_model(name: str) -> GPT:
    """A model of a preset with random weights, none of them zero."""
    model = GPT(preset_shape(name)).init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model


def bench_decode(
    model: GPT, name: str, *, weights: Weights = "f32", n: int = 1, tokens: int = 128, temperature: float = 0.7, seconds: float = 5.0
) -> dict[str, Any]:
    """Speed of decoding `tokens` tokens of `n` texts at once on the CPU, with sampling, without the prefill of 16 tokens.

    `fraction_of_ceiling`: bytes of weights read per second, over the memory bandwidth.
    """
    shape = model.config
    began = time.perf_counter()
    decoder = Decoder(model, weights)
    layout_s = time.perf_counter() - began
    prompt = [BOS, *torch.randint(6, shape.vocab_size, (PROMPT_TOKENS - 1,), generator=torch.Generator().manual_seed(0)).tolist()]
    config = SampleConfig(max_tokens=min(tokens + 1, shape.context_len - PROMPT_TOKENS), temperature=temperature)
    step_times: list[float] = []
    firsts: list[float] = []
    began = time.perf_counter()
    while not firsts or time.perf_counter() - began < seconds:
        marks = [time.perf_counter()]
        for _ in draws(decoder, prompt, config, n=n, banned=torch.tensor([0])):
            marks.append(time.perf_counter())
        firsts.append(marks[1] - marks[0])
        step_times.append((marks[-1] - marks[1]) / (len(marks) - 2))
    step_s = statistics.median(step_times)
    can_read = read_rate(decoder.bytes_per_step)
    return {
        **_shared("decode", shape, name),
        "device": "cpu",
        "weights": weights,
        "n": n,
        "tokens": config.max_tokens - 1,
        "temperature": temperature,
        "repetitions": len(step_times),
        "layout_s": layout_s,
        "first_token_s": statistics.median(firsts),
        "tok_per_s": n / step_s,
        "tok_per_s_each": 1 / step_s,
        "weight_bytes": decoder.bytes_per_step,
        "read_gb_per_s": can_read / 1e9,
        "fraction_of_ceiling": decoder.bytes_per_step / step_s / can_read,
        "peak_rss_bytes": devices.peak_memory(),
    }


# --- preparation ------------------------------------------------------------------------------------------------------------------------


def bench_prepare(
    vocab_size: int, *, text: Path | None = None, stories: int = 5_000, threads: int = 0, say: Say = lambda _: None
) -> dict[str, Any]:
    """Speed of preparing a text: reading and cleaning (scan), training a tokenizer, encoding. Without `text`: story-world stories.

    `mb_per_s` counts scan and encoding, which every text needs; the tokenizer is trained once, on at most 100 MB. `threads`: worker
    processes, used for a large text; the memory is this process's plus, for each worker, the largest worker's.
    """
    with tempfile.TemporaryDirectory(prefix="positron-bench-") as temporary:
        folder = Path(temporary)
        if text is None:
            text = folder / "stories.txt"
            storyworld.write_corpus(text, 0, stories)
        size = sum(path.stat().st_size for path in list_files(text))
        model = folder / "spm.model"
        prepared = prepare_corpus(text, tokenizer_path=model, vocab_size=vocab_size, cache_dir=folder / "cache", workers=threads, say=say)
        spent: dict[str, float] = prepared.report["seconds"]
        threads = threads or devices.usable_cores()
        return {
            "what": "prepare",
            "machine": devices.this_machine().chip,
            "versions": devices.describe_versions(),
            "threads": threads,
            "bytes": size,
            "stories": prepared.report["stories"],
            "tokens": prepared.report["tokens"],
            "vocab_size": prepared.tokenizer.vocab_size,
            "scan_s": spent["scan"],
            "tokenizer_s": spent["tokenizer"],
            "encode_s": spent["encode"],
            "mb_per_s": size / 1e6 / (spent["scan"] + spent["encode"]),
            "scan_mb_per_s": size / 1e6 / spent["scan"],
            "encode_mb_per_s": size / 1e6 / spent["encode"],
            "tok_per_s": prepared.report["tokens"] / (spent["scan"] + spent["encode"]),
            "peak_rss_bytes": devices.peak_memory() + threads * devices.peak_memory(of_children=True),
        }


# --- start-up ---------------------------------------------------------------------------------------------------------------------------


def made_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer of that many pieces, trained on random words, for when only its size matters."""
    rng = random.Random(0)
    syllables = [a + b + c for a in "bcdfghklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s", "t")]

    def word() -> str:
        return "".join(rng.choice(syllables) for _ in range(rng.randint(1, 4)))

    return train_tokenizer((" ".join(word() for _ in range(100)) for _ in range(max(200, vocab_size // 10))), vocab_size)


def write_made_checkpoint(folder: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """Write `model` as a base checkpoint with that tokenizer."""
    texts = checkpoint.model_files(model.config, tokenizer, chat_template=None, card="Made weights, for measuring.\n")
    checkpoint.write_checkpoint(folder, {name: p.detach() for name, p in model.named_parameters()}, texts, None)


def process_seconds(words: Sequence[str], folder: Path, until: str | None = None) -> float:
    """Seconds from the start of `positron WORDS` in `folder` to its end, or to the first line on stderr that begins with `until`.

    Errors: PositronError if the process fails, or ends without that line.
    """
    command = children.python("positron_mini", *words)
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8"
    ) as run:
        assert run.stderr is not None
        said: list[str] = []
        for line in run.stderr:
            said.append(line)
            if until is not None and line.startswith(until):
                seconds = time.perf_counter() - began
                run.terminate()  # it saves a checkpoint, from which the next start continues
                run.stderr.read()
                run.wait()
                return seconds
        code = run.wait()
        if code != 0 or until is not None:
            raise PositronError(f"positron {' '.join(words)} failed: {''.join(said[-3:]).strip()}", "run it by itself to see all it says")
        return time.perf_counter() - began


def bench_startup(name: str, *, repetitions: int = 3, say: Say = lambda _: None) -> dict[str, Any]:
    """Median seconds of whole processes: help, generating one token, and a second bootstrap up to its first step."""
    with tempfile.TemporaryDirectory(prefix="positron-bench-") as temporary:
        folder = Path(temporary)
        model = made_model(name)
        tokenizer = made_tokenizer(model.config.vocab_size)
        write_made_checkpoint(folder / "made", model, tokenizer)
        (folder / "tokenizer").mkdir()
        tokenizer.save(folder / "tokenizer" / "made.model")
        storyworld.write_corpus(folder / "text.txt", 0, 300)
        flags = "--dataset text.txt --tokenizer_path tokenizer/made.model --steps 100000 --milestones none --out_dir runs/made"
        bootstrap = ["bootstrap", "--config", name, *flags.split()]
        say("first bootstrap start, which prepares the text")
        first_start_s = process_seconds(bootstrap, folder, until="[step ")
        commands: dict[str, tuple[list[str], str | None]] = {
            "help_s": (["--help"], None),
            "generate_s": (["generate", "--ckpt", "made", "--max_tokens", "1"], None),
            "second_start_s": (bootstrap, "[step "),
        }
        times: dict[str, list[float]] = {what: [] for what in commands}
        for _ in range(repetitions):
            for what, (words, until) in commands.items():
                times[what].append(process_seconds(words, folder, until))
                say(f"{what} {times[what][-1]:.2f}")
        return {
            **_shared("startup", model.config, name),
            "repetitions": repetitions,
            "first_start_s": first_start_s,
            **{what: statistics.median(found) for what, found in times.items()},
        }


# --- records ----------------------------------------------------------------------------------------------------------------------------


def _shared(what: str, shape: ModelConfig, name: str) -> dict[str, Any]:
    return {
        "what": what,
        "config": name,
        "parameters": shape.parameters,
        "context_len": shape.context_len,
        "threads": torch.get_num_threads(),
        "machine": devices.this_machine().chip,
        "versions": devices.describe_versions(),
    }
