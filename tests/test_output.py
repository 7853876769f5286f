"""What leaves the program: every character, whatever the encoding of the system, and nothing that a terminal would obey."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from helpers.project import ROOT, everywhere
from helpers.runs import positron, tiny_train
from positron_mini.cli import COMMANDS, main

WORD = "Żółw ☃ 龜"  # in none of cp1252 and ASCII as a whole
ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"


def generate(*words: str) -> list[str]:
    return ["generate", "--ckpt", "runs/base", "--max_tokens", "3", "--prompt", WORD, *words]


# command -> words that make it write WORD to stdout or stderr; what would take minutes is led to an error that names WORD
SPEAKING: dict[str, list[str]] = {
    "new": ["new", "buch", f"{WORD}.txt", "--json"],
    "prepare": ["prepare", "--dataset", f"{WORD}.txt", "--tokenizer_path", "spm.model"],
    "bootstrap": ["bootstrap", "--dataset_path", WORD, "--out_dir", f"runs/{WORD}"],
    "train": ["train", "--dataset_path", WORD],
    "incremental": ["incremental", "--dataset_path", WORD],
    "sft": ["sft", "--base_ckpt", "runs/base", "--show_mask", "rows.jsonl"],
    "quicksft": ["quicksft", "--base_ckpt", "runs/base", "--show_mask", "rows.jsonl"],
    "generate": generate(),
    "chat": ["chat", "--ckpt", f"runs/{WORD}", "--max_tokens", "2", "Hello"],
    "score": ["score", "--ckpt", "runs/base"],
    "eval": ["eval", "--ckpt", "runs/base", "--text", WORD],
    "report": ["report", "--run", WORD],
    "compare": ["compare", "runs/base", "runs/base", "--prompt", WORD, "--max_tokens", "2"],
    "serve": ["serve", "--ckpt", WORD],
    "lab": ["lab", "--root", WORD],
    "export": ["export", "--ckpt", "runs/base", "--format", "hf", "--out", WORD],
    "runs": ["runs"],
    "verify": ["verify", f"gone/{WORD}"],
    "doctor": ["doctor", WORD],
    "bench": ["bench", WORD],
    "completion": ["completion", WORD],
    "info": ["info", "--ckpt", f"gone/{WORD}"],
}


def written(words: list[str], encoding: str, stdin: bytes = b"") -> tuple[str, str]:
    """stdout and stderr of a command that runs in this process with files of `encoding` in their place."""
    out, err, given = io.BytesIO(), io.BytesIO(), io.TextIOWrapper(io.BytesIO(stdin), encoding=encoding)
    streams = [io.TextIOWrapper(stream, encoding=encoding, errors="strict") for stream in (out, err)]
    with mock.patch.object(sys, "stdin", given), contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        main(words)
        for stream in streams:
            stream.flush()
    return out.getvalue().decode("utf-8"), err.getvalue().decode("utf-8")


@pytest.fixture
def odd_workshop(workshop: Path) -> Path:
    """The workshop with a text, conversations and a run that have WORD in their name or content."""
    stories = Path("text.txt").read_text().split("<|endoftext|>")
    Path(f"{WORD}.txt").write_text("\n<|endoftext|>\n".join(f"{WORD} {text}" for text in stories))
    Path("rows.jsonl").write_text(json.dumps({"instruction": "Tell me.", "output": WORD}) + "\n")
    Path("runs/base").rename(f"runs/{WORD}")
    Path("runs/base").symlink_to(WORD)
    return workshop


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_ends_at_a_character_that_the_system_cannot_write(
    odd_workshop: Path, command: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("positron_mini.train.budget.measured_speed", lambda *_: 5_000.0)
    monkeypatch.setenv("COLUMNS", "1000")
    out, err = written(SPEAKING[command], encoding, f"{WORD}\n".encode())
    assert "Unicode" not in err and "unexpected" not in err, err
    assert WORD in out + err or (command in ("doctor", "bench", "completion") and "Ż" in out + err), (out, err)


def test_every_command_has_words_to_try_it_with() -> None:
    assert set(SPEAKING) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_ends_at_a_character_that_the_system_cannot_write(command: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    with contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
        assert main([command, "-h"]) == 0


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["cp1252", "ascii", "LANG=C"],
)
def test_a_process_of_its_own_writes_utf8_into_a_file(odd_workshop: Path, environment: dict[str, str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "positron_mini", "score", "--ckpt", "runs/base"]
    done = subprocess.run(command, input=f"{WORD}\n".encode(), env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("utf-8"))["text"] == WORD


def test_a_terminal_keeps_its_encoding_with_a_question_mark_for_the_rest(workshop: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "positron_mini", "runs", "--root", "é☃"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
            while part := os.read(ours, 1_000):
                seen += part
    os.close(ours)
    assert process.returncode == 0 and b"\xe9?" in seen, seen


# --- what a terminal would obey -------------------------------------------------------------------------------------------------------


def harmless(text: str) -> bool:
    return not set(text) & set("\x1b\x07\x9b\u202e\r")


def test_a_run_or_a_text_with_an_evil_name_or_content_commands_no_terminal(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("positron_mini.train.budget.measured_speed", lambda *_: 5_000.0)
    evil = ESCAPE.replace("/", "")
    Path("text.txt").write_text("\n<|endoftext|>\n".join(f"{ESCAPE}{t}" for t in Path("text.txt").read_text().split("<|endoftext|>")))
    Path("runs/base").rename(f"runs/{evil}")
    run = f"runs/{evil}"
    for words in (
        ["runs"], ["runs", "prune", "--keep", "1"], ["verify", run], ["info", "--ckpt", run], ["compare", run, run, "--max_tokens", "2"],
        ["generate", "--ckpt", run, "--prompt", evil, "--max_tokens", "2"], ["export", "--ckpt", run, "--out", f"out{evil}.gguf"],
        ["generate", "--ckpt", run, "--prompt", evil, "--max_tokens", "2", "--n", "2"], ["new", "book", "text.txt"],
        ["report", "--run", run],
        ["eval", "--ckpt", run, "--text", "text.txt"], ["chat", "--ckpt", run, evil, "--max_tokens", "2"], [], ["report", "--run", evil],
    ):  # fmt: skip
        result = positron(*words)
        assert harmless(result.out) and harmless(result.err), (words, result.out, result.err)


def test_in_json_the_characters_stay_what_they_are(workshop: Path) -> None:
    result = positron("score", "--ckpt", "runs/base", stdin=ESCAPE.encode())
    assert harmless(result.out) and json.loads(result.out)["text"] == ESCAPE
    result = positron("runs", "--root", f"none{ESCAPE}")
    assert "\\u001b]0;owned\\u0007" in result.out


def test_training_into_a_folder_with_an_evil_name_commands_no_terminal(workshop: Path) -> None:
    result = tiny_train(f"runs/{ESCAPE}", "--max_steps", "2")
    assert result.code == 0 and harmless(result.err), result.err


# --- laws of the source ---------------------------------------------------------------------------------------------------------------


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str, set[str]]]:
    """Every call with the last part of its name and the names of its keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield node, name, {keyword.arg or "" for keyword in node.keywords}


