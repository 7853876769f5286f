"""Laws of checkpoints: what was written comes back exactly, what was touched since never loads, and loading never runs code."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import struct
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.faults import Canary
from helpers.runs import digests, forked, listing, needs_fork
from positron_mini import files
from positron_mini.config import ModelConfig
from positron_mini.errors import CheckpointError, DiskFullError, PositronError
from positron_mini.model import GPT
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.checkpoint import load_model, load_training, open_checkpoint, tensor_bytes, write_checkpoint, write_tensors
from positron_mini.store.find import find_checkpoint
from positron_mini.text.tokenizer import Tokenizer

FILES = [
    "README.md", "config.json", "generation_config.json", "manifest.json", "model.safetensors", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "training/state.json", "training/state.safetensors",
]  # fmt: skip


@pytest.fixture(scope="module")
def victim(workshop_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step folder that is damaged and repaired again by many examples."""
    return Path(shutil.copytree(workshop_template / "runs/base/step_000030", tmp_path_factory.mktemp("victim") / "step_000030"))


def test_a_step_folder_holds_a_hugging_face_model_a_training_state_and_the_manifest_of_all(step: Path) -> None:
    assert sorted(digests(step)) == FILES
    manifest = json.loads((step / "manifest.json").read_text())
    assert manifest["files"] == {
        name: {"bytes": (step / name).stat().st_size, "sha256": digest} for name, digest in digests(step).items() if name != "manifest.json"
    }


def test_weights_and_state_come_back_bit_for_bit(tmp_path: Path, tiny_model: GPT, tiny_tokenizer: Tokenizer) -> None:
    weights = {name: p.detach() for name, p in tiny_model.named_parameters()}
    state = ckpt.TrainingState({"optimizer.a": torch.randn(3, 5), "b": torch.tensor(0.1)}, {"step": 7, "tokens": 70, "weights": "raw"})
    texts = ckpt.model_files(tiny_model.config, tiny_tokenizer, chat_template=None, card="card")
    write_checkpoint(tmp_path / "step_000007", weights, texts, state)
    found = open_checkpoint(tmp_path / "step_000007")
    assert (found.config, found.step, found.is_chat, found.has_training) == (tiny_model.config, 7, False, True)
    assert found.tokenizer.fingerprint == tiny_tokenizer.fingerprint and found.end_ids == frozenset({2})
    loaded = dict(load_model(found).named_parameters())
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)
    again = load_training(found)
    assert {name: t.tolist() for name, t in again.tensors.items()} == {name: t.tolist() for name, t in state.tensors.items()}
    assert again.state == {"format": 1, **state.state}


def test_the_bytes_of_a_weight_file_do_not_depend_on_the_order_or_layout_of_the_tensors() -> None:
    a, b = torch.randn(4, 6), torch.randn(2)
    expected = tensor_bytes({"a": a, "b": b})
    assert tensor_bytes({"b": b, "a": a}) == expected
    assert tensor_bytes({"a": a.T.contiguous().T, "b": torch.stack((b, b), 1)[:, 0]}) == expected
    header = json.loads(expected[8 : 8 + struct.unpack("<Q", expected[:8])[0]])
    assert header["__metadata__"] == {"format": "pt"}


def test_streamed_tensors_are_the_bytes_of_the_library(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"z": (3, 5), "adamw.count.x": (1,), "a": (), "model.embed": (7, 2), "empty": (0, 4), 'quote"é': (2,)}
    tensors = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    tensors["turned"] = torch.randn(4, 3, generator=generator).T
    write_tensors(tmp_path / "file", tensors)
    assert (tmp_path / "file").read_bytes() == tensor_bytes(tensors)


# --- damage -----------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_C6_a_checkpoint_with_one_flipped_bit_never_loads(victim: Path, name: str, place: float, bit: int) -> None:
    path = victim / name
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(broken)
    try:
        with pytest.raises(PositronError) as caught:
            open_checkpoint(victim)
        assert str(victim) in caught.value.message and caught.value.hint
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["truncated", "zeroed tail", "longer", "empty", "missing", "a folder", "a link"])
def test_C4_a_checkpoint_with_a_damaged_file_never_loads(victim: Path, tmp_path: Path, name: str, kind: str) -> None:
    path, whole = victim / name, (victim / name).read_bytes()
    half = len(whole) // 2
    damaged = {"truncated": whole[:half], "zeroed tail": whole[:half] + bytes(len(whole) - half), "longer": whole + b"\0", "empty": b""}
    path.unlink()
    if kind in damaged:
        path.write_bytes(damaged[kind])
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a link":
        (tmp_path / "elsewhere").write_bytes(whole if name != "manifest.json" else whole[:-3])
        path.symlink_to(tmp_path / "elsewhere")
    try:
        with pytest.raises(PositronError) as caught:
            open_checkpoint(victim)
        assert caught.value.exit_code == 1 and name in caught.value.message and caught.value.hint
    finally:
        path.rmdir() if kind == "a folder" else path.unlink(missing_ok=True)
        path.write_bytes(whole)
    open_checkpoint(victim)


