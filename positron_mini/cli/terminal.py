"""What may be written to a terminal, and how a line is read from one."""

from __future__ import annotations

import sys
from typing import Protocol

from positron_mini.errors import DataError

MAX_LINE_BYTES = 1 << 20
QUOTES = '"""'

# A text may otherwise move the cursor, change colours, type for the user, or show its letters in another order than it has them
# (CVE-2021-42574). Whole escape sequences need no parsing: without its first character each is plain text, even when it comes in parts.
_CONTROLS = [*range(0x00, 0x20), *range(0x7F, 0xA0)]
_BIDI = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_LINES = [0x2028, 0x2029]
_DROPPED = dict.fromkeys(code for code in (*_CONTROLS, *_BIDI, *_LINES, *range(0xD800, 0xE000)) if chr(code) not in "\n\t")


def printable(text: str) -> str:
    """The text without what a terminal would obey: control characters, bidirectional overrides, lone surrogates. Newlines and tabs stay.

    It works character by character, so a text may be passed in parts, cut anywhere.
    """
    return text.translate(_DROPPED)


class Keyboard(Protocol):
    """Where lines come from."""

    def read(self, prompt: str) -> str:
        """What was typed, without its last newline. Errors: EOFError when nothing will come, KeyboardInterrupt for Ctrl-C."""

    def remember(self, line: str) -> None:
        """Offer `line` when the user asks for earlier ones."""


class PlainKeyboard:
    '''Lines of a pipe or file, or of a terminal whose output goes elsewhere. A block between `"""` and `"""` is read as one line.'''

    def __init__(self, *, is_silent: bool) -> None:
        self._is_silent = is_silent

    def read(self, prompt: str) -> str:
        """The next line or block; the prompt goes to stderr. Bytes that are no UTF-8 become U+FFFD. Errors: DataError for a huge line."""
        if not self._is_silent:
            print(prompt, end="", file=sys.stderr, flush=True)
        text = self._line()
        while is_open_block(text):
            try:
                text += "\n" + self._line()
            except EOFError:
                break
        return text

    def remember(self, line: str) -> None:
        """Nothing: there is no recall here."""

    def _line(self) -> str:
        data: bytes = sys.stdin.buffer.readline(MAX_LINE_BYTES)
        if not data:
            raise EOFError
        if len(data) == MAX_LINE_BYTES and not data.endswith(b"\n"):
            while len(rest := sys.stdin.buffer.readline(MAX_LINE_BYTES)) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
                pass
            raise DataError(f"a line has more than {MAX_LINE_BYTES:,} bytes", "give one question per line")
        return data.decode("utf-8", errors="replace").removeprefix("\ufeff").rstrip("\r\n")


class TerminalKeyboard:
    """A line editor: arrows, history (of this session only, nothing is written), Tab for commands, pasting of several lines.

    Enter sends; Alt-Enter, and Enter in an open `\"\"\"` block, begin a new line.
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
        self._session: PromptSession[str] = PromptSession(
            history=self._history,
            key_bindings=keys,
            multiline=True,
            completer=WordCompleter(words, sentence=True),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            enable_suspend=True,
        )

    def read(self, prompt: str) -> str:
        """What was typed or pasted, up to Enter."""
        text: str = self._session.prompt(prompt)
        return text

    def remember(self, line: str) -> None:
        """Offer `line` on the up key."""
        self._history.append_string(line)


def is_open_block(text: str) -> bool:
    '''Whether a text begins with `"""` and the closing one is still to come.'''
    return text.lstrip().startswith(QUOTES) and QUOTES not in text.lstrip()[len(QUOTES) :]


def without_quotes(text: str) -> str:
    '''The text between `"""` and `"""` (what follows is dropped), or the text itself where it is no block; without outer whitespace.'''
    stripped = text.strip()
    return stripped[len(QUOTES) :].split(QUOTES)[0].strip() if stripped.startswith(QUOTES) else stripped
