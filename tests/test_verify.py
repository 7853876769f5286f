"""Laws of `positron verify`: what is right is said to be right, every change is found, and nothing of the run is touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from helpers.runs import BASE, digests, lines_of, listing, positron, tiny_train
from positron_mini import files
from positron_mini.errors import RunError, UsageError
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.run_folder import RunFolder
from positron_mini.train.replay import stretch

pytestmark = pytest.mark.usefixtures("no_waiting")


def test_a_whole_run_is_right_and_stays_as_it_is(workshop: Path) -> None:
    before = listing(workshop)
    result = positron("verify", "runs/base")
    assert result.code == 0 and result.err == "" and listing(workshop) == before
    lines = result.out.splitlines()
    assert [line.split()[1] for line in lines] == ["0", "12", "20", "25", "30"]
    assert [line.endswith("can be resumed from") for line in lines] == [False, True, False, True, True]


def test_a_damaged_file_is_named_and_the_way_on_is_one_that_works(workshop: Path) -> None:
    path = BASE / "step_000030/training/state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    (BASE / "latest").unlink()
    result = positron("verify", "runs/base")
    assert result.code == 1 and "1 of 5 steps are damaged: 30" in result.sentence
    assert result.hint.startswith("positron train --out_dir runs/base --resume_from_step 25 ")
    assert f"{path}: its content differs from its checksum" in result.out and "warning: latest is missing" in result.out
    assert positron("train", "--out_dir", "runs/base", "--resume_from_step", "25").code == 0
    assert positron("verify", "runs/base").code == 0


def test_a_value_that_is_not_finite_is_found_even_when_the_manifest_vouches_for_it(workshop: Path) -> None:
    import torch

    weights = ckpt.read_tensors(BASE / "step_000020/model.safetensors", None)
    weights["model.norm.weight"][3] = torch.nan
    (BASE / "step_000020/model.safetensors").write_bytes(ckpt.tensor_bytes(weights))
    ckpt.write_manifest(BASE / "step_000020")
    result = positron("verify", "runs/base")
    assert result.code == 1 and "steps are damaged: 20" in result.sentence and "not finite" in result.out


@pytest.mark.parametrize(("steps", "start", "end", "count"), [("5", 25, 30, 10), ("10", 20, 30, 10), ("3", 25, 28, 0)])
def test_steps_trained_again_give_the_bytes_that_are_there(workshop: Path, steps: str, start: int, end: int, count: int) -> None:
    before = listing(workshop)
    result = positron("verify", "runs/base", "--replay", steps, "--json").ok()
    again = json.loads(result.out)["replay"]
    start = 25 if steps == "10" else start  # 20 has no training state: 25 is the first that is near enough
    assert (again["start"], again["end"], again["lines"], again["differences"]) == (start, end, end - start, [])
    assert again["files"] == (len(ckpt.read_manifest(BASE / "step_000030")) if count else 0)
    assert listing(workshop) == before


def test_a_changed_weight_and_a_changed_log_line_are_found(workshop: Path) -> None:
    weights = ckpt.read_tensors(BASE / "step_000030/model.safetensors", None)
    weights["model.norm.weight"][3] += 1e-6
    (BASE / "step_000030/model.safetensors").write_bytes(ckpt.tensor_bytes(weights))
    ckpt.write_manifest(BASE / "step_000030")
    rows = lines_of(BASE / "metrics.jsonl")
    rows[27]["loss"] += 1e-6
    files.write_text(BASE / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    result = positron("verify", "runs/base", "--replay", "5")
    assert result.code == 1 and "2 differences when steps 26 to 30 are trained again" in result.sentence
    assert "step 28: loss is" in result.out and "step_000030/model.safetensors: not the bytes that training again gives" in result.out


def test_the_stretch_is_the_newest_and_crosses_no_change_of_the_schedule(workshop: Path) -> None:
    run, events = RunFolder(BASE), files.read_json(BASE / "run.json")["events"]
    assert stretch(run, events, 5) == (25, 30) == stretch(run, events, 12)
    assert stretch(run, events, 18) == (12, 30) and stretch(run, events, 40) == (0, 30)
    moved = [*events, {"kind": "schedule", "step": 14}]
    assert stretch(run, moved, 40) == (25, 30)
    assert stretch(run, [*events, {"kind": "schedule", "step": 27}], 12) == (12, 20)
    with pytest.raises(UsageError, match="at least 1"):
        stretch(run, events, 0)
    with pytest.raises(RunError, match="nothing to replay"):
        stretch(RunFolder(Path("runs/none")), events, 5)


def test_a_run_from_its_first_step_is_trained_again(workshop: Path) -> None:
    assert tiny_train("runs/short", "--max_steps", "4", "--milestones", "none").code == 0
    again = json.loads(positron("verify", "runs/short", "--replay", "9", "--json").out)["replay"]
    assert (again["start"], again["end"], again["differences"]) == (0, 4, []) and again["files"] == 9


def test_a_fine_tuning_is_trained_again_too(workshop: Path) -> None:
    rows = [{"question": f"What did number {n} see?", "answer": f"A dog and {n} cats."} for n in range(30)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--base_ckpt", "runs/base", "--sft_data", "rows.jsonl", "--out_dir", "runs/tuned", "--threads", "1", "--epochs", "2")
    assert positron("sft", *words, "--save_every", "3", "--eval_every", "3").code == 0
    result = positron("verify", "runs/tuned", "--replay", "3")
    assert result.code == 0 and "equal, byte for byte" in result.out, result.out + result.err


@pytest.mark.parametrize("change", [{"events": None}, {"events": [{"kind": "schedule", "step": 0}]}, {"kind": 3}, {"config": {"lr": "x"}}])
def test_a_damaged_record_is_a_sentence(workshop: Path, change: dict[str, object]) -> None:
    files.write_json(BASE / "run.json", {**files.read_json(BASE / "run.json"), **change})
    result = positron("verify", "runs/base", "--replay", "5")
    assert (result.code == 1 and "unexpected" not in result.err and "run.json" in result.sentence) or "holds a 3 run" in result.sentence


@pytest.mark.parametrize("words", [("verify", "runs/none"), ("verify", "text.txt"), ("verify", "data")])
def test_what_is_no_run_is_refused(workshop: Path, words: tuple[str, ...]) -> None:
    result = positron(*words)
    assert result.code == 1 and "no run there" in result.sentence


def test_without_a_run_the_command_says_what_it_takes(workshop: Path) -> None:
    assert positron("verify").code == 2


def test_a_run_without_a_step_is_no_error(workshop: Path) -> None:
    os.makedirs("runs/new")
    files.write_json(Path("runs/new/run.json"), {"format": 1, "kind": "pretrain", "events": []})
    before = digests(Path())
    result = positron("verify", "runs/new")
    assert (result.code, result.out) == (0, "no step is saved yet\n") and digests(Path()) == before
