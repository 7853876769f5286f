"""A checkpoint for other programs: a GGUF file for llama.cpp, Ollama and LM Studio, or a plain Hugging Face folder.

A GGUF file holds the same weights under other names. The architecture is `qwen3`, which rotates halves of a head as this model does,
so no row is permuted. A chat model gets this package's own template; one in the checkpoint's folder is never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shlex
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from positron_mini import files
from positron_mini.config import ModelConfig
from positron_mini.errors import PositronError, Say, UsageError
from positron_mini.export.card import model_card
from positron_mini.export.kept import CARD_COMMENT, MODELFILE_COMMENT, free_name, sealed, undone_on_error
from positron_mini.own_files import open_regular
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.checkpoint import Checkpoint
from positron_mini.store.opening import STORY, opening_of
from positron_mini.text.chat_format import CHAT_TEMPLATE
from positron_mini.text.tokenizer import BOS, EOS, IM_END, PAD, UNK

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Converted = dict[str, tuple[NDArray[Any], Any]]  # GGUF's name -> data as bytes or floats, type

Format = Literal["gguf", "hf"]
Dtype = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]

VERSION = "v1.0"
MAX_NAME = 80  # characters, as Ollama allows
BLOCK = 32  # weights that share one scale in q8_0 and q4_0
# the largest magnitude that each type holds; blocks keep their scale as a 16-bit float
LARGEST = {"F32": 3.4e38, "BF16": 3.38e38, "F16": 65_504.0, "Q8_0": 127 * 65_504.0, "Q4_0": 8 * 65_504.0}
TOKEN_TYPES = {"normal": 1, "unknown": 2, "control": 3, "byte": 6}  # llama.cpp's numbers
# our name inside a block -> GGUF's
_BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


@dataclass(frozen=True)
class Exported:
    """A finished export: the GGUF file or folder, the files written beside it, and its size in bytes."""

    path: Path
    beside: tuple[Path, ...]
    bytes: int


def model_name(checkpoint: Checkpoint) -> str:
    """The name of the run, or of a folder that is not a step, in letters of any script, digits and `.-_`, so that two models of a person
    have two names; for a step folder outside a run `Positron-Mini-15M-Chat-v1.0`."""
    folder = checkpoint.folder.resolve()
    own = folder.parent if checkpoint.step is not None else folder
    is_run = checkpoint.step is None or (own / "run.json").is_file()
    name = re.sub(r"[^\w.-]+", "-", own.name).strip("-._")[:MAX_NAME] if is_run else ""
    return name or f"Positron-Mini-{checkpoint.config.size_name}-{'Chat' if checkpoint.is_chat else 'Base'}-{VERSION}"


def ollama_name(checkpoint: Checkpoint) -> str:
    """The name in lower-case ASCII, as Ollama requires; a name in another script becomes a hash."""
    name = model_name(checkpoint).lower()
    if name.isascii():
        return name
    return f"positron-mini-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


# --- GGUF -------------------------------------------------------------------------------------------------------------------------------


def export_gguf(checkpoint: Checkpoint, out: Path | None, dtype: Dtype = "q8_0", *, say: Say = lambda _: None) -> Exported:
    """Write a GGUF file to `out` (a `.gguf` file, or a folder; None: `export/` beside the checkpoint), a Modelfile and a model card.

    Equal checkpoints give equal bytes. Errors: PositronError without the package gguf, UsageError, DiskFullError; no file is left then.
    """
    _refuse_changed(checkpoint)
    gguf = _gguf()
    name = model_name(checkpoint)
    path = _gguf_path(checkpoint, out, f"{name}-{dtype.upper()}.gguf")
    tensors = dict(_converted(ckpt.load_model(checkpoint).state_dict(), dtype, gguf, say))
    card = model_card(checkpoint, name, _gguf_use(path.name, checkpoint), library="gguf")
    beside = {
        free_name(path, "Modelfile", say): sealed(modelfile(path.name, checkpoint), MODELFILE_COMMENT),
        free_name(path, "README.md", say): sealed(card, CARD_COMMENT),
    }
    with undone_on_error([path, *beside]):
        files.stream_file(path, lambda handle: _write_gguf(handle, checkpoint, name, tensors, dtype, gguf))
        for place, text in beside.items():
            files.write_text(place, text)
    return Exported(path, tuple(beside), path.stat().st_size)


def _refuse_changed(checkpoint: Checkpoint) -> None:
    """Raise UsageError if the model is not the built-in one."""
    from positron_mini.fast.plain import replaced

    if why := checkpoint.changed or replaced():
        raise UsageError(
            f"this model is not the built-in one ({why}), which is what other programs would compute",
            "export a model that was trained without that change",
        )


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise PositronError(
            f"GGUF files are written by the package gguf, which cannot be imported ({error})",
            'pip install "gguf>=0.17"  (it is part of positron-mini[export])',
        ) from error
    return gguf


def _gguf_path(checkpoint: Checkpoint, out: Path | None, name: str) -> Path:
    out = _export_folder(checkpoint) if out is None else out
    path = out if out.suffix.lower() == ".gguf" and not out.is_dir() else out / name
    _refuse_checkpoints(path.parent)
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder", "name another file, or another folder to put the file in")
    if os.path.lexists(path) and not _is_gguf_of(path, model_name(checkpoint)):
        raise UsageError(f"{path} is not an export of this model, and is not replaced", f"--out {shlex.quote(_free(path))}")
    return path


def _is_gguf_of(path: Path, model: str) -> bool:
    """Whether a regular file at `path` begins like a GGUF file of the model of this name."""
    if path.is_symlink() or not path.is_file():
        return False
    with files.translate_os_errors(f"reading {path}"), open_regular(path) as handle:
        beginning = handle.read(4096)
    word = model.encode()
    return beginning.startswith(b"GGUF") and b"general.name" + struct.pack("<IQ", 8, len(word)) + word in beginning  # 8: a string


def _free(path: Path) -> str:
    """A name like that of `path` that nothing has yet."""
    tried = (str(path.with_name(f"{path.stem}-{number}{path.suffix}")) for number in itertools.count(2))
    return next(name for name in tried if not os.path.lexists(name))


def _export_folder(checkpoint: Checkpoint) -> Path:
    return checkpoint.folder.resolve().parent / "export"


def _refuse_checkpoints(folder: Path) -> None:
    """Raise UsageError if `folder` is or lies in a checkpoint, whose manifest a new README would contradict, or in a file."""
    for place in (folder, *folder.absolute().parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"--out: {place} is a file, not a folder", "--out export")
        if (place / ckpt.MANIFEST).is_file():
            raise UsageError(f"--out lies in {place}, which is a checkpoint and stays as it is", "--out export")


def tensor_name(name: str) -> str:
    """GGUF's name of one of our parameters: `model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`."""
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_BLOCK_NAMES[rest.removesuffix('.weight')]}.weight"


