"""Checkpoints: a checkpoint is one folder, also a Hugging Face model folder, complete or absent, with a checksum of every file.

`training/` inside it holds what an exact resume needs. Only safetensors and JSON are read, so loading never runs code.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from positron_mini import files
from positron_mini.config import ModelConfig
from positron_mini.errors import CheckpointError, DiskFullError, DroppedError, NonFiniteError, TokenizerError
from positron_mini.own_files import open_regular, read_small
from positron_mini.store.run_logs import LOGS
from positron_mini.store.steps import step_name as step_name
from positron_mini.store.steps import step_number as step_number
from positron_mini.text.tokenizer import BOS, EOS, PAD, Tokenizer, huggingface_files

if TYPE_CHECKING:
    from torch import Tensor

    from positron_mini.model import GPT

FORMAT = 1
MODEL_FILE = "model.safetensors"
STATE_FILE = "training/state.safetensors"
STATE_JSON = "training/state.json"
MANIFEST = "manifest.json"
MAX_HEADER_BYTES = 8 << 20  # a thousand layers have 40,000 tensors of training state
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of the accepted types
CHANGED = "positron-mini-changed"  # model type in config.json of a model that is not the built-in one
NEEDED = ("config.json", MODEL_FILE, "tokenizer.model")
# every file that a checkpoint folder can hold
FILES = frozenset((*NEEDED, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"))
FILES |= {STATE_FILE, STATE_JSON, MANIFEST}


@dataclass(frozen=True)
class TrainingState:
    """State for resuming a run at a step: tensors by name, and the numbers of `state.json`."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def model_files(config: ModelConfig, tokenizer: Tokenizer, *, chat_template: str | None, card: str) -> dict[str, bytes]:
    """Every file of a model folder except the weights, by name. `chat_template` None makes a base model's folder."""
    ends = [EOS, tokenizer.im_end_id] if chat_template is not None else [EOS]
    settings = {**config.to_huggingface(), "eos_token_id": ends if len(ends) > 1 else EOS}
    generation = {"bos_token_id": BOS, "eos_token_id": ends, "pad_token_id": PAD, "do_sample": True, "temperature": 0.7}
    return {
        "config.json": files.json_text(settings).encode(),
        "generation_config.json": files.json_text(generation).encode(),
        **huggingface_files(tokenizer, context_len=config.context_len, chat_template=chat_template),
        "README.md": card.encode(),
    }


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Content of a safetensors file. The same tensors give the same bytes in every process: the metadata is `{"format": "pt"}` alone."""
    from safetensors.torch import save

    return save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, metadata={"format": "pt"})


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write the bytes of `tensor_bytes` for fp32 tensors, one after the other: all at once would take twice their size in memory."""
    ordered = {name: tensors[name].detach().float().cpu().contiguous() for name in sorted(tensors)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)

    def fill(handle: Any) -> None:
        handle.write(struct.pack("<Q", len(head)) + head)
        for tensor in ordered.values():
            handle.write(tensor.numpy().data)

    files.stream_file(path, fill)


def write_checkpoint(folder: Path, weights: dict[str, Tensor], texts: dict[str, bytes], training: TrainingState | None) -> None:
    """Write a checkpoint folder atomically, its manifest last. The logs beside it are flushed first, so they reach at least this step.

    Errors: NonFiniteError, DiskFullError, PositronError; then nothing is left.
    """
    for name, tensor in [*weights.items(), *(training.tensors.items() if training else ())]:
        if not is_finite(tensor):
            raise NonFiniteError(
                f"{folder}: {name} holds values that are not finite numbers; this step is not saved",
                "the last checkpoint is intact: start the same command again, or a new run with a lower --lr",
                evidence={"kind": "non_finite", "folder": folder.name, "tensor": name},
            )
    files.sync_lines(folder.parent / name for name in LOGS)
    needed = sum(t.numel() * 4 for t in weights.values()) + (sum(t.numel() * 4 for t in training.tensors.values()) if training else 0)
    check_free_space(folder.parent, needed + sum(map(len, texts.values())))
    with files.atomic_folder(folder, FILES.__contains__) as temporary:
        for name, data in texts.items():
            files.write_bytes(temporary / name, data)
        write_tensors(temporary / MODEL_FILE, weights)
        if training is not None:
            write_tensors(temporary / STATE_FILE, training.tensors)
            files.write_json(temporary / STATE_JSON, {"format": FORMAT, **training.state})
        write_manifest(temporary)


