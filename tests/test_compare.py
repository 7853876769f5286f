"""Laws of `positron compare`: values at equal tokens by hand, what differs and nothing else, samples that are those of the runs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.runs import TINY, lines_of, metric, positron, skill, tiny_train, write_run
from positron_mini.report.compare import crossings
from positron_mini.store.run_history import RunHistory, read_run
from positron_mini.store.run_logs import StepReport


def record(folder: Path, bits: dict[int, float]) -> RunHistory:
    return read_run(write_run(folder, metrics=[metric(step, 2.0, value) for step, value in bits.items()]))


def tokens(row: StepReport) -> float:
    return float(row.tokens)


# --- curves -----------------------------------------------------------------------------------------------------------------------------


def test_between_two_validations_the_value_is_on_a_line_over_the_logarithm(tmp_path: Path) -> None:
    a, b = record(tmp_path / "a", {1: 4.0, 4: 2.0}), record(tmp_path / "b", {2: 3.5, 4: 1.0, 8: 0.5})
    found = crossings(a, b, tokens)
    assert [(row.at, row.a, row.b) for row in found] == [(1024, pytest.approx(3.0), 3.5), (2048, 2.0, 1.0)]  # two lies half way from 1 to 4


def test_only_what_both_have_reached_is_compared(tmp_path: Path) -> None:
    a, b = record(tmp_path / "a", {1: 4.0, 2: 3.0}), record(tmp_path / "b", {4: 2.0, 8: 1.0})
    assert crossings(a, b, tokens) == crossings(a, None, tokens) == crossings(record(tmp_path / "c", {}), b, tokens) == []


def test_a_long_run_is_compared_at_a_few_places_with_both_ends_among_them(tmp_path: Path) -> None:
    a = record(tmp_path / "a", {step: 4 - math.log2(step) / 4 for step in range(1, 60)})
    found = crossings(a, a, tokens, most=5)
    assert len(found) == 5 and (found[0].at, found[-1].at) == (512, 59 * 512) and all(row.a == row.b for row in found)


# --- the command ------------------------------------------------------------------------------------------------------------------------


def score_by_hand(run: str, right: int) -> None:
    """Skills as the run's milestones would have written them."""
    Path(run, "skills.jsonl").write_text(
        "".join(json.dumps(skill(30, name, value)) + "\n" for name, value in (("tense", right), ("naming", 101)))
    )


@pytest.fixture
def other(workshop: Path) -> Path:
    """The workshop with a second run, `runs/other`, from another seed."""
    assert tiny_train("runs/other", "--max_steps", "30", "--seed", "5").code == 0
    score_by_hand("runs/base", 150)
    score_by_hand("runs/other", 190)
    return workshop


def compared(*words: str) -> Any:
    result = positron("compare", *words, "--threads", "1", "--json").ok()
    return json.loads(result.out)


def test_two_seeds_differ_in_the_seed_and_in_nothing_else(other: Path) -> None:
    found = compared("runs/base", "runs/other")
    names = {row["name"]: (row["a"], row["b"]) for row in found["settings"]}
    assert names.pop("seed") == (0, 5) and set(names) <= {"elapsed_s"} and found["cautions"] == []
    rows = [(row["step"] * 512, row["val_bpb"]) for row in lines_of(Path("runs/base/metrics.jsonl")) if "val_bpb" in row]
    assert [(row["tokens"], row["a"]) for row in found["equal_tokens"]] == rows
    assert [(row["skill"], row["is_clear"]) for row in found["skills"]] == [("tense", True), ("naming", False)]


def test_the_samples_are_those_that_each_run_wrote_at_its_last_step(other: Path) -> None:
    samples = compared("runs/base", "runs/other")["samples"]
    for side, run in (("a", "runs/base"), ("b", "runs/other")):
        last = [row for row in lines_of(Path(run, "samples.jsonl")) if row["step"] == 30]
        assert [(row["prompt"], row["seed"], row[side]) for row in samples] == [(row["prompt"], row["seed"], row["text"]) for row in last]


def test_a_run_beside_itself_has_no_difference(other: Path) -> None:
    found = compared("runs/base", "runs/base/latest")
    assert found["settings"] == [] and all(row["a"] == row["b"] for row in (*found["equal_tokens"], *found["equal_time"]))
    assert all(row["a"] == row["b"] for row in (*found["skills"], *found["samples"]))


def test_the_table_says_the_same(other: Path) -> None:
    result = positron("compare", "runs/base", "runs/other", "--threads", "1", "--prompt", "One day", "--seed", "7", "--max_tokens", "4")
    lines = result.out.splitlines()
    assert result.code == 0 and lines[:2] == ["A  runs/base at step 30", "B  runs/other at step 30"]
    assert [line.split() for line in lines if line.startswith("  seed")] == [["seed", "0", "5"]]
    assert "bits per byte at equal tokens" in lines
    assert any(line.startswith("bits per byte after equal time of training") for line in lines)  # a busy machine leaves them none to share
    (tense,) = [line for line in lines if line.startswith("  tense")]
    assert tense.split() == "tense 75 (69 to 80) 95 (91 to 97) +20 B is better".split()  # noqa: SIM905
    assert "  One day [seed 7]" in lines and lines[-2].startswith("  A   ") and lines[-1].startswith("  B   ")


def test_a_folder_outside_a_run_has_no_curves_and_its_skills_are_scored_now(other: Path) -> None:
    shutil.copytree("runs/base/step_000030", "alone")
    found = compared("runs/base", "alone", "--max_tokens", "4")
    assert found["equal_tokens"] == found["equal_time"] == [] and "no curves" in found["cautions"][0]
    scored = {row["skill"]: row["b"] for row in found["skills"]}
    assert set(scored) == {"tense", "naming"} and scored["tense"]["pairs"] == 200
    assert scored["tense"]["low"] <= scored["tense"]["accuracy"] <= scored["tense"]["high"]


def test_other_texts_are_cautioned_about(other: Path) -> None:
    Path("more.txt").write_text(Path("text.txt").read_text() + "\n<|endoftext|>\nTom saw a cat.")
    words = [word if word != "text.txt" else "more.txt" for word in TINY]
    assert positron("train", *words, "--threads", "1", "--out_dir", "runs/more", "--max_steps", "10").code == 0
    score_by_hand("runs/more", 100)
    found = compared("runs/base", "runs/more", "--max_tokens", "4")
    assert "bits per byte are not of the same text" in found["cautions"][0]


@pytest.mark.parametrize("words", [("runs/none", "runs/base"), ("runs/base", "text.txt")])
def test_what_is_no_checkpoint_is_one_sentence(workshop: Path, words: tuple[str, str]) -> None:
    result = positron("compare", *words)
    assert result.code == 1 and result.sentence and result.hint
