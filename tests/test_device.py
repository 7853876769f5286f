"""Laws of the device policy, decided for machines that are not here."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.devices import GIB, MAC
from helpers.models import shape, text_like_ids
from helpers.project import ROOT
from helpers.runs import lines_of, positron, tiny_train
from positron_mini import device
from positron_mini.cli import progress
from positron_mini.config import PRESETS, ModelConfig, SFTConfig, TrainConfig, model_config
from positron_mini.device import (
    BATCH_TOKENS,
    MAX_LOGITS_BYTES,
    Finding,
    Machine,
    SpeedWatch,
    Verdict,
    awake,
    choose,
    is_out_of_memory,
    keep_awake_command,
    memory_limits,
    micro_batch_rows,
    prepare_environment,
    read_verdict,
    share_of_usual_speed,
    should_compile,
    unsupported,
    write_verdict,
)
from positron_mini.device.verdict import cache_folder
from positron_mini.errors import PositronError, UsageError
from positron_mini.model import GPT
from positron_mini.optim import Schedule, build_optimizer
from positron_mini.store.run_record import RunRecord
from positron_mini.train.settings import choose_device
from positron_mini.trainer import Batch, LoopConfig, StopFlag, Trainer

LAPTOP = Machine(("cpu",), (), 8 * GIB, 4, True, "Linux")
SERVER = Machine(("cpu",), ("cpu",), 64 * GIB, 32, True, "Linux")  # AMX
T4 = Machine(("cuda", "cpu"), (), 16 * GIB, 4, True, "Linux")  # compute capability 7.5: bf16 only emulated
RTX = Machine(("cuda", "cpu"), ("cuda",), 24 * GIB, 16, True, "Linux")
BARE = dataclasses.replace(LAPTOP, has_compiler=False)

# machine, --device, --precision -> device, precision, whether the wish was not fulfilled
TABLE = [
    (LAPTOP, "auto", "auto", "cpu", "fp32", False),
    (LAPTOP, "cpu", "auto", "cpu", "fp32", False),
    (LAPTOP, "auto", "fp32", "cpu", "fp32", False),
    (LAPTOP, "auto", "bf16", "cpu", "fp32", True),
    (SERVER, "auto", "auto", "cpu", "fp32", False),
    (SERVER, "auto", "bf16", "cpu", "bf16", False),
    (SERVER, "cpu", "fp32", "cpu", "fp32", False),
    (MAC, "auto", "auto", "mps", "bf16", False),
    (MAC, "mps", "auto", "mps", "bf16", False),
    (MAC, "auto", "fp32", "mps", "fp32", False),
    (MAC, "auto", "bf16", "mps", "bf16", False),
    (MAC, "cpu", "auto", "cpu", "fp32", False),
    (MAC, "cpu", "bf16", "cpu", "fp32", True),
    (T4, "auto", "auto", "cuda", "fp32", False),
    (T4, "auto", "bf16", "cuda", "fp32", True),
    (T4, "cuda", "fp32", "cuda", "fp32", False),
    (T4, "cpu", "bf16", "cpu", "fp32", True),
    (RTX, "auto", "auto", "cuda", "bf16", False),
    (RTX, "cuda", "bf16", "cuda", "bf16", False),
    (RTX, "auto", "fp32", "cuda", "fp32", False),
    (RTX, "cpu", "auto", "cpu", "fp32", False),
]


@pytest.mark.parametrize(("machine", "device_flag", "precision_flag", "wanted", "precision", "fell_back"), TABLE)
def test_T4_device_and_precision_follow_the_table(
    machine: Machine, device_flag: str, precision_flag: str, wanted: str, precision: str, fell_back: bool
) -> None:
    choice = choose(machine, device_flag, precision_flag)
    assert (choice.device, choice.precision, choice.fell_back) == (wanted, precision, fell_back)
    assert choice.reason and (not fell_back or "no fast bf16" in choice.reason)


@pytest.mark.parametrize(
    ("machine", "asked", "there"), [(LAPTOP, "cuda", "cpu"), (LAPTOP, "mps", "cpu"), (MAC, "cuda", "mps"), (T4, "mps", "cuda")]
)
def test_T4_a_device_that_is_not_there_is_refused_with_one_that_is(machine: Machine, asked: str, there: str) -> None:
    with pytest.raises(
        UsageError, match=f"--device {asked}: PyTorch sees no such device here, only {', '.join(machine.devices)}"
    ) as caught:
        choose(machine, asked)
    assert caught.value.hint == f"--device {there}"


# --- the policy, machine by machine ------------------------------------------------------------------------------------------------


def mac(chip: str, macos: str, gib: int, torch_version: str = "2.14.0", verdict: Verdict | None = None) -> Machine:
    """A Mac with Apple Silicon."""
    return Machine(("mps", "cpu"), ("mps",), gib * GIB, 8, True, "Darwin", f"Apple {chip}", macos, torch_version, "DEFAULT", verdict)


def linux(gib: int, vector: str = "AVX2", gpu: str = "", bf16: tuple[Any, ...] = (), verdict: Verdict | None = None) -> Machine:
    """A Linux computer, with a GPU or without."""
    devices: Any = ("cuda", "cpu") if gpu else ("cpu",)
    return Machine(devices, bf16, gib * GIB, 8, True, "Linux", gpu or "A processor", "6.8", "2.14.0", vector, verdict)


def verdict(*findings: tuple[str, str, float | None, str]) -> Verdict:
    """A verdict of (device, precision, tokens a second, fault)."""
    found: list[Any] = [Finding(d, p, (fault,) if fault else (), speed) for d, p, speed, fault in findings]  # type: ignore[arg-type]
    return Verdict(tuple(found), "2026-11-23")


MAC_BF16_FASTER = verdict(("mps", "fp32", 5e3, ""), ("mps", "bf16", 8e3, ""), ("cpu", "fp32", 1e3, ""))
MAC_BF16_SLOWER = verdict(("mps", "fp32", 5e3, ""), ("mps", "bf16", 4e3, ""), ("cpu", "fp32", 1e3, ""))
MAC_LEAKS = verdict(("mps", "fp32", 5e3, ""), ("mps", "bf16", 8e3, "causality"), ("cpu", "fp32", 1e3, ""))
MAC_BROKEN = verdict(("mps", "fp32", 5e3, "gradients"), ("mps", "bf16", 8e3, "causality"), ("cpu", "fp32", 1e3, ""))
FAST_BF16 = verdict(("cpu", "fp32", 9e2, ""), ("cpu", "bf16", 1.2e3, ""))
AMX_BF16 = verdict(("cpu", "fp32", 9e3, ""), ("cpu", "bf16", 2e4, ""))
GPU_WRONG = verdict(("cuda", "fp32", 5e4, ""), ("cuda", "bf16", 9e4, "drift"), ("cpu", "fp32", 9e3, ""))

QUARTER, ROOM, LOGITS = "a quarter of the memory", "the room that the system and the model leave", "1 GiB of logits"
CACHE, SUM, BUSY, ACTIVATIONS = (
    "what a CPU's cache holds",
    "the longest sum that MPS gets right",
    "enough to keep a GPU busy",
    "1.5 GB of activations",
)
CLEAR, LEAK, EXACT = "bf16 products with fp32 master weights", "can see later tokens (pytorch#195910)", "the exact choice on a CPU"

# machine, preset -> device, precision, tokens a step, rows at once, what limits them, a part of the reason
POLICY = [
    # A token of TinyGPT takes 847,360 bytes: a quarter of 8 GiB holds 2,534 tokens, four contexts; 192 rows are cut into equal parts
    (mac("M1", "14.7", 8), "TinyGPT", "mps", "bf16", 98_304, 4, QUARTER, CLEAR),
    (mac("M1", "15.5", 16), "TinyGPT", "mps", "bf16", 98_304, 8, QUARTER, CLEAR),
    (mac("M1 Max", "26.1", 64), "TinyGPT", "mps", "bf16", 98_304, 32, SUM, CLEAR),
    (mac("M1 Ultra", "26.1", 128), "TinyGPT", "mps", "bf16", 98_304, 32, SUM, CLEAR),
    (mac("M2", "14.0", 8), "BaseGPT", "mps", "bf16", 98_304, 1, ROOM, CLEAR),  # weights and optimizer alone take 1.9 GB
    (mac("M2", "15.5", 24), "TinyGPT", "mps", "bf16", 98_304, 12, QUARTER, CLEAR),
    (mac("M2 Max", "26.1", 96), "TinyGPT", "mps", "bf16", 98_304, 32, SUM, CLEAR),
    (mac("M3", "14.7", 16), "MicroGPT", "mps", "bf16", 98_304, 24, QUARTER, CLEAR),
    (mac("M3 Pro", "15.5", 36), "TinyGPT", "mps", "bf16", 98_304, 16, QUARTER, CLEAR),
    (mac("M3 Max", "26.1", 128), "MicroGPT", "mps", "bf16", 98_304, 32, SUM, CLEAR),  # not 65,536 tokens: sums go wrong
    (mac("M4", "15.5", 16), "BaseGPT", "mps", "bf16", 98_304, 1, ROOM, CLEAR),
    (mac("M4 Pro", "15.5", 48), "TinyGPT", "mps", "bf16", 98_304, 24, QUARTER, CLEAR),
    (mac("M4 Max", "26.1", 64), "BaseGPT", "mps", "bf16", 98_304, 6, QUARTER, CLEAR),
    (mac("M5", "26.1", 32), "TinyGPT", "mps", "bf16", 98_304, 16, QUARTER, CLEAR),
    (mac("M5 Max", "26.1", 128), "TinyGPT", "mps", "bf16", 98_304, 32, SUM, CLEAR),
    (mac("M1", "14.7", 8, "2.13.0"), "TinyGPT", "mps", "fp32", 98_304, 4, QUARTER, LEAK),  # known to be wrong, until proved right here
    (mac("M5", "26.1", 32, "2.13.0"), "TinyGPT", "mps", "fp32", 98_304, 16, QUARTER, LEAK),
    (mac("M3", "15.5", 16, "2.13.0", MAC_BF16_FASTER), "TinyGPT", "mps", "bf16", 98_304, 8, QUARTER, "fp32 trains 0.62 times as fast"),
    (mac("M1", "15.5", 16, "2.14.0", MAC_BF16_SLOWER), "TinyGPT", "mps", "fp32", 98_304, 8, QUARTER, "bf16 trains 0.80 times as fast"),
    (mac("M4", "26.1", 16, "2.14.0", MAC_LEAKS), "TinyGPT", "mps", "fp32", 98_304, 8, QUARTER, "bf16 computes wrong here (causality)"),
    (mac("M2", "26.1", 16, "2.14.0", MAC_BROKEN), "TinyGPT", "cpu", "fp32", 65_536, 4, CACHE, "mps fp32 computes wrong"),
    (linux(24, gpu="NVIDIA RTX 4090", bf16=("cuda",)), "TinyGPT", "cuda", "bf16", 131_072, 8, QUARTER, CLEAR),
    (linux(80, gpu="NVIDIA H100", bf16=("cuda", "cpu"), vector="AMX"), "TinyGPT", "cuda", "bf16", 131_072, 32, LOGITS, CLEAR),
    (linux(80, gpu="NVIDIA H100", bf16=("cuda",)), "PicoGPT", "cuda", "bf16", 131_072, 256, BUSY, CLEAR),
    (linux(16, gpu="NVIDIA T4"), "TinyGPT", "cuda", "fp32", 131_072, 8, QUARTER, "it has no fast bf16"),
    (linux(24, gpu="NVIDIA L4", bf16=("cuda",), verdict=GPU_WRONG), "TinyGPT", "cuda", "fp32", 131_072, 8, QUARTER, "(drift)"),
    (linux(8, "AVX2"), "TinyGPT", "cpu", "fp32", 65_536, 4, CACHE, EXACT),
    (linux(8, "AVX2"), "PicoGPT", "cpu", "fp32", 65_536, 8, CACHE, EXACT),
    (linux(2, "AVX2"), "TinyGPT", "cpu", "fp32", 65_536, 1, QUARTER, EXACT),
    (linux(64, "AVX512"), "BaseGPT", "cpu", "fp32", 65_536, 1, ACTIVATIONS, EXACT),
    (linux(64, "AVX512"), "TinyGPT", "cpu", "fp32", 65_536, 4, CACHE, EXACT),
    (linux(24, "AVX512", bf16=("cpu",)), "TinyGPT", "cpu", "fp32", 65_536, 4, CACHE, EXACT),
    (linux(24, "AVX512", bf16=("cpu",), verdict=FAST_BF16), "TinyGPT", "cpu", "bf16", 65_536, 4, CACHE, "fp32 trains 0.75 times"),
    (linux(256, "AMX", bf16=("cpu",)), "TinyGPT", "cpu", "fp32", 65_536, 4, CACHE, EXACT),  # bf16 only where it was measured
    (linux(256, "AMX", bf16=("cpu",), verdict=AMX_BF16), "TinyGPT", "cpu", "bf16", 65_536, 4, CACHE, "fp32 trains 0.45 times"),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "preset", "name", "precision", "tokens", "rows", "limit", "reason"), POLICY)
def test_T4_every_machine_has_its_policy_and_each_decision_its_reason(
    machine: Machine, preset: str, name: str, precision: str, tokens: int, rows: int, limit: str, reason: str
) -> None:
    choice = choose(machine)
    assert (choice.device, choice.precision, choice.fell_back) == (name, precision, False) and reason in choice.reason
    assert BATCH_TOKENS[name] == tokens
    model = SHAPES[list(PRESETS).index(preset)]
    found = micro_batch_rows(model, model.context_len, tokens // model.context_len, name, machine.memory_bytes)
    limits = memory_limits(model, name, machine.memory_bytes)
    assert (found, min(limits, key=lambda why: limits[why])) == (rows, limit)
    assert found * model.context_len * model.vocab_size * 4 <= GIB


@given(st.integers(8, 128), st.sampled_from(list(PRESETS)))
def test_T4_a_mac_keeps_room_for_the_system(gib: int, name: str) -> None:
    model = SHAPES[list(PRESETS).index(name)]
    limits = memory_limits(model, "mps", gib * GIB)
    per_token = 12 * model.vocab_size + 4 * model.n_layer * (34 * model.n_embd + 10 * model.ffn)
    used = min(limits.values()) * per_token + 20 * model.parameters + GIB
    assert used <= gib * GIB * 2 // 3
    assert min(limits.values()) <= 16_384


UNSUPPORTED = [
    ("Darwin", "x86_64", "15.2", "no build for Macs with an Intel processor"),
    ("Darwin", "x86_64", "13.6.1", "no build for Macs with an Intel processor"),
    ("Darwin", "arm64", "13.6.1", "needs macOS 14 or newer, and this Mac has macOS 13.6.1"),
    ("Darwin", "arm64", "14.0", None),
    ("Darwin", "arm64", "26", None),
    ("Linux", "x86_64", "", None),
    ("Linux", "aarch64", "", None),
]


@pytest.mark.parametrize(("system", "machine", "version", "sentence"), UNSUPPORTED)
def test_T4_a_computer_without_a_build_of_torch_gets_one_sentence(system: str, machine: str, version: str, sentence: str | None) -> None:
    found = unsupported(system, machine, version, "2.13.0")
    assert (found is None) == (sentence is None)
    if found is not None and sentence is not None:
        assert found[0].startswith("torch 2.13.0 ") and found[0].endswith(sentence) and found[1]


def test_T4_the_set_up_says_the_same_before_anything_is_installed() -> None:
    script = (ROOT / "setup.sh").read_text(encoding="utf-8")
    for arguments in (("Darwin", "x86_64", "15.2", "$torch_pin"), ("Darwin", "arm64", "$version", "$torch_pin")):
        found = unsupported(*arguments)
        assert found is not None and f'fail "{found[0]}" "{found[1]}"' in script


@pytest.mark.parametrize(
    ("torch_version", "leaks"),
    [("2.10.0", True), ("2.13.1", True), ("2.14.0", False), ("2.15.0a0+git", False), ("3.0", False), ("", False)],
)
def test_T4_a_known_fault_holds_for_the_versions_that_have_it(torch_version: str, leaks: bool) -> None:
    assert bool(device.known_fault(mac("M3", "15.5", 16, torch_version), "mps", "bf16")) is leaks
    assert not device.known_fault(mac("M3", "15.5", 16, torch_version), "mps", "fp32")
    assert not device.known_fault(linux(8), "cpu", "bf16")


def test_T4_what_a_person_asks_for_is_done_and_the_doctor_is_quoted() -> None:
    broken = mac("M2", "26.1", 16, "2.14.0", MAC_BROKEN)
    choice = choose(broken, "mps", "bf16")
    assert (choice.device, choice.precision, choice.fell_back) == ("mps", "bf16", False)
    assert choice.reason == "as asked; bf16 as asked, though positron doctor found that it computes wrong here (causality)"
    assert choose(broken, "mps").reason == "as asked; fp32, though positron doctor found that it computes wrong here (gradients)"
    assert choose(broken, "cpu").device == "cpu" and "mps" not in choose(broken, "cpu").reason


# --- before torch is imported ------------------------------------------------------------------------------------------------------


def test_T4_a_mac_computes_on_its_gpu_or_says_that_it_cannot() -> None:
    assert prepare_environment({}, "Darwin") == {
        "PYTORCH_ENABLE_MPS_FALLBACK": "0", "PYTORCH_MPS_HIGH_WATERMARK_RATIO": "1.0", "PYTORCH_MPS_LOW_WATERMARK_RATIO": "0.9",
    }  # fmt: skip
    assert prepare_environment({"PYTORCH_ENABLE_MPS_FALLBACK": "1"}, "Darwin")["PYTORCH_ENABLE_MPS_FALLBACK"] == "0"
    own = prepare_environment({"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.5"}, "Darwin")
    assert own == {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}  # a low watermark above a person's high one would be an error
    assert prepare_environment({}, "Linux") == {}


@pytest.fixture
def command_environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment as it is when a command on a Mac imports its parts."""
    seen: dict[str, str] = {}
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    for name in ("HIGH", "LOW"):
        monkeypatch.setenv(f"PYTORCH_MPS_{name}_WATERMARK_RATIO", "")
        monkeypatch.delenv(f"PYTORCH_MPS_{name}_WATERMARK_RATIO")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("importlib.import_module", lambda _: seen.update(os.environ) or (_ for _ in ()).throw(PositronError("seen")))
    positron("info")
    return seen


