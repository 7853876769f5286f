"""Bad input: one sentence that says what is wrong, one hint, exit code 1 or 2, and nothing written."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.runs import SEPARATOR, TINY, Result, listing, positron, spawn
from helpers.texts import made_stories
from positron_mini.cli.flags import parse
from positron_mini.config import TrainConfig
from positron_mini.errors import UsageError
from positron_mini.store.checkpoint import write_manifest
from positron_mini.text.tokenizer import train_tokenizer

STEP = "runs/base/step_000030"
BASE = ("--out_dir", "runs/base")


class Exploding:
    """Unpickling this makes a folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("unpickled",))


def text(name: str, content: str | bytes) -> Callable[[], None]:
    return lambda: (Path(name).write_bytes(content if isinstance(content, bytes) else content.encode()), None)[1]


def nothing() -> None:
    """No preparation."""


def other_tokenizer(name: str) -> Callable[[], None]:
    return lambda: train_tokenizer(made_stories(100, seed=5), 400, threads=1).save(Path(name))


def damage(path: str) -> Callable[[], None]:
    def act() -> None:
        data = Path(path).read_bytes()
        Path(path).write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))

    return act


def foreign_pt() -> None:
    Path("other").mkdir()
    Path("other/latest.pt").write_bytes(pickle.dumps({"model": Exploding()}))


