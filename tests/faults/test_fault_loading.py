"""Rows L of docs/reliability.md: a file made on purpose is refused in a sentence, quickly, in little memory, and never run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.chats import write_model
from helpers.faults import cost
from helpers.models import lively_model, shape, write_tokens
from helpers.runs import needs_fork, positron
from positron_mini import files
from positron_mini.cli.runs import summary
from positron_mini.config import ModelConfig, TrainConfig
from positron_mini.errors import CheckpointError, PositronError
from positron_mini.optim import Schedule, build_optimizer
from positron_mini.store import checkpoint as ckpt
from positron_mini.store.checkpoint import load_model, load_training, open_checkpoint, read_tensors
from positron_mini.store.run_folder import RunFolder
from positron_mini.text.tokenizer import Tokenizer
from positron_mini.text.tokens import HEADER_BYTES, TokenFile
from positron_mini.train.open_run import open_session
from positron_mini.train.replay import check_run
from positron_mini.trainer import LoopConfig, Trainer


def safetensors_file(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(start: int, end: int, dtype: str = "F32", dims: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if dims is None else dims, "data_offsets": [start, end]}


EMPTY = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
NAN = struct.pack("<f", float("nan"))
CRAFTED: dict[str, Callable[[], bytes]] = {
    "a header of 2^62 bytes": lambda: struct.pack("<Q", 2**62) + b"{}",
    "a header of 90 MB": lambda: safetensors_file(b"{" + b" " * 90_000_000 + b"}"),
    "a million tensors": lambda: safetensors_file(b"{" + b",".join(b'"t%d":%b' % (n, EMPTY) for n in range(1_000_000)) + b"}"),
    "tensors that overlap": lambda: safetensors_file({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "a hole between tensors": lambda: safetensors_file({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
    "bytes after the last tensor": lambda: safetensors_file({"a": tensor(0, 4)}, bytes(12)),
    "a tensor beyond the end": lambda: safetensors_file({"a": tensor(0, 4000)}, bytes(12)),
    "offsets that run backwards": lambda: safetensors_file({"a": tensor(8, 0)}, bytes(12)),
    "negative offsets": lambda: safetensors_file({"a": tensor(-8, 0)}, bytes(12)),
    "a shape that is not the size": lambda: safetensors_file({"a": tensor(0, 8, dims=[3])}, bytes(8)),
    "a shape of 2^60": lambda: safetensors_file({"a": tensor(0, 8, dims=[2**60])}, bytes(8)),
    "a product that overflows": lambda: safetensors_file({"a": tensor(0, 8, dims=[2**33, 2**33])}, bytes(8)),
    "integers": lambda: safetensors_file({"a": tensor(0, 8, "I64", [1])}, bytes(8)),
    "8-bit floats": lambda: safetensors_file({"a": tensor(0, 8, "F8_E4M3", [8])}, bytes(8)),
    "an unknown type": lambda: safetensors_file({"a": tensor(0, 8, "Q4_0", [2])}, bytes(8)),
    "a value that is not finite": lambda: safetensors_file({"a": tensor(0, 8)}, bytes(4) + NAN),
    "the same name twice": lambda: safetensors_file(b'{"a":%b,"a":%b}' % (EMPTY, EMPTY), bytes(8)),
    "a header that is a list": lambda: safetensors_file(b"[1, 2]", bytes(8)),
    "a header that is not UTF-8": lambda: safetensors_file(b'{"\xff": 3}', bytes(8)),
    "deep nesting": lambda: safetensors_file(b"[" * 100_000, bytes(8)),
    "terminal codes in a name": lambda: safetensors_file({"\x1b[31mred\x07": tensor(0, 8, "I64", [1])}, bytes(8)),
}  # fmt: skip


@needs_fork
@pytest.mark.parametrize("name", CRAFTED)
def test_L3_a_crafted_weight_file_is_refused_in_a_second_and_little_memory(step: Path, name: str) -> None:
    (step / "model.safetensors").write_bytes(CRAFTED[name]())
    ckpt.write_manifest(step)  # somebody who makes such a file also vouches for it

    def load() -> None:
        checkpoint = open_checkpoint(step)
        with pytest.raises(CheckpointError) as caught:
            load_model(checkpoint)
        assert len(caught.value.message) < 400 and "\n" not in caught.value.message and caught.value.hint

    seconds, memory = cost(load)
    assert seconds < 1.0 and memory < 200e6, f"{seconds:.2f} s, {memory / 1e6:.0f} MB"


def test_whole_numbers_where_weights_belong_are_called_by_their_type(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(CRAFTED["integers"]())
    with pytest.raises(CheckpointError, match=r"a\.safetensors: a is of the type I64"):
        read_tensors(tmp_path / "a.safetensors", None)


@needs_fork
@pytest.mark.parametrize("name", [name for name in CRAFTED if "million" not in name and "90 MB" not in name])
def test_L3_a_crafted_training_state_is_refused_too(step: Path, name: str) -> None:
    (step / ckpt.STATE_FILE).write_bytes(CRAFTED[name]())
    ckpt.write_manifest(step)
    config = LoopConfig(0.01, Schedule(1), 8, 1.0, 0.0, 0, "cpu", "fp32")

    def go_on() -> None:
        model = load_model(open_checkpoint(step))
        optimizer = build_optimizer(model, "muon", lr=0.01, muon_lr=None, weight_decay=0.0)
        state = load_training(open_checkpoint(step))
        Trainer(model, optimizer, None, config).restore(state.tensors, state.state)  # type: ignore[arg-type]

    def load() -> None:
        with pytest.raises(CheckpointError):
            go_on()

    seconds, memory = cost(load)
    assert seconds < 1.0 and memory < 200e6


def test_L3_what_a_file_calls_its_tensors_cannot_move_the_cursor_of_a_terminal(step: Path) -> None:
    (step / "model.safetensors").write_bytes(CRAFTED["terminal codes in a name"]())
    ckpt.write_manifest(step)
    result = positron("generate", "--ckpt", step, "--max_tokens", "3")
    assert result.code == 1 and "\x1b" not in result.err and "\x07" not in result.err


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), size=st.integers(0, 200))
def test_L3_no_bytes_make_the_reader_of_weights_fail_in_any_other_way(tmp_path: Path, data: st.DataObject, size: int) -> None:
    names = st.text(max_size=3)
    numbers = st.integers(-(2**64), 2**64) | st.integers(0, 16)
    offsets = st.lists(numbers, min_size=2, max_size=2)
    kinds = st.sampled_from(["F32", "F16", "I8", "X"])
    entry = st.fixed_dictionaries({"dtype": kinds, "shape": st.lists(numbers, max_size=3), "data_offsets": offsets})
    headers = st.dictionaries(names, entry | st.none() | numbers, max_size=3).map(lambda d: json.dumps(d).encode())
    header = data.draw(st.binary(max_size=60) | headers)
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_file(header, bytes(size)))
    with contextlib.suppress(CheckpointError):
        assert all(t.dtype == torch.float32 for t in read_tensors(path, None).values())


# --- L4: configuration and manifest -----------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(["manifest.json", "config.json", "training/state.json"]), value=JSON, inside=st.booleans(), data=st.data())
def test_L4_no_json_makes_a_checkpoint_fail_in_any_other_way(
    workshop_template: Path, tmp_path: Path, name: str, value: Any, inside: bool, data: st.DataObject
) -> None:
    step = tmp_path / "step_000030"
    if not step.exists():
        shutil.copytree(workshop_template / "runs/base/step_000030", step)
    whole = {each: (step / each).read_bytes() for each in (name, "manifest.json")}
    content = json.loads(whole[name])
    if inside:
        content[data.draw(st.sampled_from(sorted(content)))] = value
    try:
        (step / name).write_text(json.dumps(content if inside else value))
        if name != "manifest.json":
            ckpt.write_manifest(step)
        with contextlib.suppress(PositronError):
            checkpoint = open_checkpoint(step)
            assert isinstance(checkpoint.config, ModelConfig)
            assert isinstance(load_training(checkpoint).state, dict)
    finally:
        for each, old in whole.items():
            (step / each).write_bytes(old)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=JSON, depth=st.integers(0, 3), removed=st.booleans(), data=st.data())
def test_L4_no_run_json_makes_going_on_or_looking_fail_in_any_other_way(
    workshop: Path, value: Any, depth: int, removed: bool, data: st.DataObject
) -> None:
    path = Path("runs/base/run.json")
    whole = path.read_bytes()
    content = [json.loads(whole)]
    place: Any = content
    key: Any = 0
    for _ in range(depth):  # the value stands for the whole, for one of its entries, for an entry of that
        inner = place[key]
        if not (isinstance(inner, dict | list) and inner):
            break
        place, key = inner, data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    if removed and place is not content:
        del place[key]
    else:
        place[key] = value
    try:
        path.write_text(json.dumps(content[0]))
        for act in (
            lambda: open_session(TrainConfig(out_dir="runs/base")),
            lambda: open_session(TrainConfig(out_dir="runs/base", resume_from_step=25, until_step=26)),
            lambda: summary(Path("runs/base")),
            lambda: check_run(RunFolder(Path("runs/base"))),
        ):
            with contextlib.suppress(PositronError):
                act()
    finally:
        path.write_bytes(whole)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=40) | st.lists(JSON, max_size=3).map(lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()))
def test_L4_no_bytes_make_the_reader_of_a_log_fail_in_any_other_way(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(data)
    run = RunFolder(tmp_path)
    with contextlib.suppress(PositronError):
        assert all(type(row["step"]) is int for row in run.metrics())
        run.rewind(1, keep_lines=True)
        assert all(row["step"] <= 1 for row in run.metrics())


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "training"])
def test_L4_a_link_out_of_the_folder_is_not_followed(step: Path, tmp_path: Path, name: str) -> None:
    os.rename(step / name, tmp_path / "elsewhere")
    (step / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="a link to somewhere else"):
        open_checkpoint(step)


@pytest.mark.parametrize("content", ["3", '{"step": 3, "lo', '{"step": "x"}', "[]\n[]\n", "\ufeff{}\n{}\n", "[" * 10_000 + "\n{}\n", "{}\n",
                                     '{"step": 31, "elapsed_s": "x"}\n'])  # fmt: skip
def test_L4_a_damaged_log_is_a_sentence_and_never_a_crash(workshop: Path, content: str) -> None:
    with open("runs/base/metrics.jsonl", "a", encoding="utf-8") as log:
        log.write(content)
    for words in (("train", "--out_dir", "runs/base", "--max_steps", "31", "--more_steps", "1"), ("runs",), ("verify", "runs/base")):
        result = positron(*words)
        assert result.code in (0, 1) and "unexpected" not in result.err, result.err


# --- token files ------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, HEADER_BYTES + 13), junk=st.binary(min_size=1, max_size=8), cut=st.none() | st.integers(0, HEADER_BYTES + 14))
def test_D7_no_bytes_make_the_reader_of_tokens_fail_in_any_other_way(tmp_path: Path, at: int, junk: bytes, cut: int | None) -> None:
    import numpy as np

    path = tmp_path / "x.tokens"
    write_tokens(path, [np.array([1, 5, 6, 2, 1, 7, 2])], vocab_size=9, fingerprint="ab" * 32)
    data = path.read_bytes()
    path.write_bytes((data[:at] + junk + data[at + len(junk) :])[: len(data) if cut is None else cut])
    try:
        opened = TokenFile.open(path, verify=True)
    except PositronError:
        return
    assert opened.ids.tolist() == [1, 5, 6, 2, 1, 7, 2], "what opens is what was written"


# --- L6: templates ----------------------------------------------------------------------------------------------------------------------


def test_L6_a_template_in_a_checkpoint_is_never_rendered(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "ran"
    evil = "{{ cycler.__init__.__globals__.os.mkdir('" + str(canary) + "') }}"
    folder = write_model(tmp_path / "step_000001", lively_model(shape(context_len=128)), tiny_tokenizer, is_chat=True)
    plain = positron("chat", "Who are you?", "--ckpt", folder, "--max_tokens", "8", "--temperature", "0")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        settings = evil if name.endswith("jinja") else json.dumps({**files.read_json(folder / name), "chat_template": evil})
        (folder / name).write_text(settings)
    ckpt.write_manifest(folder)
    again = positron("chat", "Who are you?", "--ckpt", folder, "--max_tokens", "8", "--temperature", "0")
    assert (again.code, again.out) == (plain.code, plain.out) == (0, plain.out) and not canary.exists()


def test_L6_the_package_has_nothing_that_renders_templates() -> None:
    package = Path(ckpt.__file__).parent
    assert not [path for path in package.rglob("*.py") if "jinja2" in path.read_text(encoding="utf-8")]
