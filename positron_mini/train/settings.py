"""Every open setting of a training run decided, from the flags, the recorded run, the preset and the device."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from positron_mini import device as devices
from positron_mini import fast as native
from positron_mini import files
from positron_mini.config import ModelConfig, SFTConfig, TrainConfig, default_lr, default_short_steps, model_config, preset
from positron_mini.distributed import Processes
from positron_mini.errors import RunError, Say, UsageError
from positron_mini.fast import training
from positron_mini.fast.plain import replaced
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_record import RunRecord
from positron_mini.text.prepare import Prepared, default_tokenizer_path
from positron_mini.text.tokenizer import Tokenizer

CONTROL_FLAGS = frozenset(
    {"epochs", "max_steps", "until_step", "more_steps", "resume_from_step", "finish", "cooldown_steps", "keep_awake"}
)  # for this call alone, not recorded
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
FINGERPRINTS = ("text", "tokenizer", "data", "base")  # hashes, of which the beginning tells enough


def batch_checks(config: TrainConfig) -> None:
    """Nothing, or UsageError when a step is smaller than one row."""
    context = config.context_len or preset(config.config).context_len
    if config.batch_tokens is not None and config.batch_tokens < context:
        raise UsageError(
            f"--batch_tokens {config.batch_tokens:,} is less than one row of {context:,} tokens",
            f"--batch_tokens {8 * context}, or a smaller --context_len",
        )


def budget_checks(config: TrainConfig, count: int) -> None:
    """Nothing, or UsageError when more than one process (`count`) is to keep to a time: measuring and pacing are for a single one."""
    if config.budget is not None and count > 1:
        raise UsageError(
            f"--budget {config.budget} is for one process, not {count:,}", "leave out --nproc, or give --max_steps in its place"
        )


def forget_budget(config: TrainConfig, given: frozenset[str], recorded: RunRecord | None, say: Say) -> TrainConfig:
    """`config` without the budget of its run where the command itself says where training ends: what is typed wins over what is stored."""
    typed = next((flag for flag in ("max_steps", "finish") if flag in given), None)
    if recorded is None or config.budget is None or "budget" in given or typed is None:
        return config
    say(f"the run's budget of {config.budget} no longer counts: --{typed} says where it ends")
    return replace(config, budget=None)


Config = TypeVar("Config", TrainConfig, SFTConfig)


def merge_with_run(config: Config, given: frozenset[str], run: RunFolder, kind: str) -> tuple[Config, RunRecord | None]:
    """The configuration completed from what `run` holds (settings not in `given` follow it), and its record, None for a new run.

    Errors: RunError when the folder holds something else than a run of this `kind`.
    """
    recorded = run.read()
    files.check_writable(run.path)
    if recorded is None:
        # what a process leaves that was killed before it wrote run.json does not count
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
    """`config` for so many processes, which share the cores of their machine; another number than before divides them anew.

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
    """Nothing, or UsageError when a step has fewer rows than there are processes."""
    if rows < processes.size:
        raise UsageError(
            f"a step of {rows:,} rows cannot be shared by {processes.size:,} processes", "fewer processes, or a larger --batch_tokens"
        )


def default_out_dir(config: TrainConfig) -> str:
    """`runs/positron-mini-<N>M-v1-base` for the model that `config` asks for."""
    path = Path(config.tokenizer_path) if config.tokenizer_path else default_tokenizer_path(wanted_vocab(config))
    vocab = Tokenizer.load(path).vocab_size if path.is_file() else wanted_vocab(config)
    return f"runs/positron-mini-{model_config(config, vocab).size_name}-v1-base"


def wanted_vocab(config: TrainConfig) -> int:
    """Pieces of the tokenizer that `config` asks for, where no tokenizer file decides."""
    return config.vocab_size or preset(config.config).vocab_size


def choose_device(
    config: TrainConfig | SFTConfig,
    machine: devices.Machine,
    recorded: RunRecord | None,
    say: Say,
    *,
    precision_why: str = "as asked",
) -> devices.Choice:
    """Device and precision of a run; one that goes on as it was keeps its recorded reason. A precision that cannot be had is reported."""
    if machine.note:
        say(machine.note)
    choice = devices.choose(machine, config.device, config.precision, precision_why=precision_why)
    before = {} if recorded is None else recorded.device
    if (before.get("device"), before.get("precision")) == (choice.device, choice.precision):
        choice = replace(choice, reason=before["reason"])
    if choice.fell_back:
        say(f"warning: --precision {config.precision}: training in {choice.precision}, {choice.reason.split('; ')[-1]}")
    return choice


