"""What one device does, measured in one go: the doctor, training in fp32 and bf16, writing, and the same step in MLX; one table of it all.

    python benchmarks/device_table.py --out results                  the best device here
    python benchmarks/device_table.py --out results --device cpu

Made for the first person with a new device: about five minutes on a Mac. It writes results/device.md, which can go into docs/results as it
is, and the JSON behind it. A part that fails is a line of the table, not the end. Close other programs first.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from positron_mini import files

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
PRESETS = ("TinyGPT", "MicroGPT")


def ask(command: Sequence[str]) -> tuple[str, str]:
    """What a command prints, and why it failed, empty when it did not. Its progress goes to stderr."""
    print("$ " + " ".join(command), file=sys.stderr, flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")] or lines[-1:] or [f"exit code {done.returncode}"]
    return done.stdout, "" if done.returncode == 0 else errors[-1]


def positron(*words: str) -> Row:
    """The JSON object of a command, or {"failed": why}; the doctor's exit code 1 is an answer, not a failure."""
    out, problem = ask(["-m", "positron_mini", *words, "--json"])
    try:
        found: Row = json.loads(out)
    except ValueError:
        return {"failed": problem or "it printed no JSON"}
    return found


def examine(device: str, thorough: bool) -> Row:
    """What the doctor says."""
    return positron("doctor", *(["--device", device] if device != "auto" else []), *(["--thorough"] if thorough else []))


def train(device: str, precision: str, seconds: float) -> Row:
    """Training speeds by preset, at 8,192 tokens a step."""
    shared = ["--device", device, "--precision", precision, "--seconds", f"{seconds:g}"]
    return {name: positron("bench", "train", "--config", name, *shared) for name in PRESETS}


def in_mlx(device: str) -> str:
    """The table of benchmarks/mlx_step.py, or why there is none."""
    if find_spec("mlx") is None:
        return "not measured: mlx is not installed"
    out, problem = ask([str(ROOT / "benchmarks" / "mlx_step.py"), "--device", "gpu" if device == "mps" else "cpu"])
    return out if not problem else f"failed: {problem}"


# --- the table --------------------------------------------------------------------------------------------------------------------------


def heading(doctor: Row, day: str) -> str:
    """Date, device, system and PyTorch."""
    machine = doctor.get("machine", {})
    chip, system, torch = (machine.get(name, "unknown") for name in ("chip", "system", "torch"))
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in machine else ""
    return f"{day}, {chip}, {machine.get('cores', '?')} cores{memory}, {system}, torch {torch}. Script: `benchmarks/device_table.py`."


def doctor_lines(doctor: Row) -> list[str]:
    """What the doctor found: how many checks passed, each that did not, and its sentence."""
    if "failed" in doctor:
        return [f"`positron doctor` failed: {doctor['failed']}"]
    checks = doctor["checks"]
    passed = sum(check["ok"] for check in checks)
    lines = [f"`positron doctor`: {passed} of {len(checks)} checks passed in {doctor['seconds']:.0f} s. {doctor['sentence']}"]
    wrong = [f"- {check['name']}: {check['detail']}" for check in checks if not check["ok"]]
    told = [f"- {check['name']}: {check['detail']}" for check in checks if check["name"].endswith((": skipped", ": compiled speed"))]
    return [*lines, *(["", *wrong, *told] if wrong or told else [])]


def speed_rows(speeds: dict[str, Row]) -> list[str]:
    """One line of the table for every precision and preset."""
    rows = []
    for precision, by_preset in speeds.items():
        for name, found in by_preset.items():
            if "failed" in found:
                rows.append(f"| {name} | {precision} | | | | failed: {found['failed']} |")
                continue
            share, memory = found.get("fraction_of_ceiling"), found.get("peak_rss_bytes")
            rows.append(
                f"| {name} | {found['precision']} | {found['tok_per_s']:,.0f} | {'' if share is None else f'{share:.0%}'} "
                f"| {'' if memory is None else f'{memory / 1e9:.2f}'} | {found.get('compile', '')} |"
            )
    return rows


def page(device: str, doctor: Row, speeds: dict[str, Row], decode: Row, mlx: str, day: str) -> str:
    """The whole page in Markdown."""
    written = f"failed: {decode['failed']}" if "failed" in decode else f"{decode['tok_per_s']:,.0f} tokens a second"
    return "\n".join(
        [
            f"# Measured on this device: {device}",
            "",
            heading(doctor, day),
            "",
            *doctor_lines(doctor),
            "",
            "| training | precision | tokens a second | share of the product ceiling | GB of main memory | compiled |",
            "|---|---|---|---|---|---|",
            *speed_rows(speeds),
            "",
            f"Writing one text with TinyGPT on the CPU: {written}.",
            "",
            "## The same step in MLX",
            "",
            mlx.strip(),
            "",
        ]
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for device.md and device.json")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "mps", "cuda"))
    parser.add_argument("--seconds", type=float, default=20.0, help="for each training measurement")
    parser.add_argument("--quick", action="store_true", help="no compiled training in the doctor")
    flags = parser.parse_args()
    began = time.monotonic()
    doctor = examine(flags.device, not flags.quick)
    device = flags.device if flags.device != "auto" else doctor.get("device", "cpu")
    skipped = {check["name"] for check in doctor.get("checks", []) if check["name"].endswith(": skipped")}
    precisions = [name for name in ("fp32", "bf16") if f"{device} {name}: skipped" not in skipped]
    speeds = {precision: train(device, precision, flags.seconds) for precision in precisions}
    decode = positron("bench", "decode", "--config", "TinyGPT")
    text = page(device, doctor, speeds, decode, in_mlx(device), datetime.date.today().isoformat())
    flags.out.mkdir(parents=True, exist_ok=True)
    files.write_json(flags.out / "device.json", {"device": device, "doctor": doctor, "train": speeds, "decode": decode})
    files.write_text(flags.out / "device.md", text)
    print(text)
    print(f"written in {flags.out} after {(time.monotonic() - began) / 60:.1f} min", file=sys.stderr)


if __name__ == "__main__":
    main()