def test_T4_every_command_sets_it_before_its_parts_are_imported(command_environment: dict[str, str]) -> None:
    assert command_environment["PYTORCH_ENABLE_MPS_FALLBACK"] == "0"
    assert command_environment["PYTORCH_MPS_HIGH_WATERMARK_RATIO"] == "1.0"


# --- what Macs need of the program -------------------------------------------------------------------------------------------------


def package_names() -> set[str]:
    """Every name and attribute that the package's code uses."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(device.__file__).parent.parent.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {node.id for node in nodes if isinstance(node, ast.Name)} | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return names | {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_T4_there_are_no_loader_workers_and_no_gradient_scaler() -> None:
    assert "Trainer" in package_names()
    assert not package_names() & {"DataLoader", "GradScaler", "num_workers", "pin_memory"}


class Watching(TorchDispatchMode):
    """Keeps the types of all tensors, and the shapes of the ids, that a computation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()
        self.ids: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.types |= {leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        if "embedding.default" in str(operation):
            self.ids.add(tuple(args[1].shape))
        return result


class Rows:
    """Rows of which the first steps are half as long, twice as many."""

    def batch(self, step: int) -> Batch:
        ids = text_like_ids(512, 12, 33, seed=step)
        width = 16 if step < 2 else 32
        return Batch(ids[:, :-1].reshape(-1, width), ids[:, 1:].reshape(-1, width))


def test_T4_training_makes_no_float64_and_two_shapes_at_most() -> None:
    model = GPT(shape()).init_weights(0)
    # a token takes 12 x 512 + 4 x 2 x (34 x 32 + 10 x 64) = 19,968 bytes; the room for 150 of them holds four rows of 32
    rows = micro_batch_rows(shape(), 32, 12, "mps", (GIB + 20 * shape().parameters + 2 * 150 * 19_968) * 3 // 2 + 10)
    assert rows == 4
    loop = LoopConfig(1e-3, Schedule(1, 2, 5), rows, 1.0, 0.1, 0, "cpu", "fp32")
    optimizer = build_optimizer(model, "muon", lr=1e-3, muon_lr=None, weight_decay=0.1)
    with Watching() as seen:
        assert len(list(Trainer(model, optimizer, Rows(), loop).run(4, StopFlag()))) == 4
    assert torch.float64 not in seen.types and torch.float32 in seen.types
    assert seen.ids == {(2 * rows, 16), (rows, 32)}


# --- the verdict -------------------------------------------------------------------------------------------------------------------

KEY = {"torch": "2.14.0", "system": "Darwin 15.5", "chip": "Apple M3"}
FOUND = Verdict(
    (Finding("mps", "fp32", (), 5_000.0), Finding("mps", "bf16", ("causality",), 8_000.5), Finding("cpu", "bf16", (), None, "is emulated")),
    "2026-11-23",
)


def test_a_verdict_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_verdict(tmp_path / "doctor" / "v.json", FOUND, KEY)
    assert read_verdict(tmp_path / "doctor" / "v.json", KEY) == (FOUND, "")
    assert read_verdict(tmp_path / "none.json", KEY) == (None, "") == read_verdict(None, KEY)


def broken_verdicts() -> list[Any]:
    """Contents of a verdict file that are not to be believed."""
    good: dict[str, Any] = json.loads(json.dumps({"format": 1, "key": KEY, **dataclasses.asdict(FOUND)}))
    finding = good["findings"][0]

    def with_finding(**changes: Any) -> dict[str, Any]:
        return {**good, "findings": [{**finding, **changes}]}

    keys = [{**good, "key": {**KEY, name: "other"}} for name in KEY]
    speeds = [with_finding(tok_per_s=speed) for speed in ("fast", -1, 0, True)]
    faults = [with_finding(faults=faults) for faults in ("causality", [3], ["\x1b[2J"], ["x" * 501])]
    return [
        *keys, *speeds, *faults, [], "x", None, 3, {}, {**good, "format": 2}, {**good, "format": "1"}, {**good, "more": 1},
        {**good, "day": "today"}, {**good, "day": 3}, {**good, "findings": {}}, {**good, "findings": [finding, finding]},
        {**good, "findings": [3]}, {**good, "findings": [{}]}, with_finding(device="tpu"), with_finding(device=["mps"]),
        with_finding(precision="fp8"), with_finding(skipped=None), with_finding(skipped="x" * 501), with_finding(more=1),
    ]  # fmt: skip


UNREADABLE = [b"", b"{", b"[" * 100_000, b'{"format": NaN}', b"\xff\xfe", b"x" * (1 << 20) + b"y", b'{"format": 1, "tok_per_s": Infinity}']


@pytest.mark.parametrize("content", [*(json.dumps(content).encode() for content in broken_verdicts()), *UNREADABLE])
def test_a_verdict_that_is_not_as_it_was_written_is_ignored_with_a_note(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_bytes(content)
    found, note = read_verdict(path, KEY)
    assert found is None
    assert note.startswith(f"note: the doctor's verdict {path} is not used: ") and "\n" not in note and "\x1b" not in note


def test_another_torch_system_or_chip_has_another_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path))
    machines = [mac("M3", "15.5", 16), mac("M3", "15.6", 16), mac("M4", "15.5", 16), mac("M3", "15.5", 16, "2.15.0"), mac("M3", "15.5", 64)]
    paths = [device.verdict_path(machine.key, "Darwin") for machine in machines]
    assert len(set(paths)) == 4 and paths[0] == paths[4] and all(path is not None and path.parent == tmp_path for path in paths)


@pytest.mark.parametrize(
    ("system", "environ", "wanted"),
    [
        ("Darwin", {}, "/home/a/Library/Caches/positron-mini"),
        ("Linux", {}, "/home/a/.cache/positron-mini"),
        ("Linux", {"XDG_CACHE_HOME": "/c"}, "/c/positron-mini"),
        ("Windows", {"LOCALAPPDATA": "/l"}, "/l/positron-mini/cache"),
        ("Linux", {"POSITRON_CACHE": "/p"}, "/p"),
    ],
)
def test_the_cache_lies_where_the_system_keeps_such_things(system: str, environ: dict[str, str], wanted: str) -> None:
    assert cache_folder(system, environ, Path("/home/a")).as_posix() == wanted


@pytest.mark.usefixtures("workshop")
def test_a_run_obeys_the_verdict_and_says_so_in_its_first_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path / "cache"))
    machine = device.this_machine()
    path = device.verdict_path(machine.key, machine.system)
    assert path is not None and machine.verdict is None
    cpu = verdict(("cpu", "fp32", 1_234.0, ""), ("cpu", "bf16", 2_000.0, "causality"))
    write_verdict(path, cpu, machine.key)
    said = tiny_train("runs/new", "--max_steps", "1", "--device", "cpu").err
    wanted = "positron doctor, 2026-11-23: right, 1,234 tokens a second with TinyGPT; bf16 computes wrong here (causality)"
    assert f"device     cpu, fp32 (as asked; fp32: {wanted})" in said
    assert json.loads(Path("runs/new/run.json").read_text())["device"]["reason"].endswith(wanted)
    path.write_text("{")
    said = tiny_train("runs/other", "--max_steps", "1").err
    assert f"note: the doctor's verdict {path} is not used" in said and "the exact choice on a CPU" in said


