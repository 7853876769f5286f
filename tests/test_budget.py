"""Laws of the time budget: the plan is the best by the law, the run keeps to the clock, goes on, and says what it reached."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from helpers.runs import lines_of, positron, trained
from positron_mini.config import PRESETS, ModelConfig, TrainConfig, model_config, parse_duration
from positron_mini.device import Finding, Machine, Verdict
from positron_mini.errors import UsageError
from positron_mini.optim import Schedule, move_horizon
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_record import RunRecord
from positron_mini.train import budget, law
from positron_mini.train.law import TINYSTORIES, batch_for, candidate, choose, worth_of_text
from positron_mini.train.pace import Pacer

_FLAGS = (
    "--config PicoGPT --dataset_path text.txt --tokenizer_path spm.model --n_layer 1 --n_embd 32 --n_head 2 --head_dim 16 --ffn 64 "
    "--context_len 64 --batch_tokens 512 --warmup_steps 2 --milestones 0 --compile off --threads 1 --out_dir runs/timed"
)
TINY = _FLAGS.split()
SHAPES = {name: model_config(TrainConfig(config=name), budget.VOCABULARY[name]) for name in PRESETS}
FLOPS = {"a laptop's CPU": 2e11, "a laptop's GPU": 4e12, "a large GPU": 1e14}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("15min", 900), ("1h30m", 5_400), ("2H", 7_200), ("1.5h", 5_400)])
def test_a_duration_is_read_as_a_person_writes_it(text: str, seconds: float) -> None:
    assert parse_duration(text, "budget") == seconds


@pytest.mark.parametrize("text", ["", "15", "m", "five minutes", "-3m", "9s", "31d", "1000h", "1m1h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="budget"):
        parse_duration(text, "budget")


def speed_of(flops: float) -> dict[str, float]:
    return {name: flops / shape.flops_per_token() for name, shape in SHAPES.items()}


@pytest.mark.parametrize("machine", FLOPS)
@pytest.mark.parametrize("minutes", [1, 5, 15, 60, 600])
def test_the_chosen_plan_is_the_best_of_all_and_no_more_than_needed_is_measured(machine: str, minutes: float) -> None:
    speeds, measured = speed_of(FLOPS[machine]), []
    found = choose(SHAPES, lambda name: measured.append(name) or speeds[name], 60 * minutes, 2e9)  # type: ignore[func-returns-value]
    plans = [candidate(name, shape, speeds[name], 60 * minutes, 2e9, None) for name, shape in SHAPES.items()]
    assert found.expected_bpb == min(plan.expected_bpb for plan in plans)
    assert found.config in measured and len(measured) == len(set(measured)) <= 3


@pytest.mark.parametrize(
    ("asked", "bf16", "has_verdict", "speeds", "wanted"),
    [
        ("auto", ("cpu",), False, {"fp32": 100.0, "bf16": 150.0}, "bf16"),
        ("auto", ("cpu",), False, {"fp32": 100.0, "bf16": 102.0}, "fp32"),  # within the noise
        ("auto", (), False, {}, "auto"),  # bf16 would be emulated: not even tried
        ("auto", ("cpu",), True, {}, "auto"),  # the doctor decides
        ("fp32", ("cpu",), False, {}, "fp32"),
        ("bf16", ("cpu",), False, {}, "bf16"),
    ],
)
def test_bf16_on_a_cpu_is_taken_where_it_was_measured_to_be_faster(
    asked: str, bf16: tuple[str, ...], has_verdict: bool, speeds: dict[str, float], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Verdict((Finding("cpu", "fp32", (), 100.0),), "2026-11-24") if has_verdict else None
    machine = Machine(("cpu",), bf16, 8 << 30, 2, True, "Linux", verdict=found)  # type: ignore[arg-type]
    monkeypatch.setattr(budget.devices, "this_machine", lambda: machine)
    monkeypatch.setattr(budget, "measured_speed", lambda shape, device, precision: speeds[precision])
    config = TrainConfig(precision=asked)  # type: ignore[arg-type]
    assert budget.faster_precision(config, SHAPES["PicoGPT"], lambda text: None) == wanted


def test_more_time_and_faster_machines_are_worth_larger_models_and_end_lower() -> None:
    order = list(SHAPES)
    for text_bytes in (13e6, 2e9):
        before, rank = math.inf, 0
        for minutes in (1, 2, 5, 15, 60, 240, 1_000):
            plan = choose(SHAPES, speed_of(2e11).__getitem__, 60 * minutes, text_bytes)
            assert plan.expected_bpb < before and order.index(plan.config) >= rank
            before, rank = plan.expected_bpb, order.index(plan.config)


def test_reading_a_text_again_is_worth_less_each_time() -> None:
    worth = [worth_of_text(readings * 1e6, 1e6) for readings in (0.5, 1, 2, 4, 8, 16, 64, 1_000)]
    assert worth[:2] == [0.5e6, 1e6] and worth == sorted(worth)
    assert 1.9e6 < worth[2] < 2e6 and worth[-1] < (1 + law.REUSE) * 1e6 + 1
    assert TINYSTORIES.bits_per_byte(1e6, worth[-1]) > TINYSTORIES.floor


def test_slow_machines_take_small_steps_and_fast_ones_do_not_starve() -> None:
    assert [batch_for(speed) for speed in (300.0, 8_000.0, 60_000.0, 1e7)] == [2_048, 2_048, 8_192, 32_768]


# --- runs -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fixed_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is believed to make 30 steps in 10 s, which is far too few."""

    def guess(shapes: dict[str, ModelConfig], *_: object) -> budget.Candidate:
        ((name, shape),) = shapes.items()
        return budget.Candidate(name, shape, 1_500.0, 512, 30, 1.5)

    monkeypatch.setattr(budget, "choose", guess)