def _converted(weights: dict[str, Tensor], dtype: Dtype, gguf: Any, say: Say) -> Iterator[tuple[str, tuple[NDArray[Any], Any]]]:
    """Yield GGUF's name, data and type of every tensor. `say` reports fallbacks, once per reason."""
    reasons: dict[str, list[str]] = {}
    for ours, weight in weights.items():
        name, array = tensor_name(ours), weight.detach().float().contiguous().numpy()
        kind, reason = _kind(array, dtype.upper())
        if reason:
            reasons.setdefault(f"{reason}: kept as {kind}", []).append(name)
        yield name, (gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind]), gguf.GGMLQuantizationType[kind])
    for reason, names in reasons.items():
        say(f"{reason}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}")


def _kind(array: NDArray[np.float32], wanted: str) -> tuple[str, str]:
    """The type to store a tensor in, and why it is not the wanted one (empty for vectors, which are small and always F32)."""
    if array.ndim == 1:
        return "F32", ""
    if float(abs(array).max()) >= LARGEST[wanted]:
        return "F32", f"values too large for {wanted}"
    if wanted.startswith("Q") and array.shape[-1] % BLOCK:
        kind, _ = _kind(array, "F16")
        return kind, f"rows of {array.shape[-1]} are no multiple of {BLOCK}, which {wanted} needs"
    return wanted, ""


def _write_gguf(handle: Any, checkpoint: Checkpoint, name: str, tensors: Converted, dtype: Dtype, gguf: Any) -> None:
    from gguf.gguf_writer import WriterState

    writer = gguf.GGUFWriter(None, "qwen3")
    _add_shape(writer, checkpoint.config, name)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}"])
    if dtype.startswith("q"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, checkpoint)
    for tensor, (data, kind) in tensors.items():
        writer.add_tensor(tensor, data, raw_dtype=kind)
    # the writer would open the file by its final name; ours is renamed when it is complete
    writer.fout, writer.state = [handle], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(handle, handle.tell())
    for data, _ in tensors.values():  # not by the writer: numpy's tofile hides a full disk
        handle.write(data.data)
        writer.write_padding(handle, data.nbytes)


def _add_shape(writer: Any, config: ModelConfig, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config.context_len)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, checkpoint: Checkpoint) -> None:
    """Add the vocabulary for llama.cpp's SentencePiece. Without real scores, or with an added space, it would split most texts wrongly."""
    pieces = checkpoint.tokenizer.pieces()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.text for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([TOKEN_TYPES[piece.kind] for piece in pieces])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(checkpoint.tokenizer.im_end_id if checkpoint.is_chat else EOS)
    writer.add_unk_token_id(UNK)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if checkpoint.is_chat:
        writer.add_chat_template(CHAT_TEMPLATE)


