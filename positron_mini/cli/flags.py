"""Flags from dataclasses, the same way for every command: snake_case shown, kebab-case accepted, exit code 2 for what cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], command: str) -> T:
    """The dataclass `kind` from a command line. `-h` prints help and exits 0, bad flags exit 2; `kind` itself checks ranges."""
    import tyro

    return tyro.cli(
        kind,
        args=list(argv),
        prog=f"positron {command}",
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.UseAppendAction),
    )


def note(text: str) -> None:
    """Write a line of progress to stderr; results alone go to stdout."""
    print(text, file=sys.stderr, flush=True)
