"""Answers without a terminal: one question, a pipe of them; and what may reach a terminal at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.chats import scripted, write_model
from helpers.models import lively_model, shape
from helpers.runs import Result, positron
from positron_mini import generate
from positron_mini.chat.model import CHAT_SETTINGS
from positron_mini.cli import main
from positron_mini.cli.terminal import is_open_block, printable, without_quotes
from positron_mini.config import SampleConfig
from positron_mini.model import GPT
from positron_mini.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model() -> GPT:
    return lively_model(shape(context_len=128))


@pytest.fixture
def chat_folder(tmp_path: Path, model: GPT, tiny_tokenizer: Tokenizer) -> Path:
    return write_model(tmp_path / "chat", model, tiny_tokenizer, is_chat=True)


# --- what reaches a terminal ------------------------------------------------------------------------------------------------------------


def test_nothing_that_a_terminal_obeys_is_printable() -> None:
    assert printable("a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\r\x08\x7f") == "a[31mb]0;titlec2Jd"
    assert printable("ab\u202ecd\u2066\u200f\u061c\u2028e") == "abcde"
    kept = "Zürich\n\tשלום — 👩\u200d🚀 日本"
    assert printable(kept) == kept


@given(st.text(), st.integers(0, 20))
def test_cutting_a_text_anywhere_lets_nothing_through(text: str, cut: int) -> None:
    text = "\x1b[" + text + "\x9b\x1b\x1b]\u202e\ud800"
    assert printable(text[:cut]) + printable(text[cut:]) == printable(text)
    assert all(c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160) for c in printable(text))
    printable(text).encode()


@pytest.mark.parametrize(
    ("typed", "is_open", "text"),
    [
        (" hello ", False, "hello"),
        ('"""', True, ""),
        ('"""a\nb', True, "a\nb"),
        ('"""\na\n\nb\n"""', False, "a\n\nb"),
        ('"""a""" b', False, "a b"),
        ('say """', False, 'say """'),
    ],
)
def test_a_block_of_three_quotes_is_one_question(typed: str, is_open: bool, text: str) -> None:
    assert is_open_block(typed) is is_open
    assert without_quotes(typed) == text


# --- without a terminal -----------------------------------------------------------------------------------------------------------------


def ask(folder: Path, *words: str, stdin: bytes = b"") -> Result:
    return positron("chat", "--ckpt", folder, "--threads", "1", *words, stdin=stdin)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Tokenizer) -> list[str]:
    """The prompts that were read, decoded; the answer is always the same."""
    seen: list[Any] = []
    monkeypatch.setattr(generate, "stream", scripted(["It \x1b", "[31mfalls\r", "."], seen=seen))

    class Decoded(list[str]):
        def __eq__(self, other: object) -> bool:
            return [tiny_tokenizer.decode(ids) for ids, _ in seen] == other

        __hash__ = None  # type: ignore[assignment]

    return Decoded()


def read_as(question: str) -> str:
    return f"user\n{question}\nassistant\n"


@pytest.mark.parametrize("words", [["Tell me about gravity"], ["Tell", "me", "about", "gravity"]])
def test_a_single_question_prints_the_answer_only(chat_folder: Path, asked: list[str], words: list[str]) -> None:
    result = ask(chat_folder, *words)
    assert (result.code, result.out, result.err) == (0, "It [31mfalls.\n", "")
    assert asked == [read_as("Tell me about gravity")]


def test_every_line_of_a_pipe_is_a_question_of_its_own(chat_folder: Path, asked: list[str]) -> None:
    result = ask(chat_folder, stdin='\ufeffOne?\r\n\n  Two?\n"""\nThree\nlines\n"""\ncaf\xe9 '.encode() + b"\xff")
    assert (result.code, result.err) == (0, "")
    assert result.out == "\n".join(["It [31mfalls.\n"] * 4)
    assert asked == [read_as(q) for q in ("One?", "Two?", "Three\nlines", "café \ufffd")]


def test_a_pipe_obeys_commands_and_shows_their_words_on_stderr(chat_folder: Path, asked: list[str]) -> None:
    result = ask(chat_folder, stdin=b'/set max_tokens=1\nOne?\n/tokens ab\n"""quit"""\nquit\nNever?\n')
    assert (result.code, result.out) == (0, "It \n\nIt \n")
    assert "max_tokens=1" in result.err and "2 characters" in result.err
    assert asked == [read_as("One?"), read_as("quit")]


def test_a_question_that_fails_leaves_the_others_and_ends_in_code_1(chat_folder: Path, asked: list[str]) -> None:
    result = ask(chat_folder, stdin=b"One?\n" + b"long " * 200 + b"\n/wrong\n" + b"x" * (1 << 20) + b"xx\nTwo?\n")
    assert (result.code, result.out.count("falls")) == (1, 2)
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert [word in line for word, line in zip(("tokens", "/wrong", "1,048,576"), errors, strict=True)] == [True] * 3
    assert asked == [read_as("One?"), read_as("Two?")]


@pytest.mark.parametrize(("words", "stdin"), [([], b""), ([], b"\n \n"), ([""], b""), (["--top_p", "2", "Hi"], b""), (["--nope"], b"")])
def test_nothing_to_answer_is_a_usage_error(chat_folder: Path, asked: list[str], words: list[str], stdin: bytes) -> None:
    result = ask(chat_folder, *words, stdin=stdin)
    assert (result.code, result.out) == (2, "") and result.sentence
    assert asked == []


def test_a_base_model_continues_the_line_and_says_so_on_stderr(
    tmp_path: Path, model: GPT, tiny_tokenizer: Tokenizer, asked: list[str]
) -> None:
    folder = write_model(tmp_path / "base", model, tiny_tokenizer, is_chat=False)
    result = ask(folder, "Once upon")
    assert (result.code, result.out) == (0, "It [31mfalls.\n")
    assert "is a base model: it continues your line as a story" in result.err and result.err.count("\n") == 1
    assert asked == ["Once upon"]


def test_flags_set_what_is_drawn_and_defaults_are_those_of_the_chat(chat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(generate, "stream", scripted(["a"], seen=seen))
    ask(chat_folder, "Hi")
    ask(chat_folder, "Hi", "--max-tokens", "7", "--temperature", "0", "--top_p", "1", "--seed", "5", "--stop", "x", "--system", "Be kind.")
    assert seen[0][1] == CHAT_SETTINGS
    assert (CHAT_SETTINGS.max_tokens, CHAT_SETTINGS.temperature, CHAT_SETTINGS.top_p) == (30, 0.3, 0.8)
    assert seen[1][1] == SampleConfig(max_tokens=7, temperature=0.0, top_p=1.0, seed=5, stop=("x",))
    assert len(seen[1][0]) > len(seen[0][0])


@pytest.mark.parametrize("words", [["generate", "--prompt", "-"], ["chat"], ["score"], ["eval"]])
def test_a_closed_stdin_is_an_empty_one(
    chat_folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    main([*words, "--ckpt", str(chat_folder)])
    assert "unexpected" not in capsys.readouterr().err
