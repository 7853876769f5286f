"""The chat loop: reads lines, runs commands, shows answers token by token. An error is one sentence, and the session goes on."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Generator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from positron_mini.chat.model import Model, read_model
from positron_mini.chat.session import ChatSession, with_settings
from positron_mini.cli.terminal import Keyboard, is_block, print, printable, without_quotes
from positron_mini.errors import PositronError, UsageError

TITLE = "🚀 Positron Mini Interactive Question Mode"
PROMPT = "❓ Your question: "
WORKING = "🤖 Generating response..."
DIALOG = ("max_tokens", "temperature", "top_p")

# command -> (its arguments, what it does); the source of /help
COMMANDS: dict[str, tuple[str, str]] = {
    "/help": ("", "this list"),
    "/set": ("[NAME=VALUE ...]", "change settings, or show them all"),
    "/system": ("[TEXT | none]", "a text that stands before the conversation"),
    "/clear": ("", "forget the conversation"),
    "/retry": ("", "another answer to the last question"),
    "/undo": ("", "forget the last question and its answer"),
    "/save": ("FILE", "write the conversation as JSON"),
    "/load": ("FILE", "go on with a saved conversation"),
    "/model": ("[CKPT]", "talk to another checkpoint, or list the runs"),
    "/stats": ("", "speed, length and perplexity of the last answer"),
    "/tokens": ("[TEXT]", "how the last question, or TEXT, was split"),
    "/why": ("", "the probability of each token of the last answer, and its rivals"),
    "/compare": ("[A] B", "the last question, answered by two checkpoints side by side (A: this one)"),
    "/quit": ("", "leave"),
}


class Repl:
    """One conversation. On a terminal everything goes to stdout; elsewhere only answers do, and notes go to stderr."""

    def __init__(self, session: ChatSession, keyboard: Keyboard, *, is_terminal: bool, is_batch: bool = False) -> None:
        self.session, self.keyboard = session, keyboard
        self.is_terminal, self.is_batch = is_terminal, is_batch  # batch: every question begins a new conversation
        self.questions = self.errors = 0

    def run(self) -> int:
        """Run until the user leaves or the input ends; return the number of errors shown."""
        if self.is_terminal:
            print(TITLE)
        while True:
            try:
                if not self._handle(self.keyboard.read(PROMPT)):
                    break
            except EOFError:
                break
            except KeyboardInterrupt:
                if not self.is_terminal:
                    raise
                self.note("(stopped; type quit, or press Ctrl-D, to leave)")
            except PositronError as error:
                self.errors += 1
                hint = f"\n  hint: {error.hint}" if error.hint else ""
                self.note(f"error: {error.message}{hint}")
        return self.errors

    def note(self, text: str) -> None:
        """Write a line that is not part of an answer."""
        print(printable(text), file=sys.stdout if self.is_terminal else sys.stderr, flush=True)

    def _handle(self, line: str) -> bool:
        """Answer a question or run a command; return False to leave."""
        text = without_quotes(line)
        word, _, rest = text.partition(" ")
        if not text:
            return True
        if not is_block(line):
            if text.lower() in ("quit", "exit", "/quit", "/exit"):
                return False
            if text.lower() == "settings":
                self._settings()
                return True
            if text.startswith("/"):
                self._command(word.lower(), rest.strip())
                return True
        if self.is_batch:
            self.session.clear()
        self.answer(self.session.ask(text), text)
        return True

    def answer(self, pieces: Generator[str, None, None], question: str) -> None:
        """Show an answer token by token. Ctrl-C ends it; the part shown stays."""
        if self.is_terminal:
            print(WORKING, flush=True)
            if not self.session.speaker.is_chat:
                print(printable(question), end="", flush=True)  # a base model's continuation reads better together with its beginning
        elif self.questions:
            print()
        self.questions += 1
        before = self.session.last
        with contextlib.closing(pieces):
            try:
                for piece in pieces:
                    print(printable(piece), end="", flush=True)
            except KeyboardInterrupt:
                if not self.is_terminal:
                    print(flush=True)
                    raise
        print(flush=True)
        if self.is_terminal:
            self.note(f"[{self._summary() if self.session.last is not before else 'stopped before the first word'}]")

    def _summary(self) -> str:
        last = self.session.last
        assert last is not None
        is_full = last.prompt.room < self.session.settings.max_tokens
        reasons = {
            "interrupted": "; stopped by Ctrl-C",
            "length": "; cut, for the context is full" if is_full else f"; cut at max_tokens={last.prompt.room}",
            "stop": "" if last.text.strip() else "; the model had nothing to say",
        }
        return self.session.meter() + reasons[last.finish_reason]

    def _settings(self) -> None:
        """Ask for the three most important settings; Enter keeps a value, Ctrl-C or Ctrl-D keeps the rest."""
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            for name in DIALOG:
                self._ask_setting(name)
        self._show_settings(DIALOG)

    def _ask_setting(self, name: str) -> None:
        while True:
            text = self.keyboard.answer(f"{name} [{getattr(self.session.settings, name)}]: ").strip()
            try:
                self.session.settings = with_settings(self.session.settings, {name: text} if text else {})
                return
            except UsageError as error:
                self.note(error.message)

    def _show_settings(self, names: Sequence[str]) -> None:
        self.note("  ".join(f"{name}={getattr(self.session.settings, name)}" for name in names))

    # --- commands -----------------------------------------------------------------------------------------------------------------------

    def _command(self, name: str, rest: str) -> None:
        if name not in COMMANDS:
            near = get_close_matches(name, COMMANDS, 1, 0.5) or ["/help"]
            raise UsageError(f"there is no command {name}", near[0])
        wants, _ = COMMANDS[name]
        if rest and not wants:
            raise UsageError(f"{name} takes nothing after it, not {rest!r:.60}", name)
        if not rest and wants and not wants.startswith("["):
            raise UsageError(f"{name} needs {wants}", f"{name} {'chat.json' if wants == 'FILE' else 'runs/NAME'}")
        getattr(self, f"_do_{name[1:]}")(rest)

    def _do_help(self, _: str) -> None:
        width = max(len(f"{name} {wants}") for name, (wants, _) in COMMANDS.items())
        self.note("\n".join(f"  {f'{name} {wants}':<{width}}  {what}" for name, (wants, what) in COMMANDS.items()))
        self.note('  settings and quit work without a slash; Alt-Enter begins a new line, and so does Enter between """ and """')
        self.note("  Ctrl-C stops an answer, Ctrl-D leaves")

    def _do_set(self, rest: str) -> None:
        words = rest.split()
        if len(words) == 2 and "=" not in rest:  # /set temperature 0.5
            words = ["=".join(words)]
        changes = dict(word.partition("=")[::2] for word in words)
        if any("=" not in word for word in words):
            raise UsageError(f"/set {rest!r:.60} is not NAME=VALUE", f"/set temperature={self.session.settings.temperature}")
        self.session.settings = with_settings(self.session.settings, changes)
        self._show_settings([name.replace("-", "_") for name in changes] or list(vars(self.session.settings)))

    def _do_system(self, rest: str) -> None:
        if not self.session.speaker.is_chat:
            raise UsageError("a base model reads no system text; it continues each line as a story", "/model runs/NAME")
        if rest:
            self.session.system = None if rest.lower() == "none" else rest
        self.note(f"system: {self.session.system if self.session.system is not None else '(none)'}")

    def _do_clear(self, _: str) -> None:
        self.session.clear()
        self.note("the conversation is forgotten" + ("; the system text stays" if self.session.system is not None else ""))

    def _do_retry(self, _: str) -> None:
        pieces = self.session.retry()
        if self.session.settings.temperature == 0.0:
            self.note("temperature is 0, so the answer will be the same; /set temperature=0.7 lets it vary")
        self.answer(pieces, self.session.turns[-1].question)

    def _do_undo(self, _: str) -> None:
        self.note(f"forgotten: {self.session.undo().question:.200}")

    def _do_save(self, rest: str) -> None:
        path = Path(rest).expanduser()
        self.session.save(path)
        self.note(f"saved in {path}; turns: {len(self.session.turns):,}")

    def _do_load(self, rest: str) -> None:
        name = self.session.load(Path(rest).expanduser())
        for turn in self.session.turns:
            self.keyboard.remember(turn.question)
        other = f"; it was held with {name}, this is {self.session.speaker.name}" if name != self.session.speaker.name else ""
        self.note(f"loaded with its settings; turns: {len(self.session.turns):,}{other}")

    def _do_model(self, rest: str) -> None:
        from positron_mini.store.find import list_runs

        if rest:
            self.session.switch(self._speaker(rest))
        else:
            self.note("runs: " + (", ".join(map(str, list_runs())) or "none"))
        speaker = self.session.speaker
        kind = "a chat model" if speaker.is_chat else "a base model, which continues each line as a story"
        self.note(f"{speaker.name}: {kind}, {speaker.gpt.config.parameters:,} parameters, context {speaker.context_len:,} tokens")

    def _do_stats(self, _: str) -> None:
        last = self.session.last
        if last is None:
            raise UsageError("there is no answer to measure", "type a question first")
        self.note(
            f"read {len(last.prompt.ids):,} tokens, wrote {len(last.token_ids):,} at {last.tok_per_s:,.1f} tokens per second "
            f"(the first after {last.first_token_s:.3f} s)\n"
            f"perplexity {last.perplexity:.2f}, ended by: {last.finish_reason}\n{self.session.meter()}"
        )

    def _do_tokens(self, rest: str) -> None:
        if not rest and not self.session.turns:
            raise UsageError("there is no question to split", "/tokens Once upon a time")
        text = rest or self.session.turns[-1].question
        tokenizer = self.session.speaker.tokenizer
        ids = tokenizer.encode(text)
        pieces = " | ".join(tokenizer.piece(i) for i in ids)
        self.note(f"{pieces}\n{' '.join(map(str, ids))}\n{len(ids):,} tokens, {len(text):,} characters, {len(text.encode()):,} bytes")

    def _do_why(self, _: str) -> None:
        rows = [
            [choice.piece, f"{choice.probability:.1%}", *(f"{piece} {p:.1%}" for piece, p in choice.rivals)]
            for choice in self.session.choices()
        ]
        self._table(["token", "probability", "rivals", "", "", ""], rows)

    def _do_compare(self, rest: str) -> None:
        if not self.session.turns:
            raise UsageError("there is no question to compare answers to", "type a question first")
        names = rest.split()
        if len(names) > 2:
            raise UsageError(f"/compare takes one or two checkpoints, not {len(names)}", "/compare runs/A runs/B")
        speakers = [*([self.session.speaker] if len(names) == 1 else []), *(self._speaker(name) for name in names)]
        answers = []
        for speaker in speakers:
            twin = self.session.twin(speaker)
            text = "".join(twin.ask(self.session.turns[-1].question))
            speed = f"{len(twin.last.token_ids):,} tokens, {twin.last.tok_per_s:,.0f} per second" if twin.last else ""
            answers.append((speaker.name, text.strip("\n"), speed))
        self._table([name for name, _, _ in answers], [[text for _, text, _ in answers], [speed for _, _, speed in answers]])

    def _speaker(self, name: str) -> Model:
        from positron_mini.store.find import find_checkpoint, read_found

        read = partial(read_model, weights=self.session.speaker.weights)
        return read_found(lambda: find_checkpoint(Path(name).expanduser(), say=self.note), read)

    def _table(self, headers: list[str], rows: list[list[str]]) -> None:
        """Show a table of untrusted text in columns that fit the terminal."""
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE, show_edge=False)
        for header in headers:
            table.add_column(Text(printable(header)), overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console = Console(file=sys.stdout if self.is_terminal else sys.stderr, width=shutil.get_terminal_size().columns)
        console.print(table)
