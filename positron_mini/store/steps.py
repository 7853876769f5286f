"""Names of step folders."""

from __future__ import annotations

from pathlib import Path


def step_number(name: str) -> int | None:
    """Step in a folder name such as `step_001000`, or None."""
    digits = name.removeprefix("step_")
    return int(digits) if name.startswith("step_") and digits.isascii() and digits.isdigit() and len(digits) <= 12 else None


def step_name(step: int) -> str:
    """Folder name of a step."""
    return f"step_{step:06d}"


def saved_steps(run: Path) -> list[int]:
    """Saved steps of a run folder, ascending, unchecked."""
    if not run.is_dir():
        return []
    found = (step_number(entry.name) for entry in run.iterdir() if entry.is_dir() and not entry.is_symlink())
    return sorted(step for step in found if step is not None)
