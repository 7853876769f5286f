"""The lab page's routes: what they show equals what `lens` computes, logs are read as they grow, and nothing else can be reached."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from helpers.models import lively_model, shape
from helpers.server import TinyServer, running, speaker_of, tiny_server
from positron_mini import files
from positron_mini.chat.model import Model
from positron_mini.evaluate import lens
from positron_mini.store import curve, run_logs
from positron_mini.store.checkpoint import load_model, open_checkpoint
from positron_mini.store.curve import curve_checks
from positron_mini.store.find import list_runs
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_logs import read_log
from positron_mini.store.run_record import read_record
from positron_mini.store.run_state import look
from positron_mini.store.writer import writer_of
from positron_mini.text.chat_format import Message, encode_chat
from positron_mini.text.tokenizer import BOS, Tokenizer
from positron_mini.web.run_views import run_facts
from positron_mini.web.state import Models, Served, ServerState

TEXT = "Once there was a cat. She said: 🐱\n"


@pytest.fixture(scope="module")
def speaker(tiny_tokenizer: Tokenizer) -> Model:
    return speaker_of(lively_model(shape(context_len=64)), tiny_tokenizer)


@pytest.fixture(scope="module")
def runs(workshop_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders: `base`, which is finished, and `strange`, whose run.json is of another program."""
    folder = tmp_path_factory.mktemp("lab") / "runs"
    shutil.copytree(workshop_template / "runs", folder, symlinks=True)
    (folder / "strange").mkdir()
    (folder / "strange" / "run.json").write_text('{"format": 1, "kind": ["odd"]}')
    return folder


