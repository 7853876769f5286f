"""Laws of `positron runs`: every run with its state, and pruning that removes only what it showed, only when told, and never too much."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.runs import BASE, digests, listing, positron, tiny_train
from positron_mini import files
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("no_waiting")


def rows() -> dict[str, dict[str, Any]]:
    return {row["run"]: row for row in json.loads(positron("runs", "--json").out)["runs"]}


def prune(*words: str) -> dict[str, Any]:
    result = positron("runs", "prune", "--json", *words).ok()
    found: dict[str, Any] = json.loads(result.out)
    return found


def names(found: dict[str, Any]) -> list[str]:
    return [entry["path"] for entry in found["entries"]]


def test_every_run_is_listed_with_its_state_and_size(workshop: Path) -> None:
    assert tiny_train("runs/paused", "--max_steps", "30", "--until_step", "2").code == 0
    for name, record in (
        (
            "new",
            {
                "format": 1,
                "kind": "pretrain",
                "events": [{"kind": "schedule", "step": 0, "warmup_steps": 1, "cooldown_steps": 0, "horizon": 3}],
            },
        ),
        ("odd", {"format": 7}),
    ):
        os.makedirs(f"runs/{name}")
        files.write_json(Path(f"runs/{name}/run.json"), record)
    assert tiny_train("runs/busy", "--max_steps", "30", "--until_step", "1").code == 0
    with RunFolder(Path("runs/busy")).writing():
        found = rows()
    assert {name: row["state"] for name, row in found.items()} == {
        "runs/base": "finished",
        "runs/paused": "paused",
        "runs/new": "not begun",
        "runs/odd": "damaged record",
        "runs/busy": f"training, process {os.getpid()}",
    }
    assert found["runs/base"]["bytes"] == sum(
        p.stat().st_size for p in BASE.rglob("*") if p.is_file() and not p.is_symlink() and "latest" not in p.parts
    )
    text = positron("runs").out
    assert "runs/base" in text and "finished" in text and "step 30/30" in text and " MB" in text


def test_pruning_shows_what_it_would_remove_and_removes_it_only_when_told(workshop: Path) -> None:
    assert positron("train", "--out_dir", "runs/base", "--resume_from_step", "25").code == 0
    (BASE / ".tmp-step_000040-9").mkdir()
    (BASE / ".tmp-step_000040-9/model.safetensors").write_bytes(b"x" * 1000)
    before, kept = listing(workshop), digests(BASE)
    text = positron("runs", "prune").out
    assert "superseded/001  (superseded)" in text and "left by a process that was killed" in text and "add --yes to remove it" in text
    found = prune()
    assert names(found) == ["runs/base/.tmp-step_000040-9", "runs/base/superseded/001"] and not found["removed"]
    assert listing(workshop) == before
    assert prune("--yes")["removed"] and names(prune()) == []
    gone = {name for name in kept if name.startswith((".tmp-", "superseded/"))}
    assert gone and digests(BASE) == {name: digest for name, digest in kept.items() if name not in gone}
    assert "nothing to remove; --keep 2 would" in positron("runs", "prune").out


@pytest.mark.parametrize(
    ("keep", "left"), [("1", [12, 30]), ("2", [12, 25, 30]), ("3", [12, 20, 25, 30]), ("9", [0, 12, 20, 25, 30])]
)  # the cool-down began after step 12
def test_with_keep_old_steps_go_but_not_the_one_before_the_cool_down(workshop: Path, keep: str, left: list[int]) -> None:
    prune("--keep", keep, "--run", "runs/base", "--yes")
    assert RunFolder(BASE).steps() == left
    assert find_checkpoint("runs/base/latest", say=pytest.fail).step == 30
    assert positron("train", "--out_dir", "runs/base", "--max_steps", "31").code == 0  # goes back to 12


def test_the_newest_step_that_is_right_stays_whatever_is_asked(workshop: Path) -> None:
    for step in (30, 25):
        (BASE / f"step_0000{step}/model.safetensors").write_bytes(b"damaged")
    prune("--keep", "1", "--yes")
    assert RunFolder(BASE).steps() == [12, 30]  # latest names 30, 12 is the newest that can be trained on
    for step in (12,):
        (BASE / f"step_0000{step}/manifest.json").unlink()
    before = listing(BASE)
    result = positron("runs", "prune", "--keep", "1", "--yes")
    assert result.code == 0 and "every step is damaged; all are left alone" in result.err and listing(BASE) == before


def test_a_run_that_is_being_trained_is_left_alone(workshop: Path) -> None:
    (BASE / "superseded/001").mkdir(parents=True)
    with RunFolder(BASE).writing():
        result = positron("runs", "prune", "--keep", "1", "--yes")
    assert result.code == 0 and f"process {os.getpid()} is training in this folder; left alone" in result.err
    assert RunFolder(BASE).steps() == [0, 12, 20, 25, 30] and (BASE / "superseded/001").exists()


@pytest.mark.parametrize("words", [("--run", "runs/none"), ("--run", "data")])
def test_what_is_no_run_is_not_pruned(workshop: Path, words: tuple[str, ...]) -> None:
    result = positron("runs", "prune", "--yes", *words)
    assert result.code == 1 and "no run there" in result.sentence
    assert positron("runs", "prune", "--keep", "0").code == 2


def test_retention_removes_nothing_while_the_newest_step_is_not_whole(workshop: Path) -> None:
    shutil.rmtree(BASE / "step_000030/training")
    before = listing(BASE)
    RunFolder(BASE).prune(30, frozenset(), frozenset())
    assert listing(BASE) == before


def test_a_run_that_is_damaged_does_not_keep_the_others_from_being_pruned(workshop: Path) -> None:
    (BASE / "superseded/001").mkdir(parents=True)
    shutil.copytree(BASE, "runs/broken", symlinks=True)
    Path("runs/broken/run.json").write_text('{"format": 1}', encoding="utf-8")
    result = positron("runs", "prune", "--yes")
    assert result.code == 0 and "runs/broken/run.json: damaged" in result.err and "left alone" in result.err
    assert not (BASE / "superseded/001").exists() and Path("runs/broken/superseded/001").exists()
    assert "damaged" in positron("runs", "prune", "--run", "runs/broken").sentence
