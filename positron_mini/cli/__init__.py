"""`positron COMMAND`: find the command, run it, and turn errors into one sentence, a hint and an exit code.

The top-level help is static and every command imports only its own parts, so that help and errors answer at once.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Sequence

from positron_mini import __version__
from positron_mini.cli.commands import COMMANDS
from positron_mini.cli.hints import fitting
from positron_mini.cli.spelling import here
from positron_mini.cli.terminal import marked, open_streams
from positron_mini.errors import FULL_DISK, Interrupted, PositronError


def top_help() -> str:
    """The text of `positron --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items())
    return (
        "usage: positron COMMAND [flags]\n\nTrain your own small language model, from scratch, on the machine you have.\n\n"
        f"commands:\n{rows}\n\n"
        "  positron COMMAND -h   flags of a command, with units and defaults\n"
        "  positron --version    the version\n\n"
        "first steps:\n  positron bootstrap                     a model of children's stories, in about 10 minutes\n"
        "  positron new my-book TEXTS             what it takes to make one of your own texts\n"
        "  positron                               where you are, and what comes next\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 usage, 3 non-finite, 4 disk full, 5 out of memory, 130/143 stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    open_streams()
    try:
        return _dispatch(words)
    except PositronError as error:
        if debug:
            raise
        return _show(error.message, fitting(error.hint, words), error.exit_code, is_error=not isinstance(error, Interrupted))
    except KeyboardInterrupt:
        return _show("stopped by Ctrl-C", "", 130, is_error=False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has closed the pipe; do not complain at exit
        return 0
    except Exception as error:
        if debug:
            raise
        from positron_mini.device import is_out_of_memory

        if is_out_of_memory(error):
            hint = "close other programs, use a smaller model, or --micro_batch, or --context_len"
            return _show("out of memory", fitting(hint, words), 5)
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return _show(f"no space left for what is written ({error.strerror})", "free some space, then start the same command again", 4)
        return _show(f"unexpected {type(error).__name__}: {error}", "run it again with --debug and report what it prints", 1)


def _dispatch(words: list[str]) -> int:
    if not words:
        from positron_mini.cli.where import where_you_are

        sys.stdout.write(here(marked(where_you_are())))
        return 0
    if words[0] in ("-h", "--help", "help"):
        sys.stdout.write(here(top_help()))
        return 0
    if words[0] in ("--version", "-V"):
        sys.stdout.write(f"positron-mini {__version__}\n")
        return 0
    if words[0] not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(words[0], COMMANDS, 1)
        return _show(f"unknown command {words[0]!r}", f"positron {near[0]} -h" if near else "positron --help", 2)
    from positron_mini.device import prepare_environment
    from positron_mini.device.children import safe_settings

    os.environ.update(safe_settings(os.environ) | prepare_environment(os.environ, platform.system()))
    module = importlib.import_module(f"positron_mini.cli.{COMMANDS[words[0]][0]}")
    return int(module.run(words[1:]))


def _show(message: str, hint: str, code: int, *, is_error: bool = True) -> int:
    """Write to stderr what is wrong, or that the work was stopped, and return `code`. The message may quote a damaged file."""
    sys.stdout.flush()
    first, second = ("error: ", "  hint: ") if is_error else ("", "  go on: ")
    sys.stderr.write(f"{first}{here(marked(message))}\n" + (f"{second}{here(marked(hint))}\n" if hint else ""))
    return code
