"""Hints name only flags that the typed command has, though much of the code that gives them serves several commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from positron_mini.cli.commands import COMMANDS, SUBCOMMANDS

# "a, b  (c)   or   d" in its clauses, each with what parts it from the next
_CLAUSES = re.compile(r" *\([^()]*\)|.+?(?:[,;] | {2,}or {2,}|(?= *\()|$)")


def fitting(hint: str, words: Sequence[str]) -> str:
    """The hint without the clauses that name a flag which the command of the line `words` lacks; where none is left, its help."""
    command = " ".join(words[:2]) if " ".join(words[:2]) in SUBCOMMANDS else " ".join(words[:1])
    if command.split(" ")[0] not in COMMANDS or "--" not in hint:
        return hint
    kept: list[str] = []
    for clause in _CLAUSES.findall(hint):
        explains = clause.lstrip().startswith("(")  # the clause before it, and goes with that
        if not (explains and not kept) and not _own_flags(clause) - {"debug", "help"} - flags_of(command):
            kept.append(clause)
    return re.sub(r"([,;]? +or|[,;])? *$", "", "".join(kept)) or f"positron {command} -h"


def _own_flags(clause: str) -> set[str]:
    """Flags in a clause, unless it is a command with flags of its own."""
    if re.search(r"\bpositron \w|\.sh\b|\bpip |\$\(", clause):
        return set()
    return {flag.replace("-", "_") for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", clause)}


@cache
def flags_of(command: str) -> frozenset[str]:
    """Names of the flags of a command, from its own help."""
    from positron_mini.cli.completion import flags_in, help_of

    return frozenset(flag.removeprefix("--") for flag in flags_in(help_of(command)))
