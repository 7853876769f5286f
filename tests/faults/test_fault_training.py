"""Rows T of docs/reliability.md: numbers that are not finite, memory that is not there, as whole commands."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.faults import steps_again
from helpers.runs import Result, assert_same_run, copied, lines_of, listing, positron, timeless, tiny_train, trained
from positron_mini import files
from positron_mini.fast import losses
from positron_mini.model import GPT
from positron_mini.optim import Combined
from positron_mini.store.checkpoint import open_checkpoint
from positron_mini.store.run_folder import RunFolder
from positron_mini.train import open_run, speed
from positron_mini.trainer import Trainer

BASE, CUT = Path("runs/whole/run"), Path("runs/cut/run")
WORDS = ("--save_every", "4", "--eval_every", "6", "--milestones", "none", "--max_steps", "12", "--cooldown_steps", "3")
TEXTS = {
    "cuda": "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB",
    "mps": "MPS backend out of memory (MPS allocated: 17.96 GB, other allocations: 1.05 GB, max allowed: 18.13 GB).",
    "cpu": "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
}


def train(run: Path, *words: str) -> Result:
    return tiny_train(str(run), *WORDS, *words)


@pytest.fixture(scope="module")
def template(workshop_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with copied(workshop_template, tmp_path_factory.mktemp("faults") / "template") as folder:
        shutil.rmtree("runs")
        assert train(BASE).code == 0
        return folder


@pytest.fixture
def bench(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(speed, "measure_speed", lambda *_, **__: 1e4)
    with copied(template, tmp_path / "bench") as folder:
        yield folder


def poison_steps(monkeypatch: pytest.MonkeyPatch, *steps: int, value: float = float("nan")) -> None:
    """The loss of these updates is multiplied by `value`."""
    real = Trainer._gradients

    def poisoned(self: Trainer, batch: Any, stop: Any) -> Any:
        if self.step + 1 not in steps:
            return real(self, batch, stop)
        loss = self._loss
        self._loss = lambda *part: loss(*part) * value
        try:
            return real(self, batch, stop)
        finally:
            self._loss = loss

    monkeypatch.setattr(Trainer, "_gradients", poisoned)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in lines_of(run / "events.jsonl") if event["kind"] == kind]


# --- T1: not finite ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("step", [1, 6])
def test_T1_a_loss_that_is_not_finite_stops_with_code_3_and_evidence_and_the_last_checkpoint_goes_on(
    bench: Path, monkeypatch: pytest.MonkeyPatch, value: float, step: int, record_property: Callable[[str, object], None]
) -> None:
    with monkeypatch.context() as patch:
        poison_steps(patch, step, value=value)
        result = train(CUT)
    assert result.code == 3 and f"step {step}: the loss is" in result.sentence and "nothing was updated" in result.sentence
    assert "--on_nan skip --max_skips 3" in result.hint
    (evidence,) = events(CUT, "non_finite")
    assert evidence["step"] == step and evidence["loss"] == f"{value:g}" and evidence["bad_weights"] == [] and evidence["bad_gradients"]
    assert RunFolder(CUT).steps() == ([4] if step > 4 else [])
    assert [row["step"] for row in timeless(CUT)] == list(range(1, step))
    record_property("again", steps_again(CUT))
    assert train(CUT).code == 0
    assert_same_run(BASE, CUT)


def test_T1_a_weight_that_is_not_finite_never_reaches_a_checkpoint(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Combined.step

    def broken(self: Combined, multiplier: float, done: int) -> None:
        real(self, multiplier, done)
        if multiplier == 1.0:
            torch.nn.init.constant_(self.parts[1].named[0][1], float("inf"))  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr(Combined, "step", broken)
        result = train(CUT, "--save_every", "1")
        assert result.code == 3 and "step_000004: " in result.sentence and "this step is not saved" in result.sentence
        assert RunFolder(CUT).steps() == [2, 3] and events(CUT, "non_finite")[0]["tensor"].endswith("embed_tokens.weight")
        result = train(CUT, "--on_nan", "skip", "--save_every", "100")  # and no skipping makes such weights good again
        assert result.code == 3 and events(CUT, "non_finite")[1]["bad_weights"] == ["model.embed_tokens.weight"]
    assert all(open_checkpoint(RunFolder(CUT).folder(step)) for step in RunFolder(CUT).steps())
    assert train(CUT).code == 0
    assert trained(CUT, 12) == trained(BASE, 12)


def test_T1_skipping_leaves_the_step_out_and_says_so_wherever_the_run_is_cut(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_steps(monkeypatch, 4, 7)
    result = train(CUT, "--on_nan", "skip")
    assert result.code == 0 and "step 7: the loss is nan" in result.err and "skipped (2 of at most 3)" in result.err
    assert [event["step"] for event in events(CUT, "skipped")] == [4, 7]
    assert [row["step"] for row in timeless(CUT)] == [1, 2, 3, 5, 6, 8, 9, 10, 11, 12]
    assert files.read_json(CUT / "step_000012/training/state.json")["skipped"] == 2
    other = Path("runs/other/run")
    for words in (("--until_step", "3"), ("--until_step", "7"), ()):
        assert train(other, "--on_nan", "skip", *words).code == 0
    assert trained(other, 12) == trained(CUT, 12) and timeless(other) == timeless(CUT)


def test_T1_more_skips_than_allowed_stop_the_run(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_steps(monkeypatch, 2, 3, 6)
    result = train(CUT, "--on_nan", "skip", "--max_skips", "2")
    assert result.code == 3 and "step 6:" in result.sentence and "2 steps were skipped before" in result.sentence
    assert "--max_skips 5" in result.hint
    assert train(CUT, "--on_nan", "skip", "--max_skips", "5").code == 0


# --- T2: spikes -------------------------------------------------------------------------------------------------------------------------


def test_T2_a_gradient_a_thousand_times_too_large_is_clipped_and_logged(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_steps(monkeypatch, 6, value=1000.0)
    assert train(CUT).code == 0
    usual, spiked = ({row["step"]: row["grad_norm"] for row in timeless(run)} for run in (BASE, CUT))
    assert spiked[6] == pytest.approx(1000 * usual[6], rel=1e-3)
    last, expected = timeless(CUT)[-1]["loss"], timeless(BASE)[-1]["loss"]
    assert last == pytest.approx(expected, rel=0.02), "a clipped spike is one ordinary step"


def test_T2_above_a_limit_of_ones_own_it_stops_or_is_skipped(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_steps(monkeypatch, 6, value=1000.0)
    assert train(CUT, "--grad_limit", "50").code == 3
    assert train(CUT, "--grad_limit", "50", "--on_nan", "skip").code == 0
    (skipped,) = events(CUT, "skipped")
    assert skipped["step"] == 6 and float(skipped["grad_norm"]) > 50 and [6] not in [row["step"] for row in timeless(CUT)]


# --- T3: memory -------------------------------------------------------------------------------------------------------------------------


def give_memory_for(patch: pytest.MonkeyPatch, rows: int, text: str, from_step: int = 0) -> None:
    """From this update on, a loss, by whatever way, needs more memory than there is for more than `rows` rows."""
    count = [0]

    real = losses.loss_function

    def loss_function(*model: Any, **settings: Any) -> Callable[..., Any]:
        loss_of = real(*model, **settings)

        def loss(*parts: Any) -> Any:
            count[0] += 1
            if len(parts[0]) > rows and count[0] > from_step:
                raise RuntimeError(text)
            return loss_of(*parts)

        return loss

    patch.setattr(open_run, "loss_function", loss_function)
    patch.setattr(speed, "loss_function", loss_function)


@pytest.mark.parametrize("device", TEXTS)
def test_T3_a_first_step_that_does_not_fit_is_computed_in_halves_with_the_same_tokens_and_loss(
    bench: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    give_memory_for(monkeypatch, 3, TEXTS[device])
    result = train(CUT, "--short_steps", "0").ok()
    assert "out of memory with 8 rows at once; going on with 4" in result.err and "with 4 rows at once; going on with 2" in result.err
    assert [(event["before"], event["now"]) for event in events(CUT, "micro_batch")] == [(8, 4), (4, 2)]
    assert files.read_json(CUT / "run.json")["config"]["micro_batch"] == 2
    monkeypatch.undo()
    whole = Path("runs/other/run")
    assert train(whole, "--short_steps", "0").code == 0
    for one, other in zip(timeless(CUT), timeless(whole), strict=True):
        assert (one["tokens"], one["lr"]) == (other["tokens"], other["lr"])
    assert timeless(CUT)[0]["loss"] == pytest.approx(timeless(whole)[0]["loss"], rel=1e-5)
    assert timeless(CUT)[-1]["loss"] == pytest.approx(timeless(whole)[-1]["loss"], rel=1e-3)


def test_T3_a_run_that_began_with_a_smaller_micro_batch_goes_on_with_it_exactly(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_memory_for(monkeypatch, 5, TEXTS["cpu"])
    assert train(CUT, "--short_steps", "0").code == 0
    other = Path("runs/other/run")
    assert train(other, "--short_steps", "0", "--until_step", "5").code == 0
    assert "out of memory" not in train(other, "--short_steps", "0").err
    assert trained(other, 12) == trained(CUT, 12)


@pytest.mark.parametrize("device", TEXTS)
def test_T3_a_later_step_that_does_not_fit_stops_with_code_5_and_the_last_step_saved(
    bench: Path, monkeypatch: pytest.MonkeyPatch, device: str, record_property: Callable[[str, object], None]
) -> None:
    with monkeypatch.context() as patch:
        give_memory_for(patch, 0, TEXTS[device], from_step=6)
        result = train(CUT, "--short_steps", "0")
    assert result.code == 5 and "out of memory at step 7" in result.sentence and "--micro_batch 4" in result.hint
    record_property("again", steps_again(CUT))
    assert RunFolder(CUT).steps() == [4, 6] and lines_of(CUT / "metrics.jsonl")[-1]["step"] == 6
    other = Path("runs/other/run")
    assert train(CUT, "--short_steps", "0").code == 0 == train(other, "--short_steps", "0").code
    assert trained(CUT, 12) == trained(other, 12)


def test_T3_memory_that_ends_inside_an_update_saves_nothing_half_made(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Combined.step

    def broken(self: Combined, multiplier: float, done: int) -> None:
        self.parts[0].step(multiplier, done)
        if multiplier == 1.0:
            raise RuntimeError(TEXTS["mps"])
        self.parts[1].step(multiplier, done)

    with monkeypatch.context() as patch:
        patch.setattr(Combined, "step", broken)
        assert train(CUT, "--save_every", "2").code == 5
    assert real is Combined.step and RunFolder(CUT).steps() == [2]
    assert train(CUT).code == 0
    assert trained(CUT, 12) == trained(BASE, 12)


def test_T3_a_single_row_that_does_not_fit_is_refused_with_nothing_written(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    give_memory_for(monkeypatch, 0, TEXTS["cuda"])
    before = listing(bench)
    result = train(CUT)
    assert result.code == 5 and "a single row of 64 tokens" in result.sentence and "--context_len" in result.hint
    assert listing(bench) == before


def test_T3_memory_that_ends_anywhere_else_is_code_5_too(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(GPT, "init_weights", refuse)
    assert train(CUT).code == 5


def test_T6_a_run_that_cannot_write_its_log_stops_with_a_sentence(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, record: dict[str, Any]) -> None:
        with files.translate_os_errors(f"writing {path}"):
            raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(files, "append_line", refuse)
        result = train(CUT)
    assert result.code == 1 and "not allowed while writing" in result.sentence
    assert positron("train", "--out_dir", str(CUT), "--max_steps", "12").code == 0
    assert trained(CUT, 12) == trained(BASE, 12)