def test_a_run_that_goes_on_keeps_its_reason_only_while_device_and_precision_stay() -> None:
    recorded = RunRecord(kind="pretrain", device={"device": "cpu", "precision": "bf16", "reason": "why it was so"})

    def reason(precision: str) -> str:
        config = TrainConfig(device="cpu", precision=precision)  # type: ignore[arg-type]
        return choose_device(config, SERVER, recorded, lambda _: None).reason

    assert reason("bf16") == "why it was so"
    assert reason("fp32") == "as asked; fp32 as asked"


@pytest.mark.parametrize("config", [TrainConfig(precision="bf16"), SFTConfig(precision="bf16")])
def test_a_precision_that_is_not_to_be_had_is_said_for_training_and_for_fine_tuning(config: TrainConfig | SFTConfig) -> None:
    said: list[str] = []
    assert choose_device(config, LAPTOP, None, said.append).precision == "fp32"
    assert len(said) == 1 and said[0].startswith("warning: --precision bf16: training in fp32, ")


# --- sleep and heat ----------------------------------------------------------------------------------------------------------------


def test_only_a_mac_is_kept_awake_and_only_while_the_training_lives() -> None:
    assert keep_awake_command("Darwin", 4711) == ["/usr/bin/caffeinate", "-i", "-m", "-s", "-w", "4711"]
    assert keep_awake_command("Linux", 4711) is None is keep_awake_command("Windows", 4711)


