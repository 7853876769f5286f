"""Laws of a run folder: what going on means in every case, what is kept, what is found, and that one process writes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.project import ROOT
from helpers.runs import digests, forked, lines_of, listing, needs_fork, tiny_train
from positron_mini import files
from positron_mini.config import is_milestone
from positron_mini.errors import CheckpointError, PositronError, RunError, UsageError
from positron_mini.optim import Schedule, make_schedule
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.find import find_checkpoint, list_runs
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_record import recorded_schedule, schedule_event
from positron_mini.store.run_record import schedule_record as record_of
from positron_mini.train.plan import Plan, Request, plan_continuation, plan_new

# --- going on: the table ----------------------------------------------------------------------------------------------------------------

RUN = Schedule(10, 60, 100)  # the cool-down begins after step 40
OPEN = Schedule(10)
EARLY, LATE, END = [20, 30], [40, 70, 80], [40, 90, 100]  # steps with a training state: before the cool-down, in it, done
MOVED = make_schedule(10, None, 200)  # 120 steps of cool-down, from step 80 on


@pytest.mark.parametrize(
    ("schedule", "resumable", "request_", "start", "until", "after", "changed", "rewinds", "finished"),
    [
        # nothing asked, or the same horizon: go on
        (RUN, EARLY, Request(), 30, None, RUN, False, False, False),
        (RUN, EARLY, Request(max_steps=100), 30, None, RUN, False, False, False),
        (RUN, LATE, Request(max_steps=100), 80, None, RUN, False, False, False),
        (OPEN, EARLY, Request(), 30, None, OPEN, False, False, False),
        # finished
        (RUN, END, Request(), 100, None, RUN, False, False, True),
        (RUN, END, Request(max_steps=100), 100, None, RUN, False, False, True),
        (RUN, END, Request(max_steps=50), 100, 50, RUN, False, False, True),
        (RUN, END, Request(more_steps=5), 100, 105, RUN, False, False, True),
        (RUN, END, Request(finish=True), 100, None, RUN, False, False, True),
        # a smaller horizon pauses
        (RUN, EARLY, Request(max_steps=50), 30, 50, RUN, False, False, False),
        (RUN, EARLY, Request(max_steps=25), 30, 25, RUN, False, False, True),
        (RUN, EARLY, Request(max_steps=30), 30, 30, RUN, False, False, True),
        (RUN, LATE, Request(max_steps=90), 80, 90, RUN, False, False, False),
        # a larger horizon moves while the rate is constant ...
        (RUN, EARLY, Request(max_steps=200), 30, None, MOVED, True, False, False),
        (RUN, [20, 40], Request(max_steps=200), 40, None, MOVED, True, False, False),
        (RUN, EARLY, Request(max_steps=200, cooldown_steps=20), 30, None, Schedule(10, 20, 200), True, False, False),
        # ... with a cool-down that begins now at the earliest
        (RUN, [40], Request(max_steps=110, cooldown_steps=100), 40, None, Schedule(10, 70, 110), True, False, False),
        # ... and goes back to the last constant step when it has begun to fall
        (RUN, LATE, Request(max_steps=200), 40, None, MOVED, True, True, False),
        (RUN, END, Request(max_steps=200), 40, None, MOVED, True, True, False),
        (Schedule(10, 0, 100), END, Request(max_steps=200), 100, None, replace(MOVED, cooldown_steps=100), True, False, False),
        # an open-ended run gets a horizon
        (OPEN, EARLY, Request(max_steps=200), 30, None, MOVED, True, False, False),
        (OPEN, [150], Request(max_steps=200), 150, None, Schedule(10, 50, 200), True, False, False),
        # --until_step and --more_steps pause, the horizon stays
        (RUN, EARLY, Request(until_step=35), 30, 35, RUN, False, False, False),
        (RUN, EARLY, Request(until_step=500), 30, 500, RUN, False, False, False),
        (RUN, EARLY, Request(until_step=30), 30, 30, RUN, False, False, True),
        (RUN, EARLY, Request(more_steps=7), 30, 37, RUN, False, False, False),
        (OPEN, EARLY, Request(more_steps=7), 30, 37, OPEN, False, False, False),
        (RUN, EARLY, Request(max_steps=50, until_step=40), 30, 40, RUN, False, False, False),
        (RUN, EARLY, Request(max_steps=200, more_steps=7), 30, 37, MOVED, True, False, False),
        # --resume_from_step starts again there
        (RUN, EARLY, Request(resume_from_step=20), 20, None, RUN, False, True, False),
        (RUN, EARLY, Request(resume_from_step=30), 30, None, RUN, False, False, False),
        (RUN, EARLY, Request(resume_from_step=0), 0, None, RUN, False, True, False),
        (RUN, END, Request(resume_from_step=90, max_steps=95), 90, 95, RUN, False, True, False),
        (RUN, END, Request(resume_from_step=40, max_steps=200), 40, None, MOVED, True, True, False),
        (RUN, END, Request(resume_from_step=90, max_steps=200), 40, None, MOVED, True, True, False),
        (RUN, EARLY, Request(resume_from_step=20, more_steps=2), 20, 22, RUN, False, True, False),
        # --finish cools down: a quarter of the steps done unless told
        (OPEN, [400], Request(finish=True), 400, None, Schedule(10, 100, 500), True, False, False),
        (OPEN, [400], Request(finish=True, cooldown_steps=7), 400, None, Schedule(10, 7, 407), True, False, False),
        (OPEN, [2], Request(finish=True), 2, None, Schedule(2, 1, 3), True, False, False),
        (OPEN, [400], Request(finish=True, more_steps=5), 400, 405, Schedule(10, 100, 500), True, False, False),
        (OPEN, [200, 400], Request(finish=True, resume_from_step=200), 200, None, Schedule(10, 50, 250), True, True, False),
        (RUN, EARLY, Request(finish=True), 30, None, Schedule(10, 7, 37), True, False, False),
        (RUN, LATE, Request(finish=True), 80, None, RUN, False, False, False),
        (RUN, [40], Request(finish=True), 40, None, RUN, False, False, False),
        (RUN, [40], Request(finish=True, cooldown_steps=60), 40, None, RUN, False, False, False),
        (RUN, [40], Request(finish=True, cooldown_steps=9), 40, None, Schedule(10, 9, 49), True, False, False),
        # another cool-down for the same horizon is obeyed until the rate has begun to fall
        (RUN, EARLY, Request(cooldown_steps=60), 30, None, RUN, False, False, False),
        (RUN, EARLY, Request(cooldown_steps=20), 30, None, Schedule(10, 20, 100), True, False, False),
        (RUN, EARLY, Request(max_steps=100, cooldown_steps=20), 30, None, Schedule(10, 20, 100), True, False, False),
        (RUN, EARLY, Request(cooldown_steps=20, until_step=35), 30, 35, Schedule(10, 20, 100), True, False, False),
        (RUN, EARLY, Request(cooldown_steps=0), 30, None, Schedule(10, 0, 100), True, False, False),
        (RUN, EARLY, Request(cooldown_steps=80), 30, None, Schedule(10, 70, 100), True, False, False),
        (RUN, [40], Request(cooldown_steps=20), 40, None, Schedule(10, 20, 100), True, False, False),
        (RUN, END, Request(cooldown_steps=20, resume_from_step=40), 40, None, Schedule(10, 20, 100), True, True, False),
        (Schedule(10, 0, 100), EARLY, Request(cooldown_steps=20), 30, None, Schedule(10, 20, 100), True, False, False),
        # ... and with a smaller one, which only pauses, it stays; an open-ended run has none yet
        (RUN, EARLY, Request(max_steps=50, cooldown_steps=20), 30, 50, RUN, False, False, False),
        (OPEN, EARLY, Request(cooldown_steps=20), 30, None, OPEN, False, False, False),
    ],
)  # fmt: skip
def test_C11_going_on_means(
    schedule: Schedule, resumable: list[int], request_: Request, start: int, until: int | None, after: Schedule,
    changed: bool, rewinds: bool, finished: bool,
) -> None:  # fmt: skip
    plan = plan_continuation(schedule, resumable[-1], resumable, request_)
    assert (plan.start, plan.until, plan.schedule) == (start, until, after)
    assert (plan.changed, plan.rewinds, plan.finished) == (changed, rewinds, finished)
    ignored = request_.cooldown_steps not in (None, after.cooldown_steps)
    assert plan.say or not (changed or finished or ignored)  # what differs from plain going on is said


@pytest.mark.parametrize(
    ("schedule", "resumable", "request_", "kind", "said"),
    [
        (RUN, EARLY, Request(resume_from_step=25), RunError, "step 25 has no training state .* steps that have one: 20, 30"),
        (RUN, EARLY, Request(resume_from_step=500), RunError, "newest step is 30"),
        (RUN, [70, 80], Request(max_steps=200), RunError, "cool-down began at step 40, which is no longer there"),
        (OPEN, EARLY, Request(max_steps=30), UsageError, "step 30 is already done"),
        (OPEN, EARLY, Request(max_steps=10), UsageError, "step 30 is already done"),
        (OPEN, [0], Request(finish=True), UsageError, "no step is done"),
        (OPEN, EARLY, Request(finish=True, resume_from_step=0), UsageError, "no step is done"),
        (OPEN, EARLY, Request(finish=True, cooldown_steps=0), UsageError, "nothing to do"),
        (RUN, LATE, Request(cooldown_steps=20), UsageError, "cool-down over 60 steps began after step 40"),
        (RUN, LATE, Request(max_steps=100, cooldown_steps=20), UsageError, "cool-down over 60 steps began after step 40"),
        (RUN, LATE, Request(finish=True, cooldown_steps=20), UsageError, "cool-down over 60 steps began after step 40"),
        (RUN, END, Request(cooldown_steps=20), UsageError, "cool-down over 60 steps began after step 40"),
        (Schedule(10, 0, 100), END, Request(cooldown_steps=20), UsageError, "the run has ended"),
    ],
)  # fmt: skip
def test_C11_going_on_is_refused(schedule: Schedule, resumable: list[int], request_: Request, kind: type[PositronError], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        plan_continuation(schedule, resumable[-1], resumable, request_)
    assert caught.value.hint
    if "began after" in said:  # the hint works
        assert "--resume_from_step 40" in caught.value.hint
        assert plan_continuation(schedule, resumable[-1], resumable, replace(request_, resume_from_step=40)).changed


def test_a_new_run_begins_at_step_0_with_the_schedule_it_was_given() -> None:
    assert plan_new(Request(), 10) == Plan(0, None, Schedule(10))
    assert plan_new(Request(max_steps=100, resume_from_step=0), 10) == Plan(0, None, RUN)
    assert plan_new(Request(max_steps=100, until_step=7), 10) == Plan(0, 7, RUN)
    assert plan_new(Request(max_steps=100, more_steps=8, cooldown_steps=20), 10) == Plan(0, 8, Schedule(10, 20, 100), asked=20)
    assert "takes effect with --finish or --max_steps" in plan_new(Request(cooldown_steps=20), 10).say
    for impossible in (Request(finish=True), Request(resume_from_step=3)):
        with pytest.raises(UsageError, match="no run to go on with"):
            plan_new(impossible, 10)


STEPS = st.integers(1, 300)
REQUESTS = st.builds(
    Request, max_steps=st.none() | STEPS, until_step=st.none() | STEPS, finish=st.booleans(), cooldown_steps=st.none() | st.integers(0, 300)
)


@given(
    schedule=st.builds(make_schedule, st.integers(0, 50), st.none() | st.integers(0, 300), st.none() | STEPS),
    request_=REQUESTS,
    data=st.data(),
)
def test_C11_no_plan_reaches_into_a_cool_down_that_another_one_began(schedule: Schedule, request_: Request, data: st.DataObject) -> None:
    newest = data.draw(st.integers(0, schedule.horizon if schedule.horizon is not None else 300))
    cooldown = schedule.cooldown_start
    resumable = sorted({step for step in (newest, cooldown) if step is not None and 0 < step <= newest})
    try:
        plan = plan_continuation(schedule, newest, resumable, request_)
    except (RunError, UsageError):
        return
    assert plan.start == newest or plan.rewinds
    assert plan.finished or plan.start == 0 or plan.start in resumable
    if plan.changed:
        assert cooldown is None or plan.start <= cooldown  # the changed schedule takes over at a constant rate
        assert plan.schedule.cooldown_start is None or plan.schedule.cooldown_start >= plan.start
        assert plan.schedule.horizon is not None and plan.schedule.horizon > plan.start
    else:
        assert plan.schedule == schedule
    again = recorded_schedule([record_of(schedule, 0), record_of(plan.schedule, plan.start)], plan.start)
    assert again == plan.schedule


@given(request_=REQUESTS, warmup=st.integers(0, 50), data=st.data())
def test_C11_the_same_command_again_changes_nothing_wherever_it_was_cut(request_: Request, warmup: int, data: st.DataObject) -> None:
    """Also when the cool-down that it names is too long for its horizon. The first command begins a run, the second one moves it."""
    events: list[dict[str, Any]] = []
    resumable: list[int] = []
    newest = 0
    for command in (replace(data.draw(REQUESTS), finish=False), request_):
        try:
            plan = planned(events, newest, resumable, command, warmup)
        except (RunError, UsageError):
            return
        if plan.changed or not events:
            events.append(record_of(plan.schedule, plan.start, plan.asked))
        end = min(step for step in (plan.until, plan.schedule.horizon, 400) if step is not None)
        resumable = sorted({*(step for step in resumable if step <= plan.start), *range(max(plan.start, 1), max(plan.start, end) + 1)})
        newest = data.draw(st.integers(plan.start, max(plan.start, end)))
        resumable = [step for step in resumable if step <= newest]
    again = planned(events, newest, resumable, command, warmup)
    assert not again.changed and again.start == newest and again.schedule == recorded_schedule(events, newest)


def planned(events: list[dict[str, Any]], newest: int, resumable: list[int], request_: Request, warmup: int) -> Plan:
    """The plan of a command for a run with these events, none for a new one."""
    if not events:
        return plan_new(request_, warmup)
    asked = schedule_event(events, newest).get("asked_cooldown_steps")
    return plan_continuation(recorded_schedule(events, newest), newest, resumable, request_, asked)


def test_the_schedule_in_force_is_the_newest_event_up_to_the_step() -> None:
    events = [record_of(OPEN, 0), {"kind": "note", "step": 20}, record_of(RUN, 30)]
    assert [recorded_schedule(events, step) for step in (0, 29, 30, 99, None)] == [OPEN, OPEN, RUN, RUN, RUN]
    with pytest.raises(RunError, match="records no schedule"):
        recorded_schedule([])


# --- setting a run back -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(workshop: Path) -> RunFolder:
    """The finished run of 30 steps; it holds the steps 0, 12, 20, 25, 30, of which 12, 25 and 30 can be resumed."""
    return RunFolder(Path("runs/base"))


def test_setting_back_moves_folders_and_lines_and_deletes_nothing(base: RunFolder) -> None:
    folders, rows = {step: digests(base.folder(step)) for step in base.steps()}, lines_of(base.path / "metrics.jsonl")
    samples = lines_of(base.path / "samples.jsonl")
    base.rewind(12, keep_lines=True)
    attic = base.path / "superseded" / "001"
    assert base.steps() == [0, 12] and sorted(p.name for p in attic.iterdir()) == [
        "metrics.jsonl", "samples.jsonl", "step_000020", "step_000025", "step_000030"
    ]  # fmt: skip
    assert {step: digests(attic / ckpt.step_name(step)) for step in (20, 25, 30)} == {step: folders[step] for step in (20, 25, 30)}
    assert lines_of(base.path / "metrics.jsonl") + lines_of(attic / "metrics.jsonl") == rows
    assert [row["step"] for row in lines_of(base.path / "metrics.jsonl")] == list(range(1, 13))
    assert lines_of(base.path / "samples.jsonl") + lines_of(attic / "samples.jsonl") == samples
    assert find_checkpoint(base.path / "latest", say=pytest.fail).step == 12
    base.rewind(0, keep_lines=True)
    assert base.steps() == [0] and sorted(p.name for p in (base.path / "superseded").iterdir()) == ["001", "002"]
    assert lines_of(base.path / "superseded" / "002" / "metrics.jsonl") == rows[:12]


def test_going_on_cuts_the_lines_past_the_checkpoint_and_an_unfinished_one(base: RunFolder) -> None:
    whole = (base.path / "metrics.jsonl").read_bytes()
    with open(base.path / "metrics.jsonl", "a") as log:
        log.write('{"step": 31}\n{"step": 32, "lo')
    base.rewind(30, keep_lines=False)
    assert (base.path / "metrics.jsonl").read_bytes() == whole
    assert base.steps() == [0, 12, 20, 25, 30] and not (base.path / "superseded").exists()


def test_a_run_that_never_reached_a_checkpoint_starts_with_empty_logs(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.log("samples", {"step": 0, "text": "x"})
    run.log("metrics", {"step": 1})
    run.rewind(0, keep_lines=False)
    assert run.metrics() == [] and files.read_lines(tmp_path / "samples.jsonl") == []


# --- retention --------------------------------------------------------------------------------------------------------------------------


def fake_step(run: RunFolder, step: int) -> None:
    """A step folder with the least that a checkpoint needs."""
    with files.atomic_folder(run.folder(step), ckpt.FILES.__contains__) as folder:
        for name in (*ckpt.NEEDED, ckpt.STATE_FILE, ckpt.STATE_JSON):
            files.write_text(folder / name, name)
        ckpt.write_manifest(folder)


def test_two_newest_and_the_last_constant_step_can_be_resumed_and_milestones_stay_as_models(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    milestones, constant = frozenset({0, 2, 5}), frozenset({4})
    for step in range(10):
        fake_step(run, step)
        run.prune(step, milestones, constant)
        expected = {s for s in range(step + 1) if s > step - 2 or s == 4}
        assert run.resumable() == sorted(expected)
        assert run.steps() == sorted(expected | {s for s in milestones if s <= step})
        for kept in run.steps():
            assert set(ckpt.verify(run.folder(kept))) | {"manifest.json"} == set(digests(run.folder(kept)))
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@needs_fork
@pytest.mark.parametrize("point", ["before_drop_training", "before_prune"])
def test_C3_a_kill_while_tidying_up_is_made_good_by_the_next_save(tmp_path: Path, point: str) -> None:
    run, milestones = RunFolder(tmp_path), frozenset({2})
    for step in (1, 2, 3, 4):
        fake_step(run, step)

    def tidy() -> int:
        run.prune(4, milestones, frozenset())
        return 0

    assert forked(tidy, fault=point) == -signal.SIGKILL
    assert run.resumable()[-2:] == [3, 4] and all(ckpt.verify(run.folder(step)) for step in run.steps())
    assert tidy() == 0
    files.remove_leftovers(tmp_path, lambda _: True)
    assert run.steps() == [2, 3, 4] and run.resumable() == [3, 4]
    assert not (run.folder(2) / "training").exists()


def test_milestones_are_every_hundred_to_a_thousand_and_then_every_five_hundred() -> None:
    kept = [step for step in range(3001) if is_milestone(step, None)]
    assert kept == [*range(0, 1001, 100), 1500, 2000, 2500, 3000]
    assert [step for step in range(10) if is_milestone(step, frozenset({0, 7}))] == [0, 7]


def test_a_finished_run_keeps_what_the_rule_says(base: RunFolder) -> None:
    assert base.steps() == [0, 12, 20, 25, 30] and base.resumable() == [12, 25, 30]
    for step in base.steps():
        assert ckpt.open_checkpoint(base.folder(step)).has_training == (step in (12, 25, 30))


# --- finding a checkpoint ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "step"),
    [
        ("runs/base", 30), ("runs/base/", 30), ("runs/base/latest", 30), ("runs/base/latest.pt", 30), ("runs/base/step_000012", 12),
        ("runs/base/step_12", 12), ("runs/base/step_12.pt", 12), ("runs/base/step_000012.pt", 12), ("runs/base/step_000000", 0),
        ("./runs/../runs/base/latest", 30), ("runs/base/latest.pth", 30),
    ],
)  # fmt: skip
def test_a_checkpoint_is_found_by_every_spelling_in_silence(base: RunFolder, spelling: str, step: int) -> None:
    assert find_checkpoint(spelling, say=pytest.fail).step == step
    assert find_checkpoint(Path(spelling).absolute(), say=pytest.fail).step == step


def test_latest_may_be_a_text_file_with_the_name(base: RunFolder) -> None:
    (base.path / "latest").unlink()
    (base.path / "latest").write_text("step_000012\n")
    for spelling in ("runs/base/latest", "runs/base/latest.pt"):
        assert find_checkpoint(spelling, say=pytest.fail).step == 12


def test_latest_becomes_a_text_file_where_links_are_not_allowed(base: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    base.point("latest", 25)
    assert (base.path / "latest").read_text() == "step_000025\n" and not (base.path / "latest").is_symlink()
    assert find_checkpoint("runs/base/latest", say=pytest.fail).step == 25


@pytest.mark.parametrize("content", [None, "", "\n", "step_000099", "step_", "../../elsewhere", "latest", "\udcff"])
def test_C3_a_latest_that_names_nothing_gives_the_newest_complete_step_with_a_warning(base: RunFolder, content: str | None) -> None:
    (base.path / "latest").unlink()
    if content is not None:
        (base.path / "latest").write_bytes(content.encode("utf-8", "surrogateescape"))
    said: list[str] = []
    assert find_checkpoint("runs/base/latest", say=said.append).step == 30
    assert len(said) == 1 and said[0].startswith("warning: ")


def test_C3_a_latest_that_links_to_nothing_gives_the_newest_complete_step_with_a_warning(base: RunFolder) -> None:
    for target in ("step_000099", "/nowhere", "latest"):
        (base.path / "latest").unlink()
        (base.path / "latest").symlink_to(target)
        said: list[str] = []
        assert find_checkpoint("runs/base/latest", say=said.append).step == 30
        assert len(said) == 1 and said[0].startswith("warning: ")


def test_C6_damaged_steps_are_passed_over_and_said(base: RunFolder) -> None:
    (base.folder(30) / "model.safetensors").write_bytes(b"damaged")
    (base.folder(25) / "manifest.json").unlink()
    for spelling in ("runs/base", "runs/base/latest"):
        said: list[str] = []
        assert find_checkpoint(spelling, say=said.append).step == 20
        assert any("step_000030" in line for line in said) and any("step_000025" in line for line in said)
    assert base.newest(training=True, say=lambda _: None).step == 12
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):  # a step that was named is not replaced by another one
        find_checkpoint("runs/base/step_000030")


@pytest.mark.parametrize(
    "spelling", ["runs/none", "runs/none/latest.pt", "runs/base/step_000013", "runs/base/step_7.pt", "no/such/latest", "text"]
)
def test_a_missing_checkpoint_lists_the_runs_there_are(base: RunFolder, spelling: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(spelling)
    assert "runs/base" in caught.value.hint and spelling.removesuffix(".pt").removesuffix("/latest") in caught.value.message


def test_without_runs_the_hint_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint("runs/x")
    assert "positron train" in caught.value.hint


def test_runs_are_listed_newest_first(base: RunFolder) -> None:
    for n, name in enumerate(("b", "a", "c")):
        shutil.copytree(base.path, Path("runs") / name, symlinks=True)
        os.utime(Path("runs") / name / "run.json", (n, n))
    Path("runs/README.md").write_text("")
    Path("runs/empty").mkdir()
    assert [path.name for path in list_runs()] == ["base", "c", "a", "b"]


def test_a_run_json_of_another_format_is_refused(base: RunFolder) -> None:
    for content in ("[]", "{}", '{"format": 2}'):
        base.run_json.write_text(content)
        with pytest.raises(RunError, match="not a run of format 1"):
            base.read()


# --- one writer -------------------------------------------------------------------------------------------------------------------------


HOLD = """
import sys
from pathlib import Path
from positron_mini.store.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).writing():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_C8_a_second_writer_is_refused_with_the_pid_of_the_first_and_a_dead_one_holds_nothing(base: RunFolder) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(base.path)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    before = listing(base.path)
    result = tiny_train("runs/base", "--max_steps", "40")
    assert result.code == 1 and f"process {holder.pid} is training" in result.sentence and f"kill -INT {holder.pid}" in result.hint
    assert listing(base.path) == before
    holder.kill()
    holder.communicate()
    assert (base.path / ".lock.json").exists()
    with base.writing():
        assert files.read_json(base.path / ".lock.json") == {"pid": os.getpid()}
    assert not (base.path / ".lock.json").exists()


def test_leftovers_of_a_killed_process_are_removed_by_the_next_writer(base: RunFolder) -> None:
    (base.path / ".tmp-step_000035-99").mkdir()
    with base.writing():
        assert not (base.path / ".tmp-step_000035-99").exists()
