"""Laws of the small commands: where you are, a look at a text of one's own, completion."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.runs import positron
from helpers.texts import made_stories
from positron_mini.cli import COMMANDS
from positron_mini.cli import new as new_command
from positron_mini.cli.completion import all_flags, script
from positron_mini.cli.where import where_you_are


def test_without_runs_it_names_the_two_ways_to_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = positron()
    assert result.code == 0 and "positron bootstrap" in result.out and "positron new" in result.out


def test_with_runs_it_says_how_far_they_are_and_what_comes_next(workshop: Path) -> None:
    text = where_you_are()
    assert "runs/base  base, step 30 of 30, " in text and "bits per byte" in text and "positron quicksft" in text
    record = json.loads(Path("runs/base/run.json").read_text())
    record["events"][-1]["horizon"] = 90
    Path("runs/base/run.json").write_text(json.dumps(record))
    assert "positron train --out_dir runs/base    go on with it" in where_you_are()
    Path("runs/base/run.json").write_text("[]")
    assert "damaged" in where_you_are() and positron().code == 0


def test_a_text_of_ones_own_is_looked_at_and_the_command_it_advises_works(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("positron_mini.train.budget.measured_speed", lambda *_: 5_000.0)
    stories = made_stories(150, seed=5)
    Path("book").mkdir()
    for i, story in enumerate(stories):
        (Path("book") / f"kapitel {i} äöü.txt").write_text(story.replace("a", "ä"), encoding="utf-8")
    result = positron("new", "mein-buch", "book")
    assert result.code == 0 and "stories: " in result.out and "PicoGPT suits this text" in result.out, result.err
    words = shlex.split(result.out.strip().splitlines()[-1])
    assert words[-2:] == ["--out_dir", "runs/mein-buch"] and Path("tokenizer/mein-buch.model").is_file()
    assert "--budget" in words
    start = words.index("train")
    shorter = [word for word in words[start:] if word not in ("--budget", words[words.index("--budget") + 1])]
    tiny = "--max_steps 2 --batch_tokens 512 --n_layer 1 --n_embd 32 --n_head 2 --head_dim 16 --ffn 64 --context_len 64 --threads 1"
    assert positron(*shorter, *tiny.split()).code == 0


@pytest.mark.parametrize(("name", "text"), [("../evil", "text.txt"), ("", "text.txt"), ("fine", "gone.txt")])
def test_what_cannot_be_looked_at_is_one_sentence(workshop: Path, name: str, text: str) -> None:
    result = positron("new", name, text)
    assert result.code in (1, 2) and result.sentence and not Path("tokenizer/fine.model").exists()


def test_more_text_gets_more_pieces() -> None:
    found = [new_command.pieces_for(size) for size in (1_000, 200_000, 2_000_000, 10_000_000, 10**10)]
    assert found == sorted(found) and found[0] == 512 and found[-1] == 4_096


def test_completion_knows_every_command_and_flag() -> None:
    flags = all_flags()
    assert set(flags) == set(COMMANDS) and {"--budget", "--max_steps", "--out_dir"} <= set(flags["train"])
    for shell in ("bash", "zsh", "fish"):
        text = script(shell, flags)
        assert all(command in text for command in COMMANDS) and "budget" in text
    if shutil.which("bash"):
        asked = 'COMP_WORDS=(positron train --bud); COMP_CWORD=2; _positron; echo "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", script("bash", flags) + asked], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "--budget"
