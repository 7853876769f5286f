"""Laws of a pretraining run: what it is made of, what makes two commands the same run, what is recorded."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.runs import BASE, SEPARATOR, digests, lines_of, listing, positron, tiny_train
from helpers.texts import made_stories
from positron_mini import files
from positron_mini.config import TrainConfig
from positron_mini.errors import CheckpointError, PositronError, RunError
from positron_mini.evaluate.bits import score_texts
from positron_mini.store.checkpoint import load_model
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_folder import RunFolder
from positron_mini.text import tokens as token_files
from positron_mini.text.prepare import prepare_corpus
from positron_mini.text.tokenizer import Tokenizer, train_tokenizer
from positron_mini.train import pretrain
from positron_mini.train.open_run import open_session
from positron_mini.train.pretrain import PROMPTS, TokenBatches, validation_subset
from positron_mini.trainer import StopFlag


def config(**changes: object) -> TrainConfig:
    """The tiny settings as Python code gives them."""
    settings = TrainConfig(
        config="PicoGPT",
        dataset_path="text.txt",
        tokenizer_path="spm.model",
        out_dir="runs/new",
        n_layer=2,
        n_embd=32,
        n_head=2,
        head_dim=16,
        ffn=64,
        context_len=64,
        batch_tokens=512,
        warmup_steps=4,
        lr=4e-3,
        save_every=5,
        eval_every=10,
        milestones="0,20",
        compile="off",
        threads=1,
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


# --- batches ----------------------------------------------------------------------------------------------------------------------------


def test_targets_are_the_inputs_one_token_later_and_every_token_is_learned_once_an_epoch() -> None:
    ids = np.arange(1, 200, dtype=np.uint16)
    source = TokenBatches(ids, seed=3, rows=2, context_len=11)
    learned = []
    for step in range(source.windows // 2):
        batch = source.batch(step)
        assert batch.ids.shape == batch.targets.shape == (2, 11)
        assert torch.equal(batch.targets, batch.ids + 1)
        learned += batch.targets.flatten().tolist()
    assert len(learned) == len(set(learned)) and len(learned) >= 11 * 2 * (source.windows // 2)


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    ids = np.arange(1000, dtype=np.uint16)
    one, other = TokenBatches(ids, 7, 4, 16), TokenBatches(ids, 7, 4, 16)
    later = [one.batch(step).ids.tolist() for step in range(5)]
    assert other.batch(4).ids.tolist() == later[4] and other.batch(1).ids.tolist() == later[1]
    assert TokenBatches(ids, 8, 4, 16).batch(4).ids.tolist() != later[4]


def test_aligned_rows_begin_with_a_document_in_short_steps_and_in_long_ones() -> None:
    ids = np.array([[1, 10 + i, 8, 9, 2] for i in range(40)], dtype=np.uint16).ravel()  # documents of 5
    source = TokenBatches(ids, seed=3, rows=3, context_len=8, short_steps=2, documents=np.arange(0, 200, 5))
    for step, shape in enumerate([(6, 4), (6, 4), (3, 8), (3, 8)]):
        batch = source.batch(step)
        assert batch.ids.shape == batch.targets.shape == shape
        assert torch.equal(batch.ids[:, 1:], batch.targets[:, :-1])
        if shape[1] > 5:
            assert (batch.ids[:, 0] == 1).all()
    assert source.batch(3).ids.tolist() != source.batch(2).ids.tolist()


# --- a run from Python ------------------------------------------------------------------------------------------------------------------


def test_a_session_creates_nothing_until_its_first_step(workshop: Path) -> None:
    before = listing(workshop)
    session = open_session(config(max_steps=3))
    assert listing(workshop) == before and session.trainer.step == 0
    assert [report.step for report in session.steps()] == [1, 2, 3]
    assert RunFolder(Path("runs/new")).steps() == [0, 2, 3]  # milestone 0, the last constant step (4 + 2 steps shrink to 2 + 1), the end


def test_python_and_the_command_line_make_the_same_run(workshop: Path) -> None:
    for _ in open_session(config(max_steps=30, out_dir="other/base")).steps():
        pass
    for step in (12, 30):
        assert digests(BASE / f"step_{step:06d}") == digests(Path(f"other/base/step_{step:06d}"))


def test_a_loop_that_is_left_early_has_saved_its_last_step(workshop: Path) -> None:
    for report in open_session(config()).steps():
        if report.step == 7:
            break
    assert find_checkpoint("runs/new").step == 7


@pytest.mark.parametrize(
    ("changes", "asked"), [({}, None), ({"tokenizer_path": "new.model"}, 2_048), ({"tokenizer_path": "new.model", "vocab_size": 900}, 900)]
)
def test_a_tokenizer_that_is_not_there_yet_gets_the_presets_pieces(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], asked: int | None
) -> None:
    seen: list[int | None] = []

    def told(*_: object, vocab_size: int | None, **__: object) -> None:
        seen.append(vocab_size)
        raise PositronError("enough", "none")

    monkeypatch.setattr(pretrain, "prepare_corpus", told)
    with pytest.raises(PositronError, match="enough"):
        open_session(config(**changes), stop=StopFlag())
    assert seen == [asked]


def test_the_loss_starts_at_ln_of_the_vocabulary_and_falls(workshop: Path) -> None:
    losses = [row["loss"] for row in lines_of(BASE / "metrics.jsonl")]
    assert losses[0] == pytest.approx(math.log(512), rel=0.02)
    assert losses[-1] < losses[0] - 0.3


def test_a_report_says_what_it_promises(workshop: Path) -> None:
    rows = lines_of(BASE / "metrics.jsonl")
    always = {"step", "tokens", "loss", "lr", "grad_norm", "tok_per_s", "elapsed_s"}
    assert all(set(row) == (always | {"val_loss", "val_bpb"} if row["step"] % 10 == 0 else always) for row in rows)
    assert [row["tokens"] for row in rows] == [512 * step for step in range(1, 31)]
    # warm-up of 4 steps to 4e-3, constant, 18 steps of cool-down that end at 1/19 of it
    assert [row["lr"] for row in rows[:5]] == [0.001, 0.002, 0.003, 0.004, 0.004]
    assert rows[11]["lr"] == 0.004 and rows[12]["lr"] == pytest.approx(0.004 * 18 / 19, rel=1e-5)
    assert rows[29]["lr"] == pytest.approx(0.004 / 19, rel=1e-5)
    elapsed = [row["elapsed_s"] for row in rows]
    assert elapsed == sorted(elapsed) and elapsed[0] > 0


def test_milestone_samples_are_of_the_fixed_prompts_and_seeds(workshop: Path) -> None:
    samples = lines_of(BASE / "samples.jsonl")
    assert [(row["step"], row["prompt"], row["seed"]) for row in samples] == [
        (step, prompt, 42 + i) for step in (0, 20, 30) for i, prompt in enumerate(PROMPTS)
    ]
    assert {tuple(row) for row in samples} == {("step", "prompt", "text", "seed", "temperature")}
    assert "Once upon a time, there was a little girl who" in PROMPTS


def test_the_logged_validation_is_the_score_of_the_saved_model(workshop: Path) -> None:
    """The definition of `eval --text`: bos, text, eos; nats of all but bos over the bytes of the text."""
    checkpoint = find_checkpoint(BASE)
    prepared = prepare_corpus(Path("text.txt"), tokenizer_path=Path("spm.model"), vocab_size=None, say=lambda _: None)
    documents, byte_counts = validation_subset(prepared, int(0.15 * 10 * 512))
    texts = [checkpoint.tokenizer.decode(document) for document in documents]
    assert byte_counts == [len(text.encode()) for text in texts]
    score = score_texts(load_model(checkpoint), checkpoint.tokenizer, texts)
    last = lines_of(BASE / "metrics.jsonl")[-1]
    assert last["val_loss"] == pytest.approx(score.loss, abs=1e-5) and last["val_bpb"] == pytest.approx(score.bits_per_byte, abs=1e-5)


def test_the_validation_subset_holds_whole_documents_within_its_budget(workshop: Path) -> None:
    prepared = prepare_corpus(Path("text.txt"), tokenizer_path=Path("spm.model"), vocab_size=None, say=lambda _: None)
    everything, _ = validation_subset(prepared, 10**9)
    assert sum(map(len, everything)) == prepared.validation.count
    few, _ = validation_subset(replace(prepared, validation=Repeated(prepared.validation)), 5_000)  # type: ignore[arg-type]
    assert 4_000 < sum(map(len, few)) <= 5_000 and few[: len(everything)] == everything[: len(few)]


class Repeated:
    """A token file that holds another one eight times over."""

    def __init__(self, inner: token_files.TokenFile) -> None:
        self.ids = np.tile(inner.ids, 8)
        self.pairs = [(start + n * inner.count, end + n * inner.count) for n in range(8) for start, end in inner.documents()]

    def documents(self) -> list[tuple[int, int]]:
        return self.pairs


# --- what is recorded and followed ------------------------------------------------------------------------------------------------------


def test_run_json_says_what_the_run_is(workshop: Path) -> None:
    data = files.read_json(BASE / "run.json")
    spm = Tokenizer.load(Path("spm.model"))
    assert data["format"] == 1 and data["kind"] == "pretrain"
    assert data["identity"]["tokenizer"] == spm.fingerprint and data["identity"]["model"]["n_embd"] == 32
    assert data["identity"]["batch_tokens"] == 512 and len(data["identity"]["text"]) == 64
    assert {name: data["config"][name] for name in ("device", "precision", "compile", "threads", "micro_batch", "lr")} == {
        "device": "cpu", "precision": "fp32", "compile": "off", "threads": 1, "micro_batch": data["config"]["micro_batch"], "lr": 0.004
    }  # fmt: skip
    assert type(data["config"]["micro_batch"]) is int and "max_steps" not in data["config"]
    assert data["events"] == [{"kind": "schedule", "step": 0, "warmup_steps": 4, "cooldown_steps": 18, "horizon": 30}]
    assert data["versions"]["torch"] == torch.__version__ and "cores, " in data["versions"]["processor"]
    assert datetime.date.fromisoformat(data["started"]) <= datetime.date.today()


def test_settings_that_are_left_out_follow_the_recorded_run(workshop: Path) -> None:
    assert tiny_train("runs/new", "--until_step", "3", "--micro_batch", "2", "--seed", "5", "--dropout", "0.1").code == 0
    before = files.read_json(Path("runs/new/run.json"))
    result = positron("train", "--out_dir", "runs/new", "--more_steps", "2")
    assert result.code == 0 and "= 4 x 2 x 64; " in result.err and "1 threads" in result.err
    after = files.read_json(Path("runs/new/run.json"))
    assert after == before and find_checkpoint("runs/new").step == 5
    session = open_session(TrainConfig(out_dir="runs/new", more_steps=1))
    assert session.trainer.config.seed == 5 and session.trainer.config.dropout == 0.1 and session.trainer.config.micro_batch == 2


@pytest.mark.parametrize(
    ("words", "name", "there", "here"),
    [
        (["--lr", "1e-3"], "lr", "0.004", "0.001"),
        (["--muon_lr", "1e-3"], "muon_lr", "None", "0.001"),
        (["--batch_tokens", "1024"], "batch_tokens", "512", "1024"),
        (["--seed", "1"], "seed", "0", "1"),
        (["--warmup_steps", "5"], "warmup_steps", "4", "5"),
        (["--weight_decay", "0"], "weight_decay", "0.1", "0.0"),
        (["--dropout", "0.1"], "dropout", "0.0", "0.1"),
        (["--grad_clip", "2"], "grad_clip", "1.0", "2.0"),
        (["--optimizer", "adamw"], "optimizer", "muon", "adamw"),
        (["--n_layer", "3"], "n_layer", "2", "3"),
        (["--context_len", "32"], "context_len", "64", "32"),
        (["--ffn", "128", "--lr", "1e-3"], "ffn", "64", "128"),
        (["--config", "MicroGPT", "--n_head", "1", "--lr", "1e-3"], "n_head", "2", "1"),
        (["--tokenizer_path", "other.model"], "tokenizer", None, None),
        (["--dataset_path", "other.txt"], "text", None, None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_another_run_in_the_folder_is_refused_with_the_first_difference(
    workshop: Path, words: list[str], name: str, there: str | None, here: str | None
) -> None:
    train_tokenizer(made_stories(100, seed=5), 512, threads=1).save(Path("other.model"))
    Path("other.txt").write_text(SEPARATOR.join(made_stories(150, seed=6)))
    before = listing(workshop)
    result = tiny_train("runs/base", *words)
    assert result.code == 1
    assert f"runs/base holds another run: {name} is " in result.sentence
    assert result.hint.startswith("choose another --out_dir, or leave out --")
    assert words[0] in result.hint or words[2] in result.hint
    if there is not None:
        assert f"{name} is {there} there and {here} here" in result.sentence
    assert listing(workshop) == before


def test_a_flag_that_repeats_a_default_must_agree_too(workshop: Path) -> None:
    """Python code cannot say that a default was meant; a command line can."""
    assert tiny_train("runs/new", "--until_step", "1", "--dropout", "0.1").code == 0
    assert "dropout is 0.1 there and 0.0 here" in tiny_train("runs/new", "--dropout", "0").sentence
    assert open_session(config(out_dir="runs/new", more_steps=1)).trainer.config.dropout == 0.1


def test_a_run_of_another_kind_is_refused(workshop: Path) -> None:
    data = files.read_json(BASE / "run.json")
    files.write_json(BASE / "run.json", {**data, "kind": "sft"})
    with pytest.raises(RunError, match="holds a sft run"):
        open_session(config(out_dir="runs/base"))


def test_a_step_folder_under_another_number_is_refused(workshop: Path) -> None:
    (BASE / "step_000025").rename(BASE / "step_000028")
    (BASE / "step_000030" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="training state of step 25"):
        open_session(config(out_dir="runs/base", max_steps=30))


def test_every_check_comes_before_the_text_is_prepared(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(*args: object, **kwargs: object) -> None:
        pytest.fail("the text was prepared")

    monkeypatch.setattr("positron_mini.train.pretrain.prepare_corpus", prepared)
    for changes in (
        {"head_dim": 15},
        {"n_kv_head": 3},
        {"batch_tokens": 63},
        {"out_dir": "text.txt/run"},
        {"out_dir": "."},
        {"n_layer": 10**6},
    ):
        with pytest.raises(PositronError):
            open_session(config(**changes))


def test_a_stop_before_the_first_step_saves_nothing_and_says_where_it_is(workshop: Path) -> None:
    session = open_session(config(), stop=StopFlag(signal_number=2))
    with pytest.raises(PositronError) as caught:
        list(session.steps())
    assert caught.value.exit_code == 130 and RunFolder(Path("runs/new")).steps() == [0]
    assert caught.value.message == "stopped by a signal; no step of runs/new was finished yet"


def test_a_batch_that_is_no_multiple_of_the_row_is_rounded_and_said(workshop: Path) -> None:
    session = open_session(config(batch_tokens=500, max_steps=2))
    assert any("500 is not a multiple of the row; 512 is the nearest" in line for line in session.lines)
    assert [report.tokens for report in session.steps()] == [512, 1024]


def test_without_a_text_the_hint_says_how_to_get_one(workshop: Path) -> None:
    with pytest.raises(PositronError, match=r"data/tinystories\.txt: no such file") as caught:
        open_session(config(dataset_path=None))
    assert "positron prepare" in caught.value.hint
