"""Laws of held-out loss that turns: seen when it does, never in noise; the best step is kept, named and served; runs stay exact."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.runs import Result, assert_same_run, lines_of, metric, positron, tiny_train, write_run
from positron_mini.config import TrainConfig, default_eval_every, model_config
from positron_mini.evaluate.bits import Score
from positron_mini.report.advice import advise
from positron_mini.report.corpus import Corpus
from positron_mini.report.short import short_form
from positron_mini.store.curve import Turn, curve_checks, turned, validations
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_history import read_run
from positron_mini.text.prepare import prepare_corpus
from positron_mini.train import budget, law, pretrain
from positron_mini.train.recorder import Recorder
from positron_mini.trainer import StepReport

Curve = Callable[[float], float]


def rows_of(held_out: Curve, training: Curve, count: int = 40, noise: float = 0.0, seed: int = 0) -> list[dict[str, float | int]]:
    """A report every step and a validation every fifth one, `count` of them, with normal noise of that share."""
    draw = random.Random(seed)
    rows: list[dict[str, float | int]] = []
    for step in range(1, 5 * count + 1):
        row: dict[str, float | int] = {"step": step, "loss": training(step / 5) * (1 + noise * draw.gauss(0, 1))}
        if step % 5 == 0:
            loss = held_out(step / 5) * (1 + noise * draw.gauss(0, 1))
            row |= {"val_loss": loss, "val_bpb": loss / 2}
        rows.append(row)
    return rows


def turn_of(rows: list[dict[str, float | int]]) -> Turn | None:
    return turned(validations(rows))


def falling(k: float) -> float:
    return 2.0 + 4.0 / math.sqrt(k)


def ever_turned(rows: list[dict[str, float | int]]) -> bool:
    """Whether it is said at any of the validations."""
    return any(turn_of(rows[: i + 1]) is not None for i, row in enumerate(rows) if "val_loss" in row)


def test_a_turn_is_seen_three_validations_after_it_is_clear_and_names_the_lowest() -> None:
    held_out = [5.0, 4.0, 3.5, 3.2, 3.1, 3.05, 3.1, 3.2, 3.3, 3.4, 3.5]
    rows = rows_of(lambda k: held_out[round(k) - 1], falling, 11)
    # the lowest median of three is 3.1; the bends are 0.5 0.2 0.2 0.05 0.1 0.05 0 0 0, of which the median is 0.05; five times the noise
    # behind it, 1.4826 * 0.05 / sqrt(6), is 0.15: the first three in a row above 3.25 are 3.3, 3.4 and 3.5
    assert [turn_of(rows[: 5 * n]) for n in range(1, 11)] == [None] * 10
    found = turn_of(rows)
    assert found is not None and (found.best.step, found.best.loss, found.best.bpb) == (30, 3.05, 3.05 / 2)
    assert (found.newest.step, found.newest.loss, found.newest.bpb) == (55, 3.5, 1.75)


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.01, 0.03])
@pytest.mark.parametrize("held_out", [falling, lambda k: 3.0, lambda k: max(2.5, 5 - 0.2 * k)], ids=["falling", "flat", "a plateau"])
def test_noise_is_no_turn(held_out: Curve, noise: float) -> None:
    false_alarms = sum(ever_turned(rows_of(held_out, falling, 60, noise, seed)) for seed in range(50))
    assert false_alarms <= 1


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.01])
def test_a_text_that_is_learned_by_heart_is_seen_in_spite_of_noise(noise: float) -> None:
    def held_out(k: float) -> float:
        return falling(k) if k < 10 else falling(10) * (1 + 0.02 * (k - 10))

    assert all(turn_of(rows_of(held_out, falling, 30, noise, seed)) is not None for seed in range(50))


def test_a_rise_from_the_first_validation_on_is_a_turn() -> None:
    found = turn_of(rows_of(lambda k: 2.7 + 0.1 * k, falling, 7))
    assert found is not None and found.best.step == 5


def test_one_lucky_validation_is_no_turn() -> None:
    def held_out(k: float) -> float:
        return 2.5 if round(k) == 12 else 3.0

    assert not ever_turned(rows_of(held_out, falling, 30))


def test_where_training_rises_too_something_else_is_wrong() -> None:
    def both(k: float) -> float:
        return 3.0 if k < 10 else 3.0 + 0.3 * (k - 10)

    assert turn_of(rows_of(both, both, 20)) is None and turn_of(rows_of(both, falling, 20)) is not None


def test_a_new_lowest_takes_the_turn_back() -> None:
    def held_out(k: float) -> float:
        return falling(k) if k < 10 else falling(10) + 0.1 * (k - 10) if k < 16 else 2.0

    rows = rows_of(held_out, falling, 25)
    assert ever_turned(rows) and turn_of(rows) is None


# --- what training counts and validation does not ---------------------------------------------------------------------------------------


def memorising(rows: list[dict[str, float | int]], bos_share: float) -> bool | None:
    whole = [{**row, "tok_per_s": 1.0, "tokens": row["step"]} for row in rows]
    return next(c.ok for c in curve_checks(whole, 512, is_pretraining=True, bos_share=bos_share) if c.name == "memorising")


def test_a_free_bos_in_every_fifth_target_is_no_memorising() -> None:
    rows = rows_of(lambda k: 3.0, lambda k: 3.0 * 0.8)  # of five targets four cost 3 nats and one nothing
    assert memorising(rows, 0.0) is False and memorising(rows, 0.2) is True
    assert memorising(rows_of(lambda k: 3.0, lambda k: 2.0), 0.2) is False  # 2.5 without the bos, and 3.0 is a fifth above that


# --- runs -------------------------------------------------------------------------------------------------------------------------------

TURNING = {
    2: 3.0, 4: 2.5, 6: 2.2, 8: 2.0, 10: 2.1, 12: 2.2, 14: 2.3, 16: 2.4, 18: 2.5, 20: 2.6, 22: 2.7, 24: 2.8, 26: 2.9, 28: 3.0, 30: 3.1,
}  # fmt: skip


@pytest.fixture
def held_out(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """The held-out loss of runs, by step, in place of the model's own; the same in every process and after every pause."""
    series, now, record = dict(TURNING), [0], Recorder.record

    def noted(self: Recorder, report: StepReport) -> StepReport:
        now[0] = report.step
        return record(self, report)

    def scored(*_: object, **__: object) -> Score:
        loss = series.get(now[0], 3.1)
        return Score(1_000 * loss, 1_000, round(1_000 / math.log(2)), 10)  # as many bits per byte as nats per token, nearly

    monkeypatch.setattr(Recorder, "record", noted)
    monkeypatch.setattr(pretrain, "score_documents", scored)
    return series


