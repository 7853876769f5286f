"""Commands spelled so that they work when pasted: `positron` may not be on the path, and the user may be in another folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from positron_mini.cli.commands import COMMANDS

CALLED_FROM = "POSITRON_CALLED_FROM"  # the user's folder; set by the scripts, which change the current one


def here(text: str) -> str:
    """The text with every `positron COMMAND` spelled so that it works when pasted; quoted parts stay unchanged."""
    names = "|".join([*COMMANDS, "--help", "--version"])
    wanted = rf"(?<!\w)'[^']*'|(?<![\w./-])positron(?= (?:{names})(?![\w-])|  )"
    return re.sub(wanted, lambda found: program() if found[0] == "positron" else found[0], text)


def program() -> str:
    """How to start this program: `positron` if it is on the path, else its path, else `python -m positron_mini`."""
    own = shutil.which("positron", path=sysconfig.get_path("scripts"))
    on_path = shutil.which("positron")
    if own is None:
        python = shutil.which("python")
        is_own = python is not None and Path(python).parent == Path(sys.executable).parent
        started = f"{'python' if is_own else shlex.quote(sys.executable)} -m positron_mini"
    elif on_path is not None and os.path.samefile(own, on_path):
        started = "positron"
    else:
        path = Path(own)
        started = shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
    called_from = os.environ.get(CALLED_FROM, "")
    is_elsewhere = called_from and Path(called_from).is_dir() and not os.path.samefile(called_from, Path.cwd())
    return f"cd {shlex.quote(str(Path.cwd()))} && {started}" if is_elsewhere else started
