"""Conclusions from examinations: the verdict, the choice, one sentence of advice, and bug reports for PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from positron_mini import device as devices
from positron_mini.config.units import spell_time
from positron_mini.device import Choice, Machine, Verdict
from positron_mini.doctor.examine import Examination, Scope, examine
from positron_mini.doctor.isolate import examine_apart
from positron_mini.doctor.speed import DISTURBANCES, Pace, compare_precisions
from positron_mini.doctor.subject import Check, Subject
from positron_mini.errors import Say

STEPS = 5_000  # of TinyGPT: the first run that the README describes
SHORT_MINUTES = 15
SHORT_BATCH_TOKENS = 2_048


@dataclass(frozen=True)
class Report:
    """The whole result. `choice`: what `--device auto --precision auto` will use from now on."""

    machine: Machine
    examinations: tuple[Examination, ...]
    verdict: Verdict
    choice: Choice

    @property
    def chosen(self) -> Examination | None:
        """The examination of the chosen device and precision."""
        wanted = (self.choice.device, self.choice.precision)
        return next((e for e in self.examinations if (e.subject.device, e.subject.precision) == wanted), None)

    @property
    def failed(self) -> list[tuple[Examination, Check]]:
        """All failed checks, with their examinations."""
        return [(e, check) for e in self.examinations for check in e.checks if not check.ok]

    @property
    def is_sound(self) -> bool:
        """Whether every examined device computes correctly."""
        return not any(check.condemns for _, check in self.failed)

    @property
    def disturbance(self) -> str:
        """Why the measured speeds are unreliable and must not decide for later runs; empty if they are reliable."""
        return next((check.detail for _, check in self.failed if check.name in DISTURBANCES), "")

    def sentence(self) -> str:
        """The device to train with, the speed to expect, and the length of the usual runs."""
        chosen = self.chosen
        if chosen is None or not chosen.paces or not chosen.finding.is_fit:
            return f"Nothing here is fit to train with: {self._troubles()}."
        return advice(self.choice, chosen.paces)

    def _troubles(self) -> str:
        return "; ".join(f"{e.subject.name} {e.finding.trouble}" for e in self.examinations)

    def as_json(self) -> dict[str, Any]:
        """The object that `positron doctor --json` prints."""
        chosen = self.chosen
        checks = [
            {"name": f"{e.subject.name}: {check.name}", "ok": check.ok, "detail": check.detail, "condemns": check.condemns}
            for e in self.examinations
            for check in e.checks
        ]
        skipped = [
            {"name": f"{e.subject.name}: skipped", "ok": True, "detail": e.skipped, "condemns": False}
            for e in self.examinations
            if e.skipped
        ]
        speeds = {
            e.subject.name: {preset: round(pace.training(batch_tokens(preset, e.subject.device)), 1) for preset, pace in e.paces.items()}
            for e in self.examinations
        }
        return {
            "device": self.choice.device,
            "precision": self.choice.precision,
            "reason": self.choice.reason,
            "checks": [*checks, *skipped],
            "tok_per_s": None if chosen is None else chosen.finding.tok_per_s,
            "speeds": speeds,
            "sentence": self.sentence(),
            "disturbed": self.disturbance,
            "machine": {**self.machine.key, "memory_bytes": self.machine.memory_bytes, "cores": self.machine.cores},
            "upstream": [upstream_report(self.machine, e, check) for e, check in self.failed if check.reproduction],
        }


def batch_tokens(preset: str, device: str) -> int:
    """Tokens per step for timing a preset: the device's default for TinyGPT, fewer for the small preset of a short budget."""
    return devices.BATCH_TOKENS[device] if preset == "TinyGPT" else SHORT_BATCH_TOKENS