def trains(out_dir: str, *words: str) -> Result:
    return tiny_train(out_dir, "--eval_every", "2", "--milestones", "none", *words).ok()


@pytest.mark.usefixtures("held_out")
def test_C1_what_is_kept_for_a_turn_does_not_depend_on_pauses(workshop: Path) -> None:
    trains("whole/x", "--max_steps", "30")
    for step in (7, 9, 17, 22):  # before, after and at the moment when it is seen
        trains("parts/x", "--max_steps", "30", "--until_step", str(step))
    trains("parts/x", "--max_steps", "30")
    assert_same_run(Path("whole/x"), Path("parts/x"))
    assert os.readlink("whole/x/best") == os.readlink("parts/x/best") == "step_000008"
    assert RunFolder(Path("whole/x")).steps() == [8, 12, 25, 30]  # the best, the last constant one, the two newest


@pytest.mark.usefixtures("held_out")
def test_a_turn_is_said_once_and_the_run_stands_for_its_best_step(workshop: Path) -> None:
    result = trains("runs/x", "--max_steps", "30")
    # the lowest median of three is 2.1; of the bends 0.2, 0.1, 0.3, 0, 0, ... the median is 0 from step 18 on: 2.3 to 2.5 are above 2.142
    assert [(e["step"], e["best"]) for e in lines_of(Path("runs/x/events.jsonl")) if e["kind"] == "turned"] == [(18, 8)]
    assert result.err.count("held-out loss has turned") == 1 and "best       step 8, " in result.err and "more text helps" in result.err
    said: list[str] = []
    assert find_checkpoint("runs/x", say=said.append).step == 8 and "taking step 8" in said[0]
    assert find_checkpoint("runs/x/latest").step == 30 and find_checkpoint("runs/x/best").step == 8
    assert "taking step 8" in positron("generate", "--ckpt", "runs/x", "--prompt", "One", "--max_tokens", "2").err


def test_without_a_turn_there_is_no_best_and_a_new_lowest_takes_it_away(workshop: Path, held_out: dict[int, float]) -> None:
    held_out[24] = 1.9
    trains("runs/x", "--max_steps", "30", "--until_step", "20")
    assert os.readlink("runs/x/best") == "step_000008"
    trains("runs/x", "--max_steps", "30", "--until_step", "25")
    assert not os.path.lexists("runs/x/best") and find_checkpoint("runs/x").step == 25
    assert RunFolder(Path("runs/x")).steps() == [12, 24, 25]


