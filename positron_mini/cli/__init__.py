"""`positron COMMAND`: finds the command, runs it, and turns errors into one sentence, a hint and an exit code.

The top-level help is static and every command imports only its own parts, so that help and errors answer at once.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Sequence

from positron_mini import __version__
from positron_mini.cli.terminal import marked, open_streams
from positron_mini.errors import PositronError

# command -> (module of this package, what it does); `positron --help` is made of this
COMMANDS: dict[str, tuple[str, str]] = {
    "new": ("new", "your own text: a report, advice, and the command that trains a model of it"),
    "prepare": ("prepare", "fetch or make a text, clean it, turn it into tokens, report on it"),
    "bootstrap": ("bootstrap", "everything from nothing to a model, in one command"),
    "train": ("train", "train a model from a text, or go on with a run"),
    "incremental": ("incremental", "train in chunks, and decide after each what comes next"),
    "sft": ("sft", "fine-tune a base model on conversations"),
    "quicksft": ("quicksft", "fine-tune the newest base run on the sample conversations"),
    "generate": ("generate", "continue a prompt"),
    "chat": ("chat", "ask a model: one question, a pipe of them, or a conversation"),
    "score": ("score", "the log-probability of every line read from stdin"),
    "eval": ("evaluate", "measure a checkpoint: bits per byte of a text, or a suite"),
    "report": ("report", "write the evolution report of a run: curves, samples, skills"),
    "compare": ("compare", "two runs or checkpoints side by side"),
    "serve": ("serve", "an OpenAI-compatible server and the lab page for one checkpoint"),
    "lab": ("lab", "look inside your models: the page for all runs, in the browser"),
    "export": ("export", "write a GGUF file for llama.cpp and Ollama, or a Hugging Face folder"),
    "runs": ("runs", "list the runs there are; prune old steps"),
    "verify": ("verify", "check every file of a run, and that steps repeat byte for byte"),
    "doctor": ("doctor", "prove that this machine computes right, and how fast"),
    "bench": ("bench", "measure training, decoding, preparation and start-up"),
    "completion": ("completion", "a script that completes commands and flags in your shell"),
    "info": ("info", "the presets, or the shape and figures of a checkpoint"),
}


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
    """The exit code of a command line: 0 done, 1 failed, 2 usage, 3 non-finite, 4 disk full, 5 out of memory, 130/143 stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    open_streams()
    try:
        return _dispatch(words)
    except PositronError as error:
        if debug:
            raise
        return _show(error.message, error.hint, error.exit_code)
    except KeyboardInterrupt:
        return _show("stopped by Ctrl-C", "", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; do not complain at exit
        return 0
    except Exception as error:
        if debug:
            raise
        from positron_mini.device import is_out_of_memory

        if is_out_of_memory(error):
            return _show("out of memory", "close other programs, or use a smaller model, --micro_batch or --context_len", 5)
        return _show(f"unexpected {type(error).__name__}: {error}", "run it again with --debug and report what it prints", 1)


def _dispatch(words: list[str]) -> int:
    if not words:
        from positron_mini.cli.where import where_you_are

        sys.stdout.write(marked(where_you_are()))
        return 0
    if words[0] in ("-h", "--help", "help"):
        sys.stdout.write(top_help())
        return 0
    if words[0] in ("--version", "-V"):
        sys.stdout.write(f"positron-mini {__version__}\n")
        return 0
    if words[0] not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(words[0], COMMANDS, 1)
        return _show(f"unknown command {words[0]!r}", f"positron {near[0]} -h" if near else "positron --help", 2)
    from positron_mini.device import prepare_environment

    os.environ.update(prepare_environment(os.environ, platform.system()))
    module = importlib.import_module(f"positron_mini.cli.{COMMANDS[words[0]][0]}")
    return int(module.run(words[1:]))


def _show(message: str, hint: str, code: int) -> int:
    """`code`, after writing the error to stderr; a damaged file may have chosen a name in it."""
    sys.stdout.flush()
    sys.stderr.write(f"error: {marked(message)}\n" + (f"  hint: {marked(hint)}\n" if hint else ""))
    return code