def check_free_space(folder: Path, needed: int) -> None:
    """Raise DiskFullError if fewer than `needed` bytes (and 16 MiB to spare) are free. Checks the nearest existing folder."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + (16 << 20):
        raise DiskFullError(
            f"{folder}: a checkpoint needs {needed / 1e6:,.0f} MB and only {free / 1e6:,.0f} MB are free",
            "free some space, then start the same command again; the last checkpoint is intact",
        )


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files now in `folder`."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {name: {"bytes": (folder / name).stat().st_size, "sha256": files.sha256_of(folder / name)} for name in names}
    files.write_json(folder / MANIFEST, {"format": FORMAT, "files": entries})


def manifest_bytes(folder: Path) -> bytes | None:
    """Content of a checkpoint's manifest, None without one: it identifies the checkpoint and changes with it."""
    try:
        return read_small(folder / MANIFEST)
    except OSError:
        return None


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file of a checkpoint, by name. Errors: CheckpointError when the manifest is missing or invalid."""
    path = folder / MANIFEST
    if not path.is_file():
        if not folder.is_dir():
            raise dropped(folder)
        raise CheckpointError(
            f"{folder}: no {MANIFEST}, so this is not a complete checkpoint", "use another step of the run, or the run folder itself"
        )
    data = files.read_json(path)
    entries = data.get("files") if isinstance(data, dict) else None
    if not isinstance(entries, dict) or data.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a manifest of format {FORMAT}", "the checkpoint is damaged or was written by a newer version")
    for name, entry in entries.items():
        plain = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts and "\\" not in name
        if not (plain and isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)):
            raise CheckpointError(f"{path}: the entry {name!r} is damaged", "use another step of the run")
    missing = [name for name in NEEDED if name not in entries]
    if missing:
        raise CheckpointError(f"{path}: {', '.join(missing)} is not listed", "use another step of the run")
    return entries


def verify(folder: Path, *, content: bool = True) -> dict[str, dict[str, Any]]:
    """Check every file against the manifest (without `content` only its size) and return the manifest.

    If the training process deletes the training state meanwhile, and so replaces the manifest, it is read again. Errors: CheckpointError
    naming the first file that differs, DroppedError.
    """
    while True:
        entries = read_manifest(folder)
        files.fault_point("manifest_read")
        try:
            _check_files(folder, entries, content=content)
        except (CheckpointError, OSError) as error:
            if read_manifest(folder) != entries:
                continue
            if isinstance(error, OSError):
                raise CheckpointError(f"{folder}: cannot be read ({error})", "use another step of the run") from error
            raise
        return entries


def dropped(folder: Path) -> DroppedError:
    """The error for a checkpoint that no longer exists."""
    return DroppedError(
        f"{folder}: no longer there; while a run is trained, only its newest steps and its milestones stay",
        f"take its newest step: --ckpt {shlex.quote(str(folder.parent))}",
    )


def _check_files(folder: Path, entries: dict[str, dict[str, Any]], *, content: bool) -> None:
    """Raise CheckpointError if a file does not match the manifest, or the OSError of a file that vanishes."""
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file() or any(part.is_symlink() for part in (path, *path.parents[: len(PurePosixPath(name).parts) - 1])):
            raise CheckpointError(f"{path}: missing, or a link to somewhere else", "use another step of the run")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(
                f"{path}: {size:,} bytes, the manifest says {entry['bytes']:,}", "the file is damaged; use another step of the run"
            )
        if content and files.sha256_of(path) != entry["sha256"]:
            raise CheckpointError(f"{path}: its content differs from its checksum", "the file is damaged; use another step of the run")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder, its shape and its tokenizer; `load_model` reads the weights."""

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    is_chat: bool
    has_training: bool
    changed: str = ""  # how the trained model differed from the built-in one

    @property
    def step(self) -> int | None:
        """Step in the folder's name, or None for a renamed folder."""
        return step_number(self.folder.resolve().name)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end the model's text: eos, and for chat models also the end of a message."""
        return frozenset({EOS, self.tokenizer.im_end_id}) if self.is_chat else frozenset({EOS})


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the checkpoint in `folder`, verifying every file. Errors: CheckpointError."""
    entries = verify(folder)
    data = files.read_json(folder / "config.json")
    changed = ""
    if isinstance(data, dict) and data.get("model_type") == CHANGED:
        changed, data = str(data.get("changed"))[:200], {**data, "model_type": "qwen3"}
    config = ModelConfig.from_huggingface(data, str(folder / "config.json"))
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} pieces, the model expects {config.vocab_size:,}",
            "copy the tokenizer that the model was trained with into the folder",
        )
    has_training = STATE_FILE in entries and STATE_JSON in entries
    return Checkpoint(folder, config, tokenizer, "chat_template.jinja" in entries, has_training, changed)


def check_tokenizer(path: str | Path | None, checkpoint: Checkpoint) -> None:
    """Raise TokenizerError if the tokenizer at `path` is not the checkpoint's own."""
    if path is None:
        return
    given, own = Tokenizer.load(path), checkpoint.tokenizer
    if given.fingerprint != own.fingerprint:
        raise TokenizerError(
            f"{path}: not the tokenizer of {checkpoint.folder} ({given.vocab_size:,} pieces, {given.fingerprint[:12]}; "
            f"there {own.vocab_size:,}, {own.fingerprint[:12]})",
            "leave --tokenizer_path out; every checkpoint carries its own",
        )


