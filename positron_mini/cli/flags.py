"""Flags from dataclasses, alike for every command: snake_case shown, kebab-case accepted, exit code 2 if they cannot be parsed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import dropwhile, takewhile
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from positron_mini.cli.spelling import here
from positron_mini.cli.terminal import print
from positron_mini.errors import UsageError
from positron_mini.files import json_line

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], command: str) -> T:
    """The dataclass `kind` from a command line. `-h` prints help and exits 0; `kind` itself checks ranges. Errors: UsageError."""
    import tyro

    conf = tyro.conf
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                _for_help(kind) if {"-h", "--help"} & set(argv) else kind,
                args=list(argv),
                prog=f"positron {command}",
                use_underscores=True,
                config=(conf.FlagCreatePairsOff, conf.OmitArgPrefixes, conf.OmitSubcommandPrefixes, conf.UseAppendAction),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        sentence = _sentence(said.getvalue())
        raise UsageError(sentence, _nearest_flag(sentence, kind) or f"positron {command} -h") from None


def _for_help(kind: type[T]) -> type[T]:
    """A copy of `kind` whose help shows `--threads INT` instead of tyro's `{None}|INT` and `(default: None)`: the field's help says what
    happens without the flag. The command's own flags come before those it shares with others."""
    import tyro

    hints = get_type_hints(kind, include_extras=True)
    open_fields = [field.name for field in dataclasses.fields(cast(Any, kind)) if field.default is None]
    shown = {name: Annotated[hints[name], tyro.conf.arg(metavar=_metavar(hints[name]), help_behavior_hint="")] for name in open_fields}
    body = {"__annotations__": shown, "__doc__": kind.__doc__, **dict.fromkeys(open_fields)}
    twin: Any = dataclasses.dataclass(frozen=True)(type(kind.__name__, (kind,), body))
    own = vars(kind).get("__annotations__", {})  # shown before the shared ones
    fields = twin.__dataclass_fields__
    twin.__dataclass_fields__ = {name: fields[name] for name in (*own, *fields)}
    return cast(type[T], twin)


def _metavar(hint: Any) -> str:
    """The placeholder after an optional flag in its help: STR, INT, or {a,b} for a choice."""
    (inner,) = (part for part in get_args(hint) if part is not type(None))
    return f"{{{','.join(get_args(inner))}}}" if get_origin(inner) is Literal else inner.__name__.upper()


def flag_words(flags: Any, given: frozenset[str]) -> list[str]:
    """The command line for `flags`: those in `given`, and all that differ from their default."""
    words = []
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        if value is None or value is False or (value == field.default and field.name not in given):
            continue
        words += [f"--{field.name}"] if value is True else [f"--{field.name}", str(value)]
    return words


def _sentence(box: str) -> str:
    """One sentence from tyro's error box (drawn with dashes on a terminal that is not UTF-8)."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]  # without the title
    said = dropwhile(_is_divider, lines)
    text = " ".join(takewhile(lambda line: not _is_divider(line), said)).rstrip(".")
    unread = re.fullmatch(r"Error parsing (--\w+): no type matching (\S+) could be instantiated from \['(.*)'\]", text)
    if unread:
        return f"{unread[1]} cannot be {unread[3]!r}, it takes {unread[2].removeprefix('{None}|')}"
    return text


def _is_divider(line: str) -> bool:
    return not line.strip("─╰╯-")


def _nearest_flag(sentence: str, kind: Any) -> str | None:
    """The existing flag most similar to the unknown one in `sentence`."""
    unknown = re.match(r"Unrecognized options: --([\w-]+)", sentence)
    names = [field.name for field in dataclasses.fields(kind)]
    near = get_close_matches(unknown[1].replace("-", "_"), names, 1) if unknown else []
    return f"--{near[0]}" if near else None


def print_json(value: Any) -> None:
    """Print one JSON object on a line of its own. Errors: PositronError for NaN and infinity."""
    print(json_line(value))


def note(text: str) -> None:
    """Write a line of progress to stderr, with its commands spelled to work here; only results go to stdout."""
    print(here(text), file=sys.stderr, flush=True)
