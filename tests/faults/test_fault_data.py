"""Rows D of docs/reliability.md that need a whole command, a large file or a change under training; the others stand with their modules."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.faults import cost, steps_again
from helpers.runs import SEPARATOR, TINY, lines_of, listing, needs_fork, positron, tiny_train
from helpers.texts import made_stories
from positron_mini.store.run_folder import RunFolder
from positron_mini.text.corpus.files import ReadStats, read_documents
from positron_mini.text.tokenizer import train_tokenizer
from positron_mini.train import pretrain, speed

TOO_LITTLE = {
    "an empty file": ("", "is empty"),
    "white space": ("\n \n\t\n<|endoftext|>\n", "no story was found"),
    "one story": ("Tom had a dog. It was big.", "only one story was found"),
    "no separator and no blank line": ("\n".join(f"Tom saw {n} dogs." for n in range(300)), "only one story was found"),
    "one story many times": (SEPARATOR.join(["Tom had a dog."] * 50), "only one story"),
    "less than a context": (SEPARATOR.join(made_stories(3, 5)), "fewer than one context"),
}


@pytest.mark.parametrize("name", TOO_LITTLE)
def test_D1_too_little_text_is_said_before_training(workshop: Path, name: str) -> None:
    text, said = TOO_LITTLE[name]
    Path("little.txt").write_text(text)
    before = listing(workshop)
    words = ("--context_len", "4096", "--batch_tokens", "4096") if name == "less than a context" else ()
    result = positron("train", *TINY, *words, "--dataset_path", "little.txt", "--out_dir", "runs/new", "--max_steps", "3")
    assert result.code == 1 and said in result.sentence and result.hint and listing(workshop) == before


@needs_fork
def test_D3_a_line_of_fifty_megabytes_is_read_within_a_few_times_its_size(tmp_path: Path) -> None:
    path, line = tmp_path / "long.txt", b"many words and no end " * 2_400_000
    path.write_bytes(line + b"\n\nshort\n")

    def read() -> None:
        lengths = [len(text) for text in read_documents(path, stats=ReadStats())]
        assert lengths == [len(line), 5]

    seconds, memory = cost(read)
    assert memory < 12 * len(line) and seconds < 20, f"{seconds:.1f} s, {memory / 1e6:.0f} MB"


@pytest.fixture
def other_tokenizer(workshop: Path) -> str:
    """A tokenizer with as many pieces, from other stories."""
    train_tokenizer(made_stories(60, seed=2), 512, threads=1).save(Path("other.model"))
    return "other.model"


def test_D6_another_tokenizer_of_the_same_size_is_refused_by_every_command(workshop: Path, other_tokenizer: str) -> None:
    before = listing(workshop)
    Path("rows.jsonl").write_text('{"question": "Who?", "answer": "Tom."}\n')
    for words in (
        ("train", "--out_dir", "runs/base", "--tokenizer_path", other_tokenizer, "--max_steps", "40"),
        ("generate", "--ckpt", "runs/base", "--tokenizer_path", other_tokenizer),
        ("sft", "--base_ckpt", "runs/base", "--sft_data", "rows.jsonl", "--tokenizer_path", other_tokenizer),
    ):
        result = positron(*words)
        assert result.code == 1 and "okenizer" in result.sentence, result.err
    os.remove("rows.jsonl")
    assert {k: v for k, v in listing(workshop).items() if not k.startswith(".")} == {
        k: v for k, v in before.items() if not k.startswith(".")
    }


@pytest.mark.parametrize("how", ["changed", "cut off", "removed"])
def test_D7_a_token_file_that_changes_under_training_stops_it_with_the_steps_so_far(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, how: str, record_property: Callable[[str, object], None]
) -> None:
    (tokens,) = Path("data/cache").glob("*/train.tokens")
    real = pretrain.TokenBatches.batch

    def meddled(self: pretrain.TokenBatches, step: int) -> Any:
        if step == 7 and how == "removed":
            tokens.unlink()
        elif step == 7:
            data = tokens.read_bytes()
            tokens.write_bytes(data[:300] if how == "cut off" else data[:-1] + b"\0")
        return real(self, step)

    monkeypatch.setattr(pretrain.TokenBatches, "batch", meddled)
    monkeypatch.setattr(speed, "measure_speed", lambda *_, **__: 1e4)
    result = tiny_train("runs/new", "--max_steps", "12", "--save_every", "100", "--cooldown_steps", "1")
    assert result.code == 1 and f"{tokens}: " in result.sentence and "while it was in use" in result.sentence
    record_property("again", steps_again(Path("runs/new")))
    assert RunFolder(Path("runs/new")).steps()[-1] == 7 == lines_of(Path("runs/new/metrics.jsonl"))[-1]["step"]
