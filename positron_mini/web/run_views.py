"""What the lab shows of runs, read from their files alone, also while they train and where they are damaged."""

from __future__ import annotations

from typing import Any

from positron_mini.curve import reference_name
from positron_mini.store.run_state import RunState


def run_facts(state: RunState) -> dict[str, Any]:
    """What a run is and how far it is, by its files. `damaged` says why the rest is missing."""
    record = None if state.damaged else state.record
    facts: dict[str, Any] = {
        "name": state.path.name,
        "kind": state.kind,
        "damaged": state.damaged,
        "reference": None,
        "vocab_size": None,
        "batch_tokens": None,
        "horizon": None,
        "steps": list(state.steps),
        "step": state.trained,
        "is_training": state.writer is not None,
    }
    if record is None:
        return facts
    preset = record.config.get("config")
    if record.kind == "pretrain" and preset is not None:
        facts["reference"] = reference_name(preset, record.config.get("dataset_path"))
    return {**facts, "vocab_size": record.vocab_size, "batch_tokens": record.config.get("batch_tokens"), "horizon": record.horizon}