def test_caffeinate_runs_while_training_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[Any] = []
    real = device.power.subprocess.Popen

    def start(command: list[str], **settings: Any) -> Any:
        began.append((command, real([sys.executable, "-c", "import time; time.sleep(60)"], **settings)))
        return began[-1][1]

    monkeypatch.setattr(device.power.subprocess, "Popen", start)
    with awake(True, pytest.fail, "Darwin"):
        command, process = began[0]
        assert command == keep_awake_command("Darwin", os.getpid()) and process.poll() is None
    assert process.poll() is not None
    with awake(False, pytest.fail, "Darwin"):
        assert len(began) == 1


def test_where_there_is_no_caffeinate_it_is_said_and_training_goes_on() -> None:
    said: list[str] = []
    with awake(True, said.append, "Linux"):
        pass
    assert said == ["warning: --keep_awake: only macOS has caffeinate; here it is the system's settings that prevent sleep"]
    if sys.platform != "darwin":
        with awake(True, said.append, "Darwin"):
            pass
        assert "cannot be started" in said[1]


@pytest.mark.usefixtures("workshop")
def test_keeping_awake_is_no_property_of_a_run() -> None:
    result = tiny_train("runs/new", "--max_steps", "2", "--keep_awake")
    assert result.code == 0 and (sys.platform == "darwin" or "warning: --keep_awake" in result.err)
    assert "keep_awake" not in json.loads(Path("runs/new/run.json").read_text())["config"]


