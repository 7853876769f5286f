"""Exports: what stands in a GGUF file and beside it, what a plain folder holds, and that a failed export leaves nothing."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from helpers.chats import write_model
from helpers.models import lively_model, shape
from helpers.runs import digests, forked, listing, needs_fork, positron
from positron_mini import files
from positron_mini.errors import CheckpointError, DiskFullError, UsageError
from positron_mini.export.card import step_card
from positron_mini.export.model_files import Exported, export_gguf, export_huggingface, tensor_name
from positron_mini.model import GPT
from positron_mini.store.checkpoint import Checkpoint, load_model, model_files, open_checkpoint, read_manifest, verify, write_checkpoint
from positron_mini.store.find import find_checkpoint
from positron_mini.text.chat_format import CHAT_TEMPLATE
from positron_mini.text.tokenizer import Tokenizer

DTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.layers.1.input_layernorm.weight": "blk.1.attn_norm.weight",
    "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
    "model.layers.1.self_attn.k_proj.weight": "blk.1.attn_k.weight",
    "model.layers.1.self_attn.v_proj.weight": "blk.1.attn_v.weight",
    "model.layers.1.self_attn.q_norm.weight": "blk.1.attn_q_norm.weight",
    "model.layers.1.self_attn.k_norm.weight": "blk.1.attn_k_norm.weight",
    "model.layers.1.self_attn.o_proj.weight": "blk.1.attn_output.weight",
    "model.layers.1.post_attention_layernorm.weight": "blk.1.ffn_norm.weight",
    "model.layers.1.mlp.gate_proj.weight": "blk.1.ffn_gate.weight",
    "model.layers.1.mlp.up_proj.weight": "blk.1.ffn_up.weight",
    "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
}


@pytest.fixture
def base(tmp_path: Path, tiny_model: GPT, tiny_tokenizer: Tokenizer) -> Checkpoint:
    return open_checkpoint(write_model(tmp_path / "models" / "step_000001", tiny_model, tiny_tokenizer, is_chat=False))


@pytest.fixture
def chat(tmp_path: Path, tiny_model: GPT, tiny_tokenizer: Tokenizer) -> Checkpoint:
    return open_checkpoint(write_model(tmp_path / "models" / "step_000002", tiny_model, tiny_tokenizer, is_chat=True))


def keys(path: Path) -> dict[str, Any]:
    """All keys of a GGUF file with their values."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items() if not name.startswith("GGUF.")}


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


# --- GGUF: what is in it ----------------------------------------------------------------------------------------------------------------


