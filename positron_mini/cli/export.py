"""`positron export`: a checkpoint as a GGUF file for llama.cpp and Ollama, or as a plain Hugging Face folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from positron_mini.cli.flags import note, parse, print_json
from positron_mini.cli.terminal import print
from positron_mini.cli.which import open_model

if TYPE_CHECKING:
    from positron_mini.export.model_files import Exported
    from positron_mini.store.checkpoint import Checkpoint


@dataclass(frozen=True)
class ExportFlags:
    """Write a model for other programs: a GGUF file with a Modelfile for Ollama, or a Hugging Face folder; each with a model card."""

    ckpt: str | None = None
    """checkpoint: a step folder, a run folder or runs/x/latest (default: the newest finished run)"""
    format: Literal["gguf", "hf"] = "gguf"
    """gguf: one file for llama.cpp, Ollama, LM Studio; hf: a folder for transformers, mlx-lm, vLLM, without training state"""
    dtype: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None = None
    """how weights are stored, in about 32, 16, 16, 8.5 or 4.5 bits each (default: q8_0 for gguf, f32 for hf; hf takes no q types)"""
    out: str | None = None
    """file (.gguf) or folder to write (default: export/ beside the checkpoint)"""
    json: bool = False
    """print one JSON object"""


def run(argv: Sequence[str]) -> int:
    """Export; 0 when done."""
    flags = parse(ExportFlags, argv, "export")
    from positron_mini.export.model_files import export_gguf, export_huggingface

    out = Path(flags.out) if flags.out else None

    def export(checkpoint: Checkpoint) -> tuple[Checkpoint, Exported]:
        if flags.format == "gguf":
            return checkpoint, export_gguf(checkpoint, out, flags.dtype or "q8_0", say=note)
        return checkpoint, export_huggingface(checkpoint, out, flags.dtype or "f32", say=note)

    checkpoint, done = open_model(flags.ckpt, export)
    if flags.json:
        print_json({"path": str(done.path), "bytes": done.bytes, "beside": [str(path) for path in done.beside]})
        return 0
    print(done.path)
    for path in done.beside:
        print(path)
    note(f"{done.bytes / 1e6:,.1f} MB")
    for line in next_steps(checkpoint, done, flags.format):
        note(line)
    return 0


def next_steps(checkpoint: Checkpoint, done: Exported, format: str) -> list[str]:
    """Commands that open the export, ready to be pasted."""
    from positron_mini.export.model_files import ollama_name

    say, path = "Who are you?" if checkpoint.is_chat else "Once upon a time", shlex.quote(str(done.path))
    if format == "gguf":
        model, modelfile = shlex.quote(ollama_name(checkpoint)), shlex.quote(str(done.beside[0]))
        return [
            f"in Ollama:     ollama create {model} -f {modelfile} && ollama run {model} {shlex.quote(say)}",
            f"in llama.cpp:  llama-server -m {path} -c {checkpoint.config.context_len}",
        ]
    prompt = [{"role": "user", "content": say}] if checkpoint.is_chat else say
    code = f"from transformers import pipeline; print(pipeline('text-generation', {str(done.path)!r})({prompt!r}, max_new_tokens=80))"
    return [
        f"here:             positron {'chat' if checkpoint.is_chat else 'generate'} --ckpt {path}",
        f"in transformers:  python -c {shlex.quote(code)}",
    ]