@pytest.fixture(scope="module")
def server(speaker: Model, runs: Path) -> Iterator[TinyServer]:
    with running(ServerState(Models([Served("tiny", speaker, 0)], lambda: list_runs(runs)))) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: TinyServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def asked(client: httpx.Client, view: str, **body: Any) -> Any:
    answer = client.post(f"/lab/api/{view}", json={"model": "tiny", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: httpx.Client, view: str, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = client.post(f"/lab/api/{view}", json={"model": "tiny", **body})
    assert answer.json().keys() == {"error"} and answer.json()["error"].keys() == {"message", "type", "param", "code"}
    return answer.status_code, answer.json()["error"]


def tensor_of(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy())


# --- looking into a model ---------------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_tokenizer(client: httpx.Client, tiny_tokenizer: Tokenizer) -> None:
    tokens = asked(client, "tokens", text=TEXT)["tokens"]
    assert [token["id"] for token in tokens] == tiny_tokenizer.encode(TEXT)
    assert bytes.fromhex("".join(token["bytes"] for token in tokens)) == TEXT.encode()
    assert asked(client, "pieces", ids=[token["id"] for token in tokens])["tokens"] == tokens


def test_a_model_is_described(client: httpx.Client, speaker: Model, tiny_tokenizer: Tokenizer) -> None:
    facts = asked(client, "model")
    assert facts["parameters"] == sum(p.numel() for p in speaker.gpt.parameters())
    assert facts["end_ids"] == [2, tiny_tokenizer.im_end_id] and not set(facts["end_ids"]) & set(facts["banned_ids"])
    assert set(facts["banned_ids"]) | set(facts["end_ids"]) == {0, *tiny_tokenizer.control_ids}


def test_logits_arrive_bit_for_bit_with_the_likeliest_described(client: httpx.Client, speaker: Model, tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode("Once there")
    answer = asked(client, "next", text="Once there", then=[300, 20], top=7)
    expected = lens.next_token_distribution(speaker.gpt, [BOS, *ids, 300, 20])
    assert torch.equal(tensor_of(answer["logits"]), expected) and answer["tokens"] == len(ids) + 3
    assert [token["id"] for token in answer["candidates"]] == expected.topk(7).indices.tolist()


def test_a_question_is_put_as_the_chat_puts_it(client: httpx.Client, speaker: Model, tiny_tokenizer: Tokenizer) -> None:
    ids = encode_chat(tiny_tokenizer, [Message("user", "Who?")], add_generation_prompt=True).ids
    answer = asked(client, "next", text="Who?", as_question=True)
    assert torch.equal(tensor_of(answer["logits"]), lens.next_token_distribution(speaker.gpt, ids))


def test_surprise_is_that_of_the_scorer(client: httpx.Client, speaker: Model, tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode(TEXT)
    tokens = asked(client, "surprise", text=TEXT)["tokens"]
    assert [token["id"] for token in tokens] == ids
    assert [token["nats"] for token in tokens] == lens.surprise(speaker.gpt, [BOS, *ids])


def test_attention_maps_arrive_bit_for_bit(client: httpx.Client, speaker: Model, tiny_tokenizer: Tokenizer) -> None:
    ids = [BOS, *tiny_tokenizer.encode("Once there was")]
    answer = asked(client, "attention", text="Once there was")
    weights = tensor_of(answer["weights"]).view(answer["layers"], answer["heads"], len(ids), len(ids))
    assert torch.equal(weights, lens.attention_maps(speaker.gpt, ids)) and [token["id"] for token in answer["tokens"]] == ids


def test_the_lens_shows_every_layer(client: httpx.Client, speaker: Model, tiny_tokenizer: Tokenizer) -> None:
    ids = [BOS, *tiny_tokenizer.encode("Once there was")]
    answer = asked(client, "logit_lens", text="Once there was", k=3)
    for layer, guess in zip(answer["layers"], lens.logit_lens(speaker.gpt, ids, 3), strict=True):
        assert [[one["token"]["id"] for one in row] for row in layer["top"]] == guess.ids.tolist()
        assert [[one["p"] for one in row] for row in layer["top"]] == guess.probabilities.tolist()
        assert layer["entropy"] == guess.entropy.tolist() and layer["final"] == guess.final.tolist()


ROWS = [
    {"instruction": "Say hi.", "input": "You are Tom.", "output": "Hi!"},
    {"prompt": "Say hi.", "response": "Hi!"},
    {"question": "Hi?", "answer": "Hi!"},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi!"}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho!", "weight": 0}, {"from": "gpt", "value": "Hi!"}]},
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: next(iter(row)))
@pytest.mark.parametrize("indent", [None, 2])
def test_the_mask_of_every_shape_of_row_is_shown(client: httpx.Client, row: dict[str, Any], indent: int | None) -> None:
    tokens = asked(client, "mask", row=json.dumps(row, indent=indent))["tokens"]
    learned = [token for token in tokens if token["trained"]]
    assert "".join(token["text"] or token["piece"] for token in learned) == "Hi!<|im_end|>"
    assert tokens[0]["piece"] == "<s>" and len(learned) < len(tokens)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "the JSON is cut off"),
        ("[]", "an object is expected"),
        ('{"a": 1}', "unknown shape"),
        ('{"prompt": "a", "completion": ""}', "is empty"),
        (" ", "no line with text"),
    ],
)
def test_a_row_that_cannot_be_used_says_why_and_names_no_file(client: httpx.Client, row: str, says: str) -> None:
    status, error = refused(client, "mask", row=row)
    assert status == 400 and says in error["message"] and error["param"] == "row" and "/" not in error["message"].split(";")[0]


