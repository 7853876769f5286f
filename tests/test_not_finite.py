"""A model whose weights are finite and whose logits are not is named in one sentence; no NaN is ever printed or sent."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from helpers.chats import write_model
from helpers.models import lively_model, shape
from helpers.project import PACKAGE
from helpers.runs import positron, tiny_train
from helpers.server import TinyServer, speaker_of, tiny_server
from positron_mini.chat.session import ChatSession
from positron_mini.cli.flags import print_json
from positron_mini.config import SampleConfig
from positron_mini.errors import NotFiniteOutput, PositronError
from positron_mini.evaluate import lens
from positron_mini.evaluate.bits import token_logprobs
from positron_mini.files import json_line
from positron_mini.generate import Reader, distribution
from positron_mini.model import GPT
from positron_mini.text.tokenizer import Tokenizer

QUESTION = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 4}


def scaled(*names: str, most: float = 3e38) -> GPT:
    """A lively model with some weights scaled so that their largest number is `most`; every one stays a finite number."""
    model = lively_model(shape(context_len=64))
    with torch.no_grad():
        for weight in map(model.get_parameter, names):
            weight.div_(weight.abs().max()).mul_(most)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    return model


# the logits: infinite; finite, but further apart than fp32 reaches; not a number, because the stream is not
HUGE: dict[str, Callable[[], GPT]] = {
    "norm": lambda: scaled("model.norm.weight"),
    "far_apart": lambda: _far_apart(),
    "mlp": lambda: scaled("model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.gate_proj.weight"),
}


def _far_apart() -> GPT:
    """Logits of 3e38 for one half of the vocabulary and -3e38 for the other: each is a number, their difference is none."""
    model = lively_model(shape(context_len=64))
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        table.fill_(1.0)
        table[::2] = -1.0
        model.model.norm.weight.fill_(2.0**122.5)
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr]
            block.mlp.down_proj.weight.zero_()  # type: ignore[union-attr]
    logits = model(torch.tensor([[1]]))[0, 0].detach()
    assert bool(logits.isfinite().all()) and not bool((logits.max() - logits.min()).isfinite())
    return model


@pytest.fixture(params=HUGE)
def huge(request: pytest.FixtureRequest) -> GPT:
    return HUGE[request.param]()


@pytest.fixture(params=[False, True], ids=["base", "chat"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint of such a model, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("two.txt").write_text("Lily saw a dog.\n<|endoftext|>\nTom had a ball.\n")
    write_model(tmp_path / "huge", HUGE["norm"](), tiny_tokenizer, is_chat=request.param)
    return "huge"


def test_O4_a_model_that_computes_no_numbers_is_an_error_wherever_it_is_read(huge: GPT) -> None:
    huge.name = "runs/x/latest"
    looks: list[Callable[[], Any]] = [
        lambda: Reader(huge, 2).read(torch.tensor([[1, 40, 41]] * 2)),
        lambda: token_logprobs(huge, [[1, 40, 41, 42]]),
        lambda: lens.next_token_distribution(huge, [1, 40]),
        lambda: lens.surprise(huge, [1, 40, 41]),
        lambda: lens.logit_lens(huge, [1, 40, 41]),
    ]
    for look in looks:
        with pytest.raises(NotFiniteOutput) as error:
            look()
        assert error.value.message.startswith("runs/x/latest: ") and error.value.exit_code == 1


def test_O4_attention_that_is_no_number_is_an_error() -> None:
    with pytest.raises(NotFiniteOutput):
        lens.attention_maps(scaled("model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.k_norm.weight"), [1, 40, 41])


@pytest.mark.parametrize(
    "words",
    [
        ("score",), ("eval", "--text", "two.txt"), ("eval", "--text", "two.txt", "--json"),
        ("eval", "--suite", "skills", "--items", "2", "--json"),
        ("generate", "--json"), ("generate",), ("generate", "--n", "2", "--temperature", "0"), ("chat", "Who are you?"),
    ],
)  # fmt: skip
def test_O4_every_command_ends_with_one_sentence_that_names_the_checkpoint(folder: str, words: tuple[str, ...]) -> None:
    result = positron(*words, "--ckpt", folder, stdin=b"Lily saw a dog.\nTom\n")
    assert result.code == 1 and result.sentence == "huge: the model computes numbers that are not finite, because its weights are too large"
    assert "nan" not in result.out.lower() and "infinity" not in result.out.lower()


def test_O4_compare_does_too(folder: str) -> None:
    result = positron("compare", folder, folder, "--max_tokens", "2", "--json")
    assert result.code == 1 and result.sentence.startswith("huge: ") and not result.out


# --- the server -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(huge: GPT, tiny_tokenizer: Tokenizer) -> Iterator[TinyServer]:
    with tiny_server(speaker_of(huge, tiny_tokenizer)) as made:
        yield made


def is_named(reply: httpx.Response) -> bool:
    """Whether an answer is the documented one: 422 in OpenAI's shape, valid JSON."""
    error = reply.json()["error"]
    told = (reply.status_code, error["code"], error["type"])
    return told == (422, "not_finite", "invalid_request_error") and "not finite" in error["message"]


