"""Laws of writing with 8-bit weights: four commands offer it, nothing else uses it, and where it cannot be had f32 writes and says so."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import positron_mini as pm
from helpers.models import lively_model, shape
from helpers.runs import Result, positron
from helpers.server import speaker_of, tiny_server
from positron_mini.config import SampleConfig
from positron_mini.errors import UsageError
from positron_mini.fast import decode_step as native_step
from positron_mini.fast.decoder import Decoder, quickest, why_not_int8
from positron_mini.generate import generate as write
from positron_mini.text.tokenizer import Tokenizer
from positron_mini.web.state import Models

needs_kernels = pytest.mark.skipif(native_step.decode_step() is None, reason="no C++ compiler")
COMMANDS = ("generate", "chat", "serve", "lab")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The weights of every Decoder that is made."""
    found: list[str] = []
    begin = Decoder.__init__

    def noted(self: Decoder, model: pm.GPT, weights: Any = "f32") -> None:
        found.append(weights)
        begin(self, model, weights)

    monkeypatch.setattr(Decoder, "__init__", noted)
    return found


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Models]:
    """What `serve` and `lab` would serve, instead of serving it."""
    found: list[Models] = []

    def keep(_: Any, make: Callable[[], Models], *__: Any) -> int:
        found.append(make())
        return 0

    monkeypatch.setattr("positron_mini.cli.serve.serve", keep)
    monkeypatch.setattr("positron_mini.cli.lab.serve", keep)
    return found


def story(*words: str) -> Result:
    result = positron("generate", "--ckpt", "runs/base", "--prompt", "Once", "--max_tokens", "20", *words)
    assert result.code == 0, result.err
    return result


# --- the flag ---------------------------------------------------------------------------------------------------------------------------


@needs_kernels
def test_generate_writes_with_the_weights_that_are_asked_for(workshop: Path, made: list[str]) -> None:
    first, again, plain = story("--weights", "int8"), story("--weights", "int8"), story()
    assert made == ["int8", "int8", "f32"]
    assert first.out == again.out and first.out.startswith("Once") and plain.out == story("--weights", "f32").out


@needs_kernels
def test_chat_writes_and_explains_with_the_weights_that_are_asked_for(workshop: Path, made: list[str]) -> None:
    asked = [positron("chat", "--ckpt", "runs/base", "--weights", "int8", "--max_tokens", "20", "Once") for _ in range(2)]
    assert asked[0].code == 0 and asked[0].out == asked[1].out and made == ["int8", "int8"]
    made.clear()
    stdin = b"Once\n/why\n/model runs/base\nOnce\n"
    assert positron("chat", "--ckpt", "runs/base", "--weights", "int8", stdin=stdin).code == 0
    assert made == ["int8"] * 3  # the answer, why it was given, and the answer of a model that was switched to


@needs_kernels
@pytest.mark.parametrize("weights", ["f32", "int8"])
def test_serve_and_lab_write_with_the_weights_that_are_asked_for(workshop: Path, served: list[Models], weights: str) -> None:
    result = positron("serve", "--ckpt", "runs/base", "--weights", weights)
    assert result.code == 0 and f"it writes with {weights} weights" in result.err
    assert positron("lab", "--weights", weights).code == 0
    for models in served:
        for name in ("base", "base@20"):
            writer = models.load(name).writer
            assert isinstance(writer, Decoder) and writer.weights == weights


