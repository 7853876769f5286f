"""Find the run that a command means, and complete every flag from what it recorded; two commands that differ are two runs."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from positron_mini import device as devices
from positron_mini import files
from positron_mini.config import ModelConfig, RunConfig, TrainConfig, model_config, preset
from positron_mini.distributed import Processes
from positron_mini.errors import RunError, Say, UsageError
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_record import RunRecord
from positron_mini.text.prepare import Prepared, default_tokenizer_path
from positron_mini.text.tokenizer import Tokenizer

CONTROL_FLAGS = frozenset(
    {"epochs", "max_steps", "until_step", "more_steps", "resume_from_step", "finish", "cooldown_steps", "keep_awake"}
)  # apply to this call only and are not recorded
IDENTITY_SETTINGS = (
    "batch_tokens",
    "short_steps",
    "align_rows",
    "lr",
    "muon_lr",
    "warmup_steps",
    "weight_decay",
    "grad_clip",
    "embedding_std",
    "copy_init",
    "dropout",
    "optimizer",
    "seed",
)
FLAGS = {"text": "--dataset_path, or --dataset", "tokenizer": "--tokenizer_path", "data": "--sft_data", "base": "--base_ckpt"}
FINGERPRINTS = ("text", "tokenizer", "data", "base")  # hashes: the first digits are enough to show


def find_run(
    config: TrainConfig, given: frozenset[str], processes: Processes, say: Say
) -> tuple[TrainConfig, RunFolder, RunRecord | None]:
    """Find the run of a pretraining command, and complete `config` from its record (None for a new run).

    Checks everything that can be checked without the text, as preparing it may take hours. Errors: RunError, UsageError.
    """
    run = RunFolder(Path(config.out_dir or default_out_dir(config)))
    config, recorded = merge_with_run(config, given, run, "pretrain")
    config = forget_budget(config, given, recorded, say)
    budget_checks(config, processes.size)
    config = for_processes(config, given, recorded, processes)
    batch_checks(config)
    early_checks(config, run, recorded)
    if recorded is None:
        devices.choose(devices.this_machine(), config.device, config.precision)  # fails if the device is not available
    return replace(config, out_dir=str(run.path)), run, recorded


def batch_checks(config: TrainConfig) -> None:
    """Raise UsageError if a step is smaller than one row."""
    context = config.context_len or preset(config.config).context_len
    if config.batch_tokens is not None and config.batch_tokens < context:
        raise UsageError(
            f"--batch_tokens {config.batch_tokens:,} is less than one row of {context:,} tokens",
            f"--batch_tokens {8 * context}, or a smaller --context_len",
        )


def budget_checks(config: TrainConfig, count: int) -> None:
    """Raise UsageError for a budget with more than one process (`count`): measuring and pacing work for a single one."""
    if config.budget is not None and count > 1:
        raise UsageError(
            f"--budget {config.budget} is for one process, not {count:,}", "leave out --nproc, or give --max_steps in its place"
        )


def forget_budget(config: TrainConfig, given: frozenset[str], recorded: RunRecord | None, say: Say) -> TrainConfig:
    """Drop the recorded budget if the command itself says where training ends: flags win over the record."""
    typed = next((flag for flag in ("max_steps", "finish") if flag in given), None)
    if recorded is None or config.budget is None or "budget" in given or typed is None:
        return config
    say(f"the run's budget of {config.budget} no longer counts: --{typed} says where it ends")
    return replace(config, budget=None)


Config = TypeVar("Config", bound=RunConfig)


def merge_with_run(config: Config, given: frozenset[str], run: RunFolder, kind: str) -> tuple[Config, RunRecord | None]:
    """Complete the configuration from the record of `run` (settings not in `given` follow it); return both, None for a new run.

    Errors: RunError when the folder holds something else than a run of this `kind`.
    """
    recorded = run.read()
    files.check_writable(run.path)
    if recorded is None:
        # leftovers of a process that was killed before it wrote run.json do not count
        if run.path.exists() and any(not entry.name.startswith((".lock", ".tmp-")) for entry in run.path.iterdir()):
            raise RunError(f"{run.path}: exists and is not a run of this program", "choose another --out_dir")
        return config, None
    if recorded.kind != kind:
        raise RunError(f"{run.path}: holds a {recorded.kind} run, not a {kind} run", "choose another --out_dir")
    recorded.check_complete(run.run_json)
    known = {field.name for field in dataclasses.fields(config)}
    kept = {k: v for k, v in recorded.config.items() if k in known and k not in given and k not in CONTROL_FLAGS}
    return replace(config, **kept), recorded


def for_processes(config: TrainConfig, given: frozenset[str], recorded: RunRecord | None, processes: Processes) -> TrainConfig:
    """Adapt `config` to the number of processes, which share the cores of their machine; another number than before divides them again.

    Errors: UsageError when processes are asked for that were started already, or that nobody has started.
    """
    if "nproc" in given and processes.size > 1:
        raise UsageError(
            f"--nproc {config.nproc}: {processes.size:,} processes have been started already", "leave out --nproc beside torchrun"
        )
    if "nproc" in given and config.nproc not in (None, 1):
        raise UsageError(
            f"--nproc {config.nproc}: there is only this one process", f"positron train --nproc {config.nproc}, or torchrun, starts more"
        )
    before = 1 if recorded is None else recorded.processes
    threads = config.threads if "threads" in given or before == processes.size else None
    if threads is None and processes.size > 1:
        threads = max(1, devices.usable_cores() // processes.per_machine)
    return replace(config, threads=threads, nproc=processes.size)


def rows_for_all(rows: int, processes: Processes) -> None:
    """Raise UsageError if a step has fewer rows than there are processes."""
    if rows < processes.size:
        raise UsageError(
            f"a step of {rows:,} rows cannot be shared by {processes.size:,} processes", "fewer processes, or a larger --batch_tokens"
        )


def default_out_dir(config: TrainConfig) -> str:
    """`runs/positron-mini-<N>M-v1-base` for the model of `config`."""
    path = Path(config.tokenizer_path) if config.tokenizer_path else default_tokenizer_path(wanted_vocab(config))
    vocab = Tokenizer.load(path).vocab_size if path.is_file() else wanted_vocab(config)
    return f"runs/positron-mini-{model_config(config, vocab).size_name}-v1-base"


def wanted_vocab(config: TrainConfig) -> int:
    """Vocabulary size that `config` asks for if no tokenizer file decides."""
    return config.vocab_size or preset(config.config).vocab_size


def pretraining_identity(config: TrainConfig, shape: ModelConfig, prepared: Prepared) -> dict[str, Any]:
    """Settings that make two commands the same run."""
    return {
        "model": asdict(shape),
        "text": prepared.content_fingerprint,
        "tokenizer": prepared.tokenizer.fingerprint,
        **{name: getattr(config, name) for name in IDENTITY_SETTINGS},
    }


def early_checks(config: TrainConfig, run: RunFolder, recorded: RunRecord | None) -> None:
    """Raise an error if the shape or the recorded run rules out the command; needs no prepared text."""
    path = Path(config.tokenizer_path) if config.tokenizer_path else default_tokenizer_path(wanted_vocab(config))
    there = Tokenizer.load(path) if path.is_file() else None
    recorded_vocab = None if recorded is None else recorded.vocab_size
    vocab = there.vocab_size if there else recorded_vocab or wanted_vocab(config)
    shape = model_config(config, vocab)
    _memory_check(shape, config.device)
    if recorded is not None:
        known = {"model": asdict(shape), **({"tokenizer": there.fingerprint} if there else {})}
        same_run(run, recorded, {**known, **{name: getattr(config, name) for name in IDENTITY_SETTINGS}})


def _memory_check(shape: ModelConfig, device: str) -> None:
    copies = 1 if device == "cuda" else 4  # weights are initialised on the CPU; training there adds gradient, momentum and average
    needed, there = 4 * copies * shape.parameters, devices.total_memory()
    if needed > there:
        raise UsageError(
            f"a model of {shape.parameters:,} parameters takes {needed / 1e9:,.0f} GB to train, this machine has {there / 1e9:,.0f} GB",
            "choose a smaller shape, for example --config TinyGPT without overrides",
        )


def same_run(run: RunFolder, recorded: RunRecord, identity: dict[str, Any]) -> None:
    """Raise RunError for the first difference between the recorded run and the one asked for."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    for name, value in identity.items():
        there = recorded.identity.get(name, defaults.get(name))  # a run older than the setting used its default
        if there != value:
            flag = FLAGS.get(name, f"--{name}")
            if isinstance(value, dict) and isinstance(there, dict):
                name = next(k for k in (*value, *there) if there.get(k) != value.get(k))
                there, value, flag = there.get(name), value.get(name), f"--config, or --{name}"
            shown = (str(there)[:16], str(value)[:16]) if name in FINGERPRINTS else (there, value)
            raise RunError(
                f"{run.path} holds another run: {name} is {shown[0]} there and {shown[1]} here",
                f"choose another --out_dir, or leave out {flag}",
            )