def read_tensors(path: Path, expected: dict[str, tuple[int, ...]] | None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, fp16 and bf16 widened to fp32; names and shapes must be those `expected`, if given.

    Errors: CheckpointError for another format (a `.pt` is never unpickled), missing or extra names, other shapes, non-finite values.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_header(path)
        with safe_open(path, framework="pt") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
            if expected is not None:
                _compare(path, expected, {name: tuple(part.get_shape()) for name, part in slices.items()})
            for name, part in slices.items():
                if part.get_dtype() not in FLOATS:
                    raise CheckpointError(
                        f"{path}: {name} is of the type {part.get_dtype()}, weights are {', '.join(FLOATS)}", "use another step of the run"
                    )
            tensors = {name: handle.get_tensor(name) for name in slices}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error!s:.150})", "use another step of the run") from error
    bad = next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)
    if bad is not None:
        raise CheckpointError(f"{path}: {bad} holds values that are not finite numbers", "use an earlier step of the run")
    return {name: tensor.float() for name, tensor in tensors.items()}


def check_header(path: Path) -> None:
    """Raise CheckpointError if a safetensors header is longer than any of ours: listing a million tensors takes a gigabyte."""
    with open_regular(path) as handle:
        size = int.from_bytes(handle.read(8), "little")
    if size > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: not a readable safetensors file (a header of {size:,} bytes; at most {MAX_HEADER_BYTES:,} are read)",
            "use another step of the run",
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite."""
    import torch

    return bool(torch.isfinite(tensor).all())


def _compare(path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path}: names differ; missing: {', '.join(missing[:4]) or 'none'}; unknown: {', '.join(extra[:4]) or 'none'}",
            "the file belongs to another model; use another step of the run",
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"{path}: {name} has the shape {found[name]}, config.json says {shape}", "the file belongs to another model"
            )


def load_model(checkpoint: Checkpoint) -> GPT:
    """Load the model of a checkpoint, on the CPU in fp32. Errors: CheckpointError, also if a changed model was trained and the source no
    longer has that change.
    """
    import torch

    from positron_mini.fast.plain import replaced
    from positron_mini.model import GPT

    if checkpoint.changed and not replaced():
        raise CheckpointError(
            f"{checkpoint.folder}: the model that was trained is not the built-in one ({checkpoint.changed})",
            "open it from Python, where positron_mini.model is changed in the same way",
        )
    with torch.device("meta"):  # shapes only: nothing is allocated or initialised before the file has been checked
        model = GPT(checkpoint.config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    files.fault_point("before_load")
    model.load_state_dict(read_tensors(checkpoint.folder / MODEL_FILE, shapes), assign=True)
    model.name = str(checkpoint.folder)
    return model.eval()


def load_training(checkpoint: Checkpoint) -> TrainingState:
    """Load the training state of a checkpoint. Errors: CheckpointError when only its model was kept."""
    if not checkpoint.has_training:
        raise CheckpointError(f"{checkpoint.folder}: kept as a model only, without training state", "resume from a newer step of the run")
    state = files.read_json(checkpoint.folder / STATE_JSON)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{checkpoint.folder / STATE_JSON}: not a training state of format {FORMAT}", "use another step of the run")
    return TrainingState(read_tensors(checkpoint.folder / STATE_FILE, None), state)


def drop_training(folder: Path) -> None:
    """Reduce `folder` to a plain model folder: first remove `training/` from the manifest, then delete our files in it."""
    entries = {name: entry for name, entry in read_manifest(folder).items() if not name.startswith("training/")}
    files.write_json(folder / MANIFEST, {"format": FORMAT, "files": entries})
    files.fault_point("before_drop_training")
    state = folder / "training"
    if state.is_symlink():
        return
    for path in (folder / STATE_FILE, folder / STATE_JSON):
        path.unlink(missing_ok=True)
    files.remove_leftovers(state, lambda name: f"training/{name}" in FILES)
    with contextlib.suppress(OSError):  # it may hold a file that is not ours
        state.rmdir()


def holds_training(folder: Path) -> bool:
    """Whether the files of a training state are in `folder`, listed by its manifest or not."""
    return not (folder / "training").is_symlink() and any((folder / name).is_file() for name in (STATE_FILE, STATE_JSON))
