"""Laws of fine-tuning: interrupted equals uninterrupted, the best step is kept, what it changed is measured, bad rows are refused."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shlex
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.faults import steps_again
from helpers.models import lively_model, shape
from helpers.project import ROOT
from helpers.runs import Result, copied, digests, lines_of, listing, positron, spawn, timeless, tiny_train, trained
from helpers.texts import made_stories
from positron_mini.chat.conversations import encode_conversations, read_conversations
from positron_mini.chat.packing import PackedBatches, Stories
from positron_mini.cli import quicksft
from positron_mini.evaluate.bits import Score
from positron_mini.model import GPT
from positron_mini.optim import Schedule
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_folder import RunFolder
from positron_mini.text.chat_format import Encoded, Message, encode_chat
from positron_mini.text.tokenizer import Tokenizer, train_tokenizer
from positron_mini.train import finetune as sft
from positron_mini.train.finetune import open_sft_session
from positron_mini.train.recorder import Recorder
from positron_mini.trainer import LoopConfig, StopFlag, Trainer

# 40 rows, of which 4 are for validation: 5 steps an epoch; of 15 steps the cool-down (60 %) begins after step 6
FLAGS = {
    "base_ckpt": "runs/base", "sft_data": "rows.jsonl", "epochs": "3", "batch_size": "8", "lr": "1e-2", "warmup_steps": "2",
    "val_share": "0.1", "save_every": "4", "eval_every": "3", "threads": "1",
}  # fmt: skip
NAMES = ["Lily", "Tom", "Mia", "Ben", "Zoe", "Max", "Anna", "Sam", "Lucy", "Jack"]
THINGS = ["ball", "dog", "cat", "boat", "house", "bird", "river", "cake"]


def rows(count: int = 40) -> list[dict[str, str]]:
    """Short conversations, no two of which share a question or an answer."""
    pairs = [(name, thing) for thing in THINGS for name in NAMES][:count]
    return [{"question": f"What did {name} do with the {thing}?", "answer": f"{name} found the {thing}."} for name, thing in pairs]


def write_rows(path: str | Path, lines: Sequence[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))


def tune(out_dir: str | None, **changes: str | None) -> Result:
    """`positron sft` with the tiny settings; a flag that is None is left out."""
    flags = {**FLAGS, "out_dir": out_dir, **changes}
    return positron("sft", *(word for name, value in flags.items() if value is not None for word in (f"--{name}", value)))


@pytest.fixture(scope="module")
def template(workshop_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workshop with conversations and `runs/tuned`, a finished fine-tuning of 15 steps; tests must not change it."""
    folder = tmp_path_factory.mktemp("sft") / "template"
    shutil.copytree(workshop_template, folder, symlinks=True)
    with contextlib.chdir(folder):
        write_rows("rows.jsonl", rows())
        (folder / "said.txt").write_text(tune("runs/tuned").ok().err)
    return folder


