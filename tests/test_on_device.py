"""Laws of training and writing on a device, the CPU unless POSITRON_TEST_DEVICE names another: `POSITRON_TEST_DEVICE=mps` on a Mac."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.models import lively_model, shape, text_like_ids
from helpers.runs import TINY, lines_of, positron, trained
from positron_mini import device as devices
from positron_mini.doctor import training
from positron_mini.doctor.subject import Subject
from positron_mini.store.checkpoint import load_model
from positron_mini.store.find import find_checkpoint

DEVICE: Any = os.environ.get("POSITRON_TEST_DEVICE", "cpu")


@pytest.fixture(autouse=True)
def device_is_there() -> None:
    """Nothing, or a failure: a device that is asked for by name must be tested, not passed over."""
    assert DEVICE in devices.this_machine().devices, f"POSITRON_TEST_DEVICE={DEVICE}: PyTorch sees no such device here"


def train(run: str, steps: int, *words: str) -> None:
    """A tiny run on the device that ends at step 6."""
    place = ["--device", DEVICE, "--threads", "1", "--out_dir", run]
    positron("train", *TINY, "--max_steps", "6", "--until_step", str(steps), *place, *words).ok()


def losses(run: str) -> list[float]:
    """The losses of its steps."""
    return [row["loss"] for row in lines_of(Path(run) / "metrics.jsonl")]


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_interrupted_equals_uninterrupted_where_the_device_repeats_itself(precision: str) -> None:
    if precision == "bf16" and devices.choose(devices.this_machine(), DEVICE, "bf16").fell_back:
        pytest.skip(f"this {DEVICE} has no fast bf16")
    *_, repeats = training.check_steps(Subject(DEVICE, precision), 5)  # type: ignore[arg-type]
    train("runs/whole", 6, "--precision", precision)
    train("runs/cut", 3, "--precision", precision)
    train("runs/cut", 6, "--precision", precision)
    assert losses("runs/cut") == pytest.approx(losses("runs/whole"), rel=1e-3)
    if repeats.ok:
        assert trained(Path("runs/cut"), 6) == trained(Path("runs/whole"), 6)
    assert json.loads(Path("runs/cut/run.json").read_text())["device"]["device"] == DEVICE


@pytest.mark.usefixtures("workshop")
def test_what_a_device_has_learned_is_what_the_cpu_learns() -> None:
    train("runs/here", 6, "--precision", "fp32")
    shutil.copytree("runs/here", "runs/copy")
    elsewhere = positron(
        "train", *TINY, "--max_steps", "6", "--device", "cpu", "--precision", "fp32", "--threads", "1", "--out_dir", "runs/cpu"
    )
    assert elsewhere.code == 0, elsewhere.err
    assert losses("runs/here") == pytest.approx(losses("runs/cpu"), rel=1e-3)
    ids = text_like_ids(512, 2, 33)
    found = [load_model(find_checkpoint(run)).loss(ids[:, :-1], ids[:, 1:]).item() for run in ("runs/copy", "runs/cpu")]
    assert found[0] == pytest.approx(found[1], rel=1e-2)


def test_a_model_says_the_same_on_the_device() -> None:
    model, ids = lively_model(shape()), text_like_ids(512, 2, 32)
    with torch.inference_mode():
        wanted = model(ids)
        found = model.to(devices.torch_device(DEVICE))(ids.to(devices.torch_device(DEVICE))).cpu()
    assert (found - wanted).square().mean() <= 1e-6 * wanted.square().mean()


@pytest.mark.usefixtures("workshop")
def test_a_text_is_written_on_the_device() -> None:
    words = ["generate", "--ckpt", "runs/base", "--prompt", "Once upon", "--max_tokens", "8", "--temperature", "0", "--json"]
    here, cpu = (json.loads(positron(*words, "--device", name).out) for name in (DEVICE, "cpu"))
    assert len(here["token_ids"]) == 8 and here["token_ids"][0] == cpu["token_ids"][0]