def test_the_usual_speed_is_the_best_that_was_held() -> None:
    assert share_of_usual_speed([100, 100, 100, 100, 100]) is None
    assert share_of_usual_speed([100, 100, 100, 50, 50, 50]) == 0.5
    assert share_of_usual_speed([10, 100, 100, 100, 900, 100, 100, 100, 100]) == 1.0  # neither the start nor one peak counts
    assert share_of_usual_speed([100, 100, 100, 60, 60, 60, 60, 60, 60]) == 0.6  # nor does slowness become usual


def test_a_slow_down_is_said_once_and_so_is_its_end() -> None:
    watch = SpeedWatch()
    speeds = [1_000.0] * 100 + [600.0] * 100 + [1_000.0] * 100
    said = [(i, text) for i, speed in enumerate(speeds) if (text := watch.look(1_000, speed))]
    assert [text.split(":")[0] for _, text in said] == [
        "training has slowed down to 60% of its usual speed, 600 tokens a second",
        "training is back to its usual speed",
    ]
    assert 100 < said[0][0] < 140 and 200 < said[1][0] < 240
    assert "hot, on battery or busy" in said[0][1]


@given(st.lists(st.floats(900, 1_100), max_size=300))
def test_ordinary_unevenness_is_not_worth_a_word(speeds: list[float]) -> None:
    watch = SpeedWatch()
    assert not any(watch.look(5_000, speed) for speed in speeds)