@pytest.mark.parametrize("command", COMMANDS)
def test_other_weights_are_refused(command: str) -> None:
    result = positron(command, "--weights", "int4")
    assert result.code == 2 and "--weights" in result.sentence and "int4" in result.sentence
    with pytest.raises(UsageError, match="int4"):
        pm.load("runs/base", weights="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["score", "eval", "export", "train", "sft"])
def test_what_measures_exports_or_trains_has_no_such_flag(command: str) -> None:
    assert positron(command, "--weights", "int8").code == 2


# --- what is written --------------------------------------------------------------------------------------------------------------------


@needs_kernels
def test_equal_seeds_give_equal_texts_of_any_length(tiny_tokenizer: Tokenizer) -> None:
    model = pm.Model("tiny", lively_model(shape()), tiny_tokenizer, weights="int8")
    long = pm.generate(model, "Once", seed=5, max_tokens=24).token_ids
    assert (
        pm.generate(model, "Once", seed=5, max_tokens=24).token_ids == long != pm.generate(model, "Once", seed=6, max_tokens=24).token_ids
    )
    assert pm.generate(model, "Once", seed=5, max_tokens=3).token_ids == long[:3]  # as few as f32 writes without a decoder
    config = SampleConfig(seed=5, max_tokens=24)
    assert write(Decoder(model.gpt, "int8"), tiny_tokenizer, "Once", config)[0].token_ids == long


@needs_kernels
def test_a_model_is_loaded_with_its_weights(workshop: Path, made: list[str]) -> None:
    model = pm.load("runs/base", weights="int8")
    text = pm.generate(model, "Once", max_tokens=20).text
    assert made == ["int8"] and model.weights == "int8" and story("--weights", "int8").out == f"Once{text}\n"
    assert pm.load("runs/base").weights == "f32"


def test_a_changed_model_writes_itself(tiny_tokenizer: Tokenizer) -> None:
    class Mine(pm.GPT):
        pass

    for gpt in (Mine(shape()), lively_model(shape()).double()):
        model = pm.Model("mine", gpt, tiny_tokenizer, weights="int8")
        assert model.writer(80) is gpt and quickest(gpt, 80, "int8") is gpt
    assert "Mine" in why_not_int8(Mine(shape())) and "fp32" in why_not_int8(lively_model(shape()).double())
    assert "16" in why_not_int8(lively_model(shape(n_embd=24, ffn=40)))


def test_without_kernels_f32_writes_and_says_so(
    workshop: Path, made: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, served: list[Models]
) -> None:
    plain = story()
    monkeypatch.setattr(native_step, "decode_step", lambda: None)
    caplog.set_level(logging.WARNING)
    assert story("--weights", "int8").out == plain.out == story().out
    assert made == ["f32"] * 3
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "writing with f32 weights, the native kernels cannot be had ()"
    ]
    assert pm.load("runs/base", weights="int8").weights == "f32" and len(caplog.records) == 2
    assert "it writes with f32 weights" in positron("serve", "--ckpt", "runs/base", "--weights", "int8").err


# --- who says which ---------------------------------------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("weights", ["f32", "int8"])
def test_server_and_page_say_which_weights_answer(tiny_tokenizer: Tokenizer, weights: Any) -> None:
    speaker = speaker_of(lively_model(shape(context_len=64)), tiny_tokenizer, is_chat=False)
    speaker = pm.Model(speaker.name, speaker.gpt, speaker.tokenizer, weights=weights)
    with tiny_server(speaker) as server, server.client() as client:
        assert client.post("/lab/api/model", json={"model": "tiny"}).json()["weights"] == weights
        ask = {"model": "tiny", "prompt": "Once", "max_tokens": 8, "seed": 1}
        answers = [client.post("/v1/completions", json=ask).json() for _ in range(2)]
        assert answers[0]["system_fingerprint"].endswith(f"-{weights}")
        assert answers[0]["choices"] == answers[1]["choices"]
        echo = client.post("/v1/completions", json={**ask, "max_tokens": 0, "echo": True, "logprobs": 0}).json()
    scored = echo["choices"][0]["logprobs"]["token_logprobs"][-1]  # scores are of f32, whatever writes
    ids = torch.tensor([[1, *tiny_tokenizer.encode("Once")]])
    expected = speaker.gpt(ids)[0].log_softmax(-1)[-2, ids[0, -1]]
    assert scored == pytest.approx(float(expected.detach()), abs=1e-5) and json.dumps(echo)
