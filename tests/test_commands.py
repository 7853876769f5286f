"""What the program prints to be typed: it is quoted for a shell, starts where the person is, and names commands and flags that exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import pytest

from helpers.project import ROOT, literals, sources
from helpers.runs import TINY, positron, tiny_train
from helpers.texts import made_stories
from positron_mini.cli.commands import COMMANDS, SUBCOMMANDS
from positron_mini.cli.hints import fitting, flags_of
from positron_mini.cli.spelling import CALLED_FROM, here, program
from positron_mini.errors import command

OWN = Path(sysconfig.get_path("scripts")) / "positron"
ODD = "my $(touch owned) 'text'; é.txt"


# --- how it is spelled ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["runs/a", "a b", "$(x)", "it's", "a;b", "*", "`x`", "é", "a\nb"])
def test_a_printed_command_means_its_words_to_a_shell(path: str) -> None:
    assert shlex.split(command("train", "--out_dir", Path(path), "--max_steps", 30)) == [
        "positron", "train", "--out_dir", path, "--max_steps", "30",
    ]  # fmt: skip
    said = subprocess.run(
        ["sh", "-c", f"set -- {command('train', path)}; printf '%s|' \"$@\""], capture_output=True, encoding="utf-8", check=True
    )
    assert said.stdout == f"positron|train|{path}|"


@pytest.mark.parametrize(
    ("where", "spelled"),
    [("on the path", "positron"), ("in this folder", ".venv/bin/positron"), ("elsewhere", "OWN"), ("another one", "OWN"),
     ("a link", "positron"), ("nowhere", "python -m positron_mini")],
)  # fmt: skip
def test_the_program_is_named_so_that_it_starts_from_here(
    where: str, spelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / "pro ject" / ".venv" / "bin"
    scripts.mkdir(parents=True)
    own = scripts / "positron"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(scripts))
    monkeypatch.chdir(tmp_path if where in ("elsewhere", "another one") else tmp_path / "pro ject")
    path = [str(other)]
    if where == "on the path":
        path = [str(scripts)]
    elif where == "another one":
        (other / "positron").write_text("#!/bin/sh\n")
        (other / "positron").chmod(0o755)
    elif where == "a link":
        (other / "positron").symlink_to(own)
    elif where == "nowhere":
        own.unlink()
        path = [str(Path(sys.executable).parent)]
        (Path(path[0]) / "python").exists() or pytest.skip("this Python has another name")
        path = [str(other)]
        (other / "python").symlink_to(sys.executable)
        monkeypatch.setattr(sys, "executable", str(other / "python"))
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    monkeypatch.delenv(CALLED_FROM, raising=False)
    if spelled == "OWN":
        relative = own.relative_to(tmp_path)
        spelled = shlex.quote(str(relative))
    assert program() == spelled


def test_a_script_that_was_called_from_another_folder_says_where_its_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "the project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv(CALLED_FROM, str(tmp_path))
    assert program() == f"cd '{project}' && positron"
    monkeypatch.setenv(CALLED_FROM, str(project))
    assert program() == "positron"
    for name in ("bootstrap_tiny_llm.sh", "train_incremental.sh", "sft_quickstart.sh", "ask_model.sh"):
        text = (ROOT / name).read_text()
        assert text.index(f'export {CALLED_FROM}="$PWD"') < text.index("cd -- ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("positron train --lr 1", "P train --lr 1"),
        ("train one: positron bootstrap, then positron quicksft", "train one: P bootstrap, then P quicksft"),
        ("  positron        where you are", "  P        where you are"),
        ("All commands: positron --help", "All commands: P --help"),
        ("usage: positron COMMAND [flags]", "usage: positron COMMAND [flags]"),
        ("a positron is small; positron trains", "a positron is small; positron trains"),
        ("positron train --out_dir 'my positron train'", "P train --out_dir 'my positron train'"),
        ("it's done; positron chat --ckpt 'a b'", "it's done; P chat --ckpt 'a b'"),
        ("runs/positron train", "runs/positron train"),
    ],
)
def test_commands_in_a_text_are_spelled_for_here_and_nothing_else(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("positron_mini.cli.spelling.program", lambda: "P")
    assert here(text) == shown


def test_what_a_process_prints_starts_where_positron_is_not_on_the_path(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    said = subprocess.run([OWN], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=True).stdout
    line = next(line.strip() for line in said.splitlines() if "bootstrap" in line)
    begun = subprocess.run(
        ["sh", "-c", f"{line} --steps 0"], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert begun.returncode == 2 and "--steps is 0" in begun.stderr, (line, begun.stderr)


# --- what the commands print works when pasted ------------------------------------------------------------------------------------------


def typed(line: str) -> list[str]:
    """The words after `positron` of a printed line."""
    words = shlex.split(line[line.index("positron ") :])
    return words[1:]


def test_prepare_prints_the_training_on_what_it_has_just_made(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("text.txt").rename(ODD)
    result = positron(
        "prepare", "--dataset", ODD, "--tokenizer_path", "new ones/spm.model", "--vocab_size", "700", "--config", "PicoGPT"
    ).ok()
    words = typed(result.err.splitlines()[-1])
    expected = ["train", "--dataset_path", ODD, "--tokenizer_path", "new ones/spm.model", "--config", "PicoGPT"]
    assert words == expected
    tiny = "--max_steps 1 --batch_tokens 512 --n_layer 1 --n_embd 32 --n_head 2 --head_dim 16 --ffn 64 --context_len 64 --milestones none"
    trained = positron(*words, *tiny.split(), "--out_dir", "runs/new", "--threads", "1")
    assert trained.code == 0 and "700 pieces" in trained.err and not Path("owned").exists(), trained.err


@pytest.mark.parametrize(("words", "pieces"), [([], 2_048), (["--vocab_size", "900"], 900)])
def test_a_new_tokenizer_gets_the_vocabulary_of_the_preset_wherever_it_is_written(
    workshop: Path, words: list[str], pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def refuse(*_: object, vocab_size: int | None, **__: object) -> None:
        asked.append(vocab_size)
        raise KeyboardInterrupt

    monkeypatch.setattr("positron_mini.text.prepare.prepare_corpus", refuse)
    for place in ([], ["--tokenizer_path", "new.model"]):
        positron("prepare", "--dataset", "text.txt", "--config", "PicoGPT", *place, *words)
    positron("prepare", "--dataset", "text.txt", "--config", "PicoGPT", "--tokenizer_path", "spm.model")
    assert asked == [pieces, pieces, None]


def test_what_to_try_next_works_for_a_run_with_an_odd_name_and_begins_as_its_text_does(workshop: Path) -> None:
    Path("laws.txt").write_text(
        "\n\n\n".join(
            f"Paragraph {i}. Whoever finds a {text.split()[6]} keeps it.\n{text[40:]}" for i, text in enumerate(made_stories(200))
        )
    )
    run = f"runs/{ODD}"
    result = tiny_train(run, "--dataset_path", "laws.txt", "--max_steps", "4", "--milestones", "0").ok()
    line = next(line for line in result.err.splitlines() if line.startswith("try it"))
    words = typed(line)
    assert words[:4] == ["generate", "--ckpt", run, "--prompt"] and words[4].startswith("Paragraph ")
    spoken = positron(*words, "--max_tokens", "3")
    assert spoken.code == 0 and spoken.out.startswith(words[4]) and not Path("owned").exists()
    alone = positron("generate", "--ckpt", run, "--max_tokens", "3")
    assert alone.out == spoken.out
    again = positron("train", "--out_dir", run, "--dataset_path", "laws.txt")
    assert f"try it: {command(*words)}" in again.err
    report = positron("report", "--run", run)
    assert typed(next(line for line in report.out.splitlines() if line.startswith("next:")))[:3] in (["train", "--out_dir", run], words[:3])
    export = positron("export", "--ckpt", run, "--format", "hf", "--out", "out")
    assert export.code == 0 and f"--prompt {shlex.quote(words[4])}" in Path("out/README.md").read_text()


def test_a_text_that_is_too_small_for_its_pieces_gets_a_hint_that_works(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("positron_mini.train.budget.measured_speed", lambda *_: 5_000.0)
    Path("small.txt").write_text("\n\n".join("".join(chr(0x4E00 + (7 * i + j) % 900) for j in range(40)) for i in range(60)))
    result = positron("new", "small", "small.txt")
    assert result.code == 1 and result.hint.startswith("--vocab_size ")
    again = positron("new", "small", "small.txt", *result.hint.split()[:2])
    assert "vocabulary" not in again.err, again.err


def test_a_damaged_run_names_the_command_that_goes_on(workshop: Path) -> None:
    weights = Path("runs/base/step_000030/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    result = positron("verify", "runs/base")
    found = re.match(r"positron train --out_dir runs/base --resume_from_step (\d+)   goes on", result.hint)
    assert result.code == 1 and found and int(found[1]) < 30, result.err


# --- what a hint may name ---------------------------------------------------------------------------------------------------------------


SMALLER = "close other programs, use a smaller model, or --micro_batch, or --context_len"
ELSEWHERE = "choose another --out_dir, or leave out --dataset_path"


@pytest.mark.parametrize(
    ("hint", "words", "shown"),
    [
        (SMALLER, "train", None),
        (SMALLER, "chat", "close other programs, use a smaller model"),
        ("--vocab_size 300  (or train on more text)", "new", None),
        ("--tokenizer_path x.model  (a file that does not exist yet is trained from the text)", "new", "positron new -h"),
        ("give a file with text: --dataset_path FILE", "prepare", "positron prepare -h"),
        ("wait for it, or choose another --out_dir", "runs prune", "wait for it"),
        ("leave --keep out for the default", "runs prune", None),
        ("leave --keep out for the default", "runs", "positron runs -h"),
        ("positron train --nproc 2, or torchrun, starts more", "sft", None),
        ("positron prepare --dataset tinystories   or   --dataset_path YOUR.txt", "eval", "positron prepare --dataset tinystories"),
        ("run it again with --debug and report what it prints", "score", None),
        (f"{ELSEWHERE}, or --dataset", "train", ELSEWHERE),
        ("--anything", "no command", None),
    ],
)  # fmt: skip
def test_a_hint_names_no_flag_that_the_command_lacks(hint: str, words: str, shown: str | None) -> None:
    assert fitting(hint, words.split()) == (hint if shown is None else shown)


def test_the_error_that_is_shown_went_through_it(monkeypatch: pytest.MonkeyPatch, workshop: Path) -> None:
    Path("empty.txt").write_text("\n")
    result = positron("prepare", "--dataset", "empty.txt", "--tokenizer_path", "e.model")
    assert result.code == 1 and "--dataset_path" not in result.hint


# --- everything that is written down ----------------------------------------------------------------------------------------------------


def built(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The words of every `command(...)`, those that are not literal as X."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command":
            words = [arg.value if isinstance(arg, ast.Constant) else "X" for arg in node.args]
            yield node.lineno, " ".join(["positron", *map(str, words)])


NAMED = re.compile(r"(?<![\w./-])positron ((?:runs prune|[a-z]+))(?![\w-])((?:(?! {2}|`|\n|;|, | or | and |\) |: ).)*)")


def unknown(text: str) -> list[str]:
    """Commands and flags in a text that there are not."""
    found = []
    for name, rest in NAMED.findall(text):
        if name not in (*COMMANDS, *SUBCOMMANDS):
            is_meant = rest.startswith(" --") or get_close_matches(name, COMMANDS, 1, 0.75)  # else prose: "what a positron does"
            found += [f"positron {name}"] if is_meant else []
            continue
        flags = {flag.replace("-", "_") for flag in re.findall(r"(?<!\S)--([a-z][\w-]*)", rest)}
        found += [f"positron {name} --{flag}" for flag in sorted(flags - flags_of(name) - {"help", "debug", "yes", "keep"})]
    return found


def test_every_command_and_flag_that_the_source_names_exists() -> None:
    wrong = [
        f"{module}:{line} {what}"
        for module, tree in sources().items()
        for line, text in (*literals(tree), *built(tree))
        for what in unknown(text)
    ]
    assert not wrong


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*.sh")]), ids=lambda page: page.name)
def test_every_command_and_flag_that_a_page_or_a_script_names_exists(page: Path) -> None:
    if page.name != "CHANGELOG.md":  # which tells of what there was
        assert not unknown(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("try positron trian", ["positron trian"]), ("positron new a b --budget 5m", ["positron new --budget"]),
     ("`positron train --out-dir x`", []), ("positron runs prune --keep 2", []), ("a positron is", [])],
)  # fmt: skip
def test_a_command_or_flag_that_there_is_not_is_found(text: str, wrong: list[str]) -> None:
    assert unknown(text) == wrong


def unquoted(tree: ast.AST) -> list[int]:
    """Lines where a path is put into a command without being quoted: a value named like one right after a flag or a command."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        before = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                before += str(part.value)
            elif isinstance(part, ast.FormattedValue):
                value = ast.unparse(part.value)
                is_path = re.search(r"(path|folder|place|root|ckpt|run|out)\b(?!\()", value) is not None and "quote" not in value
                if is_path and re.search(r"positron [a-z]+ (?:.*--\w+ )?$", before):
                    lines.append(node.lineno)
                before += "X"
    return lines


def test_every_path_in_a_printed_command_is_quoted() -> None:
    assert not [f"{module}:{line}" for module, tree in sources().items() for line in unquoted(tree)]
    assert unquoted(ast.parse('f"positron verify {run.path}"')) and unquoted(ast.parse('f"try positron train --out_dir {folder}"'))
    assert not unquoted(ast.parse('f"positron verify {shlex.quote(str(run.path))}"'))


def test_no_command_is_printed_as_a_result_without_being_spelled_for_here() -> None:
    """Notes and errors are, all of them; what goes to stdout may be a model's text, so it is asked for there."""
    wrong = []
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"):
                continue
            said = [text for arg in node.args for _, text in (*literals(arg), *built(arg))]
            spelled = any(isinstance(part, ast.Name) and part.id == "here" for part in ast.walk(node))
            if any(NAMED.search(text) for text in said) and not spelled:
                wrong.append(f"{module}:{node.lineno}")
    assert not wrong


def test_the_tiny_settings_are_flags_of_train() -> None:
    assert {word.removeprefix("--") for word in TINY if word.startswith("--")} <= flags_of("train")
