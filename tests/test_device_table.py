"""Laws of the page that a new device's measurements make."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest

from helpers.project import ROOT, script_module

CHECK = {"name": "mps fp32: causality", "ok": True, "detail": "no earlier prediction depends on a later token", "condemns": True}
WRONG = {"name": "mps bf16: causality", "ok": False, "detail": "attention sees later tokens", "condemns": True}
DOCTOR: dict[str, Any] = {
    "device": "mps", "checks": [CHECK, WRONG], "seconds": 41.4, "sentence": "Train with --device mps.",
    "machine": {"chip": "Apple M3", "system": "Darwin 15.5", "torch": "2.13.0", "cores": 8, "memory_bytes": 16 << 30},
}  # fmt: skip
TRAINED = {"precision": "fp32", "tok_per_s": 12_345.6, "fraction_of_ceiling": 0.314, "peak_rss_bytes": 1_234_000_000, "compile": "off"}
SPEEDS: dict[str, Any] = {"fp32": {"TinyGPT": TRAINED}, "bf16": {"TinyGPT": {"failed": "error: out of memory"}}}


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """benchmarks/device_table.py as a module."""
    return script_module("benchmarks/device_table.py")


def test_the_page_names_the_device_and_everything_that_was_found(table: ModuleType) -> None:
    lines = table.page("mps", DOCTOR, SPEEDS, {"tok_per_s": 321.0}, "| step | PyTorch |\n", "2026-11-24").splitlines()
    assert "2026-11-24, Apple M3, 8 cores, 16 GiB, Darwin 15.5, torch 2.13.0. Script: `benchmarks/device_table.py`." in lines
    assert "`positron doctor`: 1 of 2 checks passed in 41 s. Train with --device mps." in lines
    assert "- mps bf16: causality: attention sees later tokens" in lines and not any("no earlier prediction" in line for line in lines)
    assert "| TinyGPT | fp32 | 12,346 | 31% | 1.23 | off |" in lines
    assert "Writing one text with TinyGPT on the CPU: 321 tokens a second." in lines and "| step | PyTorch |" in lines


def test_a_part_that_fails_is_a_line_of_the_page(table: ModuleType) -> None:
    text = table.page("mps", {"failed": "error: it"}, SPEEDS, {"failed": "no memory"}, "failed: x", "2026-11-24")
    assert "| TinyGPT | bf16 | | | | failed: error: out of memory |" in text
    assert "`positron doctor` failed: error: it" in text and "on the CPU: failed: no memory." in text and "unknown" in text


def test_a_command_that_fails_gives_its_sentence(table: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    found = table.positron("bench", "train", "--config", "NoGPT")
    assert found["failed"].startswith("error: ") and "NoGPT" in found["failed"]
    assert "NoGPT" in capfd.readouterr().err


def test_the_workflow_for_macs_names_what_is_there() -> None:
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    named = re.findall(r"(?:tests|benchmarks)/\w+\.py", text.partition("  mps:")[2])
    assert len(named) >= 8 and all((ROOT / name).is_file() for name in named)
    assert "positron doctor --thorough" in text and "upload-artifact" in text
