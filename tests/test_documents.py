"""Laws of the documents: what they tell a person to type exists, their links lead somewhere, and the tour's commands run as printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.project import ROOT, literals, script_module, sources
from helpers.runs import positron
from positron_mini.cli import COMMANDS
from positron_mini.cli.completion import all_flags

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SCRIPTS = {
    "./bootstrap_tiny_llm.sh": "bootstrap", "./train_incremental.sh": "incremental", "./sft_quickstart.sh": "quicksft",
    "./ask_model.sh": "chat", "train.py": "train", "generate.py": "generate", "sft_train.py": "sft",
}  # fmt: skip


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every line that a bash block of a page tells to type, as (command, flags and values...)."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] in (["python"], ["python3"]):
                words = ["positron", *words[3:]] if words[1:3] == ["-m", "positron_mini"] else words[1:]
            if words and words[0] in SCRIPTS:
                yield [SCRIPTS[words[0]], *words[1:]]
            elif len(words) > 1 and words[0] == "positron":
                yield words[1:]


@pytest.fixture(scope="module")
def known() -> dict[str, list[str]]:
    return all_flags()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_and_flag_that_a_page_tells_to_type_exists(page: Path, known: dict[str, list[str]]) -> None:
    for command, *words in commands(page):
        if command.startswith("-") or command in ("COMMAND", "help"):
            continue
        assert command in COMMANDS, f"{page.name}: positron {command}"
        extra = {"--yes", "--keep"} if words[:1] == ["prune"] else {"--help", "--debug"}  # runs prune has a help of its own
        flags = {word.split("=")[0].replace("-", "_").replace("__", "--", 1) for word in words if word.startswith("--")}
        assert flags <= {*known[command], *extra}, f"{page.name}: positron {command} {flags - set(known[command])}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_page_of_commands_is_what_their_help_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")  # the module sets it; this takes it back
    module = script_module("docs/make_commands.py")
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert page == module.commands_page(), "run: python docs/make_commands.py"


def test_every_message_that_the_troubleshooting_page_explains_is_one_of_the_program() -> None:
    source = "\n".join(text for tree in sources().values() for _, text in literals(tree))
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [said for row in re.findall(r"^\| (?!you see)(.*?) \|", page, re.M) for said in re.findall(r"`([^`]+)`", row)]
    foreign = {"positron: command not found", "?", "\\u001b", "positron doctor", "events.jsonl", "--budget"}
    parts = [part.strip() for said in quoted if said not in foreign for part in re.split(r"\.\.\.|: ", said) if part.strip()]
    assert len(parts) >= 15
    setup = (ROOT / "setup.sh").read_text(encoding="utf-8")
    known = f"{source}\n{setup}"  # where a message is put together, its last word may come from elsewhere
    assert not [part for part in parts if part not in known and f"{part.rpartition(' ')[0]} X" not in known]


SMALLER = {
    "--stories 5000": "--stories 60",
    "--vocab_size 2048": "--vocab_size 700",
    "--budget 3m": "--max_steps 4 --vocab_size 700 --batch_tokens 512 --n_layer 1 --n_embd 32 --n_head 2 --head_dim 16 --milestones 0",
    "--max_tokens 150": "--max_tokens 5",
    "--suite skills": "--suite skills --items 2",
    "--rows 1000": "--rows 3 --threads 1 --sft_data few.jsonl",
}


def test_the_tour_runs_as_printed_only_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = (ROOT / "tiny_instruct_sample.jsonl").read_text(encoding="utf-8").splitlines()
    Path("few.jsonl").write_text("\n".join(sorted(rows, key=len)[:24]) + "\n", encoding="utf-8")
    done = []
    for words in commands(ROOT / "docs" / "tour.md"):
        line = shlex.join(words)
        for large, small in SMALLER.items():
            line = line.replace(large, small)
        if words[0] in ("lab", "quicksft", "chat"):  # a server that stays; a model of four steps answers nothing in the time there is
            continue
        if "tour-sft" in line:
            line = line.replace("runs/tour-sft", "runs/tour")
        result = positron(*shlex.split(line))
        assert result.code == 0, f"positron {line}\n{result.err}"
        done.append(words[0])
    assert done == ["prepare", "prepare", "train", "generate", "eval", "report", "export"]
