"""Whole conversations through a real pseudo-terminal, and what stands on its screen afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import signal
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.chats import LEARNED, scripted, write_model
from helpers.models import lively_model, shape
from helpers.project import ROOT
from helpers.runs import needs_fork
from positron_mini import files, generate
from positron_mini.cli import main
from positron_mini.model import GPT
from positron_mini.text.tokenizer import Tokenizer

pexpect = pytest.importorskip("pexpect")
fdpexpect = pytest.importorskip("pexpect.fdpexpect")
pytestmark = needs_fork

COLUMNS, ROWS = 100, 500  # rows: nothing scrolls out of sight
PLAIN = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": "1", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
ASK = "\x1b[?2004h"  # a line is read: once per prompt, where its text is drawn again with every key
GRAVITY = "Explain gravity to a child."


def screen(written: str) -> str:
    """What a terminal shows after `written`: a naive one that knows the sequences of our line editor. Others fail."""
    rows: list[list[str]] = [[]]
    y = x = at = 0
    for found in re.finditer(r"\x1b\[([?\d;]*)([A-Za-z])|\r|\n|[^\x1b]", written):
        assert found.start() == at, f"not known: {written[at : at + 20]!r}"
        at = found.end()
        amount = int(found[1]) if found[1] and found[1].isdigit() else 1
        match (found[2] and "[" + found[2]) or found[0]:
            case "\r":
                x = 0
            case "\n":
                y += 1
            case "[A":
                y = max(0, y - amount)
            case "[C":
                x += amount
            case "[D":
                x = max(0, x - amount)
            case "[J":
                rows[y] = rows[y][:x]
                del rows[y + 1 :]
            case "[K":
                rows[y] = rows[y][:x]
            case "[h" | "[l" | "[m":
                pass
            case letter:
                assert len(letter) == 1 and not found[1] and (letter.isprintable() or letter == "\b"), repr(found[0])
                rows[y] += [" "] * (x + 1 - len(rows[y]))
                rows[y][x] = letter
                x += 1 + (letter in "❓🤖🚀")
        while len(rows) <= y:
            rows.append([])
    return "\n".join("".join(row).rstrip() for row in rows).replace("❓  ", "❓ ").replace("🤖  ", "🤖 ").replace("🚀  ", "🚀 ")


class Talk:
    """A conversation with a command that runs in a terminal."""

    def __init__(self, child: Any, log: Any) -> None:
        self.child, self.log = child, log

    def expect(self, text: str) -> None:
        self.child.expect_exact(text)

    def type(self, text: str, *, then: str = ASK) -> None:
        """Send a line and wait for the text that follows it."""
        self.child.send(text + "\r")
        self.child.expect_exact(then)

    def shown(self) -> str:
        return screen("".join(self.log.parts))

    def end(self, leave: str = "quit\r") -> str:
        """The whole screen, once the command has ended."""
        self.child.send(leave)
        with contextlib.suppress(OSError):  # Linux: reading the end of a closed terminal
            self.child.expect(pexpect.EOF)
        return self.shown()


class Log:
    def __init__(self) -> None:
        self.parts: list[str] = []

    def write(self, text: str) -> None:
        self.parts.append(text)

    def flush(self) -> None:
        pass


@contextlib.contextmanager
def talking(*words: str | Path, stream: Callable[..., Any] | None = None) -> Iterator[Talk]:
    """`positron chat` in a child that shares what this process has loaded, on a terminal of its own. It must end with code 0."""
    import pty

    pid, fd = pty.fork()
    if pid == 0:
        code = 99
        try:
            os.environ.update(PLAIN)
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
            generate.stream = stream or generate.stream
            code = main(["chat", "--threads", "1", *map(str, words)])
            sys.stdout.flush()
        finally:
            os._exit(code)
    log = Log()
    child = fdpexpect.fdspawn(fd, encoding="utf-8", timeout=60)
    child.logfile_read = log
    try:
        yield Talk(child, log)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    except BaseException:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def cat(tmp_path_factory: pytest.TempPathFactory, taught: GPT, tiny_tokenizer: Tokenizer) -> Path:
    """A chat checkpoint that knows the answers of LEARNED."""
    return write_model(tmp_path_factory.mktemp("chats") / "cat", taught, tiny_tokenizer, is_chat=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A base checkpoint."""
    return write_model(tmp_path_factory.mktemp("chats") / "base", lively_model(shape()), tiny_tokenizer, is_chat=False)


