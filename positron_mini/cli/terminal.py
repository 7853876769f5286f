"""Safe output to a terminal, and reading lines from one."""

from __future__ import annotations

import builtins
import codecs
import contextlib
import io
import os
import sys
from typing import Any, Protocol

from positron_mini.errors import DataError

MAX_LINE_BYTES = 1 << 20
QUOTES = '"""'

# Unfiltered, a text can move the cursor, change colours, type for the user, or show its letters in another order
# (CVE-2021-42574). Escape sequences need no parsing: without its first character each is plain text, even if it comes in parts.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]
_BIDI = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_LINES = [0x2028, 0x2029]
_DROPPED = dict.fromkeys(code for code in (*_CONTROLS, *_BIDI, *_LINES, *range(0xD800, 0xE000)) if chr(code) not in "\n\t")
# The same characters in JSON's spelling, so that the output stays valid JSON and nothing is lost.
_SPELLED = {code: f"\\u{code:04x}" for code in _DROPPED}


def open_streams() -> None:
    """Make stdout and stderr accept every character: UTF-8 for a pipe or file; a terminal keeps its encoding, with ? for the rest.

    By default Python uses the system's encoding for files too (cp1252 on Windows, ASCII with LANG=C).
    """
    if sys.stdin is None:  # closed by who started the program
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_terminal = stream.isatty()
            stream.reconfigure(encoding=None if is_terminal else "utf-8", errors="replace" if is_terminal else "backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(io.UnsupportedOperation):  # the stream has been read from already
            sys.stdin.reconfigure(errors="replace")


def print(*values: object, sep: str = " ", end: str = "\n", file: Any = None, flush: bool = False) -> None:
    """Print like the built-in function, but spell out what a terminal acts on: the escape character is shown as \\u001b.

    The whole command line prints with it. In JSON, where such a character occurs only in strings, the spelling means the character.
    """
    builtins.print(sep.join(map(str, values)).translate(_SPELLED), end=end, file=file, flush=flush)


def printable(text: str) -> str:
    """The text without what a terminal acts on: control characters, bidirectional overrides, lone surrogates. Newlines and tabs stay.

    It works character by character, so a text may be passed in parts.
    """
    return text.translate(_DROPPED)


def marked(text: str) -> str:
    """The text with U+FFFD for every character that a terminal acts on or does not show. Newlines stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def read_stdin() -> str:
    """All of stdin, without the byte-order mark of Windows editors. Errors: DataError if it is not UTF-8."""
    data = sys.stdin.buffer.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("stdin is UTF-16, not UTF-8", "convert it first: iconv -f UTF-16 -t UTF-8 FILE | positron ...")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8 (byte {error.start:,})", "convert it first, for example with iconv -t utf-8") from error


class Keyboard(Protocol):
    """A source of lines. Errors of `read` and `answer`: EOFError at the end of input, KeyboardInterrupt for Ctrl-C."""

    def read(self, prompt: str) -> str:
        """A question or command, which may have several lines."""

    def answer(self, prompt: str) -> str:
        """One line, not kept in the history."""

    def remember(self, line: str) -> None:
        """Add `line` to the history."""


class PlainKeyboard:
    '''Lines of a pipe or file, or of a terminal whose output goes elsewhere. What stands between `"""` and `"""` is read at once.'''

    def __init__(self, *, is_silent: bool) -> None:
        self._is_silent = is_silent

    def read(self, prompt: str) -> str:
        """The next line or block; the prompt goes to stderr. Invalid UTF-8 becomes U+FFFD. Errors: DataError for a huge line."""
        text = self.answer(prompt)
        while is_open_block(text):
            try:
                text += "\n" + self.answer("... ")
            except EOFError:
                break
        return text

    def answer(self, prompt: str) -> str:
        """The next line."""
        if not self._is_silent:
            print(prompt, end="", file=sys.stderr, flush=True)
        data: bytes = sys.stdin.buffer.readline(MAX_LINE_BYTES)
        if not data:
            raise EOFError
        if len(data) == MAX_LINE_BYTES and not data.endswith(b"\n"):
            while (rest := sys.stdin.buffer.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            raise DataError(f"a line has more than {MAX_LINE_BYTES:,} bytes", "give one question per line")
        return data.decode("utf-8", errors="replace").removeprefix("\ufeff").rstrip("\r\n")

    def remember(self, line: str) -> None:
        """Do nothing: there is no history here."""


class TerminalKeyboard:
    """A line editor: arrows, history (this session only, nothing is written), Tab for commands, pasting of several lines.

    Enter sends; Alt-Enter, and Enter in an open block of triple quotes, begin a new line.
    """

    def __init__(self, words: list[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.shortcuts import CompleteStyle

        keys = KeyBindings()

        @keys.add("enter")
        def _send(event: KeyPressEvent) -> None:
            if is_open_block(event.current_buffer.text):
                event.current_buffer.insert_text("\n")
            else:
                event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._history = InMemoryHistory()
        self._questions: PromptSession[str] = PromptSession(
            history=self._history,
            key_bindings=keys,
            multiline=True,
            completer=WordCompleter(words, sentence=True),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            enable_suspend=True,
        )
        self._answers: PromptSession[str] = PromptSession(history=InMemoryHistory())

    def read(self, prompt: str) -> str:
        """The text typed or pasted, up to Enter."""
        return self._questions.prompt(prompt)

    def answer(self, prompt: str) -> str:
        """One line."""
        return self._answers.prompt(prompt)

    def remember(self, line: str) -> None:
        """Add `line` to the history of the up key."""
        self._history.append_string(line)


def is_open_block(text: str) -> bool:
    '''Whether a text begins with `"""` and the closing one is still to come.'''
    return text.lstrip().startswith(QUOTES) and QUOTES not in text.lstrip()[len(QUOTES) :]


def is_block(text: str) -> bool:
    '''Whether a text begins with `"""`: then it is a question, even where it looks like a command.'''
    return text.lstrip().startswith(QUOTES)


def without_quotes(text: str) -> str:
    '''A block without its two `"""`, any other text as it is; both without outer whitespace.'''
    stripped = text.strip()
    return stripped[len(QUOTES) :].replace(QUOTES, "", 1).strip() if is_block(stripped) else stripped
