"""`positron doctor`: test whether this machine computes correctly, measure its speed, and store both for `--device auto`."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.spelling import here
from positron_mini.cli.terminal import print
from positron_mini.config import check_ranges
from positron_mini.errors import PositronError, UsageError

if TYPE_CHECKING:
    from positron_mini.doctor.report import Report


@dataclass(frozen=True)
class DoctorFlags:
    """Examine every device here, in fp32 and bf16, against the CPU; the result is obeyed by --device auto and --precision auto."""

    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    """examine only this one; nothing is remembered then"""
    thorough: bool = False
    """measure compiled training too, which takes up to two minutes more"""
    threads: int | None = None
    """CPU threads (default: all cores)"""
    json: bool = False
    """print one JSON object"""

    def __post_init__(self) -> None:
        check_ranges(self, {"threads": 1})


def run(argv: Sequence[str]) -> int:
    """Examine; 0 when everything computes right, 1 when something does not."""
    flags = parse(DoctorFlags, argv, "doctor")
    check_computer()
    from datetime import date

    from positron_mini import device as devices
    from positron_mini import fast as native
    from positron_mini.doctor.examine import Scope
    from positron_mini.doctor.report import diagnose, subjects_of

    began = time.monotonic()
    native.forget()
    machine = devices.this_machine()
    devices.choose(machine, flags.device)
    devices.set_threads(flags.threads)
    report = diagnose(machine, subjects_of(machine, flags.device), Scope(compiled=flags.thorough), note, date.today())
    kept = remember(report, is_whole=flags.device == "auto")
    if flags.json:
        print_json({**report.as_json(), "verdict": kept, "seconds": round(time.monotonic() - began, 1)})
    else:
        show(report, kept)
    return 0 if report.is_sound else 1


def check_computer() -> None:
    """Raise UsageError if PyTorch has no build for this computer."""
    from importlib.metadata import version

    from positron_mini.device import unsupported

    problem = unsupported(platform.system(), platform.machine(), platform.mac_ver()[0], version("torch").partition("+")[0])
    if problem is not None:
        raise UsageError(*problem)


def remember(report: Report, *, is_whole: bool) -> str | None:
    """Store the verdict and return its file; None if it is of one device only or of a busy machine, or cannot be written."""
    from positron_mini import device as devices

    path = devices.verdict_path(report.machine.key, report.machine.system)
    if path is None or not is_whole:
        return None
    if report.disturbance:
        note(f"warning: the verdict is not kept, because later runs would obey it: {report.disturbance}")
        return None
    try:
        devices.write_verdict(path, report.verdict, report.machine.key)
    except PositronError as error:
        note(f"warning: the verdict is not kept: {error.message}")
        return None
    return str(path)


def show(report: Report, kept: str | None) -> None:
    """Print the result for a person."""
    from positron_mini import fast as native
    from positron_mini.doctor.report import upstream_report

    machine = report.machine
    print(f"machine    {machine.chip}, {machine.cores} cores, {machine.memory_bytes / 1e9:.0f} GB; {machine.system} {machine.os_version}")
    print(f"torch      {machine.torch}" + (f", {machine.vector}" if machine.vector else ""))
    print(f"kernels    on the CPU {f'those of PyTorch: {native.why_not()}' if native.why_not() else 'native, in C++'}")
    for examination in report.examinations:
        finding = examination.finding
        state = finding.trouble or f"right, {finding.tok_per_s:,.0f} tokens a second with TinyGPT"
        print(f"{examination.subject.name:<10} {state}")
        for check in examination.checks:
            if not check.ok:
                print(f"           {'WRONG' if check.condemns else 'note'}  {check.name}: {check.detail}")
    for examination, check in report.failed:
        if check.reproduction:
            print(f"\nto be filed at PyTorch's bug tracker:\n\n{upstream_report(machine, examination, check)}")
    print(f"verdict    {kept}; --device auto and --precision auto obey it" if kept else "verdict    not kept")
    print(here(report.sentence()))
