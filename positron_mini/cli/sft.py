"""`positron sft`: fine-tune on conversations, and report at the end what changed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from positron_mini.cli.flags import note, parse
from positron_mini.cli.terminal import marked
from positron_mini.config import SFTConfig, given_flags

if TYPE_CHECKING:
    from positron_mini.store.run_folder import RunFolder

MASK_ROWS = 5


def run(argv: Sequence[str]) -> int:
    """Fine-tune; 0 when the planned steps are done."""
    config = parse(SFTConfig, argv, "sft")
    if config.show_mask is not None:
        return show_mask(config)
    finetune(config, given_flags(list(argv)))
    return 0


def finetune(config: SFTConfig, given: frozenset[str]) -> RunFolder:
    """Fine-tune by `config` and return the run folder. `given`: the flags that were typed."""
    from positron_mini.cli.train import watch
    from positron_mini.train.finetune import open_sft_session
    from positron_mini.trainer import StopFlag

    session = open_sft_session(config, given=given, say=note, stop=StopFlag())
    watch(session)
    for line in changes(session.run):
        note(line)
    return session.run


def changes(run: RunFolder) -> list[str]:
    """Lines with validation loss and story loss before and after."""
    from positron_mini.store.run_logs import StoryScore, log_path, read_rows, typed_rows

    lines = []
    before = [event for event in read_rows(log_path(run.path, "events")) if event.get("kind") == "before"]
    scored = [row for row in run.metrics() if "val_loss" in row]
    if before and scored:
        first, last = before[-1]["val_loss"], scored[-1]["val_loss"]
        best = min(scored, key=lambda row: row["val_loss"])
        lines.append(f"answers    {first:.3f} nats per token before, {last:.3f} now ({last / first - 1:+.0%})")
        lines.append(f"           best {best['val_loss']:.3f} at step {best['step']:,}, kept as {run.path}/best")
    stories = [row.story_bpb for row in typed_rows(StoryScore, log_path(run.path, "stories")) if row.story_bpb]
    if len(stories) > 1:
        first, last = stories[0], stories[-1]
        lines.append(f"stories    {first:.3f} bits per byte before, {last:.3f} now ({last / first - 1:+.1%}): what it forgot")
    return lines


def show_mask(config: SFTConfig) -> int:
    """Print the first conversations of a file, the trained tokens in colour (and in brackets where there is no colour)."""
    from rich.console import Console
    from rich.text import Text

    from positron_mini.chat.conversations import left_out_lines, read_conversations
    from positron_mini.text.chat_format import encode_chat, show_mask_lines
    from positron_mini.train.finetune import find_base

    assert config.show_mask is not None
    base = find_base(config.base_ckpt, note)
    read = read_conversations(config.show_mask, skip_bad=config.skip_bad)
    console = Console(file=sys.stdout, highlight=False)
    is_plain = console.color_system is None or console.no_color
    for conversation in read.conversations[:MASK_ROWS]:
        line = Text()
        for span in show_mask_lines(base.tokenizer, encode_chat(base.tokenizer, conversation.messages)):
            text = marked(span.text)
            if span.trained:
                line.append(f"[[{text}]]" if is_plain else text, style="bold green")
            else:
                line.append(text, style="dim")
        console.print(line, soft_wrap=True)
    for told in left_out_lines(read.report):
        note(told)
    shown = min(MASK_ROWS, len(read.conversations))
    note(f"{shown} of {len(read.conversations):,} conversations; green (or in [[ ]]) is what the model learns to write")
    return 0
