"""Every decision about devices, as pure functions of a `Machine`: device, precision, rows at once, compiling; each with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from positron_mini.config import ModelConfig
from positron_mini.device.machine import Machine
from positron_mini.device.verdict import DeviceName, Precision
from positron_mini.errors import UsageError

BATCH_TOKENS: dict[str, int] = {"cpu": 65_536, "mps": 98_304, "cuda": 131_072}
MAX_LOGITS_BYTES = 1 << 30  # never more than 1 GiB of fp32 logits at once
OLDEST_MACOS = 14
METAL_OVERHEAD_BYTES = 1 << 30  # compiled kernels, command buffers, what the allocator rounds up
# On M1 and M2, matmuls that sum 32,767 or more terms add memory beyond the operands, and the gradient of a weight is a sum over all
# tokens computed at once (pytorch#177116, pytorch#195163; around it since 2.14 for some products). A GPU is busy long before that.
MPS_TOKENS = 16_384


@dataclass(frozen=True)
class Choice:
    """The device, the precision, and the reason for each."""

    device: DeviceName
    precision: Precision
    reason: str
    fell_back: bool = False  # the precision is not the requested one


def choose(machine: Machine, device: str = "auto", precision: str = "auto", *, precision_why: str = "as asked") -> Choice:
    """Device and precision for `machine`, by the doctor's verdict if there is one. `precision_why`: the origin of a given precision.

    Errors: UsageError if the requested device is missing.
    """
    chosen, why = _choose_device(machine, device)
    if precision == "auto":
        return _choose_precision(machine, chosen, why, is_asked=device != "auto")
    fast = chosen in machine.bf16 or chosen == "mps"
    if precision == "bf16" and not fast:
        why = f"{why}; fp32 because this {chosen.upper()} has no fast bf16, where it would be hundreds of times slower"
        return Choice(chosen, "fp32", why, True)
    asked: Precision = "bf16" if precision == "bf16" else "fp32"
    found = machine.verdict.of(chosen, asked) if machine.verdict is not None else None
    warning = f", though positron doctor found that it {found.trouble}" if found is not None and found.faults else ""
    return Choice(chosen, asked, f"{why}; {asked} {precision_why}{warning}")


def _choose_device(machine: Machine, device: str) -> tuple[DeviceName, str]:
    """The device, and why: the requested one, or the best by the doctor's verdict, or the fastest kind."""
    if device in machine.devices:
        return next(d for d in machine.devices if d == device), "as asked"
    if device != "auto":
        raise UsageError(
            f"--device {device}: PyTorch sees no such device here, only {', '.join(machine.devices)}", f"--device {machine.devices[0]}"
        )
    if machine.verdict is not None:
        best = machine.verdict.best(machine.devices)
        if best is not None:
            return best.device, "the best device here"
        if all(machine.verdict.of(name, "fp32") is not None for name in machine.devices):
            return "cpu", "no device here passed positron doctor, and the CPU is the best tested elsewhere"
    return machine.devices[0], "the fastest device here"


def _choose_precision(machine: Machine, device: DeviceName, why: str, *, is_asked: bool) -> Choice:
    """The precision for `device`, and why: by the verdict, by known faults of this PyTorch, or by the kind of device."""
    if machine.verdict is not None:
        best = machine.verdict.best((device,))
        if best is not None:
            reason = machine.verdict.reason(best, (device,) if is_asked else machine.devices)
            return Choice(device, best.precision, f"{why}; {best.precision}: {reason}")
        found = machine.verdict.of(device, "fp32")
        if found is not None:
            return Choice(device, "fp32", f"{why}; fp32, though positron doctor found that it {found.trouble}")
    if device == "cpu":
        return Choice("cpu", "fp32", f"{why}; fp32, the exact choice on a CPU")
    if device not in machine.bf16:
        return Choice(device, "fp32", f"{why}; fp32, it has no fast bf16")
    fault = known_fault(machine, device, "bf16")
    if fault:
        return Choice(device, "fp32", f"{why}; fp32 until positron doctor has cleared bf16: {fault}")
    return Choice(device, "bf16", f"{why}; bf16 products with fp32 master weights")