def advice(choice: Choice, paces: dict[str, Pace]) -> str:
    """One sentence: what to train with, its tokens a second, the time for 5,000 steps, and what 15 minutes give."""
    tokens = batch_tokens("TinyGPT", choice.device)
    tiny = paces["TinyGPT"].training(tokens)
    said = (
        f"Train with --device {choice.device} --precision {choice.precision}: expect about {tiny:,.0f} tokens a second with TinyGPT, "
        f"{spell_time(STEPS * tokens / tiny)} for its {STEPS:,} steps of {tokens:,} tokens"
    )
    if "MicroGPT" not in paces:
        return said + "."
    micro = paces["MicroGPT"].training(SHORT_BATCH_TOKENS)
    steps = max(50, int(SHORT_MINUTES * 60 * micro / SHORT_BATCH_TOKENS / 50) * 50)
    return (
        f"{said}; for {SHORT_MINUTES} minutes: positron train --budget {SHORT_MINUTES}m, which chooses model and steps itself "
        f"(enough for {steps:,} steps of MicroGPT with {SHORT_BATCH_TOKENS:,} tokens, about {micro:,.0f} tokens a second)."
    )


def upstream_report(machine: Machine, examination: Examination, check: Check) -> str:
    """A bug report about a wrong operation, ready for PyTorch's bug tracker."""
    versions = f"PyTorch {machine.torch}, {machine.system} {machine.os_version}, {machine.chip}"
    return (
        f"[{examination.subject.device}] {check.detail}\n\n{check.name}, {examination.subject.precision}.\n"
        f"Versions: {versions}\n\n```python\n{check.reproduction}```\n"
    )


def subjects_of(machine: Machine, only: str = "auto") -> list[Subject]:
    """Every device in every precision, or those of the device named `only`."""
    names = [name for name in machine.devices if only in ("auto", name)]
    return [Subject(name, precision) for name in names for precision in ("fp32", "bf16")]


def diagnose(machine: Machine, subjects: Sequence[Subject], scope: Scope, say: Say, today: date) -> Report:
    """Examine `subjects` and report. A CPU is examined in this process, other devices in a child process each."""
    examinations = []
    for subject in subjects:
        say(f"{subject.name} ...")

        def tell(check: Check, name: str = subject.name) -> None:
            if not check.ok:
                say(f"  {name}: {check.name}: {check.detail}")

        examined = examine(subject, machine, scope, tell) if subject.device == "cpu" else examine_apart(subject, machine, scope, tell)
        examinations.append(examined)
        say(f"  {subject.name}: {summary(examined)}")
    examinations = _compared(examinations, machine)
    verdict = Verdict(tuple(e.finding for e in examinations), today.isoformat())
    choice = devices.choose(replace(machine, devices=present(subjects), verdict=verdict))
    return Report(machine, tuple(examinations), verdict, choice)


def _compared(examinations: list[Examination], machine: Machine) -> list[Examination]:
    """The examinations with the CPU's bf16 speed from paired measurements, because its two examinations lie minutes apart."""
    cpu = {e.subject.precision: e for e in examinations if e.subject.device == "cpu" and e.finding.is_fit}
    if len(cpu) < 2:
        return examinations
    times, check = compare_precisions(machine, next(iter(cpu["fp32"].paces)))
    paces = {preset: replace(pace, tok_per_s=times * pace.tok_per_s) for preset, pace in cpu["fp32"].paces.items()}
    bf16 = replace(cpu["bf16"], paces=paces, checks=(*cpu["bf16"].checks, check))
    return [bf16 if e is cpu["bf16"] else e for e in examinations]


def present(subjects: Sequence[Subject]) -> tuple[devices.DeviceName, ...]:
    """The distinct devices of `subjects`, in order."""
    return tuple(dict.fromkeys(subject.device for subject in subjects))


def summary(examination: Examination) -> str:
    """One line about an examination."""
    if examination.skipped:
        return f"not examined: it {examination.skipped}"
    passed = sum(check.ok for check in examination.checks)
    speeds = "".join(
        f"; {preset} {pace.training(batch_tokens(preset, examination.subject.device)):,.0f} tokens a second"
        for preset, pace in examination.paces.items()
    )
    return f"{passed} of {len(examination.checks)} checks passed{speeds}"
