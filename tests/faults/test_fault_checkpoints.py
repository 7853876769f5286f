"""Rows C of docs/reliability.md: whatever interrupts a run, it ends like one that was not interrupted, and nothing damaged loads.

The run is BASE: 12 steps, the cool-down begins after step 5, saved at 0, 4, 5, 8 and 12, validated at 6 and 12.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.faults import disk_with_room, every_kill, flip, kill_after, steps_again, visible, watched
from helpers.runs import (
    Result,
    assert_same_run,
    copied,
    digests,
    forked,
    last_step_logged,
    lines_of,
    listing,
    needs_fork,
    positron,
    timeless,
    tiny_train,
    trained,
    wait_for,
)
from positron_mini import files
from positron_mini.config import TrainConfig
from positron_mini.errors import DiskFullError, PositronError
from positron_mini.evaluate.skills import RunTests, SkillTest, skill_test
from positron_mini.store.checkpoint import TrainingState, open_checkpoint, verify, write_checkpoint
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_folder import RunFolder
from positron_mini.text.tokenizer import Tokenizer
from positron_mini.train import pretrain, speed
from positron_mini.train.open_run import open_session
from positron_mini.trainer import StopFlag

Record = Callable[[str, object], None]  # keeps what a case tried, and what it cost, for docs/reliability.md
BASE, CUT = Path("runs/whole/run"), Path("runs/cut/run")
WORDS = ("--save_every", "4", "--eval_every", "6", "--milestones", "0", "--max_steps", "12", "--cooldown_steps", "7", "--dropout", "0.1")


def train(run: Path, *words: str) -> Result:
    return tiny_train(str(run), *WORDS, *words)


def train_ok(run: Path, *words: str) -> Result:
    return train(run, *words).ok()


@pytest.fixture(scope="module", autouse=True)
def quick(tiny_tokenizer: Tokenizer) -> Iterator[None]:
    """What takes most of the time of a tiny run is left out: measuring its speed, choosing its skills (here a few, which such a run is too
    short for otherwise), and waiting for the disk: what a SIGKILL leaves does not depend on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "measure_speed", lambda *_, **__: 1e4)
        few = SkillTest({skill: texts[:4] for skill, texts in list(skill_test(tiny_tokenizer, 2).texts.items())[:2]})
        patch.setattr(pretrain, "milestone_skills", lambda *_: RunTests(few, few))
        patch.setattr(files.os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def template(workshop_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with copied(workshop_template, tmp_path_factory.mktemp("faults") / "template") as folder:
        shutil.rmtree("runs")
        train_ok(BASE)
        return folder


@pytest.fixture
def bench(template: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with a text, a tokenizer and BASE, to train CUT in; the working directory."""
    with copied(template, tmp_path / "bench") as folder:
        yield folder


# --- C1, C2: stopping and going on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pauses", [(1,), (4,), (6,), (11,), (2, 5, 9)], ids=["first", "saved", "validated", "last but one", "three times"])
def test_C1_a_pause_at_any_kind_of_step_leaves_no_trace(bench: Path, pauses: tuple[int, ...], record_property: Record) -> None:
    for step in pauses:
        train_ok(CUT, "--until_step", str(step))
        record_property("again", steps_again(CUT))
    train_ok(CUT)
    assert trained(CUT, 12) == trained(BASE, 12) and timeless(CUT) == timeless(BASE)


def test_C1_a_pause_at_the_edge_of_an_epoch_leaves_no_trace(bench: Path) -> None:
    session = open_session(TrainConfig(out_dir=str(BASE)), stop=StopFlag())
    epoch = session.trainer.source.windows / session.trainer.source.rows  # type: ignore[attr-defined]
    edge = int(epoch)  # the update after this many steps reads from two epochs
    assert 12 < edge < epoch < edge + 1 < 60, "the text has another length now"
    words = ("--max_steps", str(edge + 2), "--cooldown_steps", "1", "--save_every", "100")
    train_ok(Path("runs/x/run"), *words)
    for step in (edge, edge + 1):
        train_ok(CUT, *words, "--until_step", str(step))
    train_ok(CUT, *words)
    assert trained(CUT, edge + 2) == trained(Path("runs/x/run"), edge + 2) and timeless(CUT) == timeless(Path("runs/x/run"))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(pauses=st.sets(st.integers(1, 11), max_size=3))
def test_C2_any_split_of_twelve_steps_gives_the_same_bytes_and_rates(bench: Path, pauses: set[int], record_property: Record) -> None:
    shutil.rmtree(CUT, ignore_errors=True)
    for step in sorted(pauses):
        session = open_session(split_config(step))
        assert [report.step for report in session.steps()][-1] == step
        record_property("again", steps_again(CUT))
    list(open_session(split_config(None)).steps())
    assert trained(CUT, 12) == trained(BASE, 12)
    assert timeless(CUT) == timeless(BASE)  # the rates among them


def split_config(until: int | None) -> TrainConfig:
    """The flags of WORDS, without a command line to read."""
    from dataclasses import replace

    from helpers.runs import TINY
    from positron_mini.cli.flags import parse

    global _parsed
    if _parsed is None:
        _parsed = parse(TrainConfig, [*TINY, "--threads", "1", "--out_dir", str(CUT), *WORDS], "train")
    return replace(_parsed, until_step=until)


_parsed: TrainConfig | None = None


# --- C3: kills --------------------------------------------------------------------------------------------------------------------------


def assert_goes_on(state: Path) -> int:
    """Every step folder of the killed run is whole, the newest is found by every spelling, and going on ends like BASE. Returns how many
    steps that computes again."""
    shutil.rmtree(CUT, ignore_errors=True)
    shutil.copytree(state, CUT, symlinks=True)
    run, said = RunFolder(CUT), list[str]()
    for step in run.steps():
        assert open_checkpoint(run.folder(step)).step == step
    if run.steps():
        assert find_checkpoint(CUT, say=said.append).step == run.steps()[-1] and said == []
        assert find_checkpoint(CUT / "latest", say=said.append).step in run.steps()
    again = steps_again(CUT)
    train_ok(CUT)
    assert_same_run(BASE, CUT)
    return again


def test_C3_a_kill_at_any_point_of_the_writer_ends_like_no_kill(bench: Path, record_property: Record) -> None:
    points, states = every_kill(Path("runs/watched/run"), Path("states"), lambda: train_ok(Path("runs/watched/run")))
    assert points > 150 and len(states) > 10, "points of the writer have gone"
    record_property("again", max(assert_goes_on(state) for state in states))
    record_property("tried", points)


@pytest.mark.parametrize(
    "words", [("--resume_from_step", "8"), ("--resume_from_step", "0"), ("--max_steps", "14", "--cooldown_steps", "9")]
)
def test_C3_a_kill_while_a_run_is_set_back_loses_no_step_and_no_line(bench: Path, words: tuple[str, ...], record_property: Record) -> None:
    rows, shutil_target = timeless(BASE), Path("runs/watched/run")
    shutil.copytree(BASE, shutil_target, symlinks=True)
    points, states = every_kill(shutil_target, Path("states"), lambda: train_ok(shutil_target, *words))
    for state in states:
        run = RunFolder(state)
        kept = [row for log in (state, *sorted((state / "superseded").glob("*"))) for row in timeless(log)]
        assert all(row in kept for row in rows), f"{state}: log lines are lost"
        assert all(open_checkpoint(folder) for folder in state.rglob("step_*") if folder.is_dir() and ".tmp" not in str(folder))
        newest = run.steps()[-1]
        assert newest <= max([row["step"] for row in timeless(state)], default=0), f"{state}: step {newest} without its log lines"
    record_property("tried", points)


@needs_fork
def test_C3_thirty_kills_at_random_moments_end_like_no_kill(bench: Path, record_property: Record) -> None:
    draw, kills, began = random.SystemRandom(), 0, time.monotonic()
    train_ok(Path("runs/timed/run"))
    whole = time.monotonic() - began
    while kills < 30:
        shutil.rmtree(CUT, ignore_errors=True)
        for _ in range(5):
            if not kill_after(draw.random() * 1.2 * whole, lambda: train(CUT).code):
                break
            kills += 1
            record_property("again", steps_again(CUT))
        train_ok(CUT)
        assert_same_run(BASE, CUT)
    record_property("tried", kills)


def test_C3_a_checkpoint_gets_its_name_when_its_files_and_the_log_lines_it_counts_are_on_the_disk(
    bench: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    on_disk: dict[int, int] = {}  # bytes that the system was told to store, by inode: what is left after a power cut
    named: list[int] = []

    def store(handle: int) -> None:
        status = os.fstat(handle)
        on_disk[status.st_ino] = status.st_size

    def stored(path: Path) -> bytes:
        return path.read_bytes()[: on_disk.get(path.stat().st_ino, 0)]

    def look(point: str) -> None:
        if point == "after_rename":
            named.append(RunFolder(CUT).steps()[-1])
            for path in RunFolder(CUT).folder(named[-1]).rglob("*"):
                assert not path.is_file() or stored(path) == path.read_bytes(), path
            for log, lines in (("metrics.jsonl", named[-1]), ("samples.jsonl", 3), ("skills.jsonl", 2)):
                assert not lines or stored(CUT / log).count(b"\n") >= lines, f"{log} at step {named[-1]}"

    monkeypatch.setattr(files.os, "fsync", store)
    with watched(look):
        train_ok(CUT)
    assert named == [0, 4, 5, 6, 8, 12]  # step 6 for its validation, the lowest so far
    record_property("tried", len(named))


# --- C4, C5: what the disk does ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "training/state.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_C4_a_tail_of_zeros_is_found_and_the_step_before_is_used(bench: Path, name: str, share: float, record_property: Record) -> None:
    path = BASE / "step_000012" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))].ljust(len(whole), b"\0"))  # the right length, as safetensors' own writer leaves it
    said: list[str] = []
    newest = RunFolder(BASE).newest(training=True, say=said.append)
    assert newest is not None and newest.step == 8 and name in said[0] and "checksum" in said[0]
    record_property("again", steps_again(BASE))
    assert "falling back" in train_ok(BASE).err
    train_ok(CUT)
    assert trained(BASE, 12) == trained(CUT, 12)


def bytes_written() -> int:
    """Bytes that a whole run hands to its files."""
    with disk_with_room(1 << 40) as disk:
        train_ok(Path("runs/measured/run"))
        return (1 << 40) - disk.room


def test_C5_a_disk_that_fills_up_at_any_byte_ends_with_code_4_and_the_same_command_goes_on(bench: Path, record_property: Record) -> None:
    total, draw = bytes_written(), random.Random(7)
    rooms = [0, 1, 40, *(draw.randrange(total - 1_000) for _ in range(12))]  # how long the times in the logs are varies
    for room in rooms:
        shutil.rmtree(CUT, ignore_errors=True)
        with disk_with_room(room):
            result = train(CUT)
        assert result.code == 4 and "no space left" in result.sentence and "start the same command again" in result.hint, (room, result.err)
        run = RunFolder(CUT)
        assert all(open_checkpoint(run.folder(step)) for step in run.steps())
        assert not list(CUT.rglob(".tmp-*")), f"{room} bytes: half a file is left where space is short"
        record_property("again", steps_again(CUT))
        train_ok(CUT)
        assert_same_run(BASE, CUT)
    record_property("tried", len(rooms))


@needs_fork
@pytest.mark.parametrize("limit", [20_000, 200_000, 400_000])
def test_C5_a_file_size_limit_is_a_full_disk_too(bench: Path, limit: int, record_property: Record) -> None:
    resource = pytest.importorskip("resource")

    def act() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return train(CUT).code

    assert forked(act) == 4
    assert all(open_checkpoint(RunFolder(CUT).folder(step)) for step in RunFolder(CUT).steps())
    record_property("again", steps_again(CUT))
    train_ok(CUT)
    assert_same_run(BASE, CUT)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_C5_an_old_checkpoint_survives_a_new_one_that_does_not_fit(bench: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    train_ok(CUT, "--until_step", "8")
    before = {step: digests(RunFolder(CUT).folder(step)) for step in RunFolder(CUT).steps()}

    def refuse(handle: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)
    assert train(CUT).code == 4
    monkeypatch.undo()
    assert {step: digests(RunFolder(CUT).folder(step)) for step in RunFolder(CUT).steps()} == before


def test_C5_a_disk_that_is_full_at_every_single_byte_of_a_checkpoint_leaves_none_and_the_old_one(
    tmp_path: Path, record_property: Record
) -> None:
    old, new = tmp_path / "step_000001", tmp_path / "step_000002"
    weights, texts = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}, {"config.json": b"{}", "tokenizer.model": b"pieces"}
    training = TrainingState({"weights.a": torch.zeros(3)}, {"step": 2})
    write_checkpoint(old, weights, texts, None)
    before = digests(tmp_path)
    with disk_with_room(1 << 20) as disk:
        write_checkpoint(new, weights, texts, training)
    total = (1 << 20) - disk.room
    shutil.rmtree(new)
    for room in range(total):
        with disk_with_room(room), pytest.raises(DiskFullError):
            write_checkpoint(new, weights, texts, training)
        assert digests(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == [old.name], f"{room} bytes"
    with disk_with_room(total):
        write_checkpoint(new, weights, texts, training)
    assert sorted(verify(new)) == sorted(digests(new).keys() - {"manifest.json"})
    record_property("tried", total)


# --- C6: bits ---------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_C6_a_flipped_bit_in_the_newest_step_never_loads_and_an_earlier_one_is_found(
    bench: Path, data: st.DataObject, place: float, bit: int, record_property: Record
) -> None:
    newest = BASE / "step_000012"
    path = data.draw(st.sampled_from(sorted(p for p in newest.rglob("*") if p.is_file())))
    whole = flip(path, place, bit)
    try:
        with pytest.raises(PositronError):
            open_checkpoint(newest)
        said: list[str] = []
        assert find_checkpoint(BASE / "latest", say=said.append).step == 8 and said
        record_property("again", steps_again(BASE))
    finally:
        path.write_bytes(whole)


# --- C7: signals ------------------------------------------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGINT]], ids=str
)
def test_C7_signals_stop_after_a_clean_save_and_the_run_goes_on_exactly(
    bench: Path, signals: list[signal.Signals], record_property: Record
) -> None:
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = train(CUT, "--max_steps", "200").code
        finally:
            os._exit(code)
    wait_for(lambda: (CUT / "metrics.jsonl").exists())
    time.sleep(random.SystemRandom().random() * 0.1)
    for number in signals:
        os.kill(pid, number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in {128 + number for number in signals}
    run = RunFolder(CUT)
    assert run.steps()[-1] == len(timeless(CUT)) and open_checkpoint(run.folder(run.steps()[-1])).has_training
    record_property("again", steps_again(CUT))
    step = str(run.steps()[-1] + 1)
    train_ok(CUT, "--max_steps", "200", "--until_step", step)
    train_ok(Path("runs/x/run"), "--max_steps", "200", "--until_step", step)
    assert trained(CUT, int(step)) == trained(Path("runs/x/run"), int(step))


@needs_fork
@pytest.mark.parametrize("point", ["before_write", "before_fsync", "before_rename", "before_latest"])
def test_C7_a_signal_during_a_save_does_not_cut_it(bench: Path, point: str, record_property: Record) -> None:
    def act() -> int:
        def signalled(name: str) -> None:
            if name == point and next(CUT.glob("step_000004" if point == "before_latest" else ".tmp-step_000004*"), None):
                os.kill(os.getpid(), signal.SIGTERM)

        with watched(signalled):
            return train(CUT, "--milestones", "none").code

    assert forked(act) == 128 + signal.SIGTERM
    assert RunFolder(CUT).steps() == [4] and not list(CUT.rglob(".tmp-*"))
    record_property("again", steps_again(CUT))
    train_ok(CUT, "--milestones", "none")
    assert trained(CUT, 12) == trained(BASE, 12)


# --- C8: two writers --------------------------------------------------------------------------------------------------------------------


@needs_fork
def test_C8_a_killed_holder_leaves_a_lock_that_the_next_writer_takes_over(bench: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            train(CUT, "--max_steps", "100000")
        finally:
            os._exit(99)
    wait_for(lambda: (CUT / "metrics.jsonl").exists())
    assert RunFolder(CUT).writer() == str(pid)
    second = train(CUT)
    assert second.code == 1 and f"process {pid} is training" in second.sentence
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (CUT / ".lock.json").exists() and RunFolder(CUT).writer() is None
    with RunFolder(CUT).writing():
        assert RunFolder(CUT).writer() == str(os.getpid())


# --- C9: another machine ----------------------------------------------------------------------------------------------------------------


def test_C9_another_micro_batch_is_said_and_trains_on_the_same_data_at_the_same_rates(bench: Path) -> None:
    train_ok(CUT, "--until_step", "5")
    result = train_ok(CUT, "--micro_batch", "2", "--dropout", "0.1")
    assert "warning: micro_batch was 8, now 2: results may differ in the last digits" in result.err
    assert events(CUT) == [("changed", "micro_batch", 8, 2, 5)]
    compare_loosely(CUT)


def test_C9_another_torch_and_thread_count_are_said(bench: Path) -> None:
    train_ok(CUT, "--until_step", "5")
    record = files.read_json(CUT / "run.json")
    record["versions"]["torch"] = "2.0.0"
    files.write_json(CUT / "run.json", record)
    result = train_ok(CUT, "--threads", "2", "--until_step", "7")
    assert f"warning: torch was 2.0.0, now {torch.__version__}" in result.err and "warning: threads was 1, now 2" in result.err
    assert [event[1] for event in events(CUT)] == ["threads", "torch"]
    assert "warning" not in train_ok(CUT, "--threads", "2", "--until_step", "8").err
    compare_loosely(CUT)


def test_C9_a_device_that_is_gone_is_said_and_the_run_goes_on_with_the_one_that_is_here(bench: Path) -> None:
    train_ok(CUT, "--until_step", "5")
    record = files.read_json(CUT / "run.json")
    record["config"] |= {"device": "cuda", "precision": "bf16", "micro_batch": 4}
    record["device"] |= {"device": "cuda", "precision": "bf16"}
    files.write_json(CUT / "run.json", record)
    result = train_ok(CUT)
    assert "warning: the run was on cuda, which is not here; results will differ in the last digits" in result.err
    changes = {(name, before, now) for _, name, before, now, _ in events(CUT)}
    assert {("device", "cuda", "cpu"), ("precision", "bf16", "fp32")} <= changes
    compare_loosely(CUT)


def events(run: Path) -> list[tuple[Any, ...]]:
    """What is written down of settings that changed."""
    changed = [event for event in lines_of(run / "events.jsonl") if event["kind"] == "changed"]
    return [tuple(event[k] for k in ("kind", "name", "before", "now", "step")) for event in changed]


def compare_loosely(run: Path) -> None:
    """The same data at the same rates; losses within 1 %, because dropout is drawn per micro-batch."""
    for one, other in zip(timeless(BASE)[: last_step_logged(run)], timeless(run), strict=True):
        assert (one["step"], one["tokens"], one["lr"]) == (other["step"], other["tokens"], other["lr"])
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)


# --- C10, C11 ---------------------------------------------------------------------------------------------------------------------------


def test_C10_a_compiled_model_saves_plain_names(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled(function, backend="eager", **options))
    train_ok(CUT, "--compile", "on", "--until_step", "5", "--dropout", "0")
    plain = Path("runs/plain/run")
    train_ok(plain, "--until_step", "5", "--dropout", "0")
    from positron_mini.store.checkpoint import read_tensors

    for name in ("model.safetensors", "training/state.safetensors"):
        one, other = (read_tensors(run / "step_000005" / name, None) for run in (CUT, plain))
        assert one.keys() == other.keys() and not [key for key in one if "_orig_mod" in key]
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-4)
    assert "warning: compile was on, now off" in train_ok(CUT, "--compile", "off", "--dropout", "0").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max_steps", "12", "--cooldown_steps", "3"), "the cool-down becomes 3 of the 12 steps"),
        (("--max_steps", "10"), "the run's horizon stays 12 steps; pausing at 10"),
        (("--max_steps", "10", "--cooldown_steps", "3"), "pausing at 10; the cool-down stays 7 steps"),
        (("--max_steps", "20", "--cooldown_steps", "4"), "the horizon moves to 20 steps"),
        (("--until_step", "7",), ""),
    ],
)  # fmt: skip
def test_C11_another_horizon_or_cool_down_is_obeyed_or_said(bench: Path, words: tuple[str, ...], said: str) -> None:
    train_ok(CUT, "--until_step", "4")
    result = train_ok(CUT, *words)
    assert said in result.err
    moved = "becomes" in said or "moves" in said
    assert len(files.read_json(CUT / "run.json")["events"]) == (2 if moved else 1)


def test_C11_another_cool_down_is_obeyed_exactly_wherever_the_run_is_cut(bench: Path) -> None:
    other = Path("runs/other/run")
    for run, pauses in ((CUT, ()), (other, ("4", "9", "10"))):
        train_ok(run, "--until_step", "3")
        for step in pauses:
            train_ok(run, "--cooldown_steps", "2", "--until_step", step)
        train_ok(run, "--cooldown_steps", "2")
    assert trained(other, 12) == trained(CUT, 12) and timeless(other) == timeless(CUT)
    rates = [row["lr"] for row in timeless(CUT)]
    assert rates[9] == 4e-3 and rates[10:] == pytest.approx([4e-3 * 2 / 3, 4e-3 / 3], rel=1e-5)


def test_C11_another_cool_down_after_the_rate_began_to_fall_is_refused_with_a_way_that_works(bench: Path) -> None:
    before = listing(Path())
    refused = train(BASE, "--cooldown_steps", "3")
    assert refused.code == 2 and "--cooldown_steps 3: the cool-down over 7 steps began after step 5" in refused.sentence
    assert refused.hint == "leave it out, or go back with --resume_from_step 5" and listing(Path()) == before
    train_ok(BASE, "--cooldown_steps", "3", "--resume_from_step", "5")
    for _ in range(2):  # the same command again is no error
        train_ok(CUT, "--cooldown_steps", "3")
    assert trained(BASE, 12) == trained(CUT, 12)


def test_C11_the_same_cool_down_again_is_nothing_to_say(bench: Path) -> None:
    train_ok(CUT, "--until_step", "4")
    assert "cool-down" not in train_ok(CUT, "--until_step", "5").err
    opened = Path("runs/open/run")
    words = ("--milestones", "0", "--out_dir", str(opened), "--threads", "1")
    from helpers.runs import TINY

    assert positron("train", *TINY, *words, "--until_step", "2").code == 0
    assert (
        "the run is open-ended: --cooldown_steps takes effect with"
        in positron("train", *TINY, *words, "--until_step", "3", "--cooldown_steps", "2").err
    )


# --- C12: sleep -------------------------------------------------------------------------------------------------------------------------


@needs_fork
def test_C12_five_seconds_of_sleep_change_no_byte_and_are_no_training_time(bench: Path, record_property: Record) -> None:
    pid = os.fork()
    if pid == 0:
        code, real = 99, pretrain.TokenBatches.batch

        def sleepy(self: pretrain.TokenBatches, step: int) -> Any:
            if step == 6:
                os.kill(os.getpid(), signal.SIGSTOP)
            return real(self, step)

        pretrain.TokenBatches.batch = sleepy  # type: ignore[method-assign]
        try:
            code = train(CUT).code
        finally:
            os._exit(code)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    time.sleep(5.5)
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert_same_run(BASE, CUT)
    record_property("again", steps_again(CUT))
    seconds = [row["tokens"] / row["step"] / row["tok_per_s"] for row in lines_of(CUT / "metrics.jsonl")]
    usual = statistics.median(seconds)
    assert seconds[6] < 2 * usual or 5 * usual > 5, "the pause was counted"  # a machine may be slower than a pause is long


# --- leftovers and places ---------------------------------------------------------------------------------------------------------------


def test_T6_a_run_works_in_a_folder_with_spaces_and_letters_of_any_script(bench: Path, tmp_path: Path) -> None:
    where = tmp_path / "mein Modell ünïcode 模型 🙂"
    with copied(bench, where):
        train_ok(Path("läufe und mehr/rün 1"), "--until_step", "3")
        assert positron("generate", "--ckpt", "läufe und mehr/rün 1", "--max_tokens", "3").code == 0
    os.chdir(tmp_path)  # from elsewhere: the text that run.json names is looked for where the command is started
    places = ("--dataset_path", f"{where}/text.txt", "--tokenizer_path", f"{where}/spm.model")
    positron("train", "--out_dir", f"{where}/läufe und mehr/rün 1", *places, "--until_step", "4").ok()


def test_T6_a_text_that_may_not_be_changed_is_enough(bench: Path) -> None:
    for name in ("text.txt", "spm.model"):
        os.chmod(name, 0o400)
    before = digests(Path())
    train_ok(CUT)
    after = digests(Path())
    assert {name: after[name] for name in before} == before
    assert trained(CUT, 12) == trained(BASE, 12)


def test_C3_leftovers_of_a_kill_are_gone_after_the_next_start(bench: Path) -> None:
    train_ok(CUT, "--until_step", "4")
    state = visible(CUT)
    for name in (".tmp-step_000008-77/training", ".tmp-old-step_000002"):
        (CUT / name).mkdir(parents=True)
    (CUT / ".tmp-run.json-77").write_text('{"form')
    (CUT / ".tmp-latest-77").symlink_to("step_000004")
    (CUT / ".lock.json").write_text('{"pid": 4')
    with open(CUT / "events.jsonl", "a") as log:
        log.write('{"kind": "chan')
    with RunFolder(CUT).writing():
        pass
    assert visible(CUT) == state
    assert [re.sub(r"\d+", "N", path.name) for path in CUT.glob(".*")] == [".lock"]
    whole = visible(BASE)
    (BASE / ".tmp-old-step_000004/training").mkdir(parents=True)  # killed at the very end: the run is finished all the same
    train_ok(BASE)
    assert visible(BASE) == whole and not list(BASE.glob(".tmp-*"))