@pytest.fixture
def bench(template: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the template as the working directory. `runs/whole` is the finished fine-tuning, `runs/tuned` is free."""
    with copied(template, tmp_path / "bench") as folder:
        os.rename("runs/tuned", "runs/whole")
        yield folder


def best_step(run: str) -> int | None:
    """The step that `best` names, after checking that it is whole."""
    return ckpt.open_checkpoint((Path(run) / "best").resolve()).step


def lowest_logged(run: str) -> int:
    """The step with the lowest validation loss in the log."""
    scored = [(row["val_loss"], row["step"]) for row in lines_of(Path(run) / "metrics.jsonl") if "val_loss" in row]
    return int(min(scored)[1])


def assert_equal_runs(one: str, other: str) -> None:
    """The same steps with the same bytes, the same logs up to times, the same best."""
    first, second = RunFolder(Path(one)), RunFolder(Path(other))
    assert first.steps() == second.steps() and first.resumable() == second.resumable()
    for step in first.steps():
        assert trained(first.path, step) == trained(second.path, step), step
    assert timeless(first.path) == timeless(second.path)
    for name in ("samples", "stories", "events"):
        assert lines_of(first.path / f"{name}.jsonl") == lines_of(second.path / f"{name}.jsonl")
    assert best_step(one) == best_step(other)


# --- interrupted equals uninterrupted ---------------------------------------------------------------------------------------------------


def test_C1_three_chunks_equal_one_run_byte_for_byte(bench: Path) -> None:
    assert tune("runs/tuned", until_step="4").code == 0
    shutil.copytree("runs/base", "runs/newer", symlinks=True)  # a run that goes on knows its base model
    for words in (("--until_step", "9"), ()):  # and its settings, the number of epochs among them
        result = positron("sft", "--out_dir", "runs/tuned", *words)
        assert result.code == 0 and "horizon" not in result.err and "base model:" not in result.err
    os.rename("runs/whole", "runs/elsewhere")
    assert_equal_runs("runs/tuned", "runs/elsewhere")
    cards = [digests(Path(run) / "step_000015") for run in ("runs/tuned", "runs/elsewhere")]
    assert cards[0] == cards[1]  # both were written as runs/tuned, so every file of the model folder is equal


def test_C3_a_killed_run_started_again_equals_an_uninterrupted_one(
    bench: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    words = [word for name, value in {**FLAGS, "out_dir": "runs/tuned"}.items() for word in (f"--{name}", value)]
    with monkeypatch.context() as patch:
        patch.setenv("FAULT", "before_rename:3")  # SIGKILL, the third checkpoint all but there
        child = spawn("sft", *words)
    child.communicate()
    assert child.returncode == -signal.SIGKILL and RunFolder(Path("runs/tuned")).steps() == [3, 4]
    record_property("again", steps_again(Path("runs/tuned")))
    assert positron("sft", "--out_dir", "runs/tuned").code == 0
    assert_equal_runs("runs/tuned", "runs/whole")


def test_a_run_killed_before_its_first_checkpoint_samples_the_base_model_once(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Recorder.record

    def fail(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Recorder, "record", fail)
    assert tune("runs/tuned", milestones="0").code != 0
    monkeypatch.setattr(Recorder, "record", real)
    assert tune("runs/tuned", milestones="0").code == 0
    assert [row["step"] for row in lines_of(Path("runs/tuned/samples.jsonl"))] == [0, 0, 0, 15, 15, 15]
    assert [row["step"] for row in lines_of(Path("runs/tuned/stories.jsonl"))] == [0, 15]


def test_a_finished_run_says_so_and_writes_nothing(bench: Path) -> None:
    before = listing(Path("runs/whole"))
    result = tune("runs/whole")
    assert result.code == 0 and "this run is finished: 15 of 15 steps are done" in result.err
    assert "positron chat --ckpt runs/whole" in result.err and listing(Path("runs/whole")) == before


def test_C9_other_threads_and_another_micro_batch_are_said_and_written_down(bench: Path) -> None:
    assert tune("runs/tuned", until_step="4").code == 0
    result = tune("runs/tuned", threads="2", micro_batch="3", until_step="6")
    assert result.code == 0 and "warning: threads was 1, now 2: results may differ in the last digits" in result.err
    changes = [event for event in lines_of(Path("runs/tuned/events.jsonl")) if event["kind"] == "changed"]
    assert [(event["name"], event["now"], event["step"]) for event in changes] == [("micro_batch", 3, 4), ("threads", 2, 4)]
    assert [row["lr"] for row in timeless(Path("runs/tuned"))] == [row["lr"] for row in timeless(Path("runs/whole"))][:6]
    assert "warning" not in positron("sft", "--out_dir", "runs/tuned", "--until_step", "7").err


def test_C11_more_epochs_later_equal_as_many_at_once(bench: Path) -> None:
    result = tune("runs/whole", epochs="5")
    assert result.code == 0 and "the horizon moves to 25 steps; going back to step 6, the last one before the rate fell" in result.err
    assert tune("runs/tuned", epochs="5").code == 0
    assert trained(Path("runs/whole"), 25) == trained(Path("runs/tuned"), 25)
    assert timeless(Path("runs/whole")) == timeless(Path("runs/tuned"))
    assert (Path("runs/whole/superseded/001/step_000015") / ckpt.MANIFEST).is_file()
    there = set(RunFolder(Path("runs/whole")).steps())
    assert best_step("runs/whole") in there and best_step("runs/whole") == lowest_logged("runs/whole")


def test_C11_fewer_epochs_pause_and_the_horizon_stays(bench: Path) -> None:
    assert tune("runs/tuned", until_step="3").code == 0
    result = tune("runs/tuned", epochs="1")
    assert result.code == 0 and "the run's horizon stays 15 steps; pausing at 5" in result.err
    assert positron("sft", "--out_dir", "runs/tuned").code == 0
    assert trained(Path("runs/tuned"), 15) == trained(Path("runs/whole"), 15)


def test_another_run_in_the_folder_is_refused_with_the_first_difference(bench: Path) -> None:
    before = listing(Path("runs/whole"))
    write_rows("other.jsonl", [*rows(), {"question": "Why?", "answer": "Because the dog was sad."}])
    for changes, said in (
        ({"sft_data": "other.jsonl"}, r"data is "),
        ({"lr": "2e-3"}, r"lr is 0.01 there and 0.002 here"),
        ({"base_ckpt": "runs/base/step_000012"}, r"base is "),
        ({"batch_size": "4"}, r"batch_size is 8 there and 4 here"),
        ({"replay": "0.3"}, r"replay is 0.1 there and 0.3 here"),
    ):
        result = tune("runs/whole", **changes)
        assert result.code == 1 and f"runs/whole holds another run: {said}" in result.sentence and len(result.sentence) < 120
    result = tune("runs/base")
    assert result.code == 1 and "holds a pretrain run, not a sft run" in result.sentence
    assert listing(Path("runs/whole")) == before


# --- the best step ----------------------------------------------------------------------------------------------------------------------


def test_best_is_the_lowest_validation_and_survives_retention(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 1.0, 1.5, 1.0, 1.7])  # before, then at 3, 6, 9, 12, 15: the lowest is 6, the tie at 12 changes nothing
    monkeypatch.setattr(sft, "answer_score", lambda *_, **__: Score(next(losses), 1, 1, 1))
    for until in ("6", "9", "13", "15"):
        assert tune("runs/tuned", save_every="2", cooldown_steps="2", until_step=until).code == 0
        assert best_step("runs/tuned") == 6 == lowest_logged("runs/tuned")
    assert RunFolder(Path("runs/tuned")).resumable() == [6, 13, 14, 15]
    assert find_checkpoint("runs/tuned/best", say=pytest.fail).step == 6 and find_checkpoint("runs/tuned", say=pytest.fail).step == 15


def test_a_run_that_is_set_back_points_best_at_a_step_that_is_there(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 1.5, 1.9, 1.2, 1.1, 1.9])
    monkeypatch.setattr(sft, "answer_score", lambda *_, **__: Score(next(losses), 1, 1, 1))
    assert tune("runs/tuned").code == 0 and best_step("runs/tuned") == 15
    # back to step 6 (1.5): the next validation is worse, so 6 is the best again, whatever lay beyond
    assert tune("runs/tuned", resume_from_step="6", until_step="9").code == 0
    assert best_step("runs/tuned") == 6 == lowest_logged("runs/tuned")


def test_the_real_run_keeps_its_best(template: Path) -> None:
    assert best_step(str(template / "runs/tuned")) == lowest_logged(str(template / "runs/tuned"))


# --- before and after -------------------------------------------------------------------------------------------------------------------


def naive_answer_loss(model: GPT, conversations: Sequence[Encoded]) -> float:
    """Mean nats of the trained tokens, one conversation at a time."""
    nats: list[float] = []
    for row in conversations:
        with torch.no_grad():
            logits = model(torch.tensor([row.ids]))[0].log_softmax(-1)
        nats += [-float(logits[i - 1, row.ids[i]]) for i in range(1, len(row.ids)) if row.trained[i]]
    return sum(nats) / len(nats)


def held_out(tokenizer: Tokenizer) -> tuple[Encoded, ...]:
    return encode_conversations(tokenizer, read_conversations("rows.jsonl"), context_len=64, validation_share=0.1).validation


def test_losses_before_and_after_are_those_of_the_two_models(bench: Path) -> None:
    base, tuned = find_checkpoint("runs/base"), find_checkpoint("runs/whole")
    (before,) = [event for event in lines_of(Path("runs/whole/events.jsonl")) if event["kind"] == "before"]
    last = lines_of(Path("runs/whole/metrics.jsonl"))[-1]
    after = naive_answer_loss(ckpt.load_model(tuned), held_out(base.tokenizer))
    assert before["step"] == 0
    assert before["val_loss"] == pytest.approx(naive_answer_loss(ckpt.load_model(base), held_out(base.tokenizer)), rel=1e-5)
    assert last["step"] == 15 and last["val_loss"] == pytest.approx(after, abs=1e-5)
    assert after < 0.6 * before["val_loss"]  # it learned


def test_what_it_forgot_is_measured_with_the_model_before_and_after(bench: Path) -> None:
    first, last = lines_of(Path("runs/whole/stories.jsonl"))
    stories = sft.prepare_corpus(Path("text.txt"), tokenizer_path=Path("spm.model"), vocab_size=None, say=pytest.fail)
    for row, step, run in ((first, 0, "runs/base"), (last, 15, "runs/whole")):
        score = sft.story_score(ckpt.load_model(find_checkpoint(run)), stories)
        assert row["step"] == step and (row["story_loss"], row["story_bpb"]) == pytest.approx((score.loss, score.bits_per_byte), rel=1e-6)


def test_the_three_questions_are_answered_before_and_after(bench: Path) -> None:
    samples = lines_of(Path("runs/whole/samples.jsonl"))
    assert [(row["step"], row["prompt"]) for row in samples] == [(step, question) for step in (0, 15) for question in sft.QUESTIONS]
    assert all(row["text"] for row in samples[3:])


def test_the_end_says_what_changed_and_how_to_ask(template: Path) -> None:
    said = (template / "said.txt").read_text()
    (before,) = lines_of(template / "runs/tuned/events.jsonl")
    last = lines_of(template / "runs/tuned/metrics.jsonl")[-1]["val_loss"]
    change = f"({last / before['val_loss'] - 1:+.0%})"
    assert f"answers    {before['val_loss']:.3f} nats per token before, {last:.3f} now {change}" in said
    assert "stories    " in said and "what it forgot" in said and "kept as runs/tuned/best" in said
    assert "finished at step 15" in said and "positron chat --ckpt runs/tuned" in said and "positron generate" not in said
    assert "36 conversations, 8 a step; 10% of the trained tokens are stories again" in said


def test_a_fine_tuned_folder_is_a_chat_model(template: Path) -> None:
    found = ckpt.open_checkpoint(template / "runs/tuned/step_000015")
    assert found.is_chat and found.tokenizer.im_end_id in found.end_ids
    assert "positron chat" in (found.folder / "README.md").read_text()


# --- replay -----------------------------------------------------------------------------------------------------------------------------


def test_without_the_base_text_replay_is_off_and_said(bench: Path) -> None:
    os.remove("text.txt")
    result = tune("runs/tuned")
    assert result.code == 0
    assert "no replay: the base model's text (text.txt) is not here; name one with --replay_path, or expect forgetting" in result.err
    assert "no stories are replayed" in result.err and not Path("runs/tuned/stories.jsonl").exists()
    result = tune("runs/silent", replay="0")
    assert result.code == 0 and "no replay:" not in result.err  # nothing was asked for


def test_a_replay_text_that_was_named_must_be_there(bench: Path) -> None:
    result = tune("runs/tuned", replay_path="gone.txt")
    assert result.code == 1 and "gone.txt" in result.sentence and not Path("runs/tuned").exists()


def test_a_base_trained_on_the_default_text_replays_it(bench: Path) -> None:
    record = json.loads(Path("runs/base/run.json").read_text())
    record["config"]["dataset_path"] = None
    Path("runs/base/run.json").write_text(json.dumps(record))
    os.rename("text.txt", "data/tinystories.txt")
    result = tune("runs/tuned", until_step="1")
    assert result.code == 0 and "no replay" not in result.err
    assert lines_of(Path("runs/tuned/stories.jsonl")) == lines_of(Path("runs/whole/stories.jsonl"))[:1]


# --- what is refused --------------------------------------------------------------------------------------------------------------------


def test_fine_tuning_a_fine_tuned_model_is_refused(bench: Path) -> None:
    result = tune("runs/tuned", base_ckpt="runs/whole")
    assert result.code == 1 and "a fine-tuned model already" in result.sentence and "--base_ckpt" in result.hint


def test_without_a_base_model_the_hint_says_how_to_make_one(bench: Path) -> None:
    shutil.rmtree("runs/base")
    result = tune("runs/tuned", base_ckpt=None)
    assert result.code == 1 and "no base model" in result.sentence and result.hint.startswith("positron bootstrap trains one")


def test_without_a_base_named_the_newest_base_run_is_taken_and_gives_the_folder_its_name(bench: Path) -> None:
    os.rename("runs/base", "runs/mine-base")
    os.utime("runs/whole/run.json")  # newer, but fine-tuned
    result = tune(None, base_ckpt=None, until_step="1")
    assert result.code == 0 and "base model: runs/mine-base" in result.err and RunFolder(Path("runs/mine-sft")).steps() == [1]


def test_D6_another_tokenizer_is_refused(bench: Path) -> None:
    train_tokenizer(made_stories(60, seed=2), 400, threads=1).save(Path("other.model"))
    result = tune("runs/tuned", tokenizer_path="other.model")
    assert result.code == 1 and "400" in result.sentence and "512" in result.sentence and not Path("runs/tuned").exists()
    assert tune("runs/tuned", tokenizer_path="spm.model", until_step="1").code == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"messages": [{"role": "user", "content": "Hello?"}]}, "line 41: nothing to train on"),
        ({"question": "Who?", "answer": "  "}, 'line 41: field "answer" is empty'),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, "line 41: there is no user message before an answer"),
        ({"question": "Who? " * 40, "answer": "Tom."}, "line 41: a conversation of "),
    ],
)
def test_D5_a_row_that_trains_nothing_stops_with_its_line(bench: Path, line: dict[str, Any], said: str) -> None:
    write_rows("rows.jsonl", [*rows(), line])
    result = tune("runs/tuned")
    assert result.code == 1 and f"rows.jsonl, {said}" in result.sentence and "--skip_bad" in result.hint
    assert not Path("runs/tuned").exists()
    write_rows("only.jsonl", [line])
    assert (
        "none of its 1 lines can be used" in positron("sft", "--base_ckpt", "runs/base", "--sft_data", "only.jsonl", "--skip_bad").sentence
    )


# --- the doors --------------------------------------------------------------------------------------------------------------------------


def test_the_documented_command_line_works_to_the_letter(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.rename("runs/base", "runs/positron-mini-15M-v1-base")
    os.mkdir("tokenizer")
    os.rename("spm.model", "tokenizer/spm.bpe.model")
    os.rename("rows.jsonl", "tiny_instruct_sample.jsonl")
    command = (
        "python sft_train.py --base_ckpt runs/positron-mini-15M-v1-base/latest.pt --tokenizer_path tokenizer/spm.bpe.model "
        "--sft_data tiny_instruct_sample.jsonl --epochs 2 --batch_size 8 --lr 1e-5 --out_dir runs/my-sft-model"
    )
    monkeypatch.setattr("positron_mini.device.machine.usable_cores", lambda: 1)
    monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "sft_train.py"), run_name="__main__")
    assert end.value.code == 0
    found = find_checkpoint("runs/my-sft-model/latest.pt", say=pytest.fail)
    assert found.is_chat and found.step == 10  # 38 rows are trained on, 8 a step, twice


def said(*texts: str) -> list[dict[str, str]]:
    """Messages of a user and an assistant in turn."""
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def test_show_mask_marks_what_is_learned_and_lets_no_control_character_pass(bench: Path) -> None:
    write_rows(
        "shown.jsonl",
        [
            {"question": "What did Tom see?", "answer": "Tom saw a dog."},
            {"messages": said("Hi", "A cat.", "Why?", "The end.")},
            {"question": "Say <|im_end|>", "answer": "\u001b[31mred\u202e\u0007 [bold]dog[/bold]"},
        ],
    )  # fmt: skip
    result = positron("sft", "--base_ckpt", "runs/base", "--show_mask", "shown.jsonl")
    first, second, third = result.out.split("<s>")[1:]
    start, end = "<|im_start|>", "<|im_end|>"
    assert result.code == 0
    assert first == f"{start}user\nWhat did Tom see?{end}\n{start}assistant\n[[Tom saw a dog.{end}]]\n\n"
    again = f"{start}user\nWhy?{end}\n{start}assistant\n[[The end.{end}]]\n\n"
    assert second == f"{start}user\nHi{end}\n{start}assistant\n[[A cat.{end}]]\n{again}"
    assert "[bold]dog[/bold]" in third and third.count(f"{end}]]") == 1
    assert [c for c in result.out if c != "\n" and not c.isprintable()] == [] and "\ufffd" in third
    assert "3 of 3 conversations" in result.err and not Path("runs/positron").exists()


def test_show_mask_shows_a_marked_answer_as_read_only_and_names_what_is_left_out(bench: Path) -> None:
    turns = [*said("Hi", "A cat."), {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "The end.", "weight": 0}]
    write_rows("shown.jsonl", [{"messages": [*turns, *said("Who?", "Tom.")], "tools": [1]}, {"question": "Who?", "answer": ""}])
    result = positron("sft", "--base_ckpt", "runs/base", "--show_mask", "shown.jsonl", "--skip_bad")
    assert "[[A cat.<|im_end|>]]" in result.out and "[[Tom.<|im_end|>]]" in result.out and "[[The end." not in result.out
    assert 'fields that are not used: "tools" of 1 rows\n' in result.err and "left out: 1 of 2 lines\n  line 2: " in result.err


def test_show_mask_does_not_break_long_lines(bench: Path) -> None:
    answer = " ".join(["ball"] * 60)
    write_rows("shown.jsonl", [{"question": "What?", "answer": answer}])
    assert f"[[{answer}<|im_end|>]]" in positron("sft", "--base_ckpt", "runs/base", "--show_mask", "shown.jsonl").out


def test_show_mask_falls_back_to_brackets_where_a_terminal_has_no_colour(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    write_rows("shown.jsonl", rows(2))
    words = ("sft", "--base_ckpt", "runs/base", "--show_mask", "shown.jsonl")
    coloured = positron(*words).out
    assert "\x1b[1;32mLily found the ball.<|im_end|>" in coloured and "[[" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[[Lily found the ball.<|im_end|>]]" in positron(*words).out


def test_the_quick_start_adds_generated_rows_and_asks_before_and_after(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generated = rows(50)[40:]
    monkeypatch.setattr("positron_mini.storyworld.conversation_rows", lambda seed, n, split: generated[:n])
    long = {"question": "Tell me a story.", "answer": "Tom saw the ball. " * 40}
    write_rows("rows.jsonl", [*rows(), long])
    flags = {**FLAGS, "out_dir": "runs/quick", "epochs": "1", "eval_every": "50"}
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    result = positron("quicksft", *words, "--rows", "10").ok()
    assert "data/sft_quickstart.jsonl: 41 rows of rows.jsonl" in result.err and "10 generated by the story world" in result.err
    mixed = read_conversations("data/sft_quickstart.jsonl").conversations
    asked = Counter(conversation.messages[-2].content for conversation in mixed)  # the question before the answer that is learned
    assert asked == {
        **{row["question"]: quicksft.SAMPLE_TIMES for row in rows()}, **{row["question"]: 1 for row in generated}, long["question"]: 1
    }  # fmt: skip
    assert "left out: 1 of" in result.err  # the one that is longer than the context
    for question in sft.QUESTIONS:
        assert f"\n> {question}\n  before " in result.out
    assert result.out.count("  after  ") == 3 and result.out.endswith("  positron chat --ckpt runs/quick   (a conversation)\n")


def single(question: str, reply: str) -> tuple[Message, ...]:
    return Message("user", question), Message("assistant", reply)


def test_a_share_of_the_single_questions_comes_after_turns_that_are_read_and_not_learned(tiny_tokenizer: Tokenizer) -> None:
    talk = [single(f"Who is {i}?", f"It is {i}.") for i in range(50)]
    told = [single(f"Tell me about {i}.", f"{i} saw the ball.") for i in range(950)]
    twice = (*single("a", "b"), *single("c", "d"))
    made = quicksft.with_history([*talk, *told, twice], (talk, told), 0, tiny_tokenizer, 512)
    assert [row[-2:] for row in made] == [*talk, *told, twice[-2:]] and made[-1] == twice  # every row is there, in its place, once
    longer = [row for row in made[:-1] if len(row) > 2]
    assert 350 < len(longer) < 450 and {len(row) for row in longer} == {4, 6}  # 40 % of 1,000, give or take three standard deviations
    assert all(message.learned == (message.role == "user") for row in longer for message in row[:-2])
    before = [row[at : at + 2] for row in longer for at in range(0, len(row) - 2, 2)]
    small_talk = sum(turns[0].content.startswith("Who") for turns in before)
    assert 0.4 < small_talk / len(before) < 0.6  # either source as often, whatever its size
    assert quicksft.with_history([*talk, *told, twice], (talk, told), 0, tiny_tokenizer, 512) == made
    assert quicksft.with_history([*talk, *told], (talk, told), 1, tiny_tokenizer, 512) != made[:-1]


def test_no_row_grows_beyond_the_context(tiny_tokenizer: Tokenizer) -> None:
    rows = [single("Who is it?", "A cat. " * (1 + i % 9)) for i in range(200)]
    limit = max(len(encode_chat(tiny_tokenizer, row).ids) for row in rows)
    made = quicksft.with_history(rows, (rows,), 0, tiny_tokenizer, limit)
    assert max(len(encode_chat(tiny_tokenizer, row).ids) for row in made) == limit
    assert 0 < sum(len(row) > 2 for row in made) < 80


def test_the_mixture_of_the_quick_start_depends_on_seed_sample_and_base_alone(bench: Path) -> None:
    write_rows("rows.jsonl", rows())
    base = sft.find_base(FLAGS["base_ckpt"], lambda _: None)
    written = []
    for seed in (0, 0, 1):
        quicksft.mix(Path("rows.jsonl"), 6, seed, base)
        written.append(quicksft.MIXED.read_bytes())
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize(("base_lr", "expected"), [(0.003, 0.002), (0.1, quicksft.QuickFlags.lr), ("fast", quicksft.QuickFlags.lr)])
def test_the_quick_start_learns_more_gently_than_its_base_did(bench: Path, base_lr: object, expected: float) -> None:
    base = sft.find_base(FLAGS["base_ckpt"], lambda _: None)
    record = base.folder.resolve().parent / "run.json"
    changed = {**json.loads(record.read_text()), "config": {"lr": base_lr}} if record.exists() else {"config": {"lr": base_lr}}
    record.write_text(json.dumps(changed))
    assert quicksft.gentle_lr(quicksft.QuickFlags(base_ckpt=FLAGS["base_ckpt"])) == pytest.approx(expected)


def test_a_damaged_run_is_passed_over_in_the_search_for_a_base_model(bench: Path) -> None:
    Path("runs/odd").mkdir()
    Path("runs/odd/run.json").write_text("[")
    said: list[str] = []
    sft.find_base(None, said.append)
    assert "runs/odd/run.json" in said[0] and said[-1].startswith("base model: runs/")


# --- packed rows ------------------------------------------------------------------------------------------------------------------------


def one_step(batches: PackedBatches, model: GPT) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the first step of the real trainer."""
    seen: dict[str, torch.Tensor] = {}

    class Keeper:
        def step(self, multiplier: float, done: int) -> None:
            seen.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

        def state(self) -> dict[str, torch.Tensor]:
            return {}

        def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
            pass

    loop = LoopConfig(0.01, Schedule(2), 8, 1e9, 0.0, 0, "cpu", "fp32")
    (report,) = Trainer(model, Keeper(), batches, loop).run(1, StopFlag())
    return report.loss, seen


def short(tokenizer: Tokenizer, *pairs: tuple[str, str]) -> list[Encoded]:
    """Conversations of one question, of about 25 tokens."""
    return [encode_chat(tokenizer, [Message("user", question), Message("assistant", reply)]) for question, reply in pairs]


def test_a_packed_row_never_attends_across_examples_in_the_loss_that_is_trained(tiny_tokenizer: Tokenizer) -> None:
    model = lively_model(shape(context_len=128))
    conversations = short(tiny_tokenizer, ("Why?", "A dog."), ("Who?", "Tom and Mia."), ("Where?", "The house."))
    story = tiny_tokenizer.encode("Tom saw a cat.")[:4]
    stories = Stories(torch.tensor([1, *story, 2]).numpy(), torch.tensor([[0, 6]]).numpy())
    batches = PackedBatches(conversations, batch_size=3, context_len=128, seed=0, replay=0.4, stories=stories)
    packed, replayed = batches.batch(0), int(batches.stories_per_step)
    assert packed.segments is not None and int(packed.segments.max()) >= 2 and replayed >= 1  # several share a row, stories among them
    alone = [*conversations, *[Encoded([1, *story, 2], [False, *[True] * 5])] * replayed]
    counts = [sum(row.trained) for row in alone]
    expected = sum(naive_answer_loss(model, [row]) * count for row, count in zip(alone, counts, strict=True)) / sum(counts)
    loss, gradients = one_step(batches, model)
    assert loss == pytest.approx(expected, rel=1e-5)
    mixed = float(model.loss(packed.ids, packed.targets).detach()) / sum(counts)
    assert abs(mixed - expected) > 1e-3 * expected  # without the segments it would be another number
    model.zero_grad()
    for row in alone:  # the gradient, too, is the sum of those of the examples alone
        ids = torch.tensor([row.ids])
        targets = torch.where(torch.tensor([row.trained[1:]]), ids[:, 1:], -100)
        (model.loss(ids[:, :-1], targets) / sum(counts)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_another_conversation_in_the_row_leaves_an_examples_logits_equal(tiny_tokenizer: Tokenizer) -> None:
    model = lively_model(shape(context_len=128))

    def logits_of_first(other: tuple[str, str]) -> torch.Tensor:
        first, second = short(tiny_tokenizer, ("Where was the ball?", "Here."), other)
        batch = PackedBatches([first, second], batch_size=2, context_len=128, seed=0).batch(0)
        assert batch.segments is not None and len(batch.ids) == 1
        row, segments = batch.ids[0], batch.segments[0]
        wanted = torch.tensor(first.ids[:16])
        (number,) = {int(segments[at]) for at in starts(segments) if torch.equal(row[at : at + 16], wanted)}
        with torch.no_grad():
            logits = model.logits(model.hidden(batch.ids, segments=batch.segments))[0]
        return logits[segments == number]

    torch.testing.assert_close(logits_of_first(("Why?", "A dog.")), logits_of_first(("Who?", "Mia.")), rtol=1e-4, atol=1e-4)


def starts(segments: torch.Tensor) -> list[int]:
    """Where a segment begins."""
    return [at for at in range(len(segments)) if at == 0 or segments[at] != segments[at - 1]]


def test_open_sft_session_touches_nothing_before_it_is_iterated(bench: Path) -> None:
    config = sft.SFTConfig(**{**{k: v for k, v in FLAGS.items() if k in ("base_ckpt", "sft_data")}, "out_dir": "runs/tuned"})  # type: ignore[arg-type]
    session = open_sft_session(replace(config, threads=1, epochs=1))
    assert session.plan.schedule.horizon == 5 and not Path("runs/tuned").exists()
    assert tiny_train("runs/tuned", "--until_step", "1").code == 0  # so the name is still free
