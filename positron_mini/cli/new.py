"""`positron new NAME TEXTS`: examine your own text, advise on a model of it, and print the exact command that trains it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.spelling import here
from positron_mini.cli.terminal import print
from positron_mini.config import check_ranges
from positron_mini.errors import UsageError, command

if TYPE_CHECKING:
    from positron_mini.text.prepare import Prepared

READINGS = 20  # epochs after which little more is learned, for a text that is long enough for its model
MOST_MINUTES = 10  # to begin with
# (bytes of text, pieces): below that many bytes so many pieces are enough
PIECES = ((100_000, 512), (1_000_000, 1_024), (4_000_000, 2_048), (math.inf, 4_096))
LEARNED_BY_HEART = "; more often it would learn it by heart, so it ends early: more text helps more than more minutes"
EXPECTATIONS = (
    (1_000_000, "it will learn spelling, the commonest words and phrases of your text, and parts of it by heart"),
    (5_000_000, "it will write sentences in the manner of your text; whole stories need more text"),
    (math.inf, "it can learn to write texts that hold together"),
)


@dataclass(frozen=True)
class NewFlags:
    """Look at your own text, advise on preset and minutes, and print the command that trains a model of it."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """name of the model: its run is runs/NAME, its tokenizer tokenizer/NAME.model"""
    text: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEXTS")]
    """a .txt, .jsonl, .csv, .parquet or .gz file, or a folder of them"""
    vocab_size: int | None = None
    """pieces of the tokenizer, which is trained from the text (default: what suits its size)"""
    json: bool = False
    """print one JSON object"""

    def __post_init__(self) -> None:
        check_ranges(self, {"vocab_size": 1})


def run(argv: Sequence[str]) -> int:
    """Look and advise; 0 when done."""
    flags = parse(NewFlags, argv, "new")
    if not re.fullmatch(r"\w[\w.-]*", flags.name):
        raise UsageError(f"{flags.name!r} is no name for a folder", "letters, digits, - and _ only: positron new my-book TEXTS")
    from positron_mini.text.corpus.files import list_files
    from positron_mini.text.corpus.report import report_lines
    from positron_mini.text.prepare import prepare_corpus

    text = Path(flags.text)
    size = sum(path.stat().st_size for path in list_files(text))
    tokenizer = Path("tokenizer") / f"{flags.name}.model"
    vocab = flags.vocab_size or (None if tokenizer.is_file() else pieces_for(size))
    prepared = prepare_corpus(text, tokenizer_path=tokenizer, vocab_size=vocab, say=note)
    advice = advise(flags.name, text, size, tokenizer, prepared)
    if flags.json:
        print_json({**prepared.report, **advice})
        return 0
    for line in report_lines(prepared.report):
        print(line)
    print(f"\n{advice['config']} suits this text: {advice['expectation']}.")
    print(f"In {advice['budget']} it reads the text about {advice['readings']:.1f} times{advice['limit']}. Next:\n\n  {advice['command']}")
    return 0


def pieces_for(text_bytes: int) -> int:
    """Vocabulary size for a text of that size: each piece should occur often enough to be learned."""
    return next(pieces for limit, pieces in PIECES if text_bytes < limit)


def advise(name: str, text: Path, size: int, tokenizer: Path, prepared: Prepared) -> dict[str, Any]:
    """Preset, minutes, expected result and command for a text of `size` bytes."""
    from positron_mini.config import PRESETS, TrainConfig, model_config
    from positron_mini.train.budget import measured_speed
    from positron_mini.train.law import fits_text, readings_of

    shapes = {preset: model_config(TrainConfig(config=preset), prepared.tokenizer.vocab_size) for preset in PRESETS}
    fitting = [preset for preset in ("PicoGPT", "MicroGPT") if fits_text(shapes[preset], size)]
    config = fitting[-1] if fitting else "PicoGPT"
    speed = measured_speed(TrainConfig(), shapes[config])
    most = readings_of(shapes[config], prepared)
    minutes = max(1, min(MOST_MINUTES, math.ceil(min(READINGS, most) * prepared.train.count / speed / 60)))
    readings = 60 * minutes * speed / max(1, prepared.train.count)
    words = ["train", "--dataset_path", str(text), "--tokenizer_path", str(tokenizer), "--config", config]
    return {
        "config": config,
        "budget": f"{minutes}m",
        "readings": min(readings, most),
        "limit": "" if readings <= most else LEARNED_BY_HEART,
        "expectation": next(said for limit, said in EXPECTATIONS if size < limit),
        "command": here(command(*words, "--budget", f"{minutes}m", "--out_dir", f"runs/{name}")),
    }