def test_the_first_question_looks_exactly_like_this(cat: Path) -> None:
    with talking("--ckpt", cat) as talk:
        talk.expect(ASK)
        talk.type(GRAVITY)
        text = talk.end()
    assert text.splitlines()[:5] == [
        "🚀 Positron Mini Interactive Question Mode",
        "❓ Your question: Explain gravity to a child.",
        "🤖 Generating response...",
        "Things fall down to the ground.",
        text.splitlines()[4],
    ]
    assert re.fullmatch(r"\[context: \d+ of 128 tokens, 1 turn\]", text.splitlines()[4])


def test_pieces_are_shown_as_they_are_drawn_and_without_control_characters(cat: Path) -> None:
    script = scripted(["One ", "\x1b", "[2J", "two\r ", "\u202ethree"])
    gate, seen = os.pipe()

    def held(*words: Any, **settings: Any) -> Iterator[Any]:
        for i, token in enumerate(script(*words, **settings)):
            if i == 1:
                os.read(gate, 1)  # nothing more is drawn before the first piece was seen
            yield token

    with talking("--ckpt", cat, stream=held) as talk:
        talk.expect(ASK)
        talk.type("Hi", then="One ")
        os.write(seen, b"!")
        talk.expect("three")
        talk.expect(ASK)
        text = talk.end("\x04")
    assert "\nOne [2Jtwo three\n" in text


def test_ctrl_c_stops_the_answer_and_keeps_the_session(cat: Path) -> None:
    with talking("--ckpt", cat, stream=scripted(["word "] * 1_000, seconds=0.05)) as talk:
        talk.expect(ASK)
        talk.type("/set max_tokens=90")
        talk.type("Hi", then="word word ")
        talk.child.send("\x03")
        talk.expect("stopped by Ctrl-C]")
        talk.expect(ASK)
        talk.child.send("half a line\x03")
        talk.expect("(stopped; type quit, or press Ctrl-D, to leave)")
        talk.type("/stats")
        text = talk.end()
    assert ", 1 turn; stopped by Ctrl-C]" in text and "ended by: interrupted" in text


def test_settings_asks_for_three_values_and_refuses_impossible_ones(cat: Path) -> None:
    with talking("--ckpt", cat) as talk:
        talk.expect(ASK)
        talk.type("settings")
        talk.type("none")
        talk.type("2")
        talk.type("")
        talk.type("1")
        talk.type(GRAVITY)
        talk.type("/set max_tokens=99 top_k=5")
        talk.type("/set max_token=99")
        text = talk.end("exit\r")
    dialog = (
        "max_tokens [30]: none|max_tokens cannot be 'none', it takes a whole number|max_tokens [30]: 2|temperature [0.3]:|top_p [0.8]: 1|"
    )
    assert dialog.replace("|", "\n") in text
    assert "\nmax_tokens=2  temperature=0.3  top_p=1.0\n" in text
    assert ", 1 turn; cut at max_tokens=2]" in text
    assert "\nmax_tokens=99  top_k=5\n" in text
    assert "error: there is no setting 'max_token'" in text and "\n  hint: /set max_tokens=99\n" in text


def test_a_paste_of_many_lines_and_a_block_are_one_question_each(cat: Path, tmp_path: Path) -> None:
    pasted = "\n".join(f"line {i} of a long paste, which goes on" for i in range(40))
    with talking("--ckpt", cat, stream=scripted(["ok"])) as talk:
        talk.expect(ASK)
        talk.child.send("\x1b[200~" + pasted.replace("\n", "\r") + "\x1b[201~")
        talk.expect("line 39 of a long paste, which goes on")
        talk.type("", then="error: the question has")
        talk.expect(ASK)
        talk.child.send("\x1b[200~first\rsecond\x1b[201~")
        talk.expect("second")
        talk.type("")
        talk.child.send('"""quit\rand more\r')
        talk.type('"""')
        talk.type(f"/save {tmp_path / 'saved.json'}")
        text = talk.end()
    saved = files.read_json(tmp_path / "saved.json")["turns"]
    assert [turn["question"] for turn in saved] == ["first\nsecond", "quit\nand more"]
    assert text.count("🤖") == 2


def test_old_turns_drop_out_of_a_full_context_and_the_meter_says_so(cat: Path) -> None:
    with talking("--ckpt", cat, stream=scripted(["A long answer of many tokens."])) as talk:
        talk.expect(ASK)
        for _ in range(4):
            talk.type("Who are you, and what do you like to eat?")
        text = talk.end()
    meters = re.findall(r"^\[(context.*)\]$", text, re.MULTILINE)
    assert len(meters) == 4
    assert re.fullmatch(r"context: \d+ of 128 tokens, 1 turn", meters[0])
    assert re.fullmatch(r"context: \d+ of 128 tokens, 4 turns; the oldest (\d )?dropped out", meters[3])


