"""Decide every open setting of a run, each with its reason: where it computes, the size of a step, how rows are computed.

A setting that is left out is decided in this order: by the recorded run (a run goes on as it began), by the given flags, by the text, by
the device. Nothing is decided anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from positron_mini import device as devices
from positron_mini import fast
from positron_mini.config import ModelConfig, RunConfig, SFTConfig, TrainConfig, default_eval_every, default_lr, default_short_steps
from positron_mini.errors import Say
from positron_mini.fast import training
from positron_mini.fast.plain import replaced
from positron_mini.store.run_record import RunRecord

Kernels = Literal["native", "pytorch"]
Config = TypeVar("Config", bound=RunConfig)
SFT_ROWS = 64  # of a packed step, the most that are computed at once


@dataclass(frozen=True)
class Settings:
    """Settings of training, all decided: no field is None."""

    shape: ModelConfig
    choice: devices.Choice  # device and precision, with the reason
    lr: float  # peak, AdamW scale
    batch_tokens: int  # tokens per step as requested; `rows` comes as near as whole rows can
    rows: int  # of a step, each of context_len tokens
    micro_batch: int  # rows computed at once
    short_steps: int  # first steps, in which rows are half as long
    eval_every: int  # steps between validations
    kernels: Kernels
    compile: bool
    threads: int

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.shape.context_len

    def recorded_in(self, config: Config) -> Config:
        """`config` as run.json stores it: with the decided settings filled in, so that a resumed run uses them."""
        shared: dict[str, Any] = {
            "device": self.choice.device,
            "precision": self.choice.precision,
            "kernels": self.kernels,
            "micro_batch": self.micro_batch,
            "threads": self.threads,
            "lr": self.lr,
            "eval_every": self.eval_every,
        }
        if isinstance(config, TrainConfig):
            shared |= {"batch_tokens": self.batch_tokens, "short_steps": self.short_steps, "compile": "on" if self.compile else "off"}
        return replace(config, **shared)

    def lines(self, config: TrainConfig, processes: int) -> list[str]:
        """Lines for a person on the device of a pretraining and the size of its steps."""
        threads = f"{self.threads} threads" if processes == 1 else f"{processes} processes of {self.threads} threads"
        how = "native kernels" if self.kernels == "native" else f"compile {'on' if self.compile else 'off'}"
        micro_steps = -(-self.rows // self.micro_batch)
        lines = [
            f"device     {self.choice.device}, {self.choice.precision} ({self.choice.reason}), {threads}, {how}",
            f"step       {self.step_tokens:,} tokens = {micro_steps} x {self.micro_batch} x {self.shape.context_len}; "
            f"{config.optimizer}, lr {self.lr:g}",
        ]
        if self.step_tokens != self.batch_tokens:
            lines.append(f"           ({self.batch_tokens:,} is not a multiple of the row; {self.step_tokens:,} is the nearest)")
        return lines


def decide(
    config: TrainConfig,
    shape: ModelConfig,
    text_tokens: int | None,
    recorded: RunRecord | None,
    machine: devices.Machine,
    say: Say,
    *,
    precision_why: str = "as asked",
) -> Settings:
    """Decide the settings of a pretraining. `text_tokens`: of the training text, None without one (a benchmark).

    `precision_why` is the reason given for a precision that `config` names. `say` is told what is not available.
    """
    config = _where_it_was(config, recorded, machine, say)
    choice = choose_device(config, machine, recorded, say, precision_why=precision_why)

    # A step. `batch_tokens` is the promise; whole rows keep it. A larger batch has a less noisy gradient, which allows a larger rate.
    batch_tokens = config.batch_tokens or devices.BATCH_TOKENS[choice.device]
    rows = max(1, round(batch_tokens / shape.context_len))
    lr = config.lr if config.lr is not None else default_lr(batch_tokens)
    short_steps = config.short_steps if config.short_steps is not None else default_short_steps(config.max_steps)
    eval_every = config.eval_every or default_eval_every(text_tokens or rows * shape.context_len, rows * shape.context_len)

    # How its rows are computed: as many at once as suit the memory, by our kernels, by compiled ones, or by PyTorch's.
    micro = config.micro_batch or devices.micro_batch_rows(shape, shape.context_len, rows, choice.device, machine.memory_bytes)
    kernels = choose_kernels(config, shape, choice.device, recorded, say)
    work = None if config.max_steps is None else config.max_steps * rows * shape.context_len * shape.flops_per_token()
    return Settings(
        shape=shape,
        choice=choice,
        lr=lr,
        batch_tokens=batch_tokens,
        rows=rows,
        micro_batch=min(micro, rows),
        short_steps=short_steps,
        eval_every=eval_every,
        kernels=kernels,
        compile=_is_compiled("off" if kernels == "native" else config.compile, config, choice, machine, work, say),
        threads=devices.set_threads(config.threads),
    )


def decide_sft(config: SFTConfig, shape: ModelConfig, recorded: RunRecord | None, machine: devices.Machine, say: Say) -> Settings:
    """Decide the settings of a fine-tuning of a base with that shape. `say` is told what is not available."""
    config = _where_it_was(config, recorded, machine, say)
    choice = choose_device(config, machine, recorded, say)
    memory = machine.memory_bytes
    return Settings(
        shape=shape,
        choice=choice,
        lr=config.lr,
        batch_tokens=SFT_ROWS * shape.context_len,
        rows=SFT_ROWS,
        micro_batch=config.micro_batch or devices.micro_batch_rows(shape, shape.context_len, SFT_ROWS, choice.device, memory),
        short_steps=0,
        eval_every=config.eval_every,
        kernels=choose_kernels(config, shape, choice.device, recorded, say),
        compile=False,  # row widths differ from step to step, and each would be compiled again
        threads=devices.set_threads(config.threads),
    )


def _where_it_was(config: Config, recorded: RunRecord | None, machine: devices.Machine, say: Say) -> Config:
    """`config` with all settings that depend on the device reopened, if the run's own device is not available here."""
    if recorded is None or config.device in (*machine.devices, "auto"):
        return config
    say(f"warning: the run was on {config.device}, which is not here; results will differ in the last digits")
    config = replace(config, device="auto", micro_batch=None, precision="auto", kernels="auto")
    return replace(config, compile="auto") if isinstance(config, TrainConfig) else config


