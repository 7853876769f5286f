"""Hints limited to the flags of the typed command: the code that gives a hint often serves several commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from positron_mini.cli.commands import COMMANDS, SUBCOMMANDS

# splits "a, b  (c)   or   d" into clauses, each with its separator
_CLAUSES = re.compile(r" *\([^()]*\)|.+?(?:[,;] | {2,}or {2,}|(?= *\()|$)")


def fitting(hint: str, words: Sequence[str]) -> str:
    """The hint without clauses that name a flag the command in `words` lacks; if none is left, a pointer to its help."""
    command = " ".join(words[:2]) if " ".join(words[:2]) in SUBCOMMANDS else " ".join(words[:1])
    if command.split(" ")[0] not in COMMANDS or "--" not in hint:
        return hint
    kept: list[str] = []
    for at, clause in enumerate(_CLAUSES.findall(hint)):
        explains = at > 0 and clause.lstrip().startswith("(")  # explains the clause before it, and is dropped with it
        if not (explains and not kept) and not _own_flags(clause) - {"debug", "help"} - flags_of(command):
            kept.append(clause)
    return re.sub(r"([,;]? +or|[,;])? *$", "", "".join(kept)) or f"positron {command} -h"


def _own_flags(clause: str) -> set[str]:
    """The flags in a clause; none if the clause is a whole command."""
    if re.search(r"\bpositron \w|\.sh\b|\bpip |\$\(", clause):
        return set()
    return {flag.replace("-", "_") for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", clause)}


@cache
def flags_of(command: str) -> frozenset[str]:
    """The names of a command's flags, from its help."""
    from positron_mini.cli.completion import flags_in, help_of

    return frozenset(flag.removeprefix("--") for flag in flags_in(help_of(command)))
