"""Laws of the OpenAI-compatible routes, asked by the real `openai` client where it can ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from openai import OpenAI
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from helpers.chats import ASKED, LEARNED
from helpers.models import lively_model, shape
from helpers.server import Script, TinyServer, events_of, speaker_of, tiny_server
from positron_mini import generate
from positron_mini.evaluate.bits import line_logprobs, token_logprobs
from positron_mini.generate import Token
from positron_mini.text.chat_format import Message, encode_chat
from positron_mini.text.tokenizer import BOS, Tokenizer

QUESTION: list[Any] = [{"role": "user", "content": ASKED}]


@pytest.fixture
def client(server: TinyServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60, http_client=server.client()) as made:
        yield made


@pytest.fixture
def base_client(base_server: TinyServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{base_server.url}/v1", api_key="none", max_retries=0, timeout=60, http_client=base_server.client()) as made:
        yield made


# --- conversations ---------------------------------------------------------------------------------------------------------------------


def test_a_conversation_is_answered_with_usage_and_timings(client: OpenAI, tiny_tokenizer: Tokenizer) -> None:
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0)
    prompt = encode_chat(tiny_tokenizer, [Message("user", ASKED)], add_generation_prompt=True).ids
    assert answer.object == "chat.completion" and answer.model == "tiny" and answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", LEARNED[ASKED], "stop")
    assert choice.logprobs is None and answer.usage is not None
    written = len(tiny_tokenizer.encode(LEARNED[ASKED])) + 1  # the end of the turn is a token too
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), written)
    assert answer.usage.total_tokens == len(prompt) + written
    timings = answer.to_dict()["timings"]
    assert timings["prompt_n"] == len(prompt) and timings["predicted_n"] == written  # type: ignore[index]
    assert all(value >= 0 for value in timings.values())  # type: ignore[attr-defined]


def test_a_stream_tells_the_same_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0)
    chunks = list(client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_a_stream_has_the_chunks_that_clients_expect(server: TinyServer) -> None:
    body = {"messages": QUESTION, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    with server.client() as http:
        reply = http.post("/v1/chat/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream") and reply.headers["cache-control"] == "no-cache"
    first, *middle, end, usage, done = events_of(reply.text)
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]
    assert all(list(event["choices"][0]["delta"]) == ["content"] and event["usage"] is None for event in middle)
    assert end["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}] and "timings" in end
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] > 0
    assert done == "[DONE]"


def test_without_include_usage_no_chunk_has_it(server: TinyServer) -> None:
    with server.client() as http:
        events = events_of(http.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True}).text)
    assert all("usage" not in event for event in events[:-1]) and events[-2]["choices"][0]["finish_reason"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_before_it(client: OpenAI, stream: bool) -> None:
    answer: Any = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, stop=["a ca", "zzz"], stream=stream)
    if stream:
        chunks = list(answer)
        text, reason = "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == (LEARNED[ASKED].split("a ca")[0], "stop")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_that_reaches_its_limit_says_length(client: OpenAI, name: str) -> None:
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, **{name: 3})  # type: ignore[call-overload]
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3
    assert LEARNED[ASKED].startswith(answer.choices[0].message.content)


def test_an_answer_never_outgrows_the_context(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], temperature=1.5, max_tokens=100_000, seed=3
    )
    assert answer.usage is not None and answer.usage.total_tokens <= 128


def test_equal_seeds_give_equal_answers_and_no_seed_gives_others(client: OpenAI) -> None:
    def ask(**settings: Any) -> tuple[Any, Any]:
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "?"}], temperature=2, top_p=1, max_tokens=20, **settings
        )
        return answer.choices[0].message.content, answer.to_dict()["seed"]

    assert ask(seed=5) == ask(seed=5) and ask(seed=5)[1] == 5
    free, seed = ask()
    assert ask(seed=seed)[0] == free
    assert len({ask()[0] for _ in range(3)}) > 1


def test_a_content_in_parts_and_a_developer_are_understood(client: OpenAI) -> None:
    parts = [{"type": "text", "text": ASKED[:4]}, {"type": "text", "text": ASKED[4:]}]
    whole = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}], temperature=0)  # type: ignore[list-item,misc]
    assert whole.choices[0].message.content == LEARNED[ASKED]
    named: list[Any] = [{"role": role, "content": "Be brief."} for role in ("developer", "system")]
    a, b = (client.chat.completions.create(model="tiny", messages=[first, *QUESTION], temperature=0) for first in named)
    assert a.usage is not None and b.usage is not None and a.usage.prompt_tokens == b.usage.prompt_tokens


def test_the_settings_of_a_request_reach_the_sampler(server: TinyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(["a"])
    monkeypatch.setattr(generate, "stream", script)
    settings = {
        "temperature": 0.25, "top_p": 0.5, "top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5, "presence_penalty": 0.5,
        "frequency_penalty": -0.25, "seed": 9, "max_tokens": 4, "stop": "b",
    }  # fmt: skip
    with server.client() as http:
        assert http.post("/v1/chat/completions", json={"messages": QUESTION, **settings}).status_code == 200
        assert http.post("/v1/chat/completions", json={"messages": QUESTION, "top_k": -1}).status_code == 200
        assert http.post("/v1/completions", json={"prompt": "x"}).status_code == 200
    given, chat, text = (config for _, config in script.calls)
    assert {name: getattr(given, name) for name in settings} == {**settings, "stop": ("b",)}
    assert (chat.temperature, chat.top_p, chat.top_k) == (0.3, 0.8, 0) and chat.max_tokens > 80  # as positron chat, the context's rest
    assert (text.temperature, text.top_p, text.max_tokens) == (0.7, 1.0, 80)  # as positron generate


def test_old_turns_are_refused_or_forgotten_as_told(client: OpenAI) -> None:
    turn: list[Any] = [{"role": "user", "content": "What do you eat? " * 3}, {"role": "assistant", "content": "Fish and cake."}]
    long: list[Any] = [{"role": "system", "content": "Be brief."}, *turn * 6, *QUESTION]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=long, temperature=0)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    answer = client.chat.completions.create(model="tiny", messages=long, temperature=0, extra_body={"truncation": "auto"})
    dropped = answer.to_dict()["dropped_messages"]
    assert isinstance(dropped, int) and 0 < dropped < len(long) - 2
    kept = client.chat.completions.create(model="tiny", messages=[long[0], *long[1 + dropped :]], temperature=0)
    assert kept.usage is not None and answer.usage is not None and kept.usage.prompt_tokens == answer.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError):  # the last message alone is too long
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x " * 300}], extra_body={"truncation": "auto"})


def test_a_base_model_continues_the_last_message_as_a_text(base_client: OpenAI) -> None:
    said: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once upon a time"}]
    chat = base_client.chat.completions.create(model="tiny", messages=said, temperature=0, max_tokens=9)
    text = base_client.completions.create(model="tiny", prompt="Once upon a time", temperature=0, max_tokens=9)
    assert chat.choices[0].message.content == text.choices[0].text


# --- ln p ------------------------------------------------------------------------------------------------------------------------------


def test_logprobs_of_a_chat_equal_the_scores_of_its_ids(client: OpenAI, server: TinyServer, tiny_tokenizer: Tokenizer) -> None:
    speaker = server.state.models.load("tiny").speaker
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=1.2, seed=4, max_tokens=20, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content
    prompt = encode_chat(tiny_tokenizer, [Message("user", ASKED)], add_generation_prompt=True).ids
    ids = [entry.to_dict()["id"] for entry in content]
    (scores,) = token_logprobs(speaker.gpt, [[*prompt, *ids]])  # type: ignore[list-item]
    assert [entry.logprob for entry in content] == pytest.approx(scores[len(prompt) - 1 :].tolist(), abs=1e-4)
    for entry in content:
        assert len(entry.top_logprobs) == 3
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True) and values[0] >= entry.logprob - 1e-6
        assert entry.bytes is not None and tiny_tokenizer.decode([entry.to_dict()["id"]]) == bytes(entry.bytes).decode(errors="replace")  # type: ignore[list-item]
    assert b"".join(bytes(entry.bytes or []) for entry in content).decode(errors="replace") == answer.choices[0].message.content


def test_logprobs_of_a_stream_equal_those_of_the_whole(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "temperature": 1.5, "seed": 8, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stop=["never said"]))
    found = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content or []]
    assert [entry.to_dict() for entry in found] == [entry.to_dict() for entry in whole.choices[0].logprobs.content]  # type: ignore[union-attr]


def test_an_echoed_text_scores_as_positron_score_does(base_client: OpenAI, base_server: TinyServer, tiny_tokenizer: Tokenizer) -> None:
    speaker = base_server.state.models.load("tiny").speaker
    line = "Once upon a time, there was a little fox."
    answer = base_client.completions.create(model="tiny", prompt=line, max_tokens=0, echo=True, logprobs=2)
    found: Any = answer.choices[0].logprobs
    ((total, count),) = line_logprobs(speaker.gpt, tiny_tokenizer, [line])
    assert answer.choices[0].text == line and len(found.tokens) == count
    assert sum(found.token_logprobs) == pytest.approx(total, abs=1e-4)
    assert [found.text_offset[i] for i in range(count)] == [len("".join(found.tokens[:i])) for i in range(count)]
    assert all(max(top.values()) >= own - 1e-6 for top, own in zip(found.top_logprobs, found.token_logprobs, strict=True))


def test_ids_are_taken_as_they_are_and_a_given_bos_has_no_logprob(base_client: OpenAI, tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode("Once upon a time")
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 2, "temperature": 0, "echo": True, "logprobs": 0}
    text, given, batch, with_bos = (
        base_client.completions.create(prompt=p, **asked) for p in ("Once upon a time", ids, [ids], [BOS, *ids])
    )
    scores = [answer.choices[0].logprobs.token_logprobs for answer in (text, given, batch, with_bos)]  # type: ignore[union-attr]
    assert scores[0] == scores[1] == scores[2] and len(scores[0] or []) == len(ids) + 2
    assert scores[3] == [None, *(scores[0] or [])]
    assert len({answer.choices[0].text for answer in (text, given, batch, with_bos)}) == 1


def test_a_text_stream_tells_the_same_text(base_client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "prompt": "Once", "max_tokens": 12, "seed": 2, "temperature": 1.5, "logprobs": 1, "echo": True,
    }  # fmt: skip
    whole = base_client.completions.create(**asked)
    chunks = list(base_client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    offsets = [at for chunk in chunks if chunk.choices[0].logprobs for at in chunk.choices[0].logprobs.text_offset or []]
    assert whole.choices[0].logprobs is not None and offsets == whole.choices[0].logprobs.text_offset
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_character_of_several_tokens_arrives_whole(
    server: TinyServer, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Tokenizer
) -> None:
    ids = tiny_tokenizer.encode("a🐈b")
    texts = generate.TextStream(tiny_tokenizer, [])
    drawn = [Token(index, texts.push(index), -0.5) for index in ids]
    drawn[-1] = replace(drawn[-1], finish_reason="length")
    monkeypatch.setattr(generate, "stream", lambda *_, **__: iter(drawn))
    with server.client() as http:
        body = {"messages": QUESTION, "stream": True, "logprobs": True}
        events = events_of(http.post("/v1/chat/completions", json=body).text)
    choices = [event["choices"][0] for event in events[1:-1]]
    assert [choice["delta"].get("content") for choice in choices] == ["a", "🐈", "b", None]
    entries = choices[1]["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "🐈"
    assert entries[0]["token"] == "bytes:\\xf0"


# --- models, tokens, errors -------------------------------------------------------------------------------------------------------------


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").created == 1_700_000_000
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("other")
    assert missing.value.code == "model_not_found"


def test_errors_are_the_clients_own_kinds(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages=QUESTION, temperature=9)
    assert wrong.value.param == "temperature" and wrong.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 9}, "n"), ({"n": 2.5}, "n"),
        ({"presence_penalty": 2.5}, "presence_penalty"), ({"frequency_penalty": "x"}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"stop": [""]}, "stop"), ({"stop": ["a"] * 17}, "stop"), ({"tools": [{}]}, "tools"), ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"messages": []}, "messages"), ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"), ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"), ({"temperature": "hot"}, "temperature"), ({"stream": "yes"}, "stream"),
        ({"seed": 2**63}, "seed"), ({"seed": -(2**63) - 1}, "seed"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(server: TinyServer, change: dict[str, Any], param: str) -> None:
    with server.client() as http:
        reply = http.post("/v1/chat/completions", json={"messages": QUESTION, **change})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error") and error["message"]


def test_what_asks_for_nothing_is_no_error(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, n=1, presence_penalty=0, frequency_penalty=0.0, logit_bias={}, user="me",
        tools=[], response_format={"type": "text"}, stop=None, seed=None, logprobs=False, stream_options=None,
    )  # fmt: skip
    assert answer.choices[0].message.content == LEARNED[ASKED]


def test_tokens_go_there_and_back(server: TinyServer, tiny_tokenizer: Tokenizer) -> None:
    text = "Once upon a time,\n <|im_end|> 🐈"
    with server.client() as http:
        plain = http.post("/tokenize", json={"content": text}).json()
        special = http.post("/tokenize", json={"content": text, "add_special": True, "with_pieces": True}).json()
        back = http.post("/detokenize", json={"tokens": plain["tokens"]}).json()
        wrong = http.post("/detokenize", json={"tokens": [512]})
    assert plain == {"tokens": tiny_tokenizer.encode(text), "count": len(tiny_tokenizer.encode(text))}
    assert special["tokens"][0] == {"id": BOS, "piece": "<s>"} and [t["id"] for t in special["tokens"][1:]] == plain["tokens"]
    assert back == {"content": text}
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "tokens"


def test_health_says_what_is_going_on(server: TinyServer) -> None:
    with server.client() as http:
        assert http.get("/health").json() == {"status": "ok", "running": False, "waiting": 0}


# --- the document ----------------------------------------------------------------------------------------------------------------------


def test_S4_the_document_describes_every_route(server: TinyServer) -> None:
    with server.client() as http:
        paths = http.get("/openapi.json").json()["paths"]
    api = {path for path in paths if not path.startswith("/lab/")}
    assert api == {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{id}", "/health", "/tokenize", "/detokenize"}
    for operations in paths.values():
        for operation in operations.values():
            assert "422" not in operation["responses"] and "4XX" in operation["responses"]


def within_reach(part: Any) -> Any:
    """A document whose long texts and lists have no limit: to break one takes seconds each time, and S5 has its own tests. The lab's
    requests are for the model there is."""
    if isinstance(part, list):
        return [within_reach(one) for one in part]
    if not isinstance(part, dict):
        return part
    kept = {name: within_reach(one) for name, one in part.items() if not (name in ("maxLength", "maxItems") and one > 512)}
    if kept.get("title") == "Model" and kept.get("type") == "string":
        kept["enum"] = ["tiny"]
    return kept


@pytest.fixture(scope="module")
def document(tiny_tokenizer: Tokenizer) -> Iterator[tuple[Any, str]]:
    """The OpenAPI document of a server whose answers are short, for schemathesis, and the server's address."""
    with tiny_server(speaker_of(lively_model(shape()), tiny_tokenizer)) as running, running.client() as http:
        yield schemathesis.openapi.from_dict(within_reach(http.get("/openapi.json").json())), running.url


