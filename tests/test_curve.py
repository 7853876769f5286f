"""Laws of the shipped curves: a run like the reference is left alone, one far above it is warned once, with causes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.runs import TINY as FLAGS
from helpers.runs import lines_of, positron
from positron_mini.store import curve
from positron_mini.store.curve import read_reference, reference_for, reference_names, standing

ROWS = [{"step": k, "tokens": 512 * k, "loss": 6.0, **({"val_bpb": 3.0 - 0.1 * k} if k % 5 == 0 else {})} for k in range(1, 21)]


def test_the_reference_at_equal_tokens_lies_on_the_line_between_its_validations() -> None:
    assert standing(ROWS, 512 * 5, 2.5) == (2.5, "")
    found = standing(ROWS, 512 * 7, 2.0)
    assert found is not None and found[0] == pytest.approx(2.5 - 0.2) and found[1] == ""
    assert standing(ROWS, 512 * 4, 2.0) is None and standing(ROWS, 512 * 21, 2.0) is None and standing([], 1, 1.0) is None


def test_only_a_run_far_above_the_reference_is_warned_and_told_why() -> None:
    for share, warned in ((0.7, False), (1.0, False), (1.19, False), (1.21, True), (3.0, True)):
        found = standing(ROWS, 512 * 10, 2.0 * share)
        assert found is not None and bool(found[1]) is warned
        assert not warned or ("learning rate" in found[1] and f"{512 * 10:,}" in found[1])


def test_the_shipped_curves_are_small_fall_and_are_found_by_preset_and_corpus() -> None:
    assert reference_names()
    for name in reference_names():
        rows, (corpus, _, preset) = read_reference(name), name.partition("-")
        bits = [row["val_bpb"] for row in rows if "val_bpb" in row]
        assert len(bits) >= 5 and bits[-1] < bits[0] and (curve.REFERENCE_FOLDER / f"{name}.json").stat().st_size < 100_000
        assert [row["tokens"] for row in rows] == sorted(row["tokens"] for row in rows)
        assert reference_for(preset.lower(), f"somewhere/{corpus}-train.txt") == rows
    assert reference_for("PicoGPT", "my-book.txt") is None


def test_training_says_once_that_its_curve_is_far_off(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    low = [{**row, **({"val_bpb": 0.5} if "val_bpb" in row else {})} for row in ROWS]
    (shelf / "text-PicoGPT.json").write_text(json.dumps({"rows": low}))
    monkeypatch.setattr(curve, "REFERENCE_FOLDER", shelf)
    result = positron("train", *FLAGS, "--threads", "1", "--eval_every", "5", "--max_steps", "20", "--out_dir", "runs/off")
    assert result.code == 0 and result.err.count("Likely causes") == 1 and "a run of ours had 0.500" in result.err
    assert [event["kind"] for event in lines_of(Path("runs/off/events.jsonl"))].count("curve") == 1