def test_a_step_without_tokens_or_speed_is_passed_over() -> None:
    watch = SpeedWatch()
    assert not any(watch.look(tokens, speed) for tokens, speed in [(0, 5.0), (-3, 5.0), (5, 0.0)] * 10) and not watch.speeds


@pytest.mark.usefixtures("workshop")
def test_a_slow_down_is_shown_and_stands_in_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpeedWatch, "look", lambda self, tokens, speed: f"slow: {tokens}" if tokens and len(self.speeds) == 0 else "")
    result = tiny_train("runs/new", "--max_steps", "2")
    assert result.code == 0 and "slow: 512\n" in result.err
    events = [row for row in lines_of(Path("runs/new/events.jsonl")) if row["kind"] == "speed"]
    assert [(row["step"], row["text"]) for row in events] == [(1, "slow: 512"), (2, "slow: 512")]
    assert progress.SpeedWatch is SpeedWatch


# --- memory ------------------------------------------------------------------------------------------------------------------------

SHAPES = [model_config(TrainConfig(config=name), preset.vocab_size) for name, preset in PRESETS.items()]
DEVICES = st.sampled_from(["cpu", "mps", "cuda"])
MEMORY = st.integers(1, 1024).map(lambda units: units * GIB // 8)


@given(st.sampled_from(SHAPES), st.integers(1, 400), DEVICES, MEMORY)
def test_a_micro_batch_divides_the_rows_and_keeps_logits_below_one_gibibyte(model: ModelConfig, rows: int, name: str, memory: int) -> None:
    found = micro_batch_rows(model, model.context_len, rows, name, memory)
    assert 1 <= found <= rows and rows % found == 0
    logits_bytes = found * model.context_len * model.vocab_size * 4
    assert logits_bytes <= MAX_LOGITS_BYTES == GIB
    most = {"cpu": 2_048, "mps": 16_384, "cuda": 65_536}[name]
    assert found == 1 or (logits_bytes <= memory // 4 and found * model.context_len <= most)


@given(st.sampled_from(SHAPES), st.integers(1, 400), DEVICES, MEMORY, MEMORY)
def test_more_memory_never_gives_fewer_rows(model: ModelConfig, rows: int, name: str, one: int, other: int) -> None:
    less, more = sorted((one, other))
    assert micro_batch_rows(model, 256, rows, name, less) <= micro_batch_rows(model, 256, rows, name, more)


@pytest.mark.parametrize("name", ["n_layer", "n_embd", "ffn", "vocab_size", "context_len"])
@pytest.mark.parametrize("machine", ["cpu", "mps", "cuda"])
def test_a_larger_model_never_gets_more_rows(name: str, machine: str) -> None:
    base = SHAPES[2]
    sizes = [dataclasses.replace(base, **{name: getattr(base, name) * factor}) for factor in (1, 2, 4, 8)]
    found = [micro_batch_rows(model, model.context_len, 256, machine, 8 * GIB) for model in sizes]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


@pytest.mark.parametrize("rows", [192, 1_920, 19_200])
def test_memory_does_not_grow_with_the_tokens_of_a_step(rows: int) -> None:
    # a token needs 4 x 16,000 bytes of logits and 4 x 8 x (34 x 320 + 10 x 960) of activations: 1.5 GB hold 2,086, four contexts
    assert micro_batch_rows(SHAPES[2], 512, rows, "cpu", 8 * GIB) == 4


# --- compiling ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "machine", "name", "work", "wanted"),
    [
        ("off", SERVER, "cpu", 1e18, False),
        ("on", LAPTOP, "cpu", 1.0, True),
        ("on", BARE, "cpu", 1e18, False),
        ("auto", BARE, "cpu", 1e18, False),
        ("auto", LAPTOP, "cpu", 1e12, False),  # seconds of work
        ("auto", LAPTOP, "cpu", 1e16, True),
        ("auto", LAPTOP, "cpu", None, True),  # open-ended
        ("auto", MAC, "mps", None, False),
        ("on", MAC, "mps", None, True),
        ("auto", RTX, "cuda", 1e17, True),
        ("auto", RTX, "cuda", 1e12, False),
        ("auto", dataclasses.replace(RTX, has_compiler=False), "cuda", 1e17, True),  # CUDA needs no C++ compiler
    ],
)
def test_compiling_is_chosen_where_its_start_up_is_repaid(
    asked: str, machine: Machine, name: str, work: float | None, wanted: bool
) -> None:
    decision, reason = should_compile(asked, machine, name, work)
    assert decision is wanted and reason


# --- this machine ------------------------------------------------------------------------------------------------------------------


def test_this_machine_can_be_described_and_chosen_for() -> None:
    machine = device.this_machine()
    assert machine.devices[-1] == "cpu" and set(machine.bf16) <= set(machine.devices)
    assert machine.cores >= 1 and machine.memory_bytes > GIB // 2
    assert choose(machine).device == machine.devices[0]
    assert device.peak_memory() > 10_000_000


def test_the_compiler_is_found_by_name_or_by_cxx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def program(name: str) -> Path:
        path = tmp_path / name
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return path

    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.compiler() is None
    by_name = program("clang++")
    assert device.compiler() == by_name
    monkeypatch.setenv("CXX", "c++-99")
    assert device.compiler() == tmp_path / "clang++"  # what CXX names is not there
    by_variable = program("c++-99")
    assert device.compiler() == by_variable


def test_threads_are_set_and_reported() -> None:
    assert device.set_threads(2) == 2 == torch.get_num_threads()
    assert device.set_threads(None) == device.usable_cores()


def test_bf16_keeps_weights_and_gradients_in_fp32() -> None:
    layer = torch.nn.Linear(4, 4)
    with device.autocast("cpu", "bf16"):
        out = layer(torch.ones(1, 4))
    assert out.dtype == torch.bfloat16
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert layer.weight.dtype == torch.float32 and layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    with device.autocast("cpu", "fp32"):
        assert layer(torch.ones(1, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 14.75 GiB",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 18.00 GB, other allocations: 380.12 MB, max allowed: 18.13 GB).",
        "Invalid buffer size: 24.00 GiB",
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
        "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes.",
    ],
)
def test_T3_exhausted_memory_is_recognised_as_every_backend_says_it(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert is_out_of_memory(torch.OutOfMemoryError(text))


def test_a_real_refusal_of_the_cpu_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_are_not_taken_for_exhausted_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
    assert is_out_of_memory(MemoryError())
