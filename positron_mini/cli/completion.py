"""`positron completion bash|zsh|fish`: a script with which that shell completes commands and flags."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from positron_mini.cli.commands import COMMANDS
from positron_mini.cli.flags import parse
from positron_mini.cli.terminal import print

BASH = """_positron() {{
  local words
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"
  else case "${{COMP_WORDS[1]}}" in
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _positron positron
"""


@dataclass(frozen=True)
class CompletionFlags:
    """Print a completion script. bash: source <(positron completion bash); zsh the same; fish: positron completion fish | source."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """the shell that will read it"""


def run(argv: Sequence[str]) -> int:
    """Print the script; 0 when done."""
    flags = parse(CompletionFlags, argv, "completion")
    print(script(flags.shell, all_flags()), end="")
    return 0


def all_flags() -> dict[str, list[str]]:
    """The flags of every command, from its own help."""
    return {command: flags_in(help_of(command)) for command in COMMANDS}


def flags_in(text: str) -> list[str]:
    """The flags that a help text explains, without those that begin a line by chance."""
    return sorted(set(re.findall(r"^[│ ] (--[a-z][a-z0-9_]*)", text, re.M)))


def help_of(command: str) -> str:
    """The output of `positron COMMAND -h`."""
    said, (name, *rest) = io.StringIO(), command.split()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(f"positron_mini.cli.{COMMANDS[name][0]}").run([*rest, "-h"])
    return said.getvalue()


def script(shell: str, flags: dict[str, list[str]]) -> str:
    """The completion script for a shell."""
    if shell == "fish":
        commands = f"complete -c positron -n __fish_use_subcommand -f -a '{' '.join(flags)}'\n"
        lines = (
            f"complete -c positron -n '__fish_seen_subcommand_from {command}' -l {flag.removeprefix('--')}\n"
            for command, found in flags.items()
            for flag in found
        )
        return commands + "".join(lines)
    cases = "\n".join(f'    {command}) words="{" ".join(found)}";;' for command, found in flags.items())
    body = BASH.format(commands=" ".join(flags), cases=cases)
    return f"autoload -U +X bashcompinit && bashcompinit\n{body}" if shell == "zsh" else body
