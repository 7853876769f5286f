"""Model cards: the `README.md` of a step folder and of an export, made from the files of the run."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron_mini.config import ModelConfig
from positron_mini.errors import PositronError
from positron_mini.export.escaping import escaped, visible
from positron_mini.store.checkpoint import Checkpoint
from positron_mini.store.run_logs import Sample, StepReport, log_path, typed_rows
from positron_mini.store.run_record import RunRecord, read_record
from positron_mini.text.corpus.note import note_of
from positron_mini.text.tokenizer import IM_END

CARD_TAGS = ("positron-mini", "qwen3", "small-language-model")


def card_head(title: str, config: ModelConfig, does: str, facts: dict[str, Any], *, library: str = "transformers") -> str:
    """The beginning of a model card: the hub's metadata, what the model is and `does`, and a table of its shape and `facts`."""
    front = {"library_name": library, "pipeline_tag": "text-generation", "tags": CARD_TAGS}
    shape = f"{config.n_layer} layers, width {config.n_embd}, {config.n_head} heads of {config.head_dim}, context {config.context_len}"
    rows = {"shape": shape, "vocabulary": f"{config.vocab_size:,} pieces", **facts}
    table = "\n".join(f"| {name} | {escaped(' '.join(str(value).split()))} |" for name, value in rows.items())
    return (
        f"---\n{json.dumps(front)}\n---\n# {escaped(title)}\n\n"
        f"A language model of {config.parameters:,} parameters, trained from scratch with Positron Mini. It {does}.\n"
        f"It knows nothing but its training text; do not rely on what it says.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
    )


def step_card(title: str, config: ModelConfig, facts: dict[str, Any], *, is_chat: bool) -> str:
    """The `README.md` of a model folder: what it is, what it was trained on, how to use it."""
    does = "answers questions about what it was trained on" if is_chat else "continues a text"
    return (
        f"{card_head(title, config, does, facts)}"
        f"```\npositron {'chat' if is_chat else 'generate'} --ckpt .\n```\n\n"
        f"In transformers: `AutoModelForCausalLM.from_pretrained(folder)`"
        f"{f'; a message ends with {IM_END}' if is_chat else ''}.\n"
    )


def model_card(checkpoint: Checkpoint, title: str, use: str, *, library: str) -> str:
    """The text of a card: the model, the figures and samples of its run, its training text and that text's licence, how to use it.

    `use` is Markdown; `library` is the hub's name for what opens the model, such as transformers or gguf.
    """
    run = _RunRecord.of(checkpoint)
    does = "answers in a conversation" if checkpoint.is_chat else "continues a text"
    head = card_head(title, checkpoint.config, does, run.facts, library=library)
    return f"{head}## Use\n\n{use}{_samples_section(run.samples)}"


@dataclass(frozen=True)
class _RunRecord:
    """Facts and samples from the files of a checkpoint's run; empty for a step folder outside a run."""

    facts: dict[str, str]
    samples: list[Sample]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _RunRecord:
        folder, step = checkpoint.folder.resolve().parent, checkpoint.step
        with contextlib.suppress(PositronError):  # a damaged file of the run must not prevent the export of its model
            record = None if step is None else read_record(folder)
            if step is not None and record is not None:
                return cls._of_run(folder, record, step)
        return cls({} if step is None else {"step": f"{step:,}"}, [])

    @classmethod
    def _of_run(cls, folder: Path, record: RunRecord, step: int) -> _RunRecord:
        samples = [row for row in typed_rows(Sample, log_path(folder, "samples")) if row.step <= step]
        newest = max((row.step for row in samples), default=None)
        figures = _figures(row for row in typed_rows(StepReport, log_path(folder, "metrics")) if row.step <= step)
        return cls({"run": folder.name, "step": f"{step:,}", **figures, **_origin(record)}, [row for row in samples if row.step == newest])


def _figures(reports: Iterable[StepReport]) -> dict[str, str]:
    """The figures of a run's newest reports, each with its unit."""
    last = scored = None
    for last in reports:
        scored = last if last.val_loss is not None and last.val_bpb is not None else scored
    facts: dict[str, str] = {}
    if last is not None:
        facts["training tokens"] = f"{last.tokens:,}"
        facts["training time"] = f"{last.elapsed_s / 60:,.1f} minutes, {last.tok_per_s:,.0f} tokens a second at the end"
        facts["training loss"] = f"{last.loss:.3f} nats per token (step {last.step:,})"
    if scored is not None:
        facts["validation"] = f"{scored.val_loss:.3f} nats per token, {scored.val_bpb:.3f} bits per byte (step {scored.step:,})"
    return facts


def _origin(record: RunRecord) -> dict[str, str]:
    """Device, seed, text and licence, as far as the run and the notes beside its texts record them."""
    settings, device = record.config, record.device
    facts: dict[str, str] = {}
    if device:
        facts["device"] = f"{device.get('device')}, {device.get('precision')}"
    if settings.get("seed") is not None:
        facts["seed"] = str(settings["seed"])
    if record.is_chat:
        facts["base model"] = str(settings.get("base_ckpt") or "the newest base run of its time")
        texts = {"conversations": settings.get("sft_data")}
    else:
        texts = {"training text": record.text}
    for what, text in texts.items():
        facts |= _source(what, Path(str(text)))
    return facts


def _source(what: str, text: Path) -> dict[str, str]:
    """The source and licence of a text. Nothing is inferred from a file's name."""
    note, licence = note_of(text), f"licence of the {what.removeprefix('training ')}"
    if note.get("corpus") == "storyworld":
        made = f"{note.get('stories')} stories generated by Positron Mini's story world, seed {note.get('seed')}"
        return {what: made, licence: "MIT, as the program that generated them"}
    if note.get("source"):
        return {what: f"{note['source']}, revision {str(note.get('revision'))[:12]}", licence: str(note.get("licence"))}
    return {what: text.name, licence: "not recorded; find it out before you pass the model on"}


def _samples_section(samples: Sequence[Sample]) -> str:
    """The model's samples, unedited, in code fences longer than any run of backticks in the text."""
    if not samples:
        return ""
    parts = [f"\n## Samples\n\nUnedited, at step {samples[0].step:,}. The part before the bar was given.\n"]
    for row in samples:
        text = visible(f"{row.prompt} | {row.text}")
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        parts.append(f"\nTemperature {row.temperature}, seed {row.seed}:\n{fence}text\n{text}\n{fence}\n")
    return "".join(parts)
