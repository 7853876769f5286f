"""Laws of what a run leaves on the disk: one odd run is said and stays alone, logs are read in bounded memory, one rule chooses a model."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import positron_mini as pm
from helpers.runs import grown_run, listing, metric, positron, record, sample, tiny_train, write_run
from helpers.server import running
from positron_mini import files
from positron_mini.store import log_columns
from positron_mini.store.choice import by_rule, newest_base, outdated
from positron_mini.store.curve import curve_checks
from positron_mini.store.find import list_runs, newest_checkpoint
from positron_mini.store.log_columns import GrowingLog
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_logs import BLOCK_BYTES, log_end
from positron_mini.store.run_record import read_record
from positron_mini.store.run_state import RunState, look
from positron_mini.store.writer import writer_of
from positron_mini.train.finetune import find_base
from positron_mini.web.run_views import CurveChecks, run_facts
from positron_mini.web.state import Models, ServerState


def schedule(horizon: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"kind": "schedule", "step": 0, "warmup_steps": 2, "cooldown_steps": 0, "horizon": horizon, **more}]


def saved(run: Path, step: int, seconds: float) -> Path:
    """A run folder with a step in it that was saved at that time; it holds no model."""
    folder = run / f"step_{step:06d}"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    os.utime(folder / "manifest.json", (seconds, seconds))
    return run


def made(name: str, *, horizon: int | None, step: int, seconds: float, **changes: Any) -> Path:
    """A run that saved `step` of `horizon` at that time."""
    run = write_run(Path("runs") / name, metrics=[metric(step, 2.0, 1.5)], events=schedule(horizon), **changes)
    return saved(run, step, seconds)


# --- one odd run ------------------------------------------------------------------------------------------------------------------------

HUGE = 10**400
ODD_RECORDS: dict[str, Callable[[], str]] = {
    "a horizon of 400 digits": lambda: json.dumps(record(events=schedule(HUGE))),
    "a horizon of 2^63": lambda: json.dumps(record(events=schedule(2**63))),
    "a step of 5,000 digits": lambda: json.dumps(record()).replace('"step": 0', '"step": ' + "9" * 5_000),
    "a float beyond floats": lambda: json.dumps(record()).replace('"seed": 0', '"seed": 0, "lr": 1e999'),
    "a huge number in a key nobody knows": lambda: json.dumps(record(future=[{"deep": HUGE}])),
    "a batch of another type": lambda: json.dumps(record(config={"batch_tokens": "many"})),
    "a preset of another type": lambda: json.dumps(record(config={"config": 5, "dataset_path": 7})),
    "a text of another type": lambda: json.dumps(record(config={"dataset_path": ["x"]})),
    "an identity that is a number": lambda: json.dumps(record(identity=5)),
    "a shape that is a list": lambda: json.dumps(record(identity={"model": []})),
    "events that are none": lambda: json.dumps(record(events=[{"kind": "schedule"}])),
    "a kind that is none": lambda: json.dumps(record(kind=["pretrain"])),
    "nothing but brackets": lambda: "[" * 100_000,
    "not UTF-8": lambda: "\udcff",
}
ODD_LINES = [
    f'{{"step": 9, "tokens": 1, "loss": {HUGE}}}',
    f'{{"step": {2**63}}}',
    '{"step": "nine"}',
    '{"step": 9, "loss": [1]}',
    "[1]",
    "what",
    '{"step": 9, "loss": ' + "[" * 20_000,
    '{"step": 9, "text": "' + "x" * (1 << 20) + '"}',
]


def assert_shown_beside(name: str) -> None:
    """The run `name` says that it is damaged everywhere, and `fine` is shown as ever; a report of it is one sentence."""
    assert look(Path("runs") / name).damaged
    result = positron("runs", "--json")
    found = {row["run"]: row for row in json.loads(result.out)["runs"]}
    assert found["runs/fine"]["state"] == "paused" and found["runs/fine"]["val_bpb"] is not None
    assert found[f"runs/{name}"]["state"] == "damaged record" and found[f"runs/{name}"]["damaged"]
    for words in ((), ("runs",)):
        text = positron(*words)
        assert text.code == 0 and "runs/fine" in text.out and "damaged" in text.out and "unexpected" not in text.err
    report = positron("report", "--run", f"runs/{name}")
    assert report.code == 1 and name in report.sentence and "unexpected" not in report.err


@pytest.mark.parametrize("what", ODD_RECORDS)
def test_O1_an_odd_record_is_said_for_its_run_and_takes_no_other_down(empty: Path, what: str) -> None:
    grown_run(Path("runs/fine"), 100)
    saved(Path("runs/fine"), 100, 1e9)
    odd = grown_run(Path("runs/odd"), 100)
    (odd / "run.json").write_text(ODD_RECORDS[what](), errors="surrogateescape")
    assert_shown_beside("odd")


@pytest.mark.parametrize("line", ODD_LINES, ids=range(len(ODD_LINES)))
def test_O1_an_odd_line_of_a_log_is_said_for_its_run_and_takes_no_other_down(empty: Path, line: str) -> None:
    grown_run(Path("runs/fine"), 100)
    saved(Path("runs/fine"), 100, 1e9)
    log = grown_run(Path("runs/odd"), 100) / "metrics.jsonl"
    *before, last = log.read_text().splitlines()
    log.write_text("\n".join([*before, line, last]) + "\n")
    assert_shown_beside("odd")


@pytest.mark.parametrize("log", ["samples", "skills", "events", "stories"])
def test_O1_a_number_that_nothing_counts_to_in_any_log_is_one_sentence_of_the_report(empty: Path, log: str) -> None:
    path = grown_run(Path("runs/odd"), 100) / f"{log}.jsonl"
    first = path.read_text().splitlines()[:1] if path.exists() else []
    for value in (str(HUGE), "1e999", '"x"'):
        line = ", ".join(f'"{name}": {value}' for name in ("peak_bytes", "story_bpb", "accuracy", "seconds", "seed"))
        line = f'{{"step": 3, "kind": "memory", "skill": "x", "prompt": "x", {line}}}'
        path.write_text("\n".join([*first, line, line]) + "\n")
        result = positron("report", "--run", "runs/odd", "--json")
        assert result.code in (0, 1) and "unexpected" not in result.err, result.err
        assert result.code == 0 or (f"{log}.jsonl, line" in result.sentence and result.hint)


def test_O1_the_lab_lists_every_run_also_the_odd_ones(empty: Path) -> None:
    for i, content in enumerate(ODD_RECORDS.values()):
        run = write_run(Path(f"runs/odd{i}"))
        (run / "run.json").write_text(content(), errors="surrogateescape")
    saved(grown_run(Path("runs/fine"), 30), 30, 1e9)
    log = grown_run(Path("runs/lines"), 30) / "metrics.jsonl"
    log.write_text("\n".join([f'{{"step": 3, "loss": {HUGE}}}'] * 3) + "\n")
    with running(ServerState(Models(list_folders=lambda: list_runs(Path("runs"))))) as server, server.client() as client:
        answer = client.get("/lab/api/runs")
        assert answer.status_code == 200
        runs = {run["name"]: run for run in answer.json()["runs"]}
        assert len(runs) == len(ODD_RECORDS) + 2 and runs["fine"]["damaged"] == "" and runs["fine"]["step"] == 30
        assert all(run["damaged"] for name, run in runs.items() if name != "fine")
        assert client.get("/lab/api/models").status_code == 200 and client.get("/v1/models").status_code == 200
        for name in runs:
            assert client.get(f"/lab/api/runs/{name}/checks").status_code == (200 if name == "fine" else 404)
        infinite = '{"step": 3, "loss": 1e999}\n{"step": 4, "loss": 1.5}\n'
        (Path("runs/fine") / "events.jsonl").write_text(infinite)
        assert client.get("/lab/api/runs/fine/logs/events").json()["rows"] == [{"step": 4, "loss": 1.5}]


@pytest.mark.parametrize("what", [name for name in ODD_RECORDS if name not in ("a shape that is a list",)])
def test_O1_training_refuses_a_damaged_record_in_one_sentence(workshop: Path, what: str) -> None:
    path = Path("runs/base/run.json")
    path.write_text(ODD_RECORDS[what](), errors="surrogateescape")
    before = listing(Path("runs"))
    result = tiny_train("runs/base", "--max_steps", "31")
    assert result.code == 1 and "runs/base/run.json" in result.sentence and listing(Path("runs")) == before


def test_a_damaged_last_line_is_what_a_crash_left_and_takes_nothing_down(empty: Path) -> None:
    log = grown_run(Path("runs/fine"), 30) / "metrics.jsonl"
    for rest in ('{"step": 31, "lo', '{"step": 31, "lo\n'):
        whole = log.read_bytes()
        log.write_bytes(whole + rest.encode())
        state = look(Path("runs/fine"))
        assert not state.damaged and state.end.step == 30
        assert positron("report", "--run", "runs/fine").code == 0
        log.write_bytes(whole)


# --- the record -------------------------------------------------------------------------------------------------------------------------


def test_a_record_that_is_read_and_written_is_the_same_file_and_keeps_what_a_newer_version_wrote(workshop: Path) -> None:
    path = Path("runs/base/run.json")
    whole = path.read_bytes()
    found = read_record(path.parent)
    assert found is not None
    found.write(path.parent)
    assert path.read_bytes() == whole
    keys = ["format", "kind", "identity", "config", "device", "versions", "events", "started", "command", "bos_share"]
    data = json.loads(whole)
    assert list(data) == keys
    path.write_text(json.dumps({**data, "future": {"a": [1, None]}}))
    assert tiny_train("runs/base", "--max_steps", "30", "--resume_from_step", "25").code == 0
    again = json.loads(path.read_text())
    assert list(again) == [*keys, "future"] and again["future"] == {"a": [1, None]} and again["identity"] == data["identity"]


@pytest.mark.parametrize("name", ["identity", "config", "device", "versions", "events", "command"])
def test_a_record_without_a_part_is_listed_and_not_trained_on(workshop: Path, name: str) -> None:
    path = Path("runs/base/run.json")
    data = json.loads(path.read_text())
    del data[name]
    path.write_text(json.dumps(data))
    assert not look(path.parent).damaged
    result = positron("train", "--out_dir", "runs/base", "--dataset_path", "text.txt", "--tokenizer_path", "spm.model")
    assert result.code == 1 and f"damaged ({name}" in result.sentence


def test_an_export_of_a_run_with_a_damaged_log_still_has_a_card(workshop: Path) -> None:
    Path("runs/base/metrics.jsonl").write_text("what\n" * 3)
    result = positron("export", "--ckpt", "runs/base", "--out", "out/x.gguf")
    assert result.code == 0 and "| step | 30 |" in Path("out/README.md").read_text(), result.err


# --- how far --------------------------------------------------------------------------------------------------------------------------


def test_positron_and_runs_tell_the_same_step_and_both_where_the_log_is_further(empty: Path) -> None:
    run = write_run(Path("runs/x"), metrics=[metric(step, 2.0) for step in range(1, 444)], events=schedule(3_266))
    saved(run, 400, 1e9)
    (row,) = json.loads(positron("runs", "--json").out)["runs"]
    assert (row["step"], row["trained"]) == (400, 443)
    for words in ((), ("runs",)):
        text = positron(*words).out
        assert "trained to 443" in text and "saved 400" in text
    (run / "step_000400").rename(run / "step_000443")
    (row,) = json.loads(positron("runs", "--json").out)["runs"]
    assert (row["step"], row["trained"]) == (443, 443)
    assert "step 443 of 3,266" in positron().out and "step 443/3,266" in positron("runs").out


@pytest.mark.parametrize("lines", [1, 2, 700, 3_000])
def test_the_end_of_a_log_is_that_of_all_of_it_wherever_blocks_begin(tmp_path: Path, lines: int) -> None:
    rows = [metric(step, 4 - step / lines, 1.5 + step if step in (1, 5) else None) for step in range(1, lines + 1)]
    run = write_run(tmp_path / "r", metrics=rows)
    end = log_end(run)
    scored = [row["val_bpb"] for row in rows if "val_bpb" in row]
    assert (end.step, end.loss, end.elapsed_s, end.val_bpb) == (lines, rows[-1]["loss"], float(lines), scored[-1])
    if lines == 3_000:
        assert (run / "metrics.jsonl").stat().st_size > 2 * BLOCK_BYTES


def test_the_end_of_a_long_log_is_read_in_little_memory(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", metrics=[metric(1, 4.0, 2.0)])
    with open(run / "metrics.jsonl", "a") as log:
        log.writelines(json.dumps(metric(step, 3.0)) + "\n" for step in range(2, 60_000))
    tracemalloc.start()
    try:
        end = log_end(run)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (end.step, end.val_bpb) == (59_999, 2.0)
    assert peak < 16 * BLOCK_BYTES < (run / "metrics.jsonl").stat().st_size


# --- a long log in the lab --------------------------------------------------------------------------------------------------------------


def long_log(run: Path, lines: int) -> list[dict[str, Any]]:
    rows = [metric(step, 3 + 100 / (step + 10) + step % 7 / 50, 1.5 if step % 100 == 0 else None) for step in range(1, lines + 1)]
    write_run(run, metrics=rows)
    return rows


def test_O2_the_checks_of_columns_are_those_of_all_rows(tmp_path: Path) -> None:
    rows = long_log(tmp_path / "r", 1_000)
    columns = GrowingLog(tmp_path / "r/metrics.jsonl").refresh()
    assert len(columns) == 1_000 and [row["loss"] for row in columns] == [row["loss"] for row in rows]
    for reference in (None, rows[:500], rows):
        for is_pretraining in (True, False):
            wanted = curve_checks(rows, 512, is_pretraining=is_pretraining, reference=reference)
            assert curve_checks(columns, 512, is_pretraining=is_pretraining, reference=reference) == wanted


def test_O2_six_who_ask_at_once_read_a_long_log_once_and_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = 60_000
    long_log(tmp_path / "r", lines)
    size = (tmp_path / "r/metrics.jsonl").stat().st_size
    parsed, parse = [0], log_columns.parse_row

    def counted(line: bytes) -> dict[str, Any]:
        parsed[0] += 1
        return parse(line)

    monkeypatch.setattr(log_columns, "parse_row", counted)
    checks, facts, found = CurveChecks(), run_facts(look(tmp_path / "r")), []
    tracemalloc.start()
    try:
        asking = [threading.Thread(target=lambda: found.append(checks.of(tmp_path / "r", facts, None))) for _ in range(6)]
        for each in asking:
            each.start()
        for each in asking:
            each.join()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert parsed[0] == lines and len(found) == 6 and all(each == found[0] and each for each in found)
    assert peak < 250 * lines < 2 * size  # as dicts a line took a thousand bytes, for each who asked
    with open(tmp_path / "r/metrics.jsonl", "a") as log:
        log.write(json.dumps(metric(lines + 1, 90.0)) + "\n")
    again = checks.of(tmp_path / "r", facts, None)
    assert parsed[0] == lines + 1 and next(check for check in again if check.name == "spikes").ok is False


def test_O2_no_more_than_a_few_curves_stay_in_memory(tmp_path: Path) -> None:
    checks = CurveChecks()
    for i in range(12):
        run = write_run(tmp_path / str(i), metrics=[metric(1, 4.0)])
        assert checks.of(run, run_facts(look(run)), None)
    assert len(checks._logs) == len(checks._answers) == 4


def test_O2_a_log_that_was_rewritten_is_read_anew_even_as_the_same_file(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", metrics=[metric(1, 4.0), metric(2, 3.0)]) / "metrics.jsonl"
    log = GrowingLog(path)
    assert [row["loss"] for row in log.refresh()] == [4.0, 3.0]
    with open(path, "r+") as handle:  # the same inode, as long as before and then longer
        handle.write("".join(json.dumps(metric(step, 7.0)) + "\n" for step in (1, 2, 3)))
    assert [row["loss"] for row in log.refresh()] == [7.0, 7.0, 7.0]
    path.unlink()
    assert len(log.refresh()) == 0
    path.write_text(json.dumps(metric(1, 5.0)) + "\n" + '{"step": 2')
    assert [row["loss"] for row in log.refresh()] == [5.0]


def test_O2_what_is_no_report_is_left_out_of_the_checks(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", metrics=[metric(1, 4.0)]) / "metrics.jsonl"
    bad = [*ODD_LINES, '{"step": 1.5, "tokens": 1, "loss": 1, "tok_per_s": 1}', '{"step": 2, "tokens": 1, "loss": NaN, "tok_per_s": 1}', ""]
    path.write_text(path.read_text() + "\n".join(bad) + "\n" + json.dumps({**metric(2, 3.0), "val_loss": "x"}) + "\n")
    assert list(GrowingLog(path).refresh()) == [
        {"step": 1, "tokens": 512, "loss": 4.0, "tok_per_s": 1000.0},
        {"step": 2, "tokens": 1024, "loss": 3.0, "tok_per_s": 1000.0},
    ]


# --- fine-tuned runs in the lab ---------------------------------------------------------------------------------------------------------


def lab_of(client: httpx.Client) -> tuple[dict[str, Any], dict[str, Any]]:
    """The runs and the models of a lab, by name and id."""
    runs, models = (client.get(f"/lab/api/{what}").json()[what] for what in ("runs", "models"))
    return {run["name"]: run for run in runs}, {model["id"]: model for model in models}


def test_O5_a_fine_tuning_is_in_the_lab_from_its_first_line_on_and_known_for_what_it_is_without_loading_it(empty: Path) -> None:
    made("book", horizon=30, step=30, seconds=1e9)
    tuned = write_run(Path("runs/book-sft"), kind="sft", identity={"base": "c" * 64}, config={"lr": 1e-3}, events=schedule(12))
    (tuned / "metrics.jsonl").write_text(json.dumps(metric(1, 2.0)) + "\n")
    models = Models(list_folders=lambda: [state.path for state in pm.runs(Path("runs"))])
    with running(ServerState(models)) as server, server.client() as client, RunFolder(tuned).writing():
        runs, there = lab_of(client)
        assert runs["book-sft"] | {"kind": "sft", "is_training": True, "step": 1, "horizon": 12, "damaged": ""} == runs["book-sft"]
        assert client.get("/lab/api/runs/book-sft/checks").json()["checks"] and list(there) == ["book", "book@30"]
        saved(tuned, 12, 2e9)
        runs, there = lab_of(client)
        assert list(there) == ["book-sft", "book-sft@12", "book", "book@30"]  # what talks comes first
        assert [there[id]["is_chat"] for id in there] == [True, True, False, False]
        assert there["book-sft"]["about"] == "fine-tuned, step 12 of 12" and there["book"]["about"] == "base, step 30 of 30"
        (tuned / "run.json").write_text("[")
        (tuned / "step_000012/chat_template.jinja").write_text("")
        assert lab_of(client)[1]["book-sft"]["is_chat"] is True  # its folder says so without the record
        assert models.in_memory("book-sft") is None


# --- which model ------------------------------------------------------------------------------------------------------------------------


def chosen(*, talks: bool) -> list[str]:
    return [state.path.name for state in by_rule([look(path) for path in list_runs()], talks=talks)]


def test_a_run_that_was_stopped_early_does_not_hide_a_finished_one(empty: Path) -> None:
    made("done", horizon=30, step=30, seconds=1_000)
    made("older", horizon=20, step=20, seconds=500)
    made("stopped", horizon=5_000, step=3, seconds=9_000)
    made("open", horizon=None, step=900, seconds=8_000)
    write_run(Path("runs/begun"), events=schedule(30))
    made("odd", horizon=30, step=30, seconds=9_999)
    Path("runs/odd/run.json").write_text("[")
    assert chosen(talks=False) == chosen(talks=True) == ["done", "older", "stopped", "open"]
    made("tuned-early", horizon=50, step=2, seconds=9_500, kind="sft", config={})
    assert chosen(talks=True) == ["done", "older", "tuned-early", "stopped", "open"]
    made("tuned", horizon=50, step=50, seconds=100, kind="sft", config={})
    assert chosen(talks=True)[:2] == ["tuned", "done"] and chosen(talks=False)[:3] == ["done", "older", "tuned"]
    base = newest_base()
    assert base is not None and base.path.name == "done"
    shutil.rmtree("runs/tuned")
    shutil.rmtree("runs/done")
    shutil.rmtree("runs/older")
    assert chosen(talks=False) == ["tuned-early", "stopped", "open"]  # none is finished: the newest


def test_a_run_counts_from_its_end_and_not_from_its_start(empty: Path) -> None:
    made("slow", horizon=30, step=30, seconds=2_000)
    made("quick", horizon=30, step=30, seconds=1_000)
    for name, start in (("slow", 100), ("quick", 900)):  # the slow one began first and ended last
        os.utime(f"runs/{name}/run.json", (start, start))
    assert chosen(talks=False) == ["slow", "quick"]


@pytest.fixture
def crowded(workshop: Path) -> Path:
    """A workshop in which a run of 3 steps was stopped after the finished one, and where another is damaged."""
    assert tiny_train("runs/stopped", "--max_steps", "30", "--until_step", "3").code == 0
    Path("runs/odd").mkdir()
    Path("runs/odd/run.json").write_text("[")
    return workshop


def test_every_command_that_names_no_model_takes_the_finished_one_and_says_so(crowded: Path) -> None:
    said = "model: runs/base/step_000030 (base, step 30 of 30)"
    tell = ("--prompt", "Lily", "--max_tokens", "2", "--temperature", "0")
    for words, stdin in (
        (("generate", *tell), b""),
        (("score",), b"Lily saw a dog.\n"),
        (("eval", "--text", "text.txt"), b""),
        (("export", "--format", "hf", "--out", "out"), b""),
        (("chat",), b"Lily saw\n"),
    ):
        result = positron(*words, stdin=stdin)
        assert result.code == 0 and result.err.count(said) == 1 and said not in result.out, (words, result.err)
    assert positron("generate", *tell).out == positron("generate", "--ckpt", "runs/base", *tell).out
    assert said not in positron("generate", "--ckpt", "runs/base", *tell).err
    assert "ask runs/base (base, step 30 of 30)" in positron().out
    told: list[str] = []
    assert find_base(None, told.append).step == 30 and told[-1] == "base model: runs/base (base, step 30 of 30)"
    assert newest_checkpoint(talks=True).step == 30


def test_a_question_is_answered_alone_unless_the_model_may_be_another_than_a_person_expects(crowded: Path) -> None:
    assert "model: runs/" not in positron("chat", "Lily").err
    shutil.rmtree("runs/base")
    assert "model: runs/stopped/step_000003 (base, step 3 of 30, not finished)" in positron("chat", "Lily").err


def test_without_a_usable_model_every_command_says_so(empty: Path) -> None:
    for words in (("generate",), ("score",), ("eval", "--text", "x"), ("export",), ("chat", "x")):
        result = positron(*words)
        assert result.code == 1 and "there is no trained model in runs" in result.sentence and result.hint


def test_a_fine_tuning_of_an_older_base_is_told_from_one_of_the_newest(empty: Path) -> None:
    made("x", horizon=30, step=30, seconds=1_000)
    base = {"base_ckpt": "runs/x/step_000030"}
    tuned = look(made("x-sft", horizon=9, step=9, seconds=2_000, kind="sft", config=base))
    assert outdated(tuned, newest_base()) == ""
    made("early", horizon=30, step=3, seconds=9_000)
    assert outdated(tuned, newest_base()) == ""
    made("y", horizon=30, step=30, seconds=3_000)
    said = "fine-tuned from runs/x, which is older than runs/y: positron quicksft teaches the newer one"
    assert outdated(tuned, newest_base()) == said and said in positron().out
    assert outdated(look(Path("runs/x")), newest_base()) == ""
    shutil.rmtree("runs/x")
    assert outdated(tuned, newest_base()) == said


# --- is somebody training here? ---------------------------------------------------------------------------------------------------------


def test_who_only_looks_is_never_taken_for_a_training_and_keeps_none_from_starting(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.writing():
        assert writer_of(run.path) == str(os.getpid())
    files.write_json(run.path / ".lock.json", {"pid": 1})  # as a killed process leaves it; its number is a living one's by now
    with open(run.path / ".lock") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # another who looks, at the same moment
        assert writer_of(run.path) is None
        threading.Timer(0.05, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        with run.writing():  # waits for those who look
            assert writer_of(run.path) == str(os.getpid())


def test_looking_at_a_run_writes_nothing(workshop: Path) -> None:
    files.write_json(Path("runs/base/.lock.json"), {"pid": 1})
    before = listing(Path("runs"))
    assert look(Path("runs/base")).writer is None and isinstance(look(Path("runs/none")), RunState)
    assert listing(Path("runs")) == before


def test_a_lock_that_is_a_link_or_a_pipe_is_nobody(tmp_path: Path) -> None:
    write_run(tmp_path / "r", samples=[sample(0, "x")])
    files.write_json(tmp_path / "r/.lock.json", {"pid": 1})
    (tmp_path / "r/.lock").symlink_to(tmp_path / "r/run.json")
    assert writer_of(tmp_path / "r") is None
    (tmp_path / "r/.lock").unlink()
    os.mkfifo(tmp_path / "r/.lock")
    assert writer_of(tmp_path / "r") is None
