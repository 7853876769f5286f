"""What the lab shows of runs: read from their files alone, also during training and of damaged runs."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

from positron_mini.store.curve import Check, Rows, curve_checks, read_reference, reference_name
from positron_mini.store.log_columns import GrowingLog
from positron_mini.store.run_logs import log_path
from positron_mini.store.run_state import RunState

KEPT = 4  # curves in memory


def run_facts(state: RunState) -> dict[str, Any]:
    """A run's description and progress, from its files. `damaged` says why the rest is missing."""
    record = None if state.damaged else state.record
    facts: dict[str, Any] = {
        "name": state.path.name,
        "kind": state.kind,
        "damaged": state.damaged,
        "reference": None,
        "vocab_size": None,
        "bos_share": 0.0,
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
    facts |= {"vocab_size": record.vocab_size, "bos_share": min(max(record.bos_share or 0.0, 0.0), 0.5)}
    return facts | {"batch_tokens": record.config.get("batch_tokens"), "horizon": record.horizon}


class CurveChecks:
    """Checks of the loss curves of runs, computed one at a time. Only new lines of a log are read; answers are kept until then."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._logs: dict[Path, GrowingLog] = {}  # least recently used first
        self._answers: dict[Path, tuple[Any, list[Check]]] = {}

    def of(self, run: Path, facts: dict[str, Any], reference: str | None) -> list[Check]:
        """The checks of a run, also against the shipped curve `reference` if there is one; none before its first report."""
        with self._lock:
            log = self._logs.pop(run, None) or GrowingLog(log_path(run, "metrics"))
            self._logs[run] = log
            while len(self._logs) > KEPT:
                oldest = next(iter(self._logs))
                del self._logs[oldest]
                self._answers.pop(oldest, None)
            rows = log.refresh()
            asked = (log.version, reference, facts["kind"], facts["vocab_size"], facts["bos_share"])
            if self._answers.get(run, (None, []))[0] != asked:
                against = None if reference is None else read_reference(reference)
                self._answers[run] = asked, _checks(rows, facts, against)
            return self._answers[run][1]


def _checks(rows: Rows, facts: dict[str, Any], against: Rows | None) -> list[Check]:
    """The results of the rules for a run's reports; none before the first report."""
    if not rows:
        return []
    is_base, vocab_size = facts["kind"] == "pretrain", facts["vocab_size"] or 1
    return curve_checks(rows, vocab_size, is_pretraining=is_base, reference=against, bos_share=facts["bos_share"])
