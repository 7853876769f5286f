"""`positron chat`: ask a model. One question on the command line, one per line of a pipe, or a conversation on a terminal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import tyro

from positron_mini.chat.model import CHAT_SETTINGS, read_model
from positron_mini.chat.session import ChatSession
from positron_mini.cli.flags import note, parse
from positron_mini.cli.repl import COMMANDS, Repl
from positron_mini.cli.terminal import PlainKeyboard, TerminalKeyboard
from positron_mini.cli.which import open_model
from positron_mini.config import SampleConfig, Weights, check_ranges
from positron_mini.errors import UsageError


@dataclass(frozen=True)
class ChatFlags(SampleConfig):
    """Ask a model: one question here, or a conversation when none is given. A base model continues each line as a story.

    From a pipe every line is a question of its own; its answer goes to stdout, with an empty line between answers. Lines between three
    double quotes are one question. Only answers go to stdout.
    """

    question: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """what to ask; after -- it may begin with a dash"""
    ckpt: str | None = None
    """checkpoint: a step folder, a run folder or runs/x/latest (default: the newest finished run, fine-tuned if there is one)"""
    system: str | None = None
    """a text that stands before the conversation"""
    max_tokens: int = CHAT_SETTINGS.max_tokens
    """most tokens to write"""
    temperature: float = CHAT_SETTINGS.temperature
    """0 always takes the likeliest token; 1 draws from the model's own probabilities"""
    top_p: float = CHAT_SETTINGS.top_p
    """keep the likeliest tokens that make up this share of the probability"""
    weights: Weights = "f32"
    """f32, or int8: rounded to 8 bits to write sooner"""
    threads: int | None = None
    """CPU threads (default: all cores)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"threads": 1})


def run(argv: Sequence[str]) -> int:
    """Answer or converse; 0 when done, 1 when a question of a pipe could not be answered."""
    flags = parse(ChatFlags, argv, "chat")
    question = " ".join(flags.question).strip()
    if flags.question and not question:
        raise UsageError("the question is empty", 'positron chat "Tell me a story."')
    session = _open(flags)
    if question:
        return _answer(session, question)
    if sys.stdin is not None and sys.stdin.isatty():
        is_terminal = sys.stdout.isatty()
        keyboard = TerminalKeyboard([*COMMANDS, "settings", "quit"]) if is_terminal else PlainKeyboard(is_silent=False)
        Repl(session, keyboard, is_terminal=is_terminal).run()
        return 0
    repl = Repl(session, PlainKeyboard(is_silent=True), is_terminal=False, is_batch=True)
    if repl.run():
        return 1
    if not repl.questions:
        raise UsageError("no question came from stdin", 'positron chat "Tell me a story."')
    return 0


def _open(flags: ChatFlags) -> ChatSession:
    """The chat session for the flags."""
    from positron_mini.device import set_threads

    speaker = open_model(flags.ckpt, partial(read_model, weights=flags.weights), talks=True, is_terse=bool(flags.question))
    if not speaker.is_chat:
        if flags.system is not None:
            raise UsageError(f"--system: {speaker.name} is a base model, which reads no system text", "leave --system out")
        note(f"{speaker.name} is a base model: it continues your line as a story. positron quicksft makes one that answers.")
    set_threads(flags.threads)
    settings = SampleConfig(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(SampleConfig)})
    session = ChatSession(speaker, settings)
    session.system = flags.system
    return session


def _answer(session: ChatSession, question: str) -> int:
    """Write the answer alone to stdout, token by token."""
    Repl(session, PlainKeyboard(is_silent=True), is_terminal=False).answer(session.ask(question), question)
    return 0
