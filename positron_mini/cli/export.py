"""`positron export`: a checkpoint as a GGUF file for llama.cpp and Ollama, or as a plain Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from positron_mini.cli.flags import note, parse
from positron_mini.cli.which import open_model


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
    from positron_mini.export import export_gguf, export_huggingface

    checkpoint = open_model(flags.ckpt)
    out = Path(flags.out) if flags.out else None
    if flags.format == "gguf":
        done = export_gguf(checkpoint, out, flags.dtype or "q8_0", say=note)
    else:
        done = export_huggingface(checkpoint, out, flags.dtype or "f32", say=note)
    if flags.json:
        print(json.dumps({"path": str(done.path), "bytes": done.bytes, "beside": [str(path) for path in done.beside]}))
        return 0
    print(done.path)
    for path in done.beside:
        print(path)
    note(f"{done.bytes / 1e6:,.1f} MB")
    return 0