def modelfile(gguf_name: str, checkpoint: Checkpoint) -> str:
    """Ollama's Modelfile for the GGUF file of that name in the same folder. Ollama adds bos itself."""
    name = ollama_name(checkpoint)
    if checkpoint.is_chat:
        message = "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
        template = f'"""{{{{- range .Messages }}}}{message}{{{{ end }}}}<|im_start|>assistant\n"""'
        stops = f'PARAMETER stop "{IM_END}"\nPARAMETER stop "</s>"\n'
    else:
        template, stops = "{{ .Prompt }}", 'PARAMETER stop "</s>"\n'
    return (
        f"# Positron Mini: ollama create {name} -f Modelfile\n"
        f"FROM ./{gguf_name}\nTEMPLATE {template}\n{stops}"
        f"PARAMETER num_ctx {checkpoint.config.context_len}\nPARAMETER temperature 0.7\n"
    )


# --- Hugging Face -----------------------------------------------------------------------------------------------------------------------


def export_huggingface(checkpoint: Checkpoint, out: Path | None, dtype: Dtype = "f32", *, say: Say = lambda _: None) -> Exported:
    """Write a model folder without training state to `out` (None: `export/NAME` beside the checkpoint; an existing folder: inside it).

    Weights, settings, tokenizer files, card and manifest are written anew and verified before the folder appears. Errors: UsageError for
    quantised types, PositronError; no file is left then.
    """
    import torch

    _refuse_changed(checkpoint)
    types = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    if dtype not in types:
        raise UsageError(f"--format hf stores f32, f16 or bf16, not {dtype}", f"--format gguf --dtype {dtype}")
    name = model_name(checkpoint)
    path = _folder_path(checkpoint, out, name)
    weights = {key: tensor.to(types[dtype]) for key, tensor in ckpt.load_model(checkpoint).state_dict().items()}
    ckpt.check_free_space(path.parent, sum(tensor.nbytes for tensor in weights.values()))
    card = model_card(checkpoint, name, _folder_use(checkpoint), library="transformers")
    texts = ckpt.model_files(
        checkpoint.config, checkpoint.tokenizer, chat_template=CHAT_TEMPLATE if checkpoint.is_chat else None, card=card
    )
    kind = str(types[dtype]).removeprefix("torch.")
    settings = {**json.loads(texts["config.json"]), "dtype": kind, "torch_dtype": kind}
    texts["config.json"] = files.json_text(settings).encode()
    with undone_on_error([path]), files.atomic_folder(path, ckpt.FILES.__contains__) as temporary:
        for file, data in {**texts, ckpt.MODEL_FILE: ckpt.tensor_bytes(weights)}.items():
            files.write_bytes(temporary / file, data)
        ckpt.write_manifest(temporary)
        ckpt.load_model(ckpt.open_checkpoint(temporary))
    say(f"verified: {len(texts) + 1} files, {checkpoint.config.parameters:,} parameters in {kind}")
    return Exported(path, (), sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))


def _folder_path(checkpoint: Checkpoint, out: Path | None, name: str) -> Path:
    """The path of the new folder. An existing one is replaced only if it holds an earlier export and nothing else."""
    path = _export_folder(checkpoint) / name if out is None else out.resolve() if out.is_symlink() else out
    if path.is_dir() and any(path.iterdir()) and not _is_export(path):
        path = path / name
    _refuse_checkpoints(path.parent)
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or _is_export(path))):
        raise UsageError(f"--out {path} holds something else than an earlier export", "choose another --out")
    return path


def _is_export(folder: Path) -> bool:
    """Whether a folder holds the files of its manifest, unchanged, and nothing else; a training state and steps of a run are no exports."""
    if not (folder / ckpt.MANIFEST).is_file() or ckpt.step_number(folder.resolve().name) is not None:
        return False
    listed = set(ckpt.read_manifest(folder)) | {ckpt.MANIFEST}
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
    if listed != there or ckpt.STATE_FILE in listed:
        return False
    with contextlib.suppress(PositronError):  # a file was edited
        ckpt.verify(folder)
        return True
    return False


def _gguf_use(name: str, checkpoint: Checkpoint) -> str:
    model = ollama_name(checkpoint)
    prompt = [] if checkpoint.is_chat else [opening_of(checkpoint.folder.resolve().parent) or STORY]
    run = shlex.join(["ollama", "run", model, *prompt])
    return f"```\nollama create {model} -f Modelfile\n{run}\nllama-server -m {name}\n```\n"


def _folder_use(checkpoint: Checkpoint) -> str:
    verb = "chat" if checkpoint.is_chat else "generate"
    prompt = opening_of(checkpoint.folder.resolve().parent) or STORY
    ending = f" A message ends with `{IM_END}`." if checkpoint.is_chat else ""
    return (
        f"```\npositron {verb} --ckpt FOLDER\n{shlex.join(['mlx_lm.generate', '--model', 'FOLDER', '--prompt', prompt])}\n```\n\n"
        f"In transformers: `AutoModelForCausalLM.from_pretrained(FOLDER)`.{ending}\n"
    )