@pytest.mark.parametrize("name", ["../run.json", "/etc/passwd", "a/../../run.json", "..", "..\\run.json", "training/../../x", "C:\\x"])
def test_L4_a_manifest_cannot_name_a_file_outside_its_folder(step: Path, name: str) -> None:
    (step.parent / "run.json").write_text("{}")
    rewrite_manifest(step, **{name: {"bytes": 2, "sha256": files.sha256_of(step.parent / "run.json")}})
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(step)


@pytest.mark.parametrize(
    "entry",
    [
        None, 3, "x", [], {}, {"bytes": "5", "sha256": "0"}, {"bytes": 5}, {"bytes": 5, "sha256": 7}, {"bytes": 5.0, "sha256": "0"},
        {"bytes": True, "sha256": ""},
    ],
)  # fmt: skip
def test_L4_a_manifest_entry_of_another_type_is_refused(step: Path, entry: Any) -> None:
    rewrite_manifest(step, **{"config.json": entry})
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(step)


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "3", "{}", '{"format": 1}', '{"format": 1, "files": []}', '{"format": 2, "files": {}}', '{"format": 1, "files": {}}'],
)
def test_L4_a_manifest_of_another_shape_is_refused(step: Path, content: str) -> None:
    (step / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        open_checkpoint(step)


HUGE_OR_WRONG: list[Any] = [10**8, 10**13, int("9" * 4000), 2**63, 0, -1, 8.0, "8", True, None, [8], {"a": 8}]


@pytest.mark.parametrize("value", HUGE_OR_WRONG, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize(
    "name",
    [
        "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
        "max_position_embeddings", "vocab_size",
    ],
)  # fmt: skip
def test_L4_absurd_numbers_in_config_json_are_refused_before_anything_is_built(victim: Path, name: str, value: Any) -> None:
    data = json.loads((victim / "config.json").read_text())
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_huggingface({**data, name: value}, "config.json")
    assert "config.json" in caught.value.message and len(caught.value.message) < 300


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**6, "hidden_size": 1}, {"max_position_embeddings": 10**7}, {"head_dim": 10**6, "hidden_size": 1},
        {"rms_norm_eps": float("nan")}, {"rms_norm_eps": 0}, {"rope_theta": -1, "rope_parameters": None},
        {"rope_parameters": {"rope_theta": float("inf")}}, {"rope_scaling": {"type": "yarn"}}, {"model_type": "llama"},
        {"tie_word_embeddings": False}, {"attention_bias": True}, {"use_sliding_window": True}, {"num_key_value_heads": 3},
        {"head_dim": 15},
    ],
    ids=str,
)  # fmt: skip
def test_L4_a_shape_that_this_program_does_not_have_is_refused(victim: Path, change: dict[str, Any]) -> None:
    data = json.loads((victim / "config.json").read_text())
    with pytest.raises(CheckpointError):
        ModelConfig.from_huggingface({**data, **change}, "config.json")


# --- weights that do not fit ------------------------------------------------------------------------------------------------------------


def swap_weights(step: Path, data: bytes) -> ckpt.Checkpoint:
    """The step with other weights and a manifest that vouches for them."""
    (step / "model.safetensors").write_bytes(data)
    ckpt.write_manifest(step)
    return open_checkpoint(step)


def weights_of(step: Path) -> dict[str, torch.Tensor]:
    return ckpt.read_tensors(step / "model.safetensors", None)


def without(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors.items() if n != name}


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda w: without(w, NORM), f"missing: {NORM}"),
        (lambda w: {**w, "lm_head.weight": torch.zeros(2)}, "unknown: lm_head.weight"),
        (lambda w: {**w, NORM: torch.ones(33)}, r"the shape \(33,\), config.json says \(32,\)"),
        (lambda w: {**w, NORM: torch.ones(1, 32)}, r"the shape \(1, 32\)"),
        (lambda w: {**w, NORM: w[NORM] * float("nan")}, "not finite"),
        (lambda w: {**w, NORM: w[NORM] / 0}, "not finite"),
        (lambda w: {**w, NORM: w[NORM].long()}, "is of the type I64, weights are F64"),
    ],
)
def test_C10_weights_that_do_not_fit_config_json_are_refused(step: Path, make: Any, said: str) -> None:
    checkpoint = swap_weights(step, tensor_bytes(make(weights_of(step))))
    with pytest.raises(CheckpointError, match=said):
        load_model(checkpoint)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_widened_to_fp32(step: Path, dtype: torch.dtype) -> None:
    narrow = {name: t.to(dtype) for name, t in weights_of(step).items()}
    model = load_model(swap_weights(step, tensor_bytes(narrow)))
    assert all(p.dtype == torch.float32 and torch.equal(p, narrow[name].float()) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**9) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 4) + b"null",
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_L3_a_weight_file_with_a_hostile_header_is_refused(step: Path, data: bytes) -> None:
    with pytest.raises(CheckpointError):
        load_model(swap_weights(step, data))


