"""All checks of one device, one after the other; an exception counts as a failed check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from positron_mini import device as devices
from positron_mini.config import preset_shape
from positron_mini.device import Finding, Machine
from positron_mini.device.quiet import paired, usage
from positron_mini.doctor import kernels, speed, training
from positron_mini.doctor.subject import Check, Subject, one_thread


@dataclass(frozen=True)
class Scope:
    """Which checks to run."""

    steps: int = 20
    drift_steps: int = 200
    speeds: tuple[str, ...] = ("TinyGPT", "MicroGPT")  # presets to time; the first decides the verdict
    large: bool = True  # also one pass of TinyGPT, in the shapes of real training
    compiled: bool = False  # also time compiled training


@dataclass(frozen=True)
class Examination:
    """All results for one device in one precision."""

    subject: Subject
    checks: tuple[Check, ...]
    paces: dict[str, speed.Pace]  # by preset
    skipped: str = ""

    @property
    def finding(self) -> Finding:
        """The part that the verdict stores."""
        faults = tuple(check.name for check in self.checks if not check.ok and check.condemns)
        pace = next(iter(self.paces.values()), None)
        tok_per_s = None if pace is None else round(pace.training(devices.BATCH_TOKENS[self.subject.device]), 1)
        return Finding(self.subject.device, self.subject.precision, faults, tok_per_s, self.skipped)


Tell = Callable[[Check], None]


def examine(subject: Subject, machine: Machine, scope: Scope = Scope(), tell: Tell = lambda _: None) -> Examination:
    """Examine `subject`; `tell` gets each check as soon as it is done. Emulated bf16 is skipped, with the reason."""
    if subject.precision == "bf16":
        dtypes = (torch.float32, torch.bfloat16)
        fp32, bf16 = (partial(speed.time_small_product, subject, dtype) for dtype in dtypes)
        found = paired(fp32, bf16, speed.HOPELESS)
        skipped = speed.hopeless_bf16(found.median)
        if skipped:
            return Examination(subject, (), {}, skipped)
    checks = []
    for check in checks_of(subject, machine, scope):
        checks.append(check)
        tell(check)
    paces, problems = _paces(subject, machine, scope)
    for check in problems:
        checks.append(check)
        tell(check)
    devices.forget_cached_memory(subject.device)
    return Examination(subject, tuple(checks), paces)


def checks_of(subject: Subject, machine: Machine, scope: Scope) -> Iterator[Check]:
    """Yield the checks of operations, then those of models; each runs when it is requested.

    On a CPU the operations and one small pass use all threads and are compared with one thread; the rest runs on one thread.
    """
    shape = preset_shape("TinyGPT")
    yield from kernels.check_kernels(subject, speed.rows_at_once(shape, machine, subject.device) * shape.context_len)
    with one_thread():
        yield from _guarded("causality", lambda: training.check_causality(subject))
    yield from _guarded("one pass, odd shapes", lambda: training.check_pass(subject, training.ODD, 2, "odd shapes"))
    groups: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("decoding with a cache", lambda: training.check_decoding(subject)),
        ("optimizer steps", lambda: training.check_steps(subject, scope.steps)),
        ("drift", lambda: training.check_drift(subject, scope.drift_steps)),
    ]
    if scope.large:
        groups.append(("one pass, TinyGPT", lambda: training.check_pass(subject, training.TINY, 1, "TinyGPT")))
    with one_thread():
        for name, group in groups:
            yield from _guarded(name, group)


def _guarded(name: str, group: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Yield the checks of a group; an exception becomes its last result."""
    try:
        yield from group()
    except (RuntimeError, NotImplementedError, TypeError, MemoryError) as error:
        yield _broken(name, error)


def _broken(name: str, error: BaseException) -> Check:
    said = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return Check(name, False, f"out of memory: {said}" if devices.is_out_of_memory(error) else f"fails: {said}")


def _paces(subject: Subject, machine: Machine, scope: Scope) -> tuple[dict[str, speed.Pace], list[Check]]:
    """The speed of each preset, and checks of the measurement itself."""
    paces: dict[str, speed.Pace] = {}
    checks = []
    before = usage()
    for preset in scope.speeds:
        try:
            paces[preset] = speed.measure_pace(subject, preset, machine)
            if scope.compiled and preset == scope.speeds[0]:
                checks.append(_compiled(subject, preset, machine, paces[preset]))
        except Exception as error:
            broken = _broken(f"speed, {preset}", error)
            checks.append(replace(broken, condemns=False))
    if subject.device == "cpu" and paces:  # the CPU only waits for a GPU
        checks.append(speed.judge_quiet(before, usage(), torch.get_num_threads(), machine.cores))
    return paces, checks


def _compiled(subject: Subject, preset: str, machine: Machine, plain: speed.Pace) -> Check:
    """A check that compares the speed of compiled training with that of plain training."""
    compiled = speed.measure_pace(subject, preset, machine, compiled=True)
    gain = compiled.tok_per_s / plain.tok_per_s
    detail = f"{compiled.tok_per_s:,.0f} tokens a second, {gain:.2f} times as fast as without"
    return Check("compiled speed", True, detail, condemns=False)