# --- bounds -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "body", "param"),
    [
        ("tokens", {"text": "a" * 8_001}, "text"),
        ("tokens", {"text": 5}, "text"),
        ("tokens", {"text": "a\0"}, "text"),
        ("tokens", {}, "text"),
        ("attention", {"text": "cat " * 70}, "text"),
        ("logit_lens", {"text": "cat " * 70}, "text"),
        ("logit_lens", {"text": "a", "k": 11}, "k"),
        ("next", {"text": "a", "then": [512]}, "then"),
        ("next", {"text": "a", "then": [-1]}, "then.0"),
        ("next", {"text": "a", "then": [5] * 2_049}, "then"),
        ("next", {"text": "a", "top": 501}, "top"),
        ("pieces", {"ids": [512]}, "ids"),
        ("mask", {"row": "a" * 8_001}, "row"),
        ("model", {"model": "x" * 257}, "model"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(client: httpx.Client, view: str, body: dict[str, Any], param: str) -> None:
    status, error = refused(client, view, **body)
    assert status == 400 and error["param"] == param and error["type"] == "invalid_request_error"


def test_a_long_text_is_no_trouble_where_it_is_allowed(client: httpx.Client) -> None:
    assert len(asked(client, "surprise", text="cat " * 500)["tokens"]) >= 500
    assert asked(client, "next", text="cat " * 500)["tokens"] > 500
    assert asked(client, "tokens", text="")["tokens"] == asked(client, "surprise", text="")["tokens"] == []


@pytest.mark.parametrize("view", ["model", "tokens", "next", "surprise", "attention", "logit_lens"])
@pytest.mark.parametrize("name", ["nobody", "base@7", "../base", "base/step_000020", ""])
def test_an_unknown_model_is_not_found(client: httpx.Client, view: str, name: str) -> None:
    status, error = refused(client, view, model=name, **({} if view == "model" else {"text": "a"}))
    assert status == 404 and error["code"] == "model_not_found"


def test_every_lab_route_wants_the_key(speaker: Model) -> None:
    with tiny_server(speaker, api_key="secret") as server, server.client() as client:
        for path, methods in client.get("/openapi.json", headers={"authorization": "Bearer secret"}).json()["paths"].items():
            for method in methods if path.startswith("/lab/") else ():
                url = path.replace("{name}", "base").replace("{log}", "metrics")
                assert client.request(method, url, json={} if method == "post" else None).status_code == 401
        assert client.get("/lab/api/models", headers={"authorization": "Bearer secret"}).status_code == 200


# --- runs -------------------------------------------------------------------------------------------------------------------------------


def test_every_saved_step_of_every_run_is_a_model(client: httpx.Client, runs: Path) -> None:
    models = client.get("/lab/api/models").json()["models"]
    assert [model["id"] for model in models] == ["tiny", "base", *(f"base@{step}" for step in reversed(RunFolder(runs / "base").steps()))]
    assert models[0]["step"] is None and models[-1]["step"] == 0 and models[-1]["run"] == "base"


def test_a_step_is_the_model_that_was_saved_there(client: httpx.Client, runs: Path) -> None:
    checkpoint = open_checkpoint(runs / "base" / "step_000020")
    ids = checkpoint.tokenizer.encode("Once")
    expected = lens.surprise(load_model(checkpoint), [BOS, *ids])
    found = {step: [t["nats"] for t in asked(client, "surprise", model=f"base@{step}", text="Once")["tokens"]] for step in (0, 20)}
    assert found[20] == expected and found[0] != expected
    assert asked(client, "model", model="base")["is_chat"] is False


def test_runs_are_listed_with_how_far_they_are_and_strange_ones_say_what_is_wrong(client: httpx.Client, runs: Path) -> None:
    (run, strange) = sorted(client.get("/lab/api/runs").json()["runs"], key=lambda run: run["name"])
    assert strange["name"] == "strange" and "strange/run.json" in strange["damaged"]
    recorded = read_record(runs / "base")
    assert recorded is not None and recorded.bos_share
    assert run == {
        "name": "base", "kind": "pretrain", "damaged": "", "reference": None, "vocab_size": 512, "bos_share": recorded.bos_share,
        "batch_tokens": 512, "horizon": 30, "steps": RunFolder(runs / "base").steps(), "step": 30, "is_training": False,
    }  # fmt: skip
    assert client.get("/lab/api/runs/strange/checks").status_code == 404


def test_a_run_trains_while_a_living_process_holds_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert writer_of(run.path) is None
    with run.writing():
        assert writer_of(run.path) == run.writer() == str(os.getpid())
    assert writer_of(run.path) is None
    dead = os.fork() if hasattr(os, "fork") else None
    if dead == 0:
        os._exit(0)
    if dead is not None:
        os.waitpid(dead, 0)
        files.write_json(run.path / ".lock.json", {"pid": dead})
        assert writer_of(run.path) is None
    for content in ('{"pid": "x"}', "[]", "{", '{"pid": 99999999999999999999}'):
        (run.path / ".lock.json").write_text(content)
        assert writer_of(run.path) is None


def test_a_run_whose_files_are_damaged_has_no_facts(workshop: Path) -> None:
    run = RunFolder(Path("runs/base"))
    assert run_facts(look(run.path))["step"] == 30
    with open(run.path / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 31, "lo')  # a line that is being written
    assert run_facts(look(run.path))["step"] == 30
    (run.path / "metrics.jsonl").write_text("what\n")
    assert run_facts(look(run.path))["step"] == 30  # the newest saved one
    for content in ("{", "[]", '{"format": 1, "identity": 5}', '{"format": 9}'):
        run.run_json.write_text(content)
        facts = run_facts(look(run.path))
        assert "run.json" in facts["damaged"] and facts["name"] == "base" and facts["step"] == 30


def test_a_log_read_in_parts_is_the_whole_log(client: httpx.Client, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_logs, "MAX_PART_BYTES", 700)
    for log in ("metrics", "samples"):
        rows, part = [], {"offset": 0, "version": "", "more": True}
        while part["more"]:
            url = f"/lab/api/runs/base/logs/{log}?offset={part['offset']}&version={part['version']}"
            answer = client.get(url)
            part = answer.json()
            assert len(answer.content) < 2_000
            rows += part["rows"]
        assert rows == files.read_lines(runs / "base" / f"{log}.jsonl")
        assert client.get(f"/lab/api/runs/base/logs/{log}?offset={part['offset']}&version={part['version']}").json()["rows"] == []


def test_only_whole_lines_of_a_growing_log_are_given(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_log(path, 0, "").rows == [] and not read_log(path, 0, "").more
    path.write_text('{"step": 1}\n{"step"')
    first = read_log(path, 0, "")
    assert first.rows == [{"step": 1}] and first.offset == 12 and first.restarted
    assert read_log(path, first.offset, first.version).rows == []
    with open(path, "a") as handle:
        handle.write(": 2}\n")
    second = read_log(path, first.offset, first.version)
    assert second.rows == [{"step": 2}] and not second.restarted


def test_a_log_that_was_rewritten_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, {"step": 1})
    files.append_line(path, {"step": 2})
    part = read_log(path, 0, "")
    files.write_text(path, '{"step": 1}\n{"step": 5}\n{"step": 6}\n')
    again = read_log(path, part.offset, part.version)
    assert again.restarted and [row["step"] for row in again.rows] == [1, 5, 6]
    path.unlink()
    gone = read_log(path, again.offset, again.version)
    assert gone.restarted and gone.rows == []


def test_damaged_lines_are_passed_over_and_halves_of_pairs_are_sent(server: TinyServer, client: httpx.Client, runs: Path) -> None:
    lines = ["what", "[1]", '{"loss": NaN}', "[" * 100_000, '{"text": "\\ud83d"}', '{"step": 9, "text": "ü"}']
    (runs / "base" / "events.jsonl").write_text("\n".join(lines) + "\n")
    answer = client.get("/lab/api/runs/base/logs/events")
    assert answer.status_code == 200 and answer.json()["rows"] == [{"text": "\ud83d"}, {"step": 9, "text": "ü"}]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/lab/api/runs/nobody/logs/metrics", 404),
        ("/lab/api/runs/..%2f..%2fetc/logs/metrics", 404),
        ("/lab/api/runs/%2e%2e/logs/metrics", 404),
        ("/lab/api/runs/base/logs/run.json", 400),
        ("/lab/api/runs/base/logs/..%2frun", 404),
        ("/lab/api/runs/base/logs/metrics?offset=-1", 400),
        ("/lab/api/runs/base/logs/metrics?offset=x", 400),
        ("/lab/api/runs/base/logs/metrics?offset=99999999999999999999", 400),
        (f"/lab/api/runs/base/logs/metrics?version={'1' * 65}", 400),
        (f"/lab/api/runs/base/checks?reference={'1' * 257}", 400),
        ("/lab/api/nothing", 404),
    ],
)
def test_no_path_leads_elsewhere(client: httpx.Client, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status and answer.json()["error"]["message"]


# --- is my curve normal? ----------------------------------------------------------------------------------------------------------------


def made_rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    """A calm curve from ln 512 down to 2."""
    rows = []
    for step in range(1, count + 1):
        loss = 2 + (math.log(512) - 2) * 0.9 ** (step - 1)
        rows.append(
            {"step": step, "tokens": 512 * step, "loss": loss, "tok_per_s": 1000.0, "grad_norm": 1.0, "val_loss": loss * 1.02, **changes}
        )
    return rows


def verdicts(rows: list[dict[str, Any]], **settings: Any) -> dict[str, bool | None]:
    return {check.name: check.ok for check in curve_checks(rows, 512, is_pretraining=True, **settings)}


def test_a_calm_curve_keeps_all_rules() -> None:
    rows = made_rows(100)
    assert verdicts(rows, reference=rows) == dict.fromkeys(["start", "falls", "spikes", "memorising", "pace", "reference"], True)
    assert all(check.detail.endswith(".") for check in curve_checks(rows, 512, is_pretraining=True, reference=rows))


def test_each_rule_is_broken_by_what_it_names() -> None:
    rows = made_rows(100)
    assert not verdicts([{**row, "loss": row["loss"] + 1} for row in rows])["start"]
    assert not verdicts([{**row, "loss": 7 - row["loss"]} for row in rows])["falls"]
    assert not verdicts([{**row, "loss": row["loss"] + (row["step"] == 50)} for row in rows])["spikes"]
    assert not verdicts([{**row, "val_loss": row["loss"] * 1.3} for row in rows])["memorising"]
    assert not verdicts([{**row, "tok_per_s": 1000 if row["step"] < 90 else 300} for row in rows])["pace"]
    assert not verdicts([{**row, "loss": row["loss"] * 1.2} for row in rows], reference=rows)["reference"]


def test_what_cannot_be_told_yet_stays_open() -> None:
    rows = [{key: value for key, value in row.items() if key != "val_loss"} for row in made_rows(3)]
    assert verdicts(rows) == {"start": True, "falls": None, "spikes": None, "memorising": None, "pace": None}
    assert verdicts(made_rows(30)[5:])["start"] is None
    assert verdicts(made_rows(50), reference=made_rows(20))["reference"] is None
    assert verdicts([], reference=[])["reference"] is None
    assert "start" not in {check.name for check in curve_checks(rows, 512, is_pretraining=False)}


def test_a_reference_between_two_reports_lies_on_their_line() -> None:
    reference = [{"tokens": 100 * i, "loss": 10.0 - i} for i in range(1, 9)]
    assert [curve._loss_at(reference, tokens) for tokens in (100, 250, 450, 800)] == pytest.approx([9.0, 7.5, 5.5, 2.0])
    spiky = [{**row, "loss": row["loss"] + (row["tokens"] == 400)} for row in reference]
    assert curve._loss_at(spiky, 400) == pytest.approx(6.0 + 1 / 5)
    assert curve._loss_at(reference[:1], 100) == 9.0


def test_shipped_curves_are_offered_and_held_against_a_run(
    client: httpx.Client, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve, "REFERENCE_FOLDER", tmp_path / "none")
    plain = client.get("/lab/api/runs/base/checks").json()
    assert {check["name"] for check in plain["checks"]} == {"start", "falls", "spikes", "memorising", "pace"}
    monkeypatch.setattr(curve, "REFERENCE_FOLDER", tmp_path)
    rows = files.read_lines(runs / "base" / "metrics.jsonl")
    files.write_json(tmp_path / "same.json", {"rows": rows})
    held = client.get("/lab/api/runs/base/checks?reference=same").json()
    assert held["references"] == ["same"] and held["checks"][-1]["name"] == "reference" and held["checks"][-1]["ok"] is True
    assert client.get("/lab/api/references/same").json()["rows"] == rows
    assert client.get("/lab/api/references/..%2fsame").status_code == client.get("/lab/api/references/other").status_code == 404
    assert client.get("/lab/api/runs/base/checks").json()["reference"] is None  # none fits this text
    record = RunFolder(runs / "base").read()
    assert record is not None
    stem = record.text.stem
    files.write_json(tmp_path / f"{stem}-{record.config['config']}.json", {"rows": rows})
    fitting = client.get("/lab/api/runs/base/checks").json()
    assert fitting["reference"] == f"{stem}-{record.config['config']}" and fitting["checks"][-1]["name"] == "reference"
    assert client.get("/lab/api/runs/base/checks?reference=").json()["reference"] is None
    unknown = client.get("/lab/api/runs/base/checks?reference=..%2fsame").json()
    assert len(unknown["checks"]) == 5


def test_a_run_that_took_the_name_of_another_answers_and_not_the_one_in_memory(runs: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "runs/one", tmp_path / "other"
    shutil.copytree(runs / "base", one, symlinks=True)
    shutil.copytree(one, other, symlinks=True)  # with the same steps and times
    models = Models(list_folders=lambda: list_runs(tmp_path / "runs"))
    for id in ("one", f"one@{RunFolder(one).steps()[-1]}"):
        first = models.load(id)
        assert models.load(id) is first and models.in_memory(id) is first
        one.rename(tmp_path / "away")
        assert models.in_memory(id) is first  # nothing else has its name
        other.rename(one)
        (tmp_path / "away").rename(other)
        assert models.in_memory(id) is None
        assert models.load(id) is not first