def test_keys_of_a_base_model_are_those_llama_cpp_needs(base: Checkpoint, tmp_path: Path) -> None:
    found = keys(export_gguf(base, tmp_path / "out.gguf", "f32").path)
    pieces = base.tokenizer.pieces()
    assert found == {
        "general.architecture": "qwen3",
        "general.name": "Positron-Mini-1M-Base-v1.0",
        "general.file_type": 0,
        "qwen3.context_length": 32,
        "qwen3.embedding_length": 32,
        "qwen3.block_count": 2,
        "qwen3.feed_forward_length": 64,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 16,
        "qwen3.attention.value_length": 16,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "qwen3.rope.freq_base": 10_000.0,
        "qwen3.vocab_size": 512,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.text for piece in pieces],
        "tokenizer.ggml.scores": [0.0] * 262 + [float(-i) for i in range(250)],
        "tokenizer.ggml.token_type": [2, 3, 3, 3, 3, 3] + [6] * 256 + [1] * 250,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def test_a_chat_model_ends_at_the_end_of_a_message_and_carries_our_template(chat: Checkpoint, tmp_path: Path) -> None:
    found = keys(export_gguf(chat, tmp_path, "q8_0").path)
    assert found["tokenizer.ggml.eos_token_id"] == 5
    assert found["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert (found["general.file_type"], found["general.quantization_version"]) == (7, 2)


def test_L6_a_template_in_the_checkpoint_is_never_passed_on(tmp_path: Path, tiny_model: GPT, tiny_tokenizer: Tokenizer) -> None:
    texts = model_files(tiny_model.config, tiny_tokenizer, chat_template="{{ evil() }}", card="")
    write_checkpoint(tmp_path / "m" / "step_000001", tiny_model.state_dict(), texts, None)
    checkpoint = open_checkpoint(tmp_path / "m" / "step_000001")
    export_huggingface(checkpoint, tmp_path / "hf")
    export_gguf(checkpoint, tmp_path / "gguf")
    assert not [path for path in (tmp_path / "hf", tmp_path / "gguf") for file in path.rglob("*") if b"evil" in file.read_bytes()]
    assert (tmp_path / "hf" / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_names_of_the_tensors_are_llama_cpps() -> None:
    assert {ours: tensor_name(ours) for ours in GGUF_NAMES} == GGUF_NAMES
    assert tensor_name("model.layers.11.mlp.up_proj.weight") == "blk.11.ffn_up.weight"


def test_L7_an_f32_file_holds_the_weights_bit_for_bit_and_no_output_matrix(base: Checkpoint, tiny_model: GPT, tmp_path: Path) -> None:
    found = tensors(export_gguf(base, tmp_path, "f32").path)
    weights = tiny_model.state_dict()
    assert set(found) == {tensor_name(name) for name in weights} and len(found) == 2 + 2 * 11
    for name, weight in weights.items():
        tensor = found[tensor_name(name)]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tuple(reversed(tensor.shape.tolist())) == tuple(weight.shape)
        assert np.array_equal(tensor.data, weight.numpy())


@pytest.mark.parametrize(("dtype", "steps"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 0.5 / 127), ("q4_0", 1 / 8)])
def test_matrices_are_stored_within_the_steps_of_their_type_and_vectors_exactly(
    base: Checkpoint, tiny_model: GPT, tmp_path: Path, dtype: str, steps: float
) -> None:
    found = tensors(export_gguf(base, tmp_path, dtype).path)
    for name, weight in tiny_model.state_dict().items():
        tensor, ours = found[tensor_name(name)], weight.numpy()
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(ours.shape)
        if ours.ndim == 1:
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and np.array_equal(theirs, ours)
            continue
        assert tensor.tensor_type == gguf.GGMLQuantizationType[dtype.upper()]
        largest = np.abs(ours).reshape(-1, 32).max(1, keepdims=True)  # of a block, whose scale is rounded to 11 bits
        assert (np.abs(theirs - ours).reshape(-1, 32) <= largest * (steps + 2**-11)).all()


def test_rows_that_fit_no_block_are_kept_as_f16_and_that_is_said(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    model = lively_model(shape(n_embd=48, ffn=64))
    checkpoint = open_checkpoint(write_model(tmp_path / "m" / "step_000001", model, tiny_tokenizer, is_chat=False))
    said: list[str] = []
    found = tensors(export_gguf(checkpoint, tmp_path / "o", "q4_0", say=said.append).path)
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == "F16"
    assert kinds["blk.0.attn_output.weight"] == kinds["blk.1.ffn_down.weight"] == "Q4_0"
    names = "token_embd.weight, blk.0.attn_q.weight, blk.0.attn_k.weight and 8 more"
    assert said == [f"rows of 48 are no multiple of 32, which Q4_0 needs: kept as F16: {names}"]


def test_values_too_large_for_f16_are_kept_as_f32_and_that_is_said(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    model = lively_model(shape())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 70_000.0
    checkpoint = open_checkpoint(write_model(tmp_path / "m" / "step_000001", model, tiny_tokenizer, is_chat=False))
    said: list[str] = []
    found = tensors(export_gguf(checkpoint, tmp_path / "o", "f16", say=said.append).path)
    assert found["blk.1.ffn_up.weight"].tensor_type.name == "F32"
    assert all(np.isfinite(tensor.data).all() for tensor in found.values())
    assert said == ["values too large for F16: kept as F32: blk.1.ffn_up.weight"]


# --- GGUF: how it is written ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_written_twice_gives_equal_bytes(chat: Checkpoint, tmp_path: Path, dtype: str) -> None:
    first, _ = (export_gguf(chat, tmp_path / name, dtype) for name in ("a", "b"))
    assert first.bytes == first.path.stat().st_size
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert sorted(digests(tmp_path / "a")) == ["Modelfile", f"Positron-Mini-1M-Chat-v1.0-{dtype.upper()}.gguf", "README.md"]


def test_out_may_be_absent_a_folder_or_a_file(base: Checkpoint, tmp_path: Path) -> None:
    name = "Positron-Mini-1M-Base-v1.0-Q8_0.gguf"
    assert export_gguf(base, None).path == tmp_path / "models" / "export" / name
    assert export_gguf(base, tmp_path / "new" / "folder").path == tmp_path / "new" / "folder" / name
    assert export_gguf(base, tmp_path / "x" / "mine.gguf").path == tmp_path / "x" / "mine.gguf"
    assert (tmp_path / "x" / "Modelfile").read_text().splitlines()[1] == "FROM ./mine.gguf"


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_failed_export_leaves_nothing(base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    before = listing(tmp_path)
    monkeypatch.setattr(files, "_passed", {})
    monkeypatch.setenv("FAULT", f"before_replace:{nth}:raise")
    with pytest.raises(DiskFullError):
        export_gguf(base, tmp_path / "new" / "folder")
    assert listing(tmp_path) == before


def test_a_failed_export_leaves_an_earlier_one_whole(base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_gguf(base, tmp_path / "o", "q8_0")
    before = digests(tmp_path / "o")
    monkeypatch.setattr(files, "_passed", {})
    monkeypatch.setenv("FAULT", "before_replace:2:raise")
    with pytest.raises(DiskFullError):
        export_gguf(base, tmp_path / "o", "f32")
    assert digests(tmp_path / "o") == before


@needs_fork
def test_a_full_disk_ends_with_code_4_and_leaves_nothing(base: Checkpoint, tmp_path: Path) -> None:
    import resource

    before = listing(tmp_path)

    def act() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return positron("export", "--ckpt", base.folder, "--dtype", "f32", "--out", tmp_path / "o").code

    assert forked(act) == 4
    assert listing(tmp_path) == before


@pytest.mark.parametrize("inner", ["", "deeper"])
def test_a_checkpoint_is_never_written_into(base: Checkpoint, inner: str) -> None:
    for export in (export_gguf, export_huggingface):
        with pytest.raises(UsageError, match="is a checkpoint and stays as it is"):
            export(base, base.folder / inner / "x.gguf" if inner else base.folder / "x")
    with pytest.raises(UsageError, match="is a checkpoint"):
        export_gguf(base, base.folder)
    verify(base.folder)


def test_files_of_somebody_else_are_not_replaced(base: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("My project.\n")
    (tmp_path / "Modelfile").write_text("FROM llama\n")
    said: list[str] = []
    done = export_gguf(base, tmp_path / "m.gguf", say=said.append)
    assert (tmp_path / "README.md").read_text() == "My project.\n" and (tmp_path / "Modelfile").read_text() == "FROM llama\n"
    assert [path.name for path in done.beside] == ["m.Modelfile", "m.README.md"]
    assert len(said) == 2 and "stays; writing m.Modelfile" in said[0]
    export_gguf(base, tmp_path / "again" / "m.gguf", "f32")
    assert [path.name for path in export_gguf(base, tmp_path / "again" / "m.gguf").beside] == ["Modelfile", "README.md"]


@pytest.mark.parametrize("content", [b"mine", b"GGUF" + bytes(5000), b""])
@pytest.mark.parametrize("is_named", [True, False])
def test_a_model_of_somebody_else_is_not_replaced(base: Checkpoint, tmp_path: Path, content: bytes, is_named: bool) -> None:
    first = export_gguf(base, tmp_path / "m.gguf" if is_named else tmp_path).path
    again = export_gguf(base, first if is_named else tmp_path).path
    assert again == first
    first.write_bytes(content)
    with pytest.raises(UsageError, match="is not an export of this model, and is not replaced") as caught:
        export_gguf(base, first if is_named else tmp_path)
    assert first.read_bytes() == content
    assert export_gguf(base, Path(shlex.split(caught.value.hint)[1])).path.stem == f"{first.stem}-2"


@pytest.mark.parametrize("name", ["Modelfile", "README.md"])
def test_an_edited_file_beside_an_export_is_kept_by_every_later_one(base: Checkpoint, tmp_path: Path, name: str) -> None:
    export_gguf(base, tmp_path / "o" / "m.gguf")
    mine = (tmp_path / "o" / name).read_text().replace("0.7", "0.2") + "A line of mine.\n"
    (tmp_path / "o" / name).write_text(mine)
    written = []
    for _ in range(3):
        done = export_gguf(base, tmp_path / "o" / "m.gguf")
        other = next(path for path in done.beside if path.name.endswith(name))
        written.append(other.name)
        if len(written) == 2:
            other.write_text("mine too\n")
    assert written == [f"m.{name}", f"m.{name}", f"m-2.{name}"]
    assert (tmp_path / "o" / name).read_text() == mine and (tmp_path / "o" / f"m.{name}").read_text() == "mine too\n"


def test_an_edited_card_in_an_exported_folder_is_kept(base: Checkpoint, tmp_path: Path) -> None:
    export_huggingface(base, tmp_path / "o")
    export_huggingface(base, tmp_path / "o")
    with open(tmp_path / "o" / "README.md", "a") as card:
        card.write("A line of mine.\n")
    with pytest.raises(UsageError, match="stays as it is"):
        export_huggingface(base, tmp_path / "o")
    assert (tmp_path / "o" / "README.md").read_text().endswith("A line of mine.\n")



@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_out_below_a_file_is_refused_in_one_sentence(base: Checkpoint, tmp_path: Path, kind: str) -> None:
    (tmp_path / "my.txt").write_text("mine")
    for out in (tmp_path / "my.txt" / "x", tmp_path / "my.txt" / "y" / "x.gguf"):
        done = positron("export", "--ckpt", base.folder, "--format", kind, "--out", out)
        assert (done.code, done.sentence) == (2, f"--out: {tmp_path / 'my.txt'} is a file, not a folder")
    assert positron("export", "--ckpt", base.folder, "--format", kind, "--out", tmp_path / "my.txt").code == 2
    assert (tmp_path / "my.txt").read_text() == "mine"


def test_without_the_package_there_is_one_sentence_and_how_to_get_it(base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    result = positron("export", "--ckpt", base.folder)
    assert result.code == 1
    assert result.sentence.startswith("GGUF files are written by the package gguf, which cannot be imported")
    assert result.hint == 'pip install "gguf>=0.17"  (it is part of positron-mini[export])'


# --- Modelfile --------------------------------------------------------------------------------------------------------------------------


def test_the_modelfile_of_a_base_model_passes_the_prompt_on(base: Checkpoint, tmp_path: Path) -> None:
    export_gguf(base, tmp_path / "o")
    *lines, sealed = (tmp_path / "o" / "Modelfile").read_text().splitlines(keepends=True)
    assert sealed == f"# written by positron export; an edited file is kept: {hashlib.sha256(''.join(lines).encode()).hexdigest()[:16]}\n"
    assert "".join(lines) == (
        "# Positron Mini: ollama create positron-mini-1m-base-v1.0 -f Modelfile\n"
        "FROM ./Positron-Mini-1M-Base-v1.0-Q8_0.gguf\n"
        "TEMPLATE {{ .Prompt }}\n"
        'PARAMETER stop "</s>"\n'
        "PARAMETER num_ctx 32\n"
        "PARAMETER temperature 0.7\n"
    )


def go_template(text: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the one form that our template has."""
    whole = re.fullmatch(r"\{\{- range \.Messages \}\}(.*)\{\{ end \}\}(.*)", text, re.DOTALL)
    assert whole is not None
    body, tail = whole.groups()
    assert "{{" not in tail
    return "".join(body.replace("{{ .Role }}", m["role"]).replace("{{ .Content }}", m["content"]) for m in messages) + tail


def test_the_template_for_ollama_renders_as_ours_after_bos(chat: Checkpoint, tmp_path: Path) -> None:
    import jinja2

    export_gguf(chat, tmp_path / "o", "q4_0")
    text = (tmp_path / "o" / "Modelfile").read_text()
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
    assert template is not None
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "  two\n\nlines "},
        {"role": "assistant", "content": "Yes."},
    ]
    ours = jinja2.Template(CHAT_TEMPLATE).render(messages=messages, bos_token="<s>", add_generation_prompt=True)
    assert "<s>" + go_template(template[1], messages) == ours
    assert 'PARAMETER stop "<|im_end|>"\n' in text and "PARAMETER num_ctx 32\n" in text


# --- Hugging Face -----------------------------------------------------------------------------------------------------------------------


def test_a_plain_folder_has_the_same_weights_no_training_state_and_a_manifest_that_holds(workshop: Path) -> None:
    checkpoint = find_checkpoint("runs/base")
    assert checkpoint.has_training
    done = export_huggingface(checkpoint, Path("out"))
    listed = set(verify(done.path))
    assert {path.name for path in done.path.iterdir()} == listed | {"manifest.json"}
    assert listed == {name for name in read_manifest(checkpoint.folder) if not name.startswith("training/")}
    assert (done.path / "model.safetensors").read_bytes() == (checkpoint.folder / "model.safetensors").read_bytes()
    assert (done.path / "tokenizer.json").read_bytes() == (checkpoint.folder / "tokenizer.json").read_bytes()
    assert done.bytes == sum(path.stat().st_size for path in done.path.iterdir())
    assert not find_checkpoint("out").has_training


@pytest.mark.parametrize(("dtype", "name"), [("f16", "float16"), ("bf16", "bfloat16")])
def test_half_precision_folders_say_so_and_load(base: Checkpoint, tiny_model: GPT, tmp_path: Path, dtype: str, name: str) -> None:
    done = export_huggingface(base, tmp_path / "hf", dtype)
    config = json.loads((done.path / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == (name, name)
    loaded = load_model(open_checkpoint(done.path)).state_dict()
    kind = getattr(torch, name)
    assert all(torch.equal(loaded[key], weight.to(kind).float()) for key, weight in tiny_model.state_dict().items())


def test_only_an_earlier_export_is_replaced(base: Checkpoint, tmp_path: Path) -> None:
    first = export_huggingface(base, None)
    assert first.path == tmp_path / "models" / "export" / "Positron-Mini-1M-Base-v1.0"
    assert export_huggingface(base, None, "f16").path == first.path
    (first.path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is a checkpoint and stays"):
        export_huggingface(base, None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("mine")
    assert export_huggingface(base, tmp_path / "mine").path == tmp_path / "mine" / first.path.name
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="something else than an earlier export"):
        export_huggingface(base, tmp_path / "file")
    assert (tmp_path / "mine" / "x").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_step_of_a_run_is_never_replaced(workshop: Path) -> None:
    before = digests(Path("runs"))
    for step in (path for path in Path("runs/base").iterdir() if path.is_dir()):
        with pytest.raises(UsageError):
            export_huggingface(find_checkpoint("runs/base"), step)
    assert digests(Path("runs")) == before


def test_weights_that_do_not_fit_f16_leave_no_folder(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    model = lively_model(shape())
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    checkpoint = open_checkpoint(write_model(tmp_path / "m" / "step_000001", model, tiny_tokenizer, is_chat=False))
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds values that are not finite"):
        export_huggingface(checkpoint, tmp_path / "o" / "hf", "f16")
    assert listing(tmp_path) == before


def test_quantised_folders_are_refused(base: Checkpoint) -> None:
    result = positron("export", "--ckpt", base.folder, "--format", "hf", "--dtype", "q4_0")
    assert (result.code, result.sentence) == (2, "--format hf stores f32, f16 or bf16, not q4_0")
    assert result.hint == "--format gguf --dtype q4_0"


# --- the model card ---------------------------------------------------------------------------------------------------------------------


def card_of(done: Exported) -> str:
    return (done.path / "README.md" if done.path.is_dir() else done.path.with_name("README.md")).read_text()


def test_the_card_shows_the_figures_and_samples_of_its_run(workshop: Path) -> None:
    last = files.read_lines(Path("runs/base/metrics.jsonl"))[-1]
    samples = [row for row in files.read_lines(Path("runs/base/samples.jsonl")) if row["step"] == 30]
    checkpoint = find_checkpoint("runs/base")
    for card in (card_of(export_gguf(checkpoint, None)), card_of(export_huggingface(checkpoint, None))):
        assert "| step | 30 |" in card and f"| training tokens | {last['tokens']:,} |" in card
        assert f"{last['val_loss']:.3f} nats per token, {last['val_bpb']:.3f} bits per byte (step 30)" in card
        assert "| training text | text.txt |" in card and "| licence of the text | not recorded;" in card
        assert samples and all(f"{row['prompt']} | {row['text']}" in card for row in samples)
        assert json.loads(card.split("\n")[1])["pipeline_tag"] == "text-generation"


def test_the_card_of_an_earlier_step_says_nothing_of_later_ones(workshop: Path) -> None:
    card = card_of(export_huggingface(find_checkpoint("runs/base/step_000020"), Path("out")))
    assert "| step | 20 |" in card and "(step 30)" not in card and "step 20" in card


def test_the_licence_comes_from_the_note_beside_the_text(workshop: Path) -> None:
    size = Path("text.txt").stat().st_size
    note = {"source": "a/b: c.txt", "revision": "0123456789abcdef", "licence": "CC-BY | 4.0", "text_bytes": size}
    checkpoint = find_checkpoint("runs/base")
    Path("text.json").write_text(json.dumps(note))
    card = card_of(export_gguf(checkpoint, Path("a")))
    assert "| training text | a/b: c.txt, revision 0123456789ab |" in card and "| licence of the text | CC-BY \\| 4.0 |" in card
    Path("text.json").write_text(json.dumps({"corpus": "storyworld", "version": 1, "seed": 7, "stories": 200}))
    card = card_of(export_gguf(checkpoint, Path("b")))
    assert "| training text | 200 stories generated by Positron Mini's story world, seed 7 |" in card
    for stale in (json.dumps({**note, "text_bytes": size + 1}), "not json", "[]"):
        Path("text.json").write_text(stale)
        assert "| licence of the text | not recorded;" in card_of(export_gguf(checkpoint, Path("c")))


def test_a_sample_cannot_leave_its_fence(workshop: Path) -> None:
    evil = "```\n# A headline\n`````\n<script>"
    sample = {"step": 30, "prompt": "p", "text": evil, "seed": 1, "temperature": 0.7}
    files.write_text(Path("runs/base/samples.jsonl"), json.dumps(sample) + "\n")
    card = card_of(export_gguf(find_checkpoint("runs/base"), Path("o")))
    assert f"\n``````text\np | {evil}\n``````\n" in card


EVIL = "<img src=x onerror=alert(1)>\x1b[31m|[a](http://b)\u202e*x*"


def test_names_and_texts_in_a_card_are_text_and_nothing_else(workshop: Path) -> None:
    name = EVIL.replace("/", "")
    Path("text.txt").rename(name)
    Path("runs/base").rename(f"runs/{name}")
    record = json.loads(Path(f"runs/{name}/run.json").read_text())
    record["config"]["dataset_path"] = name
    Path(f"runs/{name}/run.json").write_text(json.dumps(record))
    checkpoint = find_checkpoint(f"runs/{name}")
    text = card_of(export_huggingface(checkpoint, Path("out")))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert any("img src" in line for line in table)
    for line in table:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3 and not re.search(r"<|(?<!\\)[*\[\]]|\x1b|\u202e", line)
    steps = step_card(EVIL, checkpoint.config, {"text": EVIL}, is_chat=False)
    assert "<img" not in steps and "\x1b" not in steps and "\u202e" not in steps


def test_a_folder_without_a_run_still_gets_a_card(base: Checkpoint, tmp_path: Path) -> None:
    card = card_of(export_gguf(base, tmp_path / "o"))
    assert "# Positron-Mini-1M-Base-v1.0\n" in card and "## Samples" not in card and "ollama create" in card


# --- the command ------------------------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_it_wrote(base: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "o"
    done = positron("export", "--ckpt", base.folder, "--format", "gguf", "--dtype", "q4_0", "--out", out)
    name = "Positron-Mini-1M-Base-v1.0-Q4_0.gguf"
    assert (done.code, done.out.splitlines()) == (0, [str(out / name), str(out / "Modelfile"), str(out / "README.md")])
    row = json.loads(positron("export", "--ckpt", base.folder, "--out", tmp_path / "p", "--json").out)
    assert row["path"] == str(tmp_path / "p" / "Positron-Mini-1M-Base-v1.0-Q8_0.gguf") and row["bytes"] == Path(row["path"]).stat().st_size


def test_two_runs_of_one_size_have_two_names_everywhere(workshop: Path) -> None:
    shutil.copytree("runs/base", "runs/My Böok; rm", symlinks=True)
    shutil.copytree("runs/base", "runs/книга", symlinks=True)
    shutil.copytree("runs/base", "runs/книги", symlinks=True)
    names, models = [], []
    for run in ("base", "My Böok; rm", "книга", "книги"):
        done = export_gguf(find_checkpoint(f"runs/{run}"), Path("out"))
        names.append((done.path.name, keys(done.path)["general.name"]))
        models.append(done.beside[0].read_text().splitlines()[0])
    assert names[:3] == [
        ("base-Q8_0.gguf", "base"), ("My-Böok-rm-Q8_0.gguf", "My-Böok-rm"), ("книга-Q8_0.gguf", "книга"),
    ]  # fmt: skip
    assert len(set(names)) == len(set(models)) == 4
    assert models[0] == "# Positron Mini: ollama create base -f Modelfile"
    assert all(re.fullmatch("# Positron Mini: ollama create [a-z0-9][a-z0-9._-]{0,79} -f Modelfile", line) for line in models)


def test_a_folder_that_was_renamed_keeps_its_name(base: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(base.folder, tmp_path / "my-stories")
    assert export_huggingface(open_checkpoint(tmp_path / "my-stories"), None).path.name == "my-stories"


def pasted(line: str) -> list[str]:
    """The words of a command after its heading, as a shell reads them."""
    return shlex.split(line.partition(":")[2])


def test_the_next_commands_are_printed_ready_to_be_pasted(workshop: Path) -> None:
    done = positron("export", "--ckpt", "runs/base", "--out", "my models")
    ollama, llama = done.err.splitlines()[-2:]
    assert pasted(ollama) == [
        "ollama", "create", "base", "-f", "my models/Modelfile", "&&", "ollama", "run", "base", "Once upon a time",
    ]  # fmt: skip
    assert pasted(llama) == ["llama-server", "-m", "my models/base-Q8_0.gguf", "-c", "64"]
    Path("my models/Modelfile").write_text("a Modelfile of mine")
    done = positron("export", "--ckpt", "runs/base", "--out", "my models")
    assert "my models/base-Q8_0.Modelfile" in pasted(done.err.splitlines()[-2])


def test_the_next_commands_of_a_folder_work(workshop: Path) -> None:
    pytest.importorskip("transformers")
    done = positron("export", "--ckpt", "runs/base", "--format", "hf", "--out", "my model's")
    here, transformers = map(pasted, done.err.splitlines()[-2:])
    assert positron(*here[1:], "--max_tokens", "3").code == 0
    assert transformers[:2] == ["python", "-c"]
    ran = subprocess.run([sys.executable, *transformers[1:]], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "generated_text': 'Once upon a time" in ran.stdout, ran.stderr


def test_rows_of_different_lengths_continue_in_transformers_as_each_alone(chat: Checkpoint) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat.folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(chat.folder)
    assert (tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.pad_token) == ("left", 3, "<pad>")
    texts = ["Lily", "Once upon a time there was a", "Tom had"]
    settings = {"max_new_tokens": 8, "do_sample": False, "min_new_tokens": 8}
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    assert int((batch.input_ids == 3).sum()) > 0
    rows = model.generate(**batch, **settings)[:, batch.input_ids.shape[1] :]
    for text, row in zip(texts, rows, strict=True):
        alone = tokenizer(text, return_tensors="pt")
        assert model.generate(**alone, **settings)[0, alone.input_ids.shape[1] :].tolist() == row.tolist()


def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    result = positron("export", "--ckpt", tmp_path / "none")
    assert result.code == 1 and "no checkpoint there" in result.sentence
