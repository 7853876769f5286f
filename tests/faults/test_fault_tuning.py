"""Row C3 of docs/reliability.md for fine-tuning: a kill at any point of the writer ends like no kill, to the last event and pointer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.faults import differences, every_kill, steps_again
from helpers.runs import copied, positron
from positron_mini import files
from positron_mini.store.checkpoint import open_checkpoint
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_folder import RunFolder

BASE, CUT = Path("runs/whole/run"), Path("runs/cut/run")
THINGS = ["ball", "cat", "dog", "boat", "hat"] * 8
# 36 rows are trained on: 6 steps an epoch, validated at 3, 6, 9 and 12, saved there where it is the best, and at 4, 8 and 12
WORDS = (
    *("--base_ckpt", "runs/base", "--sft_data", "rows.jsonl", "--epochs", "2", "--batch_size", "6", "--val_share", "0.1"),
    *("--lr", "1e-2", "--warmup_steps", "2", "--save_every", "4", "--eval_every", "3", "--threads", "1", "--dropout", "0.1"),
)


def tune(run: Path) -> None:
    positron("sft", *WORDS, "--out_dir", run).ok()


@pytest.fixture
def bench(workshop_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a base model, conversations and BASE, a whole fine-tuning; what a SIGKILL leaves does not wait for a disk."""
    monkeypatch.setattr(files.os, "fsync", lambda _: None)
    with copied(workshop_template, tmp_path / "bench") as folder:
        rows = [{"question": f"What did number {n} find?", "answer": f"Number {n} found a {thing}."} for n, thing in enumerate(THINGS)]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tune(BASE)
        yield folder


def test_C3_a_kill_at_any_point_of_a_fine_tuning_ends_like_no_kill(bench: Path, record_property: Callable[[str, object], None]) -> None:
    points, states = every_kill(Path("runs/watched/run"), Path("states"), lambda: tune(Path("runs/watched/run")))
    assert points > 150 and len(states) > 15, "points of the writer have gone"
    for state in states:
        shutil.rmtree(CUT, ignore_errors=True)
        shutil.copytree(state, CUT, symlinks=True)
        run = RunFolder(CUT)
        for step in run.steps():
            assert open_checkpoint(run.folder(step)).step == step
        if (CUT / "best").is_symlink():
            assert find_checkpoint(CUT / "best", say=pytest.fail).step in run.steps()
        record_property("again", steps_again(CUT))
        tune(CUT)
        assert differences(BASE, CUT) == [], state
    record_property("tried", points)