def foreign_folder() -> None:
    Path("other").mkdir()
    Path("other/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    Path("other/pytorch_model.bin").write_bytes(pickle.dumps(Exploding()))


def hostile_config() -> None:
    path = Path("runs/base/step_000030/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 10**6, "max_position_embeddings": 10**9}))
    write_manifest(path.parent)


def without_state() -> None:
    for step in ("000012", "000025", "000030"):
        shutil.rmtree(f"runs/base/step_{step}")


def train(*words: str) -> list[str]:
    """A complete train command; later words override."""
    return ["train", *TINY, "--threads", "1", "--out_dir", "runs/new", "--max_steps", "3", *words]


def new_tokenizer(*words: str) -> list[str]:
    """A train command that would have to train its tokenizer first."""
    return train("--tokenizer_path", "new/spm.model", "--vocab_size", "400", *words)


def generate(*words: str) -> list[str]:
    return ["generate", "--ckpt", "runs/base", "--max_tokens", "3", *words]


def again(*words: str) -> list[str]:
    """A train command for the run that is there."""
    return train(*BASE, *words)


def step_30() -> list[str]:
    return ["generate", "--ckpt", STEP, "--max_tokens", "3"]


def other_text() -> None:
    Path("o.txt").write_text(SEPARATOR.join(made_stories(150, 9)))


NO_RUN = "runs here: runs/base"

CASES: list[tuple[str, Callable[[], None], list[str], int, str, str]] = [
    # --- texts
    ("missing file", nothing, train("--dataset_path", "none.txt"), 1, "none.txt", ""),
    ("missing folder", nothing, new_tokenizer("--dataset_path", "no/such/folder"), 1, "no/such/folder", ""),
    ("empty file", text("e.txt", ""), new_tokenizer("--dataset_path", "e.txt"), 1, "e.txt", ""),
    ("blank file", text("e.txt", "\n \n\t\n<|endoftext|>\n"), new_tokenizer("--dataset_path", "e.txt"), 1, "e.txt", ""),
    ("one story", text("e.txt", made_stories(1)[0].replace("\n\n", "\n")), new_tokenizer("--dataset_path", "e.txt"), 1, "e.txt", ""),
    ("one story, tokenizer there", text("e.txt", "Tom had a dog."), train("--dataset_path", "e.txt"), 1, "e.txt", ""),
    ("binary file", text("e.txt", bytes(range(256)) * 50), new_tokenizer("--dataset_path", "e.txt"), 1, "e.txt", ""),
    ("empty folder", lambda: Path("e").mkdir(), new_tokenizer("--dataset_path", "e"), 1, "e", ""),
    ("no text field", text("e.jsonl", '{"a": 1}\n{"a": 2}\n'), new_tokenizer("--dataset_path", "e.jsonl"), 1, "e.jsonl", ""),
    ("not json lines", text("e.jsonl", "{\n"), new_tokenizer("--dataset_path", "e.jsonl"), 1, "e.jsonl", ""),
    ("shorter than a context", nothing, train("--context_len", "100000", "--batch_tokens", "100000"), 1, "100,000", ""),
    ("shorter, new tokenizer", nothing, new_tokenizer("--context_len", "100000", "--batch_tokens", "100000"), 1, "100,000", ""),
    ("vocabulary too large", nothing, train("--tokenizer_path", "new.model", "--vocab_size", "30000"), 1, "30,000", "--vocab_size"),
    # --- tokenizers
    ("tokenizer of another size", nothing, train("--vocab_size", "600"), 1, "600", "--vocab_size 512"),
    ("tokenizer of another run", other_tokenizer("o.model"), again("--tokenizer_path", "o.model"), 1, "runs/base", ""),
    ("damaged tokenizer", damage("spm.model"), train(), 1, "spm.model", ""),
    ("tokenizer is a folder", lambda: Path("t").mkdir(), train("--tokenizer_path", "t"), 1, "t", ""),
    ("another tokenizer", other_tokenizer("o.model"), generate("--tokenizer_path", "o.model"), 1, "o.model", "leave --tokenizer_path"),
    ("missing tokenizer to generate", nothing, generate("--tokenizer_path", "none.model"), 1, "none.model", ""),
    # --- presets and numbers
    ("unknown preset", nothing, train("--config", "TinyGTP"), 2, "unknown preset 'TinyGTP'", "--config TinyGPT"),
    ("unknown preset in other letters", nothing, train("--config", "pico"), 2, "unknown preset 'pico'", "--config PicoGPT"),
    ("negative rate", nothing, new_tokenizer("--lr", "-1"), 2, "--lr is -1.0", "--lr"),
    ("rate of zero", nothing, new_tokenizer("--lr", "0"), 2, "--lr is 0.0", "--lr"),
    ("rate that is no number", nothing, new_tokenizer("--lr", "nan"), 2, "--lr is nan", "--lr"),
    ("infinite rate", nothing, new_tokenizer("--lr", "inf"), 2, "--lr is inf", "--lr"),
    ("rate in words", nothing, new_tokenizer("--lr", "fast"), 2, "--lr", "positron train -h"),
    ("no tokens a step", nothing, new_tokenizer("--batch_tokens", "0"), 2, "--batch_tokens is 0", "--batch_tokens"),
    ("too many tokens a step", nothing, new_tokenizer("--batch_tokens", str(10**15)), 2, "1,000,000,000,000,000", "--batch_tokens"),
    ("less than a row", nothing, new_tokenizer("--batch_tokens", "63"), 2, "63 is less than one row of 64", "--batch_tokens"),
    ("no heads", nothing, new_tokenizer("--n_head", "0"), 2, "--n_head is 0", "--n_head"),
    ("negative heads", nothing, new_tokenizer("--n_head", "-2"), 2, "--n_head is -2", "--n_head"),
    ("heads that do not divide", nothing, new_tokenizer("--n_kv_head", "3"), 2, "--n_kv_head 3", "--n_kv_head 2"),
    ("no layers", nothing, new_tokenizer("--n_layer", "0"), 2, "--n_layer is 0", "--n_layer"),
    ("a million layers", nothing, new_tokenizer("--n_layer", "1000000"), 2, "--n_layer", "--n_layer"),
    ("too wide", nothing, new_tokenizer("--n_embd", "9000000"), 2, "parameters", ""),
    ("odd head", nothing, new_tokenizer("--head_dim", "15"), 2, "--head_dim 15", "--head_dim"),
    ("no width", nothing, new_tokenizer("--n_embd", "0"), 2, "--n_embd is 0", "--n_embd"),
    ("short context", nothing, new_tokenizer("--context_len", "7"), 2, "--context_len is 7", "--context_len"),
    ("no vocabulary", nothing, train("--vocab_size", "0", "--tokenizer_path", "new.model"), 2, "--vocab_size is 0", "--vocab_size"),
    ("no steps", nothing, new_tokenizer("--max_steps", "0"), 2, "--max_steps is 0", "--max_steps"),
    ("half a step", nothing, new_tokenizer("--max_steps", "1.5"), 2, "--max_steps", "positron train -h"),
    ("negative warm-up", nothing, new_tokenizer("--warmup_steps", "-1"), 2, "--warmup_steps is -1", "--warmup_steps"),
    ("negative cool-down", nothing, new_tokenizer("--cooldown_steps", "-1"), 2, "--cooldown_steps is -1", "--cooldown_steps"),
    ("never saving", nothing, new_tokenizer("--save_every", "0"), 2, "--save_every is 0", "--save_every"),
    ("never validating", nothing, new_tokenizer("--eval_every", "0"), 2, "--eval_every is 0", "--eval_every"),
    ("negative seed", nothing, new_tokenizer("--seed", "-1"), 2, "--seed is -1", "--seed"),
    ("no threads", nothing, new_tokenizer("--threads", "0"), 2, "--threads is 0", "--threads"),
    ("all dropped", nothing, new_tokenizer("--dropout", "1"), 2, "--dropout is 1.0", "--dropout"),
    ("negative decay", nothing, new_tokenizer("--weight_decay", "-0.1"), 2, "--weight_decay is -0.1", "--weight_decay"),
    ("no gradient", nothing, new_tokenizer("--grad_clip", "0"), 2, "--grad_clip is 0.0", "--grad_clip"),
    ("milestones in words", nothing, new_tokenizer("--milestones", "some"), 2, "--milestones 'some'", "--milestones"),
    ("negative milestone", nothing, new_tokenizer("--milestones", "0,-5"), 2, "negative", "--milestones"),
    ("two pauses", nothing, new_tokenizer("--until_step", "5", "--more_steps", "5"), 2, "--until_step and --more_steps", ""),
    ("no such device", nothing, new_tokenizer("--device", "cuda"), 2, "--device cuda", "--device"),
    # --- flags
    ("unknown flag", nothing, train("--max_stps", "5"), 2, "--max_stps", "--max_steps"),
    ("flag without a value", nothing, train("--lr"), 2, "--lr", "positron train -h"),
    ("a word too many", nothing, train("text.txt"), 2, "text.txt", "positron train -h"),
    ("unknown choice", nothing, train("--optimizer", "sgd"), 2, "sgd", "positron train -h"),
    # --- run folders
    ("another run there", nothing, again("--lr", "1e-3"), 1, "lr is 0.004 there and 0.001 here", "--out_dir"),
    ("another text there", other_text, again("--dataset_path", "o.txt"), 1, "text", "--out_dir"),
    ("a file there", nothing, new_tokenizer("--out_dir", "text.txt"), 1, "text.txt", "--out_dir"),
    ("below a file", nothing, new_tokenizer("--out_dir", "text.txt/runs/x"), 1, "text.txt is a file", "--out_dir"),
    ("foreign files", lambda: shutil.copytree("data", "d/x"), new_tokenizer("--out_dir", "d"), 1, "d: exists and is not", "--out_dir"),
    ("damaged run.json", text("runs/base/run.json", '{"form'), again(), 1, "run.json", ""),
    ("run.json of a newer format", text("runs/base/run.json", '{"format": 9}'), again(), 1, "run.json", "--out_dir"),
    ("nothing to finish", nothing, train("--finish"), 2, "--finish: there is no run", "--out_dir"),
    ("nothing to resume", nothing, train("--resume_from_step", "5"), 2, "--resume_from_step 5: there is no run", "--out_dir"),
    ("a step without state", nothing, ["train", *BASE, "--resume_from_step", "20"], 1, "12, 25, 30", "--resume_from_step 30"),
    ("no step to go back to", without_state, ["train", *BASE, "--resume_from_step", "12"], 1, "step 12 has no training", ""),
    # --- checkpoints
    ("no checkpoint", nothing, generate("--ckpt", "runs/none"), 1, "runs/none", NO_RUN),
    ("no such step", nothing, generate("--ckpt", "runs/base/step_77.pt"), 1, "step_77", NO_RUN),
    ("empty name", nothing, generate("--ckpt", ""), 2, "--ckpt is empty", "--ckpt"),
    ("damaged weights", damage(f"{STEP}/model.safetensors"), step_30(), 1, "model.safetensors", ""),
    ("damaged manifest", damage(f"{STEP}/manifest.json"), step_30(), 1, "manifest.json", ""),
    ("hostile configuration", hostile_config, step_30(), 1, "config.json", ""),
    ("a .pt of another project", foreign_pt, generate("--ckpt", "other/latest.pt"), 1, "never unpickled", NO_RUN),
    ("a folder of another project", foreign_folder, generate("--ckpt", "other"), 1, "manifest.json", ""),
    ("a text file", nothing, generate("--ckpt", "text.txt"), 1, "text.txt", NO_RUN),
    ("no checkpoint to score", nothing, ["score", "--ckpt", "runs/none"], 1, "runs/none", NO_RUN),
    ("no checkpoint to evaluate", nothing, ["eval", "--ckpt", "runs/none", "--text", "text.txt"], 1, "runs/none", NO_RUN),
    ("no checkpoint to show", nothing, ["info", "--ckpt", "runs/none"], 1, "runs/none", NO_RUN),
    # --- sampling
    ("negative temperature", nothing, generate("--temperature", "-1"), 2, "--temperature is -1.0", "--temperature"),
    ("temperature that is no number", nothing, generate("--temperature", "nan"), 2, "--temperature is nan", "--temperature"),
    ("top_p above 1", nothing, generate("--top_p", "1.5"), 2, "--top_p is 1.5", "--top_p"),
    ("no tokens", nothing, generate("--max_tokens", "0"), 2, "--max_tokens is 0", "--max_tokens"),
    ("no samples", nothing, generate("--n", "0"), 2, "--n is 0", "--n"),
    ("too many samples", nothing, generate("--n", "100000"), 2, "100,000 samples", "--n"),
    ("empty stop string", nothing, generate("--stop", ""), 2, "--stop is an empty string", "--stop"),
    ("penalty of zero", nothing, generate("--repetition_penalty", "0"), 2, "--repetition_penalty is 0", "--repetition_penalty"),
    ("no threads to score with", nothing, ["score", "--ckpt", "runs/base", "--threads", "-1"], 2, "--threads is -1", "--threads"),
    ("no threads to examine with", nothing, ["doctor", "--threads", "-1"], 2, "--threads is -1", "--threads"),
    # --- evaluation
    ("nothing to evaluate", nothing, ["eval", "--ckpt", "runs/base"], 2, "--text", "--text FILE"),
    ("missing text to evaluate", nothing, ["eval", "--ckpt", "runs/base", "--text", "none.txt"], 1, "none.txt", ""),
    ("empty text to evaluate", text("e.txt", ""), ["eval", "--ckpt", "runs/base", "--text", "e.txt"], 1, "e.txt", ""),
]  # fmt: skip


@pytest.mark.parametrize(("prepare", "words", "code", "said", "hint"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_gives_one_sentence_and_a_hint_and_writes_nothing(
    workshop: Path, prepare: Callable[[], None], words: list[str], code: int, said: str, hint: str
) -> None:
    prepare()
    before = listing(workshop)
    result = positron(*words)
    assert result.code == code, result.err
    assert said in result.sentence and hint in result.hint, result.err
    assert len(result.sentence) < 300 and "  " not in result.sentence
    assert result.out == "" and listing(workshop) == before
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("words", [["score"], ["generate", "--prompt", "-"]])
def test_bytes_on_stdin_that_are_not_text_are_refused(workshop: Path, words: list[str]) -> None:
    result = positron(*words, "--ckpt", "runs/base", stdin=b"a\n\xff\xfe\n")
    assert result.code == 1 and "byte 2" in result.sentence and result.out == ""


@pytest.mark.parametrize("where", ["runs/new", "elsewhere/deep/run"])
def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_prepared(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Permission bits do not bind the superuser, who may be running this; the system's answer is played."""
    monkeypatch.setattr(os, "access", lambda path, mode, **kwargs: not mode & os.W_OK)
    before = listing(workshop)
    result = positron(*new_tokenizer("--out_dir", where))
    assert result.code == 1 and "may not be written to" in result.sentence and "that you may write to" in result.hint
    assert listing(workshop) == before


def test_a_folder_that_may_not_be_written_is_refused_for_an_ordinary_user(workshop: Path) -> None:
    os.chmod("runs", 0o500)
    try:
        if os.access("runs", os.W_OK):
            pytest.skip("permission bits do not bind this user")
        before = listing(workshop)
        assert "may not be written to" in positron(*new_tokenizer()).sentence
        assert listing(workshop) == before
    finally:
        os.chmod("runs", 0o700)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (train("--dataset_path", "none.txt"), 1),
        (train("--lr", "-1"), 2),
        (train("--max_stps", "5"), 2),
        (generate("--ckpt", "other/latest.pt"), 1),
    ],
    ids=["1", "2", "2 by an unknown flag", "1 by a foreign .pt"],
)
def test_the_exit_code_of_the_process_is_that_of_the_error(workshop: Path, words: list[str], code: int) -> None:
    foreign_pt()
    before = listing(workshop)
    process = spawn(*words)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and out == "" and Result(code, out, err).sentence
    assert listing(workshop) == before


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_flag_that_cannot_be_read_is_one_sentence_in_any_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(UsageError) as caught:
        parse(TrainConfig, ["--max_steps", "abc"], "train")
    assert caught.value.message == "--max_steps cannot be 'abc', it takes INT" and caught.value.hint == "positron train -h"
    with pytest.raises(UsageError) as caught:
        parse(TrainConfig, ["--max-stps", "1"], "train")
    assert caught.value.message == "Unrecognized options: --max-stps, 1" and caught.value.hint == "--max_steps"