OPERATIONS = [("POST", path) for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")]
LOOKS = ["model", "tokens", "pieces", "next", "surprise", "attention", "logit_lens", "mask"]
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance, negative_data_rejection]


def fuzz(document: tuple[Any, str], method: str, path: str, mode: Any, examples: int) -> set[int]:
    """The statuses that generated requests get. Fails for a server error and for an answer that the document does not allow."""
    schema, url = document
    seen: set[int] = set()

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        response = case.call(base_url=url)
        seen.add(response.status_code)
        assert response.status_code < 500, response.text
        case.validate_response(response, checks=CHECKS)

    check()
    return seen


BOTH = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
MODES = pytest.mark.parametrize("mode", BOTH, ids=["valid", "invalid"])


@MODES
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_S4_data_valid_or_not_never_makes_a_server_error(document: tuple[Any, str], method: str, path: str, mode: Any) -> None:
    seen = fuzz(document, method, path, mode, 50)
    assert (200 in seen) is (mode is schemathesis.GenerationMode.POSITIVE)  # not everything is refused, and all that is wrong is


@MODES
@pytest.mark.parametrize("look", LOOKS)
def test_S4_neither_does_what_the_page_asks(document: tuple[Any, str], look: str, mode: Any) -> None:
    seen = fuzz(document, "POST", f"/lab/api/{look}", mode, 10)
    assert look == "mask" or (200 in seen) is (mode is schemathesis.GenerationMode.POSITIVE)  # a row of data has a shape of its own


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/{id}", "/health", "/lab/api/models", "/lab/api/runs/{name}/logs/{log}"])
def test_S4_no_address_makes_one(document: tuple[Any, str], path: str) -> None:
    assert fuzz(document, "GET", path, schemathesis.GenerationMode.POSITIVE, 20)
