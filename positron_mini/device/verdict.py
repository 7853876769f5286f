"""The results of `positron doctor`, kept in the user's cache folder and obeyed by `--device auto` and `--precision auto`.

There is one file per combination of PyTorch, system and chip: after an update of any of them the old verdict does not apply.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from positron_mini import files
from positron_mini.own_files import read_small

DeviceName = Literal["cpu", "mps", "cuda"]
Precision = Literal["fp32", "bf16"]
FORMAT = 1
MAX_BYTES = 1 << 20
BF16_GAIN = 1.03  # bf16 must be this much faster than fp32 to be preferred: less is within the noise of a short measurement


@dataclass(frozen=True)
class Finding:
    """The result for one device in one precision. `tok_per_s`: of training TinyGPT, None if not measured."""

    device: DeviceName
    precision: Precision
    faults: tuple[str, ...] = ()  # failed checks that make its results wrong
    tok_per_s: float | None = None
    skipped: str = ""  # why it was not examined

    @property
    def is_fit(self) -> bool:
        """Whether it computes correctly and its speed is known."""
        return not self.faults and not self.skipped and self.tok_per_s is not None

    @property
    def trouble(self) -> str:
        """Why not to use it, as the rest of a sentence that begins with its name; empty if it is fit."""
        if self.faults:
            more = f" and {len(self.faults) - 1} more" if len(self.faults) > 1 else ""
            return f"computes wrong here ({self.faults[0]}{more})"
        return self.skipped or ("" if self.is_fit else "could not be timed")


@dataclass(frozen=True)
class Verdict:
    """All findings of one run of the doctor, and its date."""

    findings: tuple[Finding, ...]
    day: str

    def of(self, device: str, precision: str) -> Finding | None:
        """The finding about `device` in `precision`."""
        return next((f for f in self.findings if (f.device, f.precision) == (device, precision)), None)

    def best(self, devices: tuple[DeviceName, ...]) -> Finding | None:
        """The fastest fit finding among `devices`, fp32 if bf16 gains next to nothing; None if none is fit."""
        fit = [f for f in self.findings if f.is_fit and f.device in devices]

        def rank(finding: Finding) -> float:
            assert finding.tok_per_s is not None
            return finding.tok_per_s / (BF16_GAIN if finding.precision == "bf16" else 1.0)

        return max(fit, key=rank, default=None)

    def reason(self, chosen: Finding, devices: tuple[DeviceName, ...]) -> str:
        """Why `chosen` is better than the others on `devices`, with figures."""
        parts = []
        for other in self.findings:
            if other == chosen or other.device not in devices:
                continue
            name = other.precision if other.device == chosen.device else f"{other.device} {other.precision}"
            if not other.is_fit:
                parts.append(f"{name} {other.trouble}")
            elif chosen.tok_per_s and other.tok_per_s:
                parts.append(f"{name} trains {other.tok_per_s / chosen.tok_per_s:.2f} times as fast")
        speed = f"{chosen.tok_per_s:,.0f} tokens a second with TinyGPT"
        return "; ".join([f"positron doctor, {self.day}: right, {speed}", *parts])


def cache_folder(system: str, environ: Mapping[str, str], home: Path) -> Path:
    """The user's cache folder for this program: POSITRON_CACHE, or the place that `system` prescribes."""
    if environ.get("POSITRON_CACHE"):
        return Path(environ["POSITRON_CACHE"])
    if system == "Darwin":
        return home / "Library" / "Caches" / "positron-mini"
    if system == "Windows":
        return Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "positron-mini" / "cache"
    return Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "positron-mini"


def verdict_path(key: Mapping[str, str], system: str) -> Path | None:
    """The file of the verdict for `key` (torch, system and chip by name); None if the user has no home."""
    try:
        folder = cache_folder(system, os.environ, Path.home())
    except RuntimeError:
        return None
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    return folder / f"doctor-{digest[:12]}.json"


def write_verdict(path: Path, verdict: Verdict, key: Mapping[str, str]) -> None:
    """Store `verdict` for `key`. Errors: PositronError if the folder cannot be written."""
    files.write_json(path, {"format": FORMAT, "key": dict(key), **asdict(verdict)})


def read_verdict(path: Path | None, key: Mapping[str, str]) -> tuple[Verdict | None, str]:
    """The verdict stored at `path` for `key`, or None; and a note on what is wrong with the file, empty if nothing is."""
    if path is None or not path.is_file():
        return None, ""
    try:
        return _parse(json.loads(read_small(path, MAX_BYTES)), key), ""
    except (OSError, ValueError, RecursionError) as error:
        return None, f"note: the doctor's verdict {path} is not used: {error}; positron doctor writes a new one"


def _parse(data: Any, key: Mapping[str, str]) -> Verdict:
    """The verdict in a file's JSON. Errors: ValueError naming what is invalid."""
    if not isinstance(data, dict) or set(data) != {"format", "key", "findings", "day"}:
        raise ValueError("not a verdict")
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r}, this program knows {FORMAT}")
    if data["key"] != dict(key):
        raise ValueError("it is for another PyTorch, system or chip")
    if not (isinstance(data["day"], str) and len(data["day"]) == 10 and data["day"].replace("-", "").isdigit()):
        raise ValueError("its day is not a date")
    if not isinstance(data["findings"], list):
        raise ValueError("its findings are not a list")
    findings = tuple(_finding(item) for item in data["findings"])
    if len({(f.device, f.precision) for f in findings}) != len(findings):
        raise ValueError("it lists a device twice")
    return Verdict(findings, data["day"])


def _finding(item: Any) -> Finding:
    if not isinstance(item, dict) or set(item) != {"device", "precision", "faults", "tok_per_s", "skipped"}:
        raise ValueError("a finding lacks something, or has too much")
    faults, speed = item["faults"], item["tok_per_s"]
    if item["device"] not in get_args(DeviceName) or item["precision"] not in get_args(Precision):
        raise ValueError(f"there is no {item['device']!r} in {item['precision']!r}")
    if not isinstance(faults, list) or not all(_is_line(fault) for fault in faults) or not _is_line(item["skipped"]):
        raise ValueError("a fault is not a line of text")
    if speed is not None and not (type(speed) in (int, float) and math.isfinite(speed) and speed > 0):
        raise ValueError(f"a speed of {speed!r}")
    return Finding(cast(DeviceName, item["device"]), cast(Precision, item["precision"]), tuple(faults), speed, item["skipped"])


def _is_line(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= 500 and (text.isprintable() or not text)