@pytest.mark.usefixtures("fixed_plan")
def test_a_run_keeps_to_its_time_says_what_it_reached_and_is_exact_relative_to_its_events(workshop: Path) -> None:
    result = positron("train", *TINY, "--budget", "10s")
    run = RunFolder(Path("runs/timed"))
    record = run.read()
    assert result.code == 0 and record is not None, result.err
    horizon = record.horizon
    rows = run.metrics()
    assert horizon is not None and horizon > 30 and rows[-1]["step"] == horizon
    assert 9.0 < rows[-1]["elapsed_s"] < 15.0  # how closely minutes are kept: test_pace.py, and on a machine that may be busy, so
    assert "reached" in result.err and f"expected {record.expected_bpb:.2f}" in result.err
    assert [event["kind"] for event in lines_of(run.path / "events.jsonl")].count("replan") == len(record.events) - 1
    again = positron("verify", "runs/timed", "--replay", "5")  # the same events give the same bytes
    assert again.code == 0, again.err
    result = positron("train", "--out_dir", "runs/timed", "--budget", "15s", "--threads", "1")
    assert result.code == 0 and "going back to step" in result.err and 13.0 < run.metrics()[-1]["elapsed_s"] < 22.5, result.err


@pytest.mark.usefixtures("fixed_plan")
def test_a_cool_down_that_a_move_of_the_horizon_begins_at_once_can_be_gone_back_from(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(self: Pacer, step: int, step_s: float, other_s: float, elapsed_s: float, schedule: Schedule) -> Schedule | None:
        return move_horizon(schedule, step, 11) if step == 9 else None

    monkeypatch.setattr(Pacer, "look", look)
    assert positron("train", *TINY, "--budget", "10s", "--warmup_steps", "0").code == 0
    run = RunFolder(Path("runs/timed"))
    record = run.read()
    assert record is not None and record.schedule_at().cooldown_start == 9
    result = positron("train", "--out_dir", "runs/timed", "--budget", "20s", "--until_step", "10", "--threads", "1")
    assert result.code == 0 and "going back to step 9," in result.err, result.err


@pytest.mark.usefixtures("fixed_plan")
def test_a_run_with_a_budget_goes_on_from_where_it_stopped(workshop: Path) -> None:
    assert positron("train", *TINY, "--budget", "20s", "--until_step", "20").code == 0
    first = trained(Path("runs/timed"), 20)
    result = positron("train", *TINY, "--budget", "20s", "--until_step", "25")
    assert result.code == 0 and "going on from step 20" in result.err and trained(Path("runs/timed"), 20) == first


@pytest.mark.usefixtures("fixed_plan")
@pytest.mark.parametrize(
    ("words", "reason"),
    [([], "fp32 by measurement"), (["--precision", "auto"], "fp32 by measurement"), (["--precision", "fp32"], "fp32 as asked")],
)
def test_a_precision_that_the_budget_measured_is_not_said_to_be_asked_for(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    monkeypatch.setattr(budget, "faster_precision", lambda config, shape, say: "fp32")
    result = positron("train", *TINY, "--device", "cpu", "--budget", "10s", "--until_step", "1", *words)
    record = RunFolder(Path("runs/timed")).read()
    assert result.code == 0 and f"fp32 (as asked; {reason})" in result.err, result.err
    assert record is not None and record.device["reason"] == f"as asked; {reason}" and record.config["precision"] == "fp32"


def test_a_budget_and_a_number_of_steps_are_refused_and_nothing_is_written(workshop: Path) -> None:

    result = positron("train", *TINY, "--budget", "10s", "--max_steps", "5")
    assert result.code == 2 and "--budget and --max_steps" in result.sentence and not os.path.exists("runs/timed")


def test_without_a_folder_the_newest_run_with_a_budget_goes_on(workshop: Path) -> None:
    for name, config in (("positron-mini-1M-v1-base", "PicoGPT"), ("positron-mini-3M-v1-base", "MicroGPT")):
        Path("runs", name).mkdir()
        RunRecord(kind="pretrain", config={"config": config, "budget": "10m", "dataset_path": "text.txt"}).write(Path("runs", name))
    os.utime("runs/positron-mini-1M-v1-base/run.json", (1, 1))
    found = budget.existing_run(TrainConfig(budget="10m"), frozenset())
    assert found is not None and found.path.name == "positron-mini-3M-v1-base"
    found = budget.existing_run(TrainConfig(budget="10m", config="PicoGPT"), frozenset({"config"}))
    assert found is not None and found.path.name == "positron-mini-1M-v1-base"
    assert budget.existing_run(TrainConfig(budget="10m", dataset_path="other.txt"), frozenset({"dataset_path"})) is None
    assert json.loads(Path("runs/base/run.json").read_text())["config"]["budget"] is None  # a run without one is never taken
    Path("runs/odd").mkdir()
    Path("runs/odd/run.json").write_text("[")  # another run's damage is said, and stops nothing
    said: list[str] = []
    found = budget.existing_run(TrainConfig(budget="10m"), frozenset(), said.append)
    assert found is not None and len(said) == 1 and "runs/odd/run.json" in said[0]
