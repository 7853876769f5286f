"""What clients send is answered: several choices and prompts, prefilled answers, tool turns, pages of sites that were named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from helpers.chats import ASKED, LEARNED
from helpers.models import lively_model, shape
from helpers.runs import positron
from helpers.server import TinyServer, events_of, speaker_of, tiny_server
from positron_mini.cli.lab import LabFlags
from positron_mini.cli.serve import NetworkFlags, ServeFlags
from positron_mini.config import SampleConfig
from positron_mini.errors import UsageError
from positron_mini.generate import generate
from positron_mini.text.tokenizer import BOS, Tokenizer
from positron_mini.web.cors import is_origin

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": ASKED}]}
SITE = "https://app.example.com"


def chat(server: TinyServer, **body: Any) -> httpx.Response:
    with server.client() as http:
        return http.post("/v1/chat/completions", json={**QUESTION, "temperature": 0, **body})


def text(server: TinyServer, **body: Any) -> httpx.Response:
    with server.client() as http:
        return http.post("/v1/completions", json={"max_tokens": 6, "seed": 3, **body})


# --- several choices --------------------------------------------------------------------------------------------------------------------


def test_each_of_n_answers_is_the_sample_of_its_number(base_server: TinyServer, tiny_tokenizer: Tokenizer) -> None:
    reply = text(base_server, prompt="Once upon a", n=8, temperature=1.5).json()
    assert [choice["index"] for choice in reply["choices"]] == list(range(8))
    model, config = base_server.state.models.load("tiny").speaker.gpt, SampleConfig(max_tokens=6, seed=3, temperature=1.5)
    expected = generate(model, tiny_tokenizer, "Once upon a", config, n=8)
    assert [choice["text"] for choice in reply["choices"]] == [sample.text for sample in expected]
    assert reply["usage"]["completion_tokens"] == sum(len(sample.token_ids) for sample in expected)
    assert len({choice["text"] for choice in reply["choices"]}) > 1


def test_several_prompts_are_answered_as_each_alone_with_an_index_of_its_own(base_server: TinyServer) -> None:
    prompts = ["Once upon a", "Lily", "The dog said"]
    asked: dict[str, Any] = {"temperature": 1.2, "n": 2, "logprobs": 1, "echo": True}
    together = text(base_server, prompt=prompts, **asked).json()
    alone = [text(base_server, prompt=prompt, **asked).json() for prompt in prompts]
    expected = [choice for reply in alone for choice in reply["choices"]]
    assert [choice["index"] for choice in together["choices"]] == list(range(6))
    assert [{**choice, "index": 0} for choice in together["choices"]] == [{**choice, "index": 0} for choice in expected]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert together["usage"][name] == sum(reply["usage"][name] for reply in alone)
    timings = together["timings"]
    assert timings["prompt_n"] == together["usage"]["prompt_tokens"] and all(value >= 0 for value in timings.values())


def test_lists_of_ids_are_several_prompts_too(base_server: TinyServer, tiny_tokenizer: Tokenizer) -> None:
    ids = [tiny_tokenizer.encode("Lily"), [BOS, *tiny_tokenizer.encode("Tom")]]
    replies = [text(base_server, prompt=prompt).json()["choices"] for prompt in (ids, ["Lily", "Tom"])]
    assert [c["text"] for c in replies[0]] == [c["text"] for c in replies[1]] and len(replies[0]) == 2


def test_scores_of_several_texts_come_in_one_answer(base_server: TinyServer) -> None:
    reply = text(base_server, prompt=["Once upon", "A big dog"], echo=True, logprobs=0, max_tokens=0).json()
    singles = [text(base_server, prompt=one, echo=True, logprobs=0, max_tokens=0).json() for one in ("Once upon", "A big dog")]
    assert [c["logprobs"] for c in reply["choices"]] == [one["choices"][0]["logprobs"] for one in singles]
    assert reply["timings"]["predicted_ms"] == 0 and reply["usage"]["completion_tokens"] == 0


def test_a_stream_tells_the_same_choices(base_server: TinyServer) -> None:
    asked: dict[str, Any] = {"prompt": ["Once upon a", "Lily"], "n": 3, "temperature": 1.5, "logprobs": 1}
    whole = text(base_server, **asked).json()["choices"]
    events = events_of(text(base_server, **asked, stream=True).text)[:-1]
    for choice in whole:
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == [choice["finish_reason"]]
        scores = [p for one in mine if one["logprobs"] for p in one["logprobs"]["token_logprobs"]]
        offsets = [at for one in mine if one["logprobs"] for at in one["logprobs"]["text_offset"]]
        assert scores == choice["logprobs"]["token_logprobs"] and offsets == choice["logprobs"]["text_offset"]


def test_several_answers_of_a_chat_each_open_with_a_role_and_a_text(server: TinyServer) -> None:
    events = events_of(chat(server, n=2, stream=True).text)[:-1]
    openings = [event["choices"][0] for event in events[:2]]
    assert [(one["index"], one["delta"]) for one in openings] == [(i, {"role": "assistant", "content": ""}) for i in (0, 1)]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert all(isinstance(delta.get("content", ""), str) for delta in deltas)  # a client that only joins them gets the text
    assert [choice["message"]["content"] for choice in chat(server, n=2).json()["choices"]] == [LEARNED[ASKED]] * 2


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": ["x"] * 9, "n": 8}, "n"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_more_than_64_texts_at_once_are_refused(base_server: TinyServer, change: dict[str, Any], param: str) -> None:
    reply = text(base_server, **{"prompt": "x", **change})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


# --- numbers ----------------------------------------------------------------------------------------------------------------------------


def test_a_whole_number_may_be_written_with_a_point(base_server: TinyServer) -> None:
    as_float = text(base_server, prompt="Lily", max_tokens=5.0, seed=7.0, top_k=40.0, n=2.0, logprobs=1.0).json()
    as_int = text(base_server, prompt="Lily", max_tokens=5, seed=7, top_k=40, n=2, logprobs=1).json()
    assert as_float["choices"] == as_int["choices"]
    assert text(base_server, prompt="Lily", max_tokens=5.5).status_code == 400
    assert text(base_server, prompt="Lily", max_tokens=True).status_code == 400


def test_every_64_bit_seed_is_one_of_its_own(base_server: TinyServer) -> None:
    seeds = [0, 5, 10**12 + 1, 2**53 + 1, 2**63 - 1, -2, -5, -(2**63)]
    replies = [text(base_server, prompt="Lily", seed=seed, temperature=2, max_tokens=20).json() for seed in seeds]
    again = [text(base_server, prompt="Lily", seed=seed, temperature=2, max_tokens=20).json() for seed in seeds]
    assert [reply["seed"] for reply in replies] == seeds
    texts = [reply["choices"][0]["text"] for reply in replies]
    assert texts == [reply["choices"][0]["text"] for reply in again] and len(set(texts)) == len(seeds)


def test_no_seed_and_minus_one_draw_one_for_all_texts_of_the_request_and_say_it(base_server: TinyServer) -> None:
    for given in ({"seed": None}, {"seed": -1}):
        free = text(base_server, prompt=["Lily", "Tom"], temperature=2, **given).json()
        same = text(base_server, prompt=["Lily", "Tom"], temperature=2, seed=free["seed"]).json()
        assert free["choices"] == same["choices"]


# --- conversations ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", ["I am", "I am a", "", "I am a cat."])
def test_an_answer_that_was_begun_goes_on_in_its_own_turn(server: TinyServer, begun: str) -> None:
    reply = chat(server, messages=[*QUESTION["messages"], {"role": "assistant", "content": begun}]).json()
    (choice,) = reply["choices"]
    assert begun + choice["message"]["content"] == LEARNED[ASKED] and choice["finish_reason"] == "stop"


CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}


def test_turns_with_tools_are_read(server: TinyServer) -> None:
    plain = chat(server, messages=[{"role": "user", "content": "Hi"}, {"role": "user", "content": ASKED}]).json()
    for call in ({"content": None, "tool_calls": [CALL]}, {"tool_calls": [CALL]}, {"content": None, "function_call": {"name": "find"}}):
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", **call}, {"role": "tool", "tool_call_id": "c1", "content": ASKED}]
        reply = chat(server, messages=turns)
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"] == plain["choices"] and reply.json()["usage"] == plain["usage"]
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}]
    parts = [{"type": "text", "text": ASKED}]
    reply = chat(server, messages=[*said, {"role": "tool", "tool_call_id": "c1", "content": parts}])
    kept = chat(server, messages=[said[0], {"role": "assistant", "content": "I look."}, {"role": "user", "content": ASKED}])
    assert reply.json()["usage"] == kept.json()["usage"]


def test_a_conversation_of_nothing_but_calls_is_answered_too(server: TinyServer, base_server: TinyServer) -> None:
    for asked in (server, base_server):
        reply = chat(asked, messages=[{"role": "assistant", "content": None, "tool_calls": [CALL]}], max_tokens=3)
        assert reply.status_code == 200


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user", "content": None}, {"role": "user"}, {"role": "tool", "content": None}, {"role": "system", "content": None},
        {"role": "assistant", "content": None}, {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": None, "tool_calls": [CALL]},
    ],
)  # fmt: skip
def test_only_an_assistant_that_calls_tools_may_say_nothing(server: TinyServer, turn: dict[str, Any]) -> None:
    reply = chat(server, messages=[turn])
    assert reply.status_code == 400 and "only an assistant turn with tool_calls" in reply.json()["error"]["message"]


# --- a full context ---------------------------------------------------------------------------------------------------------------------

LONG: list[Any] = [
    {"role": "system", "content": "Be brief."},
    *[{"role": "user", "content": "What do you eat? " * 3}, {"role": "assistant", "content": "Fish and cake."}] * 6,
    *QUESTION["messages"],
]


def test_a_server_that_drops_the_oldest_answers_where_others_refuse(server: TinyServer, tiny_tokenizer: Tokenizer) -> None:
    assert chat(server, messages=LONG).json()["error"]["code"] == "context_length_exceeded"
    asked_for = chat(server, messages=LONG, truncation="auto").json()
    with tiny_server(server.state.models.load("tiny").speaker, drops_oldest=True) as dropping:
        reply = chat(dropping, messages=LONG).json()
        assert reply["choices"] == asked_for["choices"] and reply["dropped_messages"] == asked_for["dropped_messages"] > 0
        assert chat(dropping, messages=LONG, truncation="disabled").json()["error"]["code"] == "context_length_exceeded"
        whole = chat(dropping).json()
        assert whole["dropped_messages"] == 0 and whole["choices"][0]["message"]["content"] == LEARNED[ASKED]


@pytest.mark.parametrize("words", [40, 200, 100_000])
def test_such_a_server_continues_the_end_of_a_text(base_server: TinyServer, tiny_tokenizer: Tokenizer, words: int) -> None:
    story = " ".join(f"cat{i % 7} sat." for i in range(words))
    ids = tiny_tokenizer.encode(story)
    assert text(base_server, prompt=story).json()["error"]["code"] == "context_length_exceeded"
    with tiny_server(base_server.state.models.load("tiny").speaker, drops_oldest=True) as dropping:
        expected = text(base_server, prompt=ids[-48:]).json()  # three quarters of the context of 64, as `positron generate` keeps
        for body in ({"prompt": story}, *([{"prompt": ids}] if words < 1000 else [])):
            reply = text(dropping, **body).json()
            assert reply["choices"] == expected["choices"] and reply["usage"]["prompt_tokens"] == 49
        as_chat = chat(dropping, messages=[{"role": "user", "content": story}], max_tokens=4)
        assert as_chat.status_code == 200


def test_nothing_is_dropped_where_all_fits(base_server: TinyServer, tiny_tokenizer: Tokenizer) -> None:
    ids = [tiny_tokenizer.encode("a")[0]] * 62  # with bos 63 of 64: one more token fits
    with tiny_server(base_server.state.models.load("tiny").speaker, drops_oldest=True) as dropping:
        assert text(dropping, prompt=ids).json()["usage"] == {"prompt_tokens": 63, "completion_tokens": 1, "total_tokens": 64}
        assert text(dropping, prompt=[*ids, ids[0]]).json()["usage"]["prompt_tokens"] == 49


# --- pages of other sites, names of this machine ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def friend(tiny_tokenizer: Tokenizer) -> Iterator[TinyServer]:
    """A server with a key that pages of SITE may ask."""
    speaker = speaker_of(lively_model(shape(context_len=64)), tiny_tokenizer)
    with tiny_server(speaker, api_key="secret", origins=frozenset({SITE})) as running:
        yield running


def test_S2_a_site_that_was_named_may_ask_and_read(friend: TinyServer) -> None:
    with friend.client() as http:
        asks = {
            "origin": SITE,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
        }
        before = http.options("/v1/chat/completions", headers=asks)
        sent = {"origin": SITE, "sec-fetch-site": "cross-site", "authorization": "Bearer secret"}
        after = http.post("/v1/chat/completions", json={**QUESTION, "max_tokens": 2}, headers=sent)
        unkeyed = http.get("/v1/models", headers={"origin": SITE, "sec-fetch-site": "cross-site"})
    assert (before.status_code, before.content) == (204, b"")
    assert before.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
    assert "POST" in before.headers["access-control-allow-methods"]
    assert (after.status_code, unkeyed.status_code) == (200, 401)
    for reply in (before, after, unkeyed):
        assert reply.headers["access-control-allow-origin"] == SITE and "origin" in reply.headers["vary"]
        assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize(
    "origin", ["http://app.example.com", f"{SITE}:444", f"{SITE}.evil.com", "https://evil.com", "null", "*", "", f"{SITE}/", SITE.upper()]
)
def test_S2_no_other_site_may(friend: TinyServer, origin: str) -> None:
    with friend.client() as http:
        key = {"origin": origin, "authorization": "Bearer secret"}
        replies = [
            http.post("/v1/chat/completions", json=QUESTION, headers=key),
            http.options("/v1/chat/completions", headers={**key, "access-control-request-method": "POST"}),
        ]
    assert [reply.status_code for reply in replies] == [403, 403]
    assert not any(name.startswith("access-control") for reply in replies for name in reply.headers)


def test_S2_two_origins_are_none_and_a_site_cannot_vouch_for_another(friend: TinyServer) -> None:
    lines = (
        f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\nOrigin: {SITE}\r\nOrigin: https://evil.com\r\n\r\n"
    )
    assert friend.exchange(lines.encode()).status == 403
    lines = f"GET /v1/models HTTP/1.1\r\nHost: evil.com\r\nAuthorization: Bearer secret\r\nOrigin: {SITE}\r\n\r\n"
    assert friend.exchange(lines.encode()).status == 403


def test_S2_what_a_preflight_asks_for_is_echoed_only_as_names(friend: TinyServer) -> None:
    with friend.client() as http:
        for wanted in ("a;b", "x" * 2000, "a:b"):
            asks = {"origin": SITE, "access-control-request-method": "POST", "access-control-request-headers": wanted}
            assert "access-control-allow-headers" not in http.options("/v1/models", headers=asks).headers
        private = {"origin": SITE, "access-control-request-method": "GET", "access-control-request-private-network": "true"}
        assert http.options("/v1/models", headers=private).headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize(
    ("flag", "name", "headers"),
    [
        ("host", "host.docker.internal", {"host": "host.docker.internal:8000"}), ("host", "my-pi.local", {"host": "My-Pi.local"}),
        ("origin", SITE, {"origin": SITE}), ("origin", "http://localhost:3000", {"origin": "http://localhost:3000"}),
    ],
)  # fmt: skip
def test_a_refusal_names_the_flag_that_would_allow_it(server: TinyServer, flag: str, name: str, headers: dict[str, str]) -> None:
    with server.client() as http:
        reply = http.get("/v1/models", headers=headers)
    assert reply.status_code == 403
    assert reply.json()["error"]["message"].endswith(f"; if it is yours, start the server with --allow_{flag} {name}")
    flags = ServeFlags(**{f"allow_{flag}": (name,)})  # the flag takes what was said
    speaker = server.state.models.load("tiny").speaker
    with tiny_server(speaker, hosts=flags.hosts, origins=frozenset(flags.allow_origin)) as told, told.client() as http:
        assert http.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["a b", "$(rm)", "x" * 300, "<b>", "a;b"])
def test_a_refusal_repeats_no_name_that_is_none(server: TinyServer, host: str) -> None:
    reply = server.exchange(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert reply.status in (400, 403) and host not in reply.json["error"]["message"]


@pytest.mark.parametrize("site", [SITE, "http://localhost:3000", "http://[::1]:8080", "app://obsidian.md", "chrome-extension://abcdef"])
def test_origins_as_browsers_send_them_are_taken(site: str) -> None:
    assert is_origin(site) and LabFlags(allow_origin=(site,)).allow_origin == (site,)


@pytest.mark.parametrize(
    "site", ["*", "null", "", "example.com", f"{SITE}/", f"{SITE}/page", "https://", "https://a b", "https://A.com", "https://x:y"]
)
def test_what_no_browser_sends_is_refused_as_an_origin(site: str) -> None:
    assert not is_origin(site)
    with pytest.raises(UsageError, match="--allow_origin"):
        NetworkFlags(allow_origin=(site,))


def test_the_openai_client_reads_several_choices(base_server: TinyServer) -> None:
    with OpenAI(base_url=f"{base_server.url}/v1", api_key="none", max_retries=0, timeout=20, http_client=base_server.client()) as client:
        reply = client.completions.create(model="tiny", prompt=["Lily", "Tom"], n=2, max_tokens=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]


# --- the key ----------------------------------------------------------------------------------------------------------------------------


def test_S3_the_key_comes_from_a_file_the_environment_or_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSITRON_API_KEY", "from-environment")
    path = tmp_path / "api.key"
    path.write_bytes(b"  from-file\r\n")
    assert NetworkFlags(host="0.0.0.0").key == "from-environment"
    assert NetworkFlags(host="0.0.0.0", api_key_file=str(path)).key == "from-file"
    assert NetworkFlags(host="0.0.0.0", api_key="from-flag").key == "from-flag"


@pytest.mark.parametrize("content", [b"", b"\n", "schlüssel".encode(), b"\xff", b"x" * 2000, None])
def test_S3_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "api.key"
    if content is not None:
        path.write_bytes(content)
    result = positron("serve", "--api_key_file", path)
    assert result.code == 2 and "--api_key_file api.key" in result.hint and result.sentence


def test_S3_two_keys_are_none(tmp_path: Path) -> None:
    result = positron("serve", "--api_key", "a", "--api_key_file", tmp_path / "x")
    assert result.code == 2 and result.sentence == "--api_key and --api_key_file both give the key"


def test_the_help_says_who_can_see_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("serve", "lab"):
        said = " ".join(positron(command, "-h").out.split())
        assert "others on this machine can see it in the list of processes" in said and "POSITRON_API_KEY" in said
