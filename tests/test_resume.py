"""The law of resuming: interrupted equals uninterrupted, byte for byte, wherever and however the interruption came."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.runs import (
    BASE,
    SEPARATOR,
    TINY,
    Result,
    assert_same_run,
    digests,
    forked,
    last_step_logged,
    lines_of,
    needs_fork,
    positron,
    spawn,
    timeless,
    tiny_train,
    trained,
    wait_for,
)
from positron_mini import files
from positron_mini.store.checkpoint import open_checkpoint
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_folder import RunFolder
from positron_mini.text.tokenizer import train_tokenizer

CUT = Path("cut/base")  # the same run with interruptions; of the same name, which stands in the model cards


def train_ok(out_dir: Path, *words: str) -> Result:
    return tiny_train(str(out_dir), *words).ok()


def train_30(fault: str = "") -> int:
    """The exit code of a forked child that trains all 30 steps into CUT."""
    return forked(lambda: tiny_train(str(CUT), "--max_steps", "30").code, fault=fault)


# --- whole processes --------------------------------------------------------------------------------------------------------------------


def chunk(threads: str, out_dir: str, *words: str) -> None:
    """A part of the run in a process of its own."""
    process = spawn("train", *wide(threads), "--out_dir", out_dir, *words)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def forked_chunk(threads: str, out_dir: str, *words: str) -> None:
    """A part of the run in a forked process."""
    assert forked(lambda: positron("train", *wide(threads), "--out_dir", out_dir, *words).code) == 0


def wide(threads: str) -> list[str]:
    """Settings with enough to do for two threads."""
    return [*TINY, "--n_embd", "64", "--batch_tokens", "1024", "--threads", threads, "--max_steps", "30"]


@pytest.mark.parametrize(("threads", "run"), [("1", forked_chunk), ("2", chunk)], ids=["1 thread", "2 threads"])
@needs_fork
def test_C1_thirty_steps_at_once_equal_seven_eleven_and_twelve_with_a_kill(workshop: Path, threads: str, run: Callable[..., None]) -> None:
    run(threads, "whole/x")
    chunk(threads, "parts/x", "--until_step", "7")
    moment = random.SystemRandom().randint(8, 16)
    process = spawn("train", *wide(threads), "--out_dir", "parts/x", "--until_step", "18")
    wait_for(lambda: last_step_logged(Path("parts/x")) >= moment or process.poll() is not None)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"ended before it was killed at step {moment}"
    run(threads, "parts/x", "--until_step", "18")
    assert find_checkpoint("parts/x/latest").step == 18
    run(threads, "parts/x")
    final = trained(Path("whole/x"), 30)
    assert sorted(final) == ["model.safetensors", "training/state.json", "training/state.safetensors"]
    assert trained(Path("parts/x"), 30) == final, f"killed at step {moment}"
    assert timeless(Path("parts/x")) == timeless(Path("whole/x"))
    assert [row["step"] for row in timeless(Path("whole/x"))] == list(range(1, 31))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_C7_a_signal_stops_after_a_clean_checkpoint_and_the_printed_command_goes_on_exactly(
    workshop: Path, number: signal.Signals, code: int
) -> None:
    process = spawn("train", *TINY, "--threads", "1", "--out_dir", "cut dir/x")
    wait_for(lambda: last_step_logged(Path("cut dir/x")) >= 3)
    seen = find_checkpoint("cut dir/x/latest", say=pytest.fail)  # readable from outside while it is written
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and out == "", err
    step = RunFolder(Path("cut dir/x")).steps()[-1]
    assert seen.step is not None and 3 <= step == last_step_logged(Path("cut dir/x"))
    assert err.endswith(f"\nstopped by a signal; step {step:,} is saved in cut dir/x\n  go on: positron train --out_dir 'cut dir/x'\n")
    assert open_checkpoint(Path(f"cut dir/x/step_{step:06d}")).has_training
    assert positron("train", "--out_dir", "cut dir/x", "--until_step", f"{step + 4}").code == 0
    train_ok(Path("whole/x"), "--until_step", f"{step + 4}")
    assert trained(Path("cut dir/x"), step + 4) == trained(Path("whole/x"), step + 4)
    assert timeless(Path("cut dir/x")) == timeless(Path("whole/x"))


# --- kills at every kind of moment ------------------------------------------------------------------------------------------------------


# tests/faults has what a kill at any point leaves; here real processes die. A run passes about 80 writes: lock and run.json, 8 files of
# step 0, 10 of each later step
POINTS = [
    *("before_write:2", "before_write:33", "before_fsync:18", "before_replace:61", "after_replace:2", "before_rename:4", "after_rename:3"),
    *("before_latest:8", "before_prune", "before_drop_training"),
]


@needs_fork
@pytest.mark.parametrize("point", POINTS)
def test_C3_a_process_killed_at_a_point_of_a_save_ends_like_one_that_was_not(workshop: Path, point: str) -> None:
    assert train_30(point) == -signal.SIGKILL
    train_ok(CUT, "--max_steps", "30")
    assert_same_run(BASE, CUT)


@needs_fork
@pytest.mark.parametrize("fault", ["before_write:30:raise", "before_fsync:51:raise", "a file size limit"])
def test_C5_a_full_disk_ends_with_exit_code_4_and_the_same_command_goes_on(workshop: Path, fault: str) -> None:
    if fault == "a file size limit":
        resource = pytest.importorskip("resource")

        def act() -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # enough for a model, too little for its training state
            return tiny_train(str(CUT), "--max_steps", "30").code

        assert forked(act) == 4
        assert RunFolder(CUT).steps() == [0]
    else:
        assert train_30(fault) == 4
    assert all(open_checkpoint(RunFolder(CUT).folder(step)) for step in RunFolder(CUT).steps())
    train_ok(CUT, "--max_steps", "30")
    assert_same_run(BASE, CUT)


# --- pauses -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pauses", [(11,), (12,), (13,), (1, 29), (12, 13, 14)])
def test_C1_pauses_around_the_cool_down_leave_no_trace(workshop: Path, pauses: tuple[int, ...]) -> None:
    for step in pauses:
        train_ok(CUT, "--max_steps", "30", "--until_step", str(step))
    train_ok(CUT)
    assert trained(CUT, 30) == trained(BASE, 30) and timeless(CUT) == timeless(BASE)
    assert digests(CUT / "step_000012") == digests(BASE / "step_000012")


def test_C1_real_stories_resume_exactly(real_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open(real_text / "tinystories-valid.txt", encoding="utf-8") as source:
        text = source.read(200_000).rsplit("<|endoftext|>", 1)[0]
    Path("text.txt").write_text(text)
    train_tokenizer(text.split(SEPARATOR.strip()), 512, threads=1).save(Path("spm.model"))
    train_ok(Path("whole/x"), "--max_steps", "20")
    for step in (3, 9, 20):
        train_ok(Path("parts/x"), "--max_steps", "20", "--until_step", str(step))
    assert_same_final(Path("whole/x"), Path("parts/x"), 20)


def assert_same_final(one: Path, other: Path, step: int) -> None:
    assert trained(one, step) == trained(other, step) and len(trained(one, step)) == 3
    assert timeless(one) == timeless(other)


# --- another horizon, setting back ------------------------------------------------------------------------------------------------------


def test_C11_a_horizon_that_moves_is_an_event_and_the_run_is_exact_relative_to_it(workshop: Path) -> None:
    for out_dir in ("one/x", "two/x"):
        train_ok(Path(out_dir), "--max_steps", "30", "--until_step", "7")
    moved = train_ok(Path("one/x"), "--max_steps", "40")
    assert "the horizon moves to 40 steps" in moved.err
    train_ok(Path("two/x"), "--max_steps", "40", "--until_step", "19")
    train_ok(Path("two/x"))
    assert_same_final(Path("one/x"), Path("two/x"), 40)
    events = files.read_json(Path("two/x/run.json"))["events"]
    assert events == [
        {"kind": "schedule", "step": 0, "warmup_steps": 4, "cooldown_steps": 18, "horizon": 30},
        {"kind": "schedule", "step": 7, "warmup_steps": 4, "cooldown_steps": 24, "horizon": 40},
    ]


def test_C11_a_larger_horizon_after_the_cool_down_goes_back_to_the_last_constant_step(workshop: Path) -> None:
    result = train_ok(BASE, "--max_steps", "40")
    assert "going back to step 12" in result.err
    train_ok(CUT, "--max_steps", "30", "--until_step", "12")
    train_ok(CUT, "--max_steps", "40")
    assert_same_final(BASE, CUT, 40)
    assert (BASE / "superseded/001/step_000030/training/state.json").is_file()
    assert [event["step"] for event in files.read_json(BASE / "run.json")["events"]] == [0, 12]


def test_an_open_ended_run_is_finished_with_a_quarter_of_its_steps(workshop: Path) -> None:
    train_ok(CUT, "--until_step", "8")
    train_ok(CUT, "--finish", "--more_steps", "1")
    result = train_ok(CUT)  # the cool-down that was begun is gone on with
    assert "finished at step 10" in result.err
    rates = [row["lr"] for row in lines_of(CUT / "metrics.jsonl")]
    assert rates[3:8] == [0.004] * 5 and rates[8:] == pytest.approx([0.004 * 2 / 3, 0.004 / 3], rel=1e-4)
    assert files.read_json(CUT / "step_000008/training/state.json")["weights"] == "average"
    assert files.read_json(CUT / "step_000010/training/state.json")["weights"] == "raw"
    assert "finished" in train_ok(CUT, "--finish").err


@pytest.mark.parametrize("step", [0, 12, 25])
def test_starting_again_at_a_step_gives_the_same_bytes_and_keeps_the_old_ones(workshop: Path, step: int) -> None:
    before, rows = trained(BASE, 30), timeless(BASE)
    train_ok(BASE, "--resume_from_step", str(step))
    assert trained(BASE, 30) == before == trained(BASE / "superseded/001", 30)
    assert timeless(BASE) == rows and timeless(BASE / "superseded/001") == rows[step:]


def damage_file(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    "damage", [lambda: damage_file(BASE / "step_000030/training/state.safetensors"), lambda: os.unlink(BASE / "latest")]
)
def test_C6_a_damaged_newest_step_is_made_again_from_the_one_before(workshop: Path, damage: Callable[[], None]) -> None:
    before, rows = trained(BASE, 30), timeless(BASE)
    damage()
    broken = trained(BASE, 30) != before
    result = train_ok(BASE)
    assert ("falling back" in result.err) == broken == ("finished at step 30" in result.err)
    assert trained(BASE, 30) == before and timeless(BASE) == rows
    if broken:
        assert trained(BASE / "superseded/001", 30) != before and timeless(BASE / "superseded/001") == rows[25:]


def test_a_finished_run_says_so_exits_0_and_writes_nothing(workshop: Path) -> None:
    before = digests(Path())
    for words in ((), ("--max_steps", "30"), ("--max_steps", "20"), ("--finish",), ("--until_step", "30"), ("--more_steps", "3")):
        assert "this run is finished: 30 of 30 steps are done" in train_ok(BASE, *words).err
    assert digests(Path()) == before


def test_an_event_past_the_step_that_is_gone_back_to_did_not_happen(workshop: Path) -> None:
    train_ok(CUT, "--until_step", "5")
    train_ok(CUT, "--until_step", "8")
    train_ok(CUT, "--finish", "--cooldown_steps", "4", "--until_step", "9")
    for step in (8, 9):
        damage_file(CUT / f"step_{step:06d}/model.safetensors")
    train_ok(CUT, "--until_step", "10")
    events = files.read_json(CUT / "run.json")["events"]
    assert [(event["step"], event["horizon"]) for event in events] == [(0, None)]
    train_ok(Path("whole/x"), "--until_step", "10")
    assert_same_final(CUT, Path("whole/x"), 10)
