"""Laws of the device policy, decided for machines that are not here."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from positron_mini import device
from positron_mini.config import PRESETS, ModelConfig, TrainConfig, model_config
from positron_mini.device import MAX_LOGITS_BYTES, Machine, choose, is_out_of_memory, micro_batch_rows, should_compile
from positron_mini.errors import UsageError

GIB = 1 << 30
LAPTOP = Machine(("cpu",), (), 8 * GIB, 4, True, "Linux")
SERVER = Machine(("cpu",), ("cpu",), 64 * GIB, 32, True, "Linux")  # AMX
MAC = Machine(("mps", "cpu"), ("mps",), 16 * GIB, 8, True, "Darwin")
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
def test_device_and_precision_follow_the_table(
    machine: Machine, device_flag: str, precision_flag: str, wanted: str, precision: str, fell_back: bool
) -> None:
    choice = choose(machine, device_flag, precision_flag)
    assert (choice.device, choice.precision, choice.fell_back) == (wanted, precision, fell_back)
    assert choice.reason and (not fell_back or "no fast bf16" in choice.reason)


@pytest.mark.parametrize(
    ("machine", "asked", "there"), [(LAPTOP, "cuda", "cpu"), (LAPTOP, "mps", "cpu"), (MAC, "cuda", "mps"), (T4, "mps", "cuda")]
)
def test_a_device_that_is_not_there_is_refused_with_one_that_is(machine: Machine, asked: str, there: str) -> None:
    with pytest.raises(
        UsageError, match=f"--device {asked}: PyTorch sees no such device here, only {', '.join(machine.devices)}"
    ) as caught:
        choose(machine, asked)
    assert caught.value.hint == f"--device {there}"


def test_tokens_a_step_are_those_of_the_design() -> None:
    assert device.BATCH_TOKENS == {"cpu": 65_536, "mps": 98_304, "cuda": 131_072}


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
    assert found == 1 or (logits_bytes <= memory // 4 and (name != "cpu" or found * model.context_len <= 2_048))


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
    # a token needs 3 x 4 x 16,000 bytes of logits and 4 x 8 x (34 x 320 + 10 x 960) of activations: 1.5 GB hold 1,770, three contexts
    assert micro_batch_rows(SHAPES[2], 512, rows, "cpu", 8 * GIB) == 3


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


def test_the_compiler_is_found_by_name_or_by_cxx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    found: set[str] = set()
    monkeypatch.setattr(device.shutil, "which", lambda name: name if name in found else None)
    assert not device.has_compiler()
    found.add("clang++")
    assert device.has_compiler()
    found.clear()
    found.add("/opt/c++-99")
    monkeypatch.setenv("CXX", "/opt/c++-99")
    assert device.has_compiler()


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
def test_exhausted_memory_is_recognised_as_every_backend_says_it(text: str) -> None:
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