def test_O4_the_server_answers_422_and_never_500(server: TinyServer) -> None:
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", QUESTION),
        ("/v1/chat/completions", {**QUESTION, "logprobs": True, "top_logprobs": 3}),
        ("/v1/chat/completions", {**QUESTION, "stream": True, "logprobs": True}),
        ("/v1/completions", {"prompt": "Once", "logprobs": 2, "max_tokens": 3}),
        ("/v1/completions", {"prompt": "Once upon", "logprobs": 1, "max_tokens": 0, "echo": True}),
        ("/lab/api/next", {"model": "tiny", "text": "Once"}),
        ("/lab/api/surprise", {"model": "tiny", "text": "Once upon a time"}),
        ("/lab/api/logit_lens", {"model": "tiny", "text": "Once upon"}),
    ]
    with server.client() as http:
        for path, body in asked:
            assert is_named(http.post(path, json=body)), (path, body)


def test_O4_numbers_that_end_within_a_stream_end_it_with_an_error_event(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Reader._read

    def later(self: Reader, history: torch.Tensor) -> torch.Tensor:
        logits = read(self, history)
        return logits * float("nan") if history.shape[1] > 12 else logits

    monkeypatch.setattr(Reader, "_read", later)
    with tiny_server(speaker_of(lively_model(shape(context_len=64)), tiny_tokenizer, is_chat=False)) as made, made.client() as http:
        text = http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 30, "stream": True, "logprobs": 1, "seed": 1}).text
    *_, last, end = text.split("\n\n")
    assert end == "" and json.loads(last.removeprefix("data: "))["error"]["code"] == "not_finite"
    assert "[DONE]" not in text and "NaN" not in text


# --- large, but numbers -----------------------------------------------------------------------------------------------------------------


def test_O4_numbers_that_are_only_large_are_still_answered(tiny_tokenizer: Tokenizer) -> None:
    with tiny_server(speaker_of(scaled("model.norm.weight", most=1e30), tiny_tokenizer)) as made, made.client() as http:
        chat = http.post("/v1/chat/completions", json={**QUESTION, "logprobs": True, "top_logprobs": 2})
        text = http.post("/v1/completions", json={"prompt": "Once upon", "logprobs": 1, "max_tokens": 0, "echo": True})
    assert (chat.status_code, text.status_code) == (200, 200)
    least = min(text.json()["choices"][0]["logprobs"]["token_logprobs"])
    assert least == -9999.0  # ln p of -1e30, written as OpenAI writes what is as good as impossible


def test_O4_the_perplexity_of_an_impossible_answer_is_infinite_and_no_error(tiny_tokenizer: Tokenizer) -> None:
    session = ChatSession(speaker_of(lively_model(shape(context_len=64)), tiny_tokenizer))
    list(session.ask("Who?"))
    assert session.last is not None
    assert replace(session.last, logprobs=[-1e30, -1.0]).perplexity == math.inf
    assert replace(session.last, logprobs=[-2.0, -4.0]).perplexity == pytest.approx(math.exp(3))


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-30])
def test_O4_the_smallest_temperatures_take_the_likeliest_token(temperature: float) -> None:
    logits, seen = torch.tensor([1.0, 3.0, 2.0, float("-inf")]), torch.tensor([], dtype=torch.long)
    probabilities = distribution(logits, seen, SampleConfig(temperature=temperature))
    assert probabilities.tolist() == [0.0, 1.0, 0.0, 0.0]


# --- training -----------------------------------------------------------------------------------------------------------------------------


def test_O4_held_out_numbers_that_are_not_finite_stop_a_training_with_its_evidence(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise NotFiniteOutput("the model: the model computes numbers that are not finite", "a smaller --lr")

    monkeypatch.setattr("positron_mini.train.pretrain.score_documents", broken)
    result = tiny_train("runs/other", "--max_steps", "12")
    assert result.code == 3 and result.sentence.startswith("step 10: the loss is finite, but held-out texts")
    events = [json.loads(line) for line in Path("runs/other/events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "non_finite"] == [10]
    assert not Path("runs/other/step_000010").exists() and Path("runs/other/step_000005").exists()


# --- JSON ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_O4_no_number_that_is_not_finite_becomes_json(value: float, capsys: pytest.CaptureFixture[str]) -> None:
    for write in (json_line, print_json):
        with pytest.raises(PositronError, match="not a finite number"):
            write({"rows": [{"x": value}]})
    assert capsys.readouterr().out == ""


def test_O4_json_keeps_letters_and_the_bytes_of_any_path() -> None:
    assert json_line({"a": "ä — 🐱"}) == '{"a": "ä — 🐱"}'
    assert json.loads(json_line({"path": "x\udcff"}))["path"] == "x\udcff" and json_line("x\udcff").isascii()


def test_O4_commands_and_the_server_write_json_by_no_other_way() -> None:
    for path in [*PACKAGE.glob("cli/*.py"), *PACKAGE.glob("web/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("allow_nan") == "False", f"{path}: {ast.unparse(node)}"