def choose_kernels(
    config: TrainConfig | SFTConfig, shape: ModelConfig, device: str, recorded: RunRecord | None, say: Say = lambda _: None
) -> Literal["native", "pytorch"]:
    """What computes the loss and its gradients. A run that is older than the setting goes on with PyTorch's kernels, as it was."""
    if config.kernels == "pytorch" or (recorded is not None and "kernels" not in recorded.config and config.kernels == "auto"):
        return "pytorch"
    why = is_told = ""  # what cannot be seen from the flags is told of any run
    if device != "cpu":
        why = f"native ones are for the CPU, not for {device}"
    elif isinstance(config, TrainConfig) and config.compile == "on":
        why = "torch.compile takes their place"
    elif config.dropout:
        why = "native ones know no dropout"
    elif not training.covers(shape, shape.context_len):
        why = f"native ones work on sizes that are multiples of {training.TILE}"
    elif what := replaced():
        why = is_told = f"this model is not the built-in one ({what})"
    else:
        why = is_told = native.why_not()
    if why and config.kernels == "native":
        say(f"warning: training with PyTorch's kernels: {why}")
    elif is_told:
        say(f"kernels    PyTorch's: {why}")
    return "pytorch" if why else "native"


def resolve(
    config: TrainConfig,
    shape: ModelConfig,
    machine: devices.Machine,
    recorded: RunRecord | None,
    say: Say,
    *,
    precision_why: str = "as asked",
) -> tuple[TrainConfig, int, devices.Choice]:
    """Every open setting decided: batch, rate, device, precision, micro-batch, compile, threads. What a run recorded is obeyed.

    `precision_why` is the reason given for a precision that `config` names.
    """
    if recorded is not None and config.device not in (*machine.devices, "auto"):
        say(f"warning: the run was on {config.device}, which is not here; results will differ in the last digits")
        config = replace(config, device="auto", micro_batch=None, precision="auto", compile="auto", kernels="auto")
    choice = choose_device(config, machine, recorded, say, precision_why=precision_why)
    batch_tokens = config.batch_tokens or devices.BATCH_TOKENS[choice.device]
    rows = max(1, round(batch_tokens / shape.context_len))
    micro = config.micro_batch or devices.micro_batch_rows(shape, shape.context_len, rows, choice.device, machine.memory_bytes)
    work = None if config.max_steps is None else config.max_steps * rows * shape.context_len * shape.flops_per_token()
    kernels = choose_kernels(config, shape, choice.device, recorded, say)
    asked = "off" if kernels == "native" else config.compile
    compiled, why = devices.should_compile(asked, machine, choice.device, work)
    if compiled and choice.device == "cpu" and native.compiler_fails():
        compiled, why = False, f"off, no C++ compiler works: {native.why_not()}"
    if config.compile != "off" and "no C++ compiler" in why:
        say(f"torch.compile is {why}")
    resolved = replace(
        config,
        kernels=kernels,
        batch_tokens=batch_tokens,
        short_steps=config.short_steps if config.short_steps is not None else default_short_steps(config.max_steps),
        lr=config.lr if config.lr is not None else default_lr(batch_tokens),
        device=choice.device,
        precision=choice.precision,
        micro_batch=min(micro, rows),
        compile="on" if compiled else "off",
        threads=devices.set_threads(config.threads),
    )
    return resolved, rows, choice


def identity(config: TrainConfig, shape: ModelConfig, prepared: Prepared) -> dict[str, Any]:
    """What makes two commands the same run."""
    return {
        "model": asdict(shape),
        "text": prepared.content_fingerprint,
        "tokenizer": prepared.tokenizer.fingerprint,
        **{name: getattr(config, name) for name in IDENTITY_SETTINGS},
    }


def early_checks(config: TrainConfig, run: RunFolder, recorded: RunRecord | None) -> None:
    """Nothing, or the error that a shape or a recorded run forbids what was asked: all that can be known before a text is prepared."""
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
    copies = 1 if device == "cuda" else 4  # weights are drawn on the CPU; training there adds gradient, momentum and average
    needed, there = 4 * copies * shape.parameters, devices.total_memory()
    if needed > there:
        raise UsageError(
            f"a model of {shape.parameters:,} parameters takes {needed / 1e9:,.0f} GB to train, this machine has {there / 1e9:,.0f} GB",
            "choose a smaller shape, for example --config TinyGPT without overrides",
        )


def same_run(run: RunFolder, recorded: RunRecord, identity: dict[str, Any]) -> None:
    """Nothing, or RunError naming the first difference between the recorded run and the one asked for."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    for name, value in identity.items():
        there = recorded.identity.get(name, defaults.get(name))  # a run that is older than the setting had its default
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