@pytest.mark.usefixtures("held_out")
def test_a_run_with_a_budget_ends_when_more_reading_only_hurts_and_a_larger_budget_changes_nothing(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "choose", lambda shapes, *_: budget.Candidate("PicoGPT", *shapes.values(), 9e3, 512, 400, 1.5))  # type: ignore[arg-type]
    result = trains("runs/x", "--budget", "600s")
    assert "as more reading only hurts, the run now ends at step 19 instead of " in result.err and "finished at step 19" in result.err
    assert ", reached 2.00 bits per byte" in result.err and "more text helps more than more minutes" in result.err
    assert find_checkpoint("runs/x").step == 8
    again = trains("runs/x", "--budget", "1200s")
    assert "more readings of this text are learned by heart" in again.err and "this run is finished" in again.err
    assert RunFolder(Path("runs/x")).steps()[-1] == 19


# --- what is advised --------------------------------------------------------------------------------------------------------------------


def test_the_report_of_a_run_that_has_turned_says_so_and_does_not_advise_more_training(tmp_path: Path) -> None:
    bits = {100: 2.73, 200: 2.9, 300: 3.2, 400: 3.6, 500: 4.0, 600: 4.5, 700: 5.0, 800: 6.01}
    folder = write_run(tmp_path / "made", metrics=[metric(step, 4.0 - step / 250, value) for step, value in bits.items()])
    advice = advise(read_run(folder), Corpus((), {}, {}), ())
    assert advice.headline == "no longer improving" and advice.next_command.startswith("positron generate --ckpt ")
    assert "2.730 bits per byte at step 100, 6.010 at step 800" in advice.improving.reason
    assert "validation at step 800: 6.010 bits per byte (lowest at step 100: 2.730)" in short_form(folder, 0)


PICO = model_config(TrainConfig(config="PicoGPT"), 512)


def test_a_text_with_fewer_bytes_than_the_model_has_weights_is_read_a_few_times_only() -> None:
    assert PICO.block_parameters == 853_248  # four blocks of 4 * 128 * 128 + 3 * 128 * 384, and norms of 2 * 128 + 2 * 32
    assert law.most_readings(PICO, 50_000, 60) == 5.0
    assert law.most_readings(PICO, 250_000, 32_000) == 2.5  # surnames
    assert law.most_readings(PICO, 853_248, 32_000) == law.most_readings(PICO, 2e9) == math.inf


def test_a_budget_for_a_short_text_is_steps_enough_and_no_more_than_it_is_worth() -> None:
    tokens = 5 * 50_000 / law.bytes_per_token(512)
    for seconds in (360, 3_600, 36_000):
        plan = law.candidate("PicoGPT", PICO, 20_000.0, seconds, 50_000, None)
        assert plan.batch_tokens == 512 and plan.tokens == pytest.approx(tokens, rel=0.01)
    assert law.candidate("PicoGPT", PICO, 20_000.0, 360, 2e9, None).batch_tokens == 4_096
    short = law.candidate("PicoGPT", PICO, 20_000.0, 1.0, 50_000, None)  # time for less than five readings
    assert short.tokens <= 0.85 * 20_000


def test_what_a_short_text_is_expected_to_end_with_does_not_fall_with_the_time() -> None:
    plans = [law.candidate("PicoGPT", PICO, 20_000.0, seconds, 50_000, None) for seconds in (60, 600, 6_000)]
    assert len({plan.expected_bpb for plan in plans}) == 1 and 2.1 < plans[0].expected_bpb < 2.6  # 2.15 to 2.35 was measured


def test_a_short_text_is_validated_about_once_a_reading() -> None:
    assert [default_eval_every(tokens, 2_048) for tokens in (5_000, 20_000, 41_000, 110_000, 10**9)] == [10, 10, 20, 50, 100]


def test_the_share_of_free_targets_is_that_of_the_documents_and_stands_in_the_record(workshop: Path) -> None:
    prepared = prepare_corpus(Path("text.txt"), tokenizer_path=Path("spm.model"), vocab_size=None, say=lambda _: None)
    share = int((prepared.train.ids[:] == 1).sum()) / prepared.train.count
    record = RunFolder(Path("runs/base")).read()
    assert record is not None and record.bos_share == round(share, 6) and 0 < share < 0.1