def choose_device(
    config: RunConfig,
    machine: devices.Machine,
    recorded: RunRecord | None,
    say: Say,
    *,
    precision_why: str = "as asked",
) -> devices.Choice:
    """Choose device and precision; a run that goes on unchanged keeps its recorded reason. An unavailable precision is reported."""
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
    config: RunConfig, shape: ModelConfig, device: str, recorded: RunRecord | None, say: Say = lambda _: None
) -> Kernels:
    """Choose the kernels for the loss and its gradients. A run older than the setting keeps PyTorch's."""
    if config.kernels == "pytorch" or (recorded is not None and "kernels" not in recorded.config and config.kernels == "auto"):
        return "pytorch"
    why = is_told = ""  # reported for any run: the flags do not show it
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
        why = is_told = fast.why_not()
    if why and config.kernels == "native":
        say(f"warning: training with PyTorch's kernels: {why}")
    elif is_told:
        say(f"kernels    PyTorch's: {why}")
    return "pytorch" if why else "native"


def _is_compiled(
    asked: str, config: TrainConfig, choice: devices.Choice, machine: devices.Machine, work: float | None, say: Say
) -> bool:
    """Whether torch.compile is available and pays off for `work` floating-point operations."""
    is_compiled, why = devices.should_compile(asked, machine, choice.device, work)
    if is_compiled and choice.device == "cpu" and fast.compiler_fails():
        is_compiled, why = False, f"off, no C++ compiler works: {fast.why_not()}"
    if config.compile != "off" and "no C++ compiler" in why:
        say(f"torch.compile is {why}")
    return is_compiled