def known_fault(machine: Machine, device: str, precision: str) -> str:
    """The published fault of this PyTorch on that device in that precision; empty for none."""
    if device == "mps" and precision == "bf16" and machine.torch and _release(machine.torch) < (2, 14):
        return f"before PyTorch 2.14 (here {machine.torch}) attention in half precision can see later tokens (pytorch#195910)"
    return ""


def _release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as 2.13.0+cpu."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def unsupported(system: str, machine: str, os_version: str, torch: str) -> tuple[str, str] | None:
    """Why this computer cannot run `torch`, and what to do; None if it can. setup.sh says the same before anything is installed.

    `machine` is the processor's architecture, arm64 for Apple Silicon.
    """
    if system != "Darwin":
        return None
    if machine != "arm64":
        return f"torch {torch} has no build for Macs with an Intel processor", "use a Mac with Apple Silicon, or a Linux computer"
    if _release(os_version + ".0")[0] < OLDEST_MACOS:
        return (
            f"torch {torch} needs macOS {OLDEST_MACOS} or newer, and this Mac has macOS {os_version}",
            "System Settings > General > Software Update, then the same command",
        )
    return None


def memory_limits(model: ModelConfig, device: str, memory_bytes: int) -> dict[str, int]:
    """The most tokens that may be computed at once, by reason; the smallest number decides.

    Per token, in fp32: three copies of the logits (one on a CPU, where chunked_loss.py never holds all of them), and about 34
    activations of the width and 10 of the ffn per layer. A CPU gains nothing beyond about 2,048 tokens, a GPU needs many; all stay below
    a quarter of the memory and 1 GiB of logits. A Mac shares its memory with the system and other programs: a third is left to them, and
    of what Metal may use, half of what the model and its optimizer leave.
    """
    logits = 4 * model.vocab_size
    per_token = (1 if device == "cpu" else 3) * logits + 4 * model.n_layer * (34 * model.n_embd + 10 * model.ffn)
    limits = {"a quarter of the memory": memory_bytes // 4 // per_token, "1 GiB of logits": MAX_LOGITS_BYTES // logits}
    if device == "cpu":
        return {**limits, "what a CPU's cache holds": 2_048, "1.5 GB of activations": 1_500_000_000 // per_token}
    if device == "mps":
        kept = 5 * 4 * model.parameters  # weights, gradient, two moments, running average
        room = max(0, memory_bytes * 2 // 3 - METAL_OVERHEAD_BYTES - kept) // 2
        return {
            **limits,
            "the room that the system and the model leave": room // per_token,
            "the longest sum that MPS gets right": MPS_TOKENS,
        }
    return {**limits, "enough to keep a GPU busy": 65_536}


def micro_batch_rows(model: ModelConfig, context_len: int, rows: int, device: str, memory_bytes: int) -> int:
    """Rows of a micro-batch: the largest divisor of `rows` that `memory_limits` allows, so that all micro-batches have one shape."""
    tokens = min(memory_limits(model, device, memory_bytes).values())
    most = max(1, min(rows, tokens // context_len))
    return next(size for size in range(most, 0, -1) if rows % size == 0)


def should_compile(asked: str, machine: Machine, device: str, work_flops: float | None) -> tuple[bool, str]:
    """Whether to use torch.compile, and why. `work_flops` None: an open-ended run, in which compiling pays off.

    Compiling takes 20 to 60 s on a laptop and then saves up to a quarter of the time. A CPU has faster kernels (`--kernels native`).
    """
    if asked == "off":
        return False, "off as asked"
    if device == "cpu" and not machine.has_compiler:
        return False, "off: no C++ compiler found; training is about a third slower without it"
    if asked == "on":
        return True, "on as asked"
    if device == "mps":
        return False, "off: PyTorch's compiler for MPS is not ready"
    rate = 60e9 * machine.cores if device == "cpu" else 2e13  # a cautious guess of operations per second
    if work_flops is not None and work_flops / rate < 240:
        return False, "off: its start-up is longer than what this run would gain"
    return True, "on"
