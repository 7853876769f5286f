"""`positron eval`: measure a checkpoint on a text or a suite of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.terminal import print
from positron_mini.cli.which import open_model, with_model
from positron_mini.config import DEFAULT_TEXT, check_ranges
from positron_mini.errors import DataError, UsageError

if TYPE_CHECKING:
    from positron_mini.model import GPT
    from positron_mini.store.checkpoint import Checkpoint
    from positron_mini.text.prepare import Prepared

BITS_TOKENS = 100_000  # held-out tokens whose bits per byte are reported with the stories


@dataclass(frozen=True)
class EvalFlags:
    """Measure a checkpoint: loss and bits per byte of a text, or the share of right answers in a suite."""

    ckpt: str | None = None
    """checkpoint: a step folder, a run folder or runs/x/latest (default: the newest finished run)"""
    text: str | None = None
    """a text file or folder, read like a training text: nothing is split off or dropped
    (with --suite stories: the text that the model was trained on, where its run folder does not name it)"""
    suite: Literal["skills", "stories", "reading", "requests"] | None = None
    """skills: minimal pairs, 15 skills; stories: whether its stories end, repeat, copy or contradict themselves;
    reading: questions about unseen stories; requests: stories with constraints; all judged by code"""
    items: int | None = None
    """tasks of the suite (default: skills 200 pairs of each, stories 20, reading 500, requests 200)"""
    json: bool = False
    """print one JSON object"""
    threads: int | None = None
    """CPU threads (default: all cores)"""

    def __post_init__(self) -> None:
        check_ranges(self, {"items": 1, "threads": 1})
        if (self.text is None) == (self.suite is None) and self.suite != "stories":
            raise UsageError("give either --text or --suite", "--text FILE   or   --suite skills")


def run(argv: Sequence[str]) -> int:
    """Evaluate; 0 when done."""
    flags = parse(EvalFlags, argv, "eval")
    return evaluate_text(flags, flags.text) if flags.suite is None and flags.text is not None else evaluate_suite(flags)


def evaluate_suite(flags: EvalFlags) -> int:
    """Print the result of a suite; 0 when done."""
    from positron_mini.device import set_threads

    checkpoint, model = open_model(flags.ckpt, with_model)
    set_threads(flags.threads)
    result = _result(flags, checkpoint, model)
    if flags.json:
        print_json(result)
        return 0
    unit = {"skills": "pairs", "stories": "stories"}.get(result["suite"], "tasks")
    for kind, row in {**result["by_kind"], "all": result}.items():
        print(f"{kind:<20} {row['accuracy']:6.1%}  ({row['low']:.1%} to {row['high']:.1%}, {row['items']:,} {unit})")
    if "chance" in result:
        print(f"by guessing: {result['chance']:.1%}")
    for line in _story_lines(result):
        print(line)
    return 0


def _result(flags: EvalFlags, checkpoint: Checkpoint, model: GPT) -> dict[str, Any]:
    """The result of the suite."""
    if flags.suite == "skills":
        from positron_mini.evaluate.skills import skills_suite

        return skills_suite(model, checkpoint.tokenizer, pairs=_pairs(flags.items))
    if flags.suite == "stories":
        from positron_mini.evaluate.bits import score_documents
        from positron_mini.evaluate.story_metrics import STORIES, stories_suite
        from positron_mini.train.pretrain import validation_subset

        prepared = _training_text(flags, checkpoint)
        score = None if prepared is None else score_documents(model, *validation_subset(prepared, BITS_TOKENS))
        return stories_suite(model, checkpoint, prepared, items=flags.items or STORIES, score=score)
    from positron_mini.evaluate.suites import run_suite

    def done(finished: int, total: int) -> None:
        if finished % 50 == 0:
            note(f"{finished} of {total}")

    assert flags.suite is not None
    return run_suite(flags.suite, model, checkpoint, items=flags.items, done=done)


def _pairs(items: int | None) -> int:
    """Pairs of each skill. Errors: UsageError for an impossible number."""
    from positron_mini.evaluate.pairs import PAIRS

    if items is not None and (items > PAIRS or items % 2):
        raise UsageError(f"--items {items:,}: pairs come in twos, and each skill has {PAIRS} of them", f"--items {PAIRS}")
    return items or PAIRS


def _training_text(flags: EvalFlags, checkpoint: Checkpoint) -> Prepared | None:
    """The model's training text, by --text or its run folder; None, with a note, if it is not on this machine."""
    from positron_mini.store.run_state import look
    from positron_mini.text.prepare import prepare_corpus

    recorded = look(checkpoint.folder.resolve().parent).record
    named = flags.text or (DEFAULT_TEXT if recorded is None else recorded.text)
    if flags.text is None and (recorded is None or not Path(named).exists()):
        note("copies, consistency and bits per byte are not measured: the training text is not known here; name it with --text FILE")
        return None
    prepared = prepare_corpus(Path(named), tokenizer_path=checkpoint.folder / "tokenizer.model", vocab_size=None, say=note)
    if recorded is not None and recorded.identity.get("text") not in (None, prepared.content_fingerprint):
        note(f"warning: {named} is not the text that this model was trained on, or has changed since")
    return prepared


def _story_lines(result: dict[str, Any]) -> list[str]:
    """The mean figures of a model's stories, beside those of held-out stories if measured."""
    measures, held_out = result.get("measures", {}), result.get("held_out", {})
    lines = [f"{name.replace('_', ' '):<20} {value:8.2f}" for name, value in measures.items()]
    if held_out:
        lines = [f"{line}   held-out stories {held_out[name]:.2f}" for line, name in zip(lines, measures, strict=True)]
    if "bits_per_byte" in result:
        lines.append(f"{'bits per byte':<20} {result['bits_per_byte']:8.4f}   of held-out stories")
    return lines


def evaluate_text(flags: EvalFlags, text: str) -> int:
    """Print the loss and bits per byte of a text; 0 when done."""
    from positron_mini.device import set_threads
    from positron_mini.evaluate.bits import score_texts
    from positron_mini.text.corpus.files import ReadStats, read_documents

    checkpoint, model = open_model(flags.ckpt, with_model)
    documents = [document for document in read_documents(Path(text), stats=ReadStats()) if document.strip()]
    if not documents:
        raise DataError(f"{text}: it holds no text", "give a text with stories separated by a line <|endoftext|>")
    set_threads(flags.threads)
    score = score_texts(model, checkpoint.tokenizer, documents)
    result = {
        "loss": score.loss,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "bytes": score.bytes,
        "documents": score.documents,
    }
    if flags.json:
        print_json(result)
    else:
        print(f"{score.loss:.4f} nats per token, {score.bits_per_byte:.4f} bits per byte ({score.documents:,} documents)")
    return 0
