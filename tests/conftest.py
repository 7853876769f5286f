"""Fixtures that several test files share: a tiny tokenizer, tiny models, real text where there is some."""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import torch
from hypothesis import settings

from helpers.chats import taught_model
from helpers.hub import FakeHub
from helpers.models import lively_model, shape
from helpers.runs import build_workshop, copied
from helpers.texts import made_stories
from positron_mini import fast as native
from positron_mini.config import ModelConfig
from positron_mini.model import GPT
from positron_mini.text.tokenizer import Tokenizer, train_tokenizer
from positron_mini.train import speed

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may ask the hub, even by way of transformers
os.environ["PATH"] = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))  # `positron`, as for a user
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
with tempfile.TemporaryDirectory() as _scratch:
    os.environ["POSITRON_CACHE"] = _scratch
    native.library()  # loaded now, for every test of this process; programs that tests start do without
os.environ["POSITRON_CACHE"] = os.devnull  # no verdict of this computer's doctor decides in a test
if os.environ.get("POSITRON_TEST_DEVICE", "cpu") == "cpu":  # a GPU is used only where a test run asks for it by name
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.backends.mps.is_available = lambda: False

if TYPE_CHECKING:
    from helpers.server import TinyServer

settings.register_profile("suite", deadline=None)  # an example may take as long as a busy machine needs
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """The variables of the environment as they were, after every test: a command sets some for what it starts."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def fixed_threads() -> None:
    """One thread and a known generator for every test, whatever the one before it set."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def stories() -> list[str]:
    """200 made stories."""
    return made_stories(200, seed=11)


@pytest.fixture(scope="session")
def tiny_tokenizer(stories: list[str]) -> Tokenizer:
    """A tokenizer of 512 pieces, trained on the made stories."""
    return train_tokenizer(stories, 512, threads=1)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Two layers, width 32, grouped heads, head_dim != width / heads; its vocabulary is the tiny tokenizer's."""
    return shape()


@pytest.fixture(scope="session")
def tiny_model(tiny_config: ModelConfig) -> GPT:
    """A model of the tiny shape with random weights in every place; tests must not change it."""
    return lively_model(tiny_config)


@pytest.fixture(scope="session")
def real_text() -> Path:
    """The folder with `tinystories-train.txt` and `tinystories-valid.txt` that POSITRON_TEST_TEXT names."""
    folder = os.environ.get("POSITRON_TEST_TEXT")
    if not folder:
        pytest.skip("POSITRON_TEST_TEXT is not set: no real text to test with")
    return Path(folder)


@pytest.fixture(scope="module")
def hub_client() -> Iterator[None]:
    """One HTTP client for all tests, made without the proxies of this machine; making one for each test takes longer than the tests."""
    import huggingface_hub

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        huggingface_hub.close_session()
        huggingface_hub.get_session()
        yield
    huggingface_hub.close_session()


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, hub_client: None) -> Iterator[FakeHub]:
    """A hub on this machine, without any data yet, which the program takes for the real one."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it was read when the library was imported
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


@pytest.fixture(scope="session")
def workshop_template(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A folder with a text, its tokenizer, and a finished tiny run; tests must not change it."""
    return build_workshop(tmp_path_factory.mktemp("workshop") / "template", tiny_tokenizer)


@pytest.fixture
def workshop(workshop_template: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the workshop folder, which is the working directory during the test."""
    with copied(workshop_template, tmp_path / "workshop") as folder:
        yield folder


@pytest.fixture
def step(workshop_template: Path, tmp_path: Path) -> Path:
    """A copy of a complete step folder."""
    return Path(shutil.copytree(workshop_template / "runs/base/step_000030", tmp_path / "step_000030"))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training does not measure the speed of this machine before it begins."""
    monkeypatch.setattr(speed, "measure_speed", lambda *_, **__: 1e4)


@pytest.fixture(scope="session")
def taught(tiny_tokenizer: Tokenizer) -> GPT:
    """A chat model that knows the answers of LEARNED by heart; tests must not change it."""
    return taught_model(tiny_tokenizer)


@pytest.fixture(scope="module")
def server(taught: GPT, tiny_tokenizer: Tokenizer) -> Iterator[TinyServer]:
    """A server of a chat model that knows the answers of LEARNED by heart."""
    from helpers.server import speaker_of, tiny_server

    with tiny_server(speaker_of(taught, tiny_tokenizer)) as running:
        yield running


@pytest.fixture(scope="module")
def base_server(tiny_tokenizer: Tokenizer) -> Iterator[TinyServer]:
    """A server of a base model with random weights and a context of 64 tokens."""
    from helpers.server import speaker_of, tiny_server

    with tiny_server(speaker_of(lively_model(shape(context_len=64)), tiny_tokenizer, is_chat=False)) as running:
        yield running
