"""A command as a person types it: words in, a line for the shell out."""

from __future__ import annotations

import shlex


def command(*words: object) -> str:
    """`positron WORDS`, each word quoted where a shell would read it otherwise: spaces, $(...), quotes."""
    return shlex.join(["positron", *map(str, words)])
