"""What `positron doctor` says of devices with planted faults, how long a healthy one takes, and how far rounding stays from its limits.

    python benchmarks/doctor_faults.py [--only faults|healthy|margins] [--thorough]

The faults are those of tests/helpers/devices.py: a CPU of which some operations give what a bad kernel would. Every one is put before the
whole examination, in the order in which a person's device goes through it; the table shows the first check that fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))

from paired import say

import helpers.devices as faulty
from positron_mini.device import Machine, set_threads, this_machine
from positron_mini.doctor import isolate, training
from positron_mini.doctor.examine import Scope, checks_of, examine
from positron_mini.doctor.subject import Check, Subject

ROOT = Path(__file__).resolve().parent.parent
WHOLE = Scope(speeds=())
MACHINE = Machine(("cpu",), (), 4 << 30, 2, True, "Linux")  # two rows of TinyGPT at once


# --- planted faults ---------------------------------------------------------------------------------------------------------------------


def planted() -> dict[str, faulty.Planted]:
    """All faults of the tests, and two that are seen only after many steps."""
    return {
        **faulty.FAULTS,
        "wrong after 100 updates": faulty.Planted({"_foreach_addcdiv_": faulty.wearing_out(100)}, "drift over 200 steps", ""),
        "memory kept": faulty.Planted({"mm": faulty.keeper()}, "memory", "", is_unfit=False),
    }


def fault_rows() -> Iterator[tuple[str, str, Check]]:
    """Name of a fault, what the device does wrong, and the first check that fails. Fails when none does."""
    for name, fault in planted().items():
        say(name)
        subject = faulty.subject(fault.spoils, fault.precision)
        failed = (check for check in checks_of(subject, MACHINE, WHOLE) if not check.ok)
        yield name, fault.imitates, next(failed, Check("nothing", True, ""))
    slow = examine(faulty.subject({"mm": faulty.slow_bf16}, "bf16"), MACHINE, WHOLE)
    yield "bf16 emulated", "bf16 takes many times as long as fp32.", Check("one small product", not slow.skipped, slow.skipped)
    ends = {"process aborted": (faulty.abort, 60.0), "process gone": (faulty.give_up, 60.0), "no answer": (faulty.fall_silent, 5.0)}
    for name, (work, patience_s) in ends.items():
        say(name)
        examination = isolate.examine_apart(Subject("mps", "fp32"), MACHINE, WHOLE, lambda _: None, work=work, patience_s=patience_s)
        yield name, " ".join(str(work.__doc__).split()), examination.checks[-1]


def show_faults() -> None:
    """The table of planted faults; the script fails when one is not found."""
    print("| planted | what the device does | found by | what doctor says | |\n|---|---|---|---|---|")
    count = 0
    for name, imitates, check in fault_rows():
        assert not check.ok, f"{name} is not found"
        count += 1
        print(f"| {name} | {imitates} | {check.name} | {check.detail} | {'not used' if check.condemns else 'noted'} |", flush=True)
    print(f"\n{count} of {count} found")


# --- a healthy device -------------------------------------------------------------------------------------------------------------------


def show_healthy(thorough: bool) -> None:
    """How long the whole command takes on this computer, and what it says."""
    with tempfile.TemporaryDirectory(prefix="positron-doctor-") as folder:
        environment = {**os.environ, "POSITRON_CACHE": folder, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "positron_mini", "doctor", "--json", *(["--thorough"] if thorough else [])]
        began = time.perf_counter()
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        seconds = time.perf_counter() - began
    found: dict[str, Any] = json.loads(done.stdout)
    checks = found["checks"]
    print(f"{seconds:.1f} s as a whole process, exit code {done.returncode}; {sum(c['ok'] for c in checks)} of {len(checks)} checks passed")
    for name, speeds in found["speeds"].items():
        print(f"{name}: " + ", ".join(f"{preset} {speed:,.0f} tokens a second" for preset, speed in speeds.items()))
    for check in checks:
        if not check["ok"] or check["name"].endswith(("compiled speed", "skipped", "a quiet machine")):
            print(f"{check['name']}: {check['detail']}")
    print(found["sentence"])


# --- margins ----------------------------------------------------------------------------------------------------------------------------


def model_checks(subject: Subject) -> Iterator[Check]:
    """The checks of whole models whose limits leave room for rounding."""
    yield from training.check_pass(subject, training.ODD, 2, "odd shapes")
    yield from training.check_pass(subject, training.TINY, 1, "TinyGPT")
    yield from training.check_decoding(subject)
    yield next(training.check_steps(subject, 20))
    yield next(training.check_drift(subject, 200))


def show_margins() -> None:
    """What rounding alone does to whole models: products in bf16, and in fp32 with 10 bits."""
    subjects = {
        "bf16": Subject("cpu", "bf16"),
        "fp32, matmuls of 10 bits": faulty.subject(dict.fromkeys(("mm", "bmm", "addmm", "baddbmm", faulty.ATTENTION), faulty.ten_bits)),
    }
    print("| check | " + " | ".join(subjects) + " |\n|---" + "|---" * len(subjects) + "|")
    for checks in zip(*(list(model_checks(subject)) for subject in subjects.values()), strict=True):
        print(f"| {checks[0].name} | " + " | ".join(f"{'' if c.ok else 'FAILS: '}{c.detail}" for c in checks) + " |", flush=True)
    for precision, allowed in training.ALLOWED.items():
        print(f"\nallowed in {precision}: {allowed}")


def main() -> None:
    """Print what is asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("faults", "healthy", "margins"))
    parser.add_argument("--thorough", action="store_true", help="healthy: compiled training too")
    parser.add_argument("--threads", type=int)
    flags = parser.parse_args()
    threads = set_threads(flags.threads)
    machine = this_machine()
    print(f"{machine.chip}, {machine.vector}, {threads} threads, {machine.system} {machine.os_version}, torch {machine.torch}")
    if flags.only in (None, "healthy"):
        print("\n## A healthy CPU\n")
        show_healthy(flags.thorough)
    if flags.only in (None, "faults"):
        print("\n## Planted faults\n")
        show_faults()
    if flags.only in (None, "margins"):
        print("\n## Rounding\n")
        show_margins()


if __name__ == "__main__":
    main()