def test_why_tokens_stats_and_compare_look_into_the_last_answer(cat: Path, base: Path) -> None:
    with talking("--ckpt", cat) as talk:
        talk.expect(ASK)
        for command in ("/why", "/tokens", "/compare x", "/stats"):
            talk.type(command)
        talk.type("What do you eat?")
        for command in ("/why", "/tokens", "/tokens Zoë", "/stats", f"/compare {cat} {base}", f"/compare {base}"):
            talk.type(command)
        text = talk.end()
    before, after = text.split("🤖")
    assert before.count("error: there is no ") == 4
    assert "\nFish and cake.\n" in after
    certain = re.findall(r"^ (\S+) +(\d+\.\d)% +(\S+ \d+\.\d% +){3}\S+ \d+\.\d%$", after, re.MULTILINE)
    assert "".join(piece for piece, _, _ in certain) == "Fish▁and▁cake.<|im_end|>"
    assert all(float(p) > 80 for _, p, _ in certain)
    assert "16 characters, 16 bytes" in after and "<0xC3> | <0xAB>" in after and "3 characters, 4 bytes" in after
    assert "perplexity 1." in after and "ended by: stop" in after
    assert len(re.findall(r"^ Fish and cake\. +\S", after, re.MULTILINE)) == 2


def test_undo_retry_clear_system_save_load_and_model_keep_one_conversation(cat: Path, base: Path, tmp_path: Path) -> None:
    with talking("--ckpt", cat) as talk:
        talk.expect(ASK)
        talk.type("/set temperature=0")
        talk.type(GRAVITY)
        talk.type("/retry")
        talk.type("/system Be kind.")
        talk.type(f"/save {tmp_path / 'c.json'}")
        talk.type("/undo")
        talk.type("/undo")
        talk.type("/system none")
        talk.type(f"/load {tmp_path / 'c.json'}")
        talk.type("/system")
        talk.type("/clear")
        talk.type("/load missing.json")  # a short line: a long path is broken at the edge of the terminal
        talk.type(f"/model {tmp_path / 'missing'}")
        talk.type(f"/model {base}")
        talk.type("Once upon a time", then="; every line begins anew")
        talk.expect(ASK)
        for _ in range(60):  # the history is loaded beside the prompt, and keys may be faster
            talk.child.send("\x1b[B" * 8 + "\x1b[A" * 4)  # down to the end, up to the first load
            if talk.child.expect_exact(["missing.json", pexpect.TIMEOUT], timeout=1) == 0:
                break
        talk.child.send("\x03")
        talk.expect(ASK)
        talk.type("/helo")
        talk.type("/help")
        text = talk.end("\x04")
    assert text.count("\nThings fall down to the ground.\n") == 2 and "the answer will be the same" in text
    assert f"forgotten: {GRAVITY}" in text and "error: there is no turn to take back" in text
    assert "loaded with its settings; turns: 1\n" in text and text.count("system: Be kind.") == 2
    assert "the conversation is forgotten; the system text stays" in text
    assert "missing.json: no such file" in text and "missing: no checkpoint there" in text
    assert "a base model, which continues each line as a story" in text
    assert "\nOnce upon a time" in text
    assert "error: there is no command /helo\n  hint: /help\n" in text and "/compare [A] B" in text


def test_the_script_asks_the_newest_fine_tuned_run_and_prints_the_answer_only(
    tmp_path: Path, taught: GPT, tiny_tokenizer: Tokenizer
) -> None:
    run = tmp_path / "runs/cat-sft"
    write_model(run / "step_000001", taught, tiny_tokenizer, is_chat=True)
    files.write_json(run / "run.json", {"format": 1, "kind": "sft"})
    (tmp_path / "ask_model.sh").write_text((ROOT / "ask_model.sh").read_text())
    (tmp_path / "setup.sh").write_text(f"POSITRON_BIN={shlex.quote(str(tmp_path))}\n")
    (tmp_path / "positron").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m positron_mini "$@"\n')
    for name in ("ask_model.sh", "positron"):
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, **PLAIN, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = pexpect.spawn(
        "/bin/sh",
        ["-c", f"./ask_model.sh {shlex.quote(GRAVITY)}; echo code $?"],
        cwd=str(tmp_path), env=environment, encoding="utf-8", timeout=60,
    )  # fmt: skip
    child.expect(pexpect.EOF)
    assert child.before == f"{LEARNED[GRAVITY]}\r\ncode 0\r\n"
