"""`positron score`: print the log-probability of every line of stdin as JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from positron_mini.cli.flags import parse, print_json
from positron_mini.cli.terminal import read_stdin
from positron_mini.cli.which import open_model, with_model
from positron_mini.config import check_ranges


@dataclass(frozen=True)
class ScoreFlags:
    """Print {"text", "logprob", "tokens"} for every line of stdin: the sum of ln p of its tokens after bos, without eos. Only newlines end
    a line; the carriage return before one (CRLF, as on Windows) is left out, and "text" is what was scored."""

    ckpt: str | None = None
    """checkpoint: a step folder, a run folder or runs/x/latest (default: the newest finished run)"""
    json: bool = False
    """accepted for symmetry; the output is always JSON lines"""
    threads: int | None = None
    """CPU threads (default: all cores)"""

    def __post_init__(self) -> None:
        check_ranges(self, {"threads": 1})


def run(argv: Sequence[str]) -> int:
    """Score; 0 when done."""
    flags = parse(ScoreFlags, argv, "score")
    from positron_mini.device import set_threads
    from positron_mini.evaluate.bits import line_logprobs
    from positron_mini.text.corpus.reading import ReadStats, clean_text

    checkpoint, model = open_model(flags.ckpt, with_model)
    set_threads(flags.threads)
    lines = read_stdin().split("\n")
    if lines[-1] == "":
        lines.pop()  # the text ends with a newline: no further line
    stats = ReadStats()
    lines = [clean_text(line.removesuffix("\r"), stats) for line in lines]  # the same cleaning as for a training text
    for line, (logprob, count) in zip(lines, line_logprobs(model, checkpoint.tokenizer, lines), strict=True):
        print_json({"text": line, "logprob": logprob, "tokens": count})
    return 0