@pytest.mark.parametrize("name", ["latest.pt", "step_1000.pt", "model.pt", "pytorch_model.bin", "latest.pth"])
def test_L1_a_pt_file_is_refused_and_never_unpickled(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match="never unpickled"):
        find_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.model", "config.json", "training/state.safetensors", "training/state.json"]
)
def test_L1_a_pickle_in_the_place_of_any_file_is_never_unpickled(step: Path, name: str) -> None:
    (step / name).write_bytes(pickle.dumps(Canary(step / "ran")))
    ckpt.write_manifest(step)

    def load() -> None:
        checkpoint = open_checkpoint(step)
        load_model(checkpoint)
        load_training(checkpoint)

    with pytest.raises(PositronError):
        load()
    assert not (step / "ran").exists()


def test_the_canary_would_sing(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


# --- writing ----------------------------------------------------------------------------------------------------------------------------


def test_C5_a_checkpoint_is_not_begun_where_it_does_not_fit(
    tmp_path: Path, tiny_model: GPT, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**6, 10**6))
    texts = ckpt.model_files(tiny_model.config, tiny_tokenizer, chat_template=None, card="card")
    with pytest.raises(DiskFullError, match="1 MB are free"):
        write_checkpoint(tmp_path / "run" / "step_000001", dict(tiny_model.named_parameters()), texts, None)
    assert listing(tmp_path) == {}


@needs_fork
@pytest.mark.parametrize("point", ["before_write:3", "before_fsync:8", "before_replace:9", "before_rename"])
def test_C3_a_kill_while_saving_leaves_no_step_folder(tmp_path: Path, step: Path, point: str) -> None:
    checkpoint = open_checkpoint(step)
    texts = ckpt.model_files(checkpoint.config, checkpoint.tokenizer, chat_template=None, card="card")
    weights, training = weights_of(step), load_training(checkpoint)

    def act() -> int:
        write_checkpoint(tmp_path / "run" / "step_000031", weights, texts, training)
        return 0

    assert forked(act, fault=point) == -signal.SIGKILL
    assert [path.name.startswith(".tmp-") for path in (tmp_path / "run").iterdir()] == [True]
    assert act() == 0 and open_checkpoint(tmp_path / "run" / "step_000031").has_training


def test_dropping_the_training_state_leaves_a_plain_model_folder(step: Path) -> None:
    before = digests(step)
    ckpt.drop_training(step)
    kept = open_checkpoint(step)
    assert not kept.has_training and not (step / "training").exists()
    assert {n: d for n, d in digests(step).items() if n != "manifest.json"} == {n: before[n] for n in FILES[:8] if n != "manifest.json"}
    with pytest.raises(CheckpointError, match="without training state"):
        load_training(kept)


@needs_fork
def test_C3_a_kill_between_the_two_halves_of_a_drop_is_harmless(step: Path) -> None:
    def act() -> int:
        ckpt.drop_training(step)
        return 0

    assert forked(act, fault="before_drop_training") == -signal.SIGKILL
    assert (step / "training").exists()
    kept = open_checkpoint(step)
    assert not kept.has_training and load_model(kept)
    assert act() == 0 and not (step / "training").exists()


@given(step=st.integers(0, 10**12 - 1))
def test_the_name_of_a_step_says_its_number(step: int) -> None:
    assert ckpt.step_number(ckpt.step_name(step)) == step


@pytest.mark.parametrize(
    "name", ["", "step_", "step_-1", "step_1.0", "step_１", "step_1 ", "1000", "latest", "step_" + "1" * 13, "Step_1", "step_1_0"]
)
def test_other_names_are_not_steps(name: str) -> None:
    assert ckpt.step_number(name) is None


def rewrite_manifest(step: Path, **entries: Any) -> None:
    data = json.loads((step / "manifest.json").read_text())
    data["files"].update(entries)
    (step / "manifest.json").write_text(json.dumps(data))
