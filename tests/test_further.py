"""Laws of asking for more or for less: nobody ends with less without being told, what was reached stays under a name, typed flags win."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.runs import BASE, TINY, metric, positron, tiny_train, write_run
from positron_mini.config import TrainConfig
from positron_mini.errors import UsageError
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_record import RunRecord
from positron_mini.train import budget
from positron_mini.train.find_run import forget_budget
from positron_mini.train.session import better_before


def test_more_steps_for_a_finished_run_say_where_it_goes_back_to_and_under_which_name_the_finished_step_stays(workshop: Path) -> None:
    before = (BASE / "step_000030/model.safetensors").read_bytes()
    result = tiny_train(str(BASE), "--max_steps", "40", "--until_step", "35")
    told = result.err.splitlines()
    assert result.code == 0, result.err
    first = next(i for i, line in enumerate(told) if line.startswith("[step"))
    said = " ".join(told[:first])  # before anything is trained
    assert "the horizon moves to 40 steps; going back to step 12, the last one before the rate fell" in said
    assert "the finished step 30 stays as runs/base/superseded/001/step_000030, for --ckpt" in said
    assert "a pause at step 35 leaves a worse model than that one" in said
    kept = find_checkpoint("runs/base/superseded/001/step_000030")
    assert kept.step == 30 and (kept.folder / "model.safetensors").read_bytes() == before


def test_a_run_that_is_set_back_by_hand_says_what_stays(workshop: Path) -> None:
    result = tiny_train(str(BASE), "--resume_from_step", "25", "--until_step", "27")
    assert "going back to step 25; the finished step 30 stays as runs/base/superseded/001/step_000030" in result.err


def scored(*pairs: tuple[int, float]) -> list[dict[str, Any]]:
    return [metric(step, 2.0, bits) for step, bits in pairs]


def test_what_is_better_than_the_newest_step_is_named_while_it_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics=scored((10, 2.0), (20, 1.6)))
    assert better_before(RunFolder(folder)) == ""
    for number, rows in (("001", scored((30, 1.4), (40, 1.3))), ("002", scored((30, 1.2)))):
        attic = write_run(folder / "superseded" / number, metrics=rows)
        (attic / f"step_0000{rows[-1]['step']}").mkdir()
    (folder / "superseded/002/step_000030").rmdir()  # its model is no longer there
    found = better_before(RunFolder(folder))
    assert found == f"{folder}/superseded/001/step_000040 is better still, with 1.300 bits per byte (1.600 here)"
    write_run(folder, metrics=scored((10, 2.0), (60, 1.29)))
    assert better_before(RunFolder(folder)) == ""


# --- budgets ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"max_steps"}, None),
        ({"max_steps", "until_step"}, None),
        ({"finish"}, None),
        ({"until_step"}, "15m"),  # a pause: the end stays where the budget has it
        ({"more_steps"}, "15m"),
        ({"budget"}, "15m"),
        (set(), "15m"),
    ],
)
def test_what_is_typed_about_the_end_wins_over_the_budget_that_is_stored(given: set[str], kept: str | None) -> None:
    said: list[str] = []
    config = forget_budget(TrainConfig(budget="15m"), frozenset(given), RunRecord(kind="pretrain"), said.append)
    assert config.budget == kept and bool(said) is (kept is None)
    assert forget_budget(TrainConfig(budget="15m"), frozenset(given), None, said.append).budget == "15m"  # a new run


def timed_run(folder: Path, *, steps: int, cooldown: int | None, horizon: int | None, stored: str | None) -> RunFolder:
    """A run of one step a second."""
    event = {"kind": "schedule", "step": 0, "warmup_steps": 0, "cooldown_steps": cooldown or 0, "horizon": horizon}
    rows = [{**metric(step, 4.0 - step / 1e3), "elapsed_s": float(step)} for step in range(1, steps + 1)]
    write_run(folder, metrics=rows, events=[event])
    record = json.loads((folder / "run.json").read_text())
    record["config"]["budget"] = stored
    (folder / "run.json").write_text(json.dumps(record))
    return RunFolder(folder)


@pytest.mark.parametrize(
    ("steps", "cooldown", "horizon", "stored", "asked", "most", "wanted"),
    [
        (100, 60, 100, "100s", "100s", None, None),  # the same again: finished
        (100, 60, 100, "100s", "50s", None, None),  # less for a finished run: finished
        (100, 60, 100, "100s", "200s", None, 200),  # from step 40 at 40 s on
        (100, 60, 100, None, "200s", None, 200),  # a run that was given steps before
        (70, 60, 100, "100s", "200s", None, 200),  # the rate falls: back to step 40
        (70, 60, 100, "100s", "80s", None, None),  # less, in time: the pacer falls faster
        (70, 60, 100, None, "200s", None, None),  # the pacer falls slower
        (30, 60, 100, "100s", "200s", None, None),  # the rate is constant: the pacer moves the end
        (30, None, None, None, "200s", None, 200),  # open-ended: it gets an end
        (1, None, None, None, "200s", None, 1_000),  # no speed is known yet
        (100, 60, 100, "100s", "200s", 150, 150),  # the text is worth 150 steps
        (100, 60, 100, "100s", "200s", 100, 100),  # and now no more than are done
        (30, None, None, None, "200s", 50, 50),
    ],
)
def test_a_budget_for_a_run_that_is_there_asks_for_what_it_says(
    tmp_path: Path,
    steps: int,
    cooldown: int | None,
    horizon: int | None,
    stored: str | None,
    asked: str,
    most: int | None,
    wanted: int | None,
) -> None:
    run = timed_run(tmp_path / "run", steps=steps, cooldown=cooldown, horizon=horizon, stored=stored)
    record, said = run.read(), list[str]()
    assert record is not None
    assert budget.longer_horizon(run, record, asked, most, said.append) == wanted
    assert bool(said) is (wanted == horizon is not None)


def test_a_budget_below_the_time_that_was_trained_is_refused_while_the_run_is_not_finished(tmp_path: Path) -> None:
    run = timed_run(tmp_path / "run", steps=70, cooldown=60, horizon=100, stored="100s")
    record = run.read()
    assert record is not None
    with pytest.raises(UsageError, match=r"--budget 60s: this run has trained for 1\.2 minutes already"):
        budget.longer_horizon(run, record, "60s", None, print)


def test_steps_for_a_finished_budget_run_are_obeyed_to_the_step(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(shapes: dict[str, Any], *_: object) -> budget.Candidate:
        ((name, shape),) = shapes.items()
        return budget.Candidate(name, shape, 1_500.0, 512, 20, 1.5)

    monkeypatch.setattr(budget, "choose", plan)
    monkeypatch.setattr("positron_mini.train.pace.Pacer.look", lambda *_: None)
    small = [*TINY, "--threads", "1", "--out_dir", "runs/timed"]
    assert positron("train", *small, "--budget", "100s").code == 0
    result = positron("train", "--out_dir", "runs/timed", "--threads", "1", "--max_steps", "24", "--until_step", "22")
    assert result.code == 0 and "the run's budget of 100s no longer counts: --max_steps says where it ends" in result.err
    assert "the finished step 20 stays as runs/timed/superseded/001/step_000020" in result.err
    run = RunFolder(Path("runs/timed"))
    record = run.read()
    assert record is not None and record.config["budget"] is None and run.steps()[-1] == 22
    assert record.horizon == 24
    assert positron("train", "--out_dir", "runs/timed", "--threads", "1").code == 0 and run.steps()[-1] == 24
