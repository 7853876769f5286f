"""`positron prepare`: turn a data set into a text, the text into tokens, and report what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.terminal import print
from positron_mini.config import check_ranges, preset
from positron_mini.errors import command


@dataclass(frozen=True)
class PrepareFlags:
    """Fetch or make a text, clean it, split it, turn it into tokens, and report."""

    dataset: str = "tinystories"
    """tinystories, storyworld, a hub data set as owner/name:split:column, a path, or a mix of these by bytes: tinystories:0.7,my.txt:0.3"""
    stories: int | None = None
    """how many stories (default: all; the story world, which has no end, makes 20,000)"""
    text_out: str | None = None
    """write the plain text here, stories separated by <|endoftext|>, and stop; no tokens are made"""
    config: str = "TinyGPT"
    """preset whose vocabulary a new tokenizer gets"""
    tokenizer_path: str | None = None
    """SentencePiece model; trained from the text if it is missing (default: tokenizer/spm.bpe[.<V>].model)"""
    vocab_size: int | None = None
    """pieces of a new tokenizer (default: the preset's)"""
    seed: int = 0
    """seed of the story world, of a mix and of the tokenizer's sample"""
    workers: int | None = None
    """processes that read and encode a text of more than 32 MB (default: one per core)"""
    json: bool = False
    """print the report as one JSON object"""

    def __post_init__(self) -> None:
        check_ranges(self, {"stories": 1, "vocab_size": 1, "seed": 0, "workers": 1})
        preset(self.config)


def run(argv: Sequence[str]) -> int:
    """Prepare; 0 when done."""
    flags = parse(PrepareFlags, argv, "prepare")
    from positron_mini.text.corpus.sources import obtain

    out = Path(flags.text_out) if flags.text_out else None
    path = obtain(flags.dataset, stories=flags.stories, text_out=out, seed=flags.seed, say=note)
    if out is not None:
        if flags.json:
            print_json({"text": str(path), "bytes": path.stat().st_size})
        return 0
    from positron_mini.text.corpus.report import report_lines
    from positron_mini.text.prepare import default_tokenizer_path, prepare_corpus

    tokenizer = Path(flags.tokenizer_path) if flags.tokenizer_path else None
    decides = tokenizer is not None and tokenizer.is_file()
    vocab = flags.vocab_size if decides else flags.vocab_size or preset(flags.config).vocab_size
    prepared = prepare_corpus(path, tokenizer_path=tokenizer, vocab_size=vocab, seed=flags.seed, workers=flags.workers or 0, say=note)
    if flags.json:
        print_json({**prepared.report, "text": str(path), "folder": str(prepared.folder)})
        return 0
    for line in report_lines(prepared.report):
        print(line)
    pieces = tokenizer or default_tokenizer_path(vocab)
    note(f"ready: {command('train', '--dataset_path', path, '--tokenizer_path', pieces, '--config', flags.config)}")
    return 0