def is_binary(call: ast.Call) -> bool:
    """Whether one of the arguments is a mode such as "rb"."""
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(isinstance(v, ast.Constant) and isinstance(v.value, str) and "b" in v.value and len(v.value) <= 3 for v in values)


def without_encoding(tree: ast.AST) -> list[str]:
    """Text that is read, written or exchanged in whatever encoding the system happens to have."""
    found = []
    for call, name, keywords in calls(tree):
        receiver = ast.unparse(call.func).rpartition(".")[0]
        is_ours = receiver in ("files", "os", "TokenFile") or (name == "write_text" and not receiver)  # files.write_text writes UTF-8
        opens = name in ("open", "fdopen", "TextIOWrapper") and not is_binary(call) and (not is_ours or name == "fdopen")
        is_text = name in ("read_text", "write_text") and not is_ours
        talks = name in ("run", "Popen", "check_output") and keywords & {"text", "universal_newlines"}
        if (opens or is_text or talks) and "encoding" not in keywords:
            found.append(f"{call.lineno}: {name}")
    return found


def test_no_text_is_read_or_written_in_the_encoding_of_the_system() -> None:
    assert not everywhere(without_encoding)


@pytest.mark.parametrize(
    "line",
    ["open(p)", "open(p, 'w')", "p.open()", "os.fdopen(3, 'w')", "p.read_text()", "p.write_text(s)", "subprocess.run(c, text=True)",
     "subprocess.Popen(c, text=True)"],
)  # fmt: skip
def test_an_encoding_left_to_the_system_is_found(line: str) -> None:
    assert without_encoding(ast.parse(line))


def foreign_prints(tree: ast.Module) -> list[str]:
    """Uses of a `print` that is not the command line's own, and of what writes past it."""
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "print"]
    own = any(
        isinstance(node, ast.ImportFrom) and node.module == "positron_mini.cli.terminal" and any(a.name == "print" for a in node.names)
        for node in tree.body
    )
    past = ("sys.stdout.write", "sys.stderr.write")
    writes = [node for node, name, _ in calls(tree) if name == "write" and ast.unparse(node.func) in past]
    return [f"{node.lineno}: {ast.unparse(node)}" for node in (*([] if own else named), *writes)]


def test_the_command_line_prints_by_its_own_print_only() -> None:
    found = [what for what in everywhere(foreign_prints) if what.startswith("cli")]
    defining, marking = "cli.terminal ", "cli "  # the second writes help, and errors with every odd character marked
    assert not [what for what in found if not what.startswith((defining, marking))]
    assert foreign_prints(ast.parse("print(1)")) and foreign_prints(ast.parse("sys.stdout.write(x)"))
    assert not foreign_prints(ast.parse("from positron_mini.cli.terminal import print\nprint(1)"))
