"""The contract of the command line: results on stdout, progress on stderr, names that programs may rely on, answers at once."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.project import ROOT
from helpers.runs import SEPARATOR, TINY, positron, spawn, tiny_train
from positron_mini import __version__
from positron_mini.cli import COMMANDS, main
from positron_mini.cli.completion import help_of
from positron_mini.cli.generate import printable
from positron_mini.cli.progress import plain_line
from positron_mini.evaluate.bits import line_logprobs
from positron_mini.generate import generate
from positron_mini.store.checkpoint import load_model
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_logs import StepReport

GENERATION_KEYS = {"text", "token_ids", "prompt_token_ids", "finish_reason", "tok_per_s", "first_token_s"}


# --- help and start-up ------------------------------------------------------------------------------------------------------------------


def test_help_answers_in_four_tenths_of_a_second_as_a_whole_process() -> None:
    resource = pytest.importorskip("resource")

    def of_children() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    command = [sys.executable, "-m", "positron_mini", "--help"]
    seconds = []
    for _ in range(5):
        before = of_children()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        seconds.append(of_children() - before)  # of computing, which is all it does: a busy machine adds waiting
    assert done.stdout.startswith("usage: positron COMMAND") and done.stderr == ""
    assert min(seconds) < 0.4, seconds


LOADED = """
import contextlib, io, sys
from positron_mini.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    code = main(sys.argv[1:])
print(code, *sorted({name.split(".")[0] for name in sys.modules} & {"torch", "numpy", "tyro", "rich", "sentencepiece", "safetensors"}))
"""


@pytest.mark.parametrize(("words", "expected"), [(["--help"], "0"), ([], "0"), (["--version"], "0"), (["help"], "0"), (["tarin"], "2")])
def test_help_version_and_a_wrong_command_import_nothing_heavy(words: list[str], expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]


def test_help_names_every_command_and_every_command_has_help() -> None:
    text = positron("--help").out
    assert all(re.search(rf"^  {name}  +\w", text, re.MULTILINE) for name in COMMANDS)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", ["train", "generate", "score", "eval", "runs", "info"])
def test_the_help_of_a_command_goes_to_stdout_and_explains_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "-h"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and err == "" and out.startswith(f"usage: positron {command}")
    flags = re.findall(r"^[│ ] (?:-h, )?(--\w+)", out, re.MULTILINE)
    assert len(flags) >= 3
    blocks = re.split(r"^[│ ] (?:-h, )?--\w+", out, flags=re.MULTILINE)[1:]
    assert all(len(re.findall(r"[a-z]{2,}", block)) >= 2 for block in blocks)


def test_train_help_shows_snake_case_flags_with_defaults() -> None:
    done = subprocess.run([sys.executable, "-m", "positron_mini", "train", "-h"], cwd=ROOT, capture_output=True, text=True, check=True)
    for flag in ("--dataset_path", "--batch_tokens", "--max_steps", "--until_step", "--more_steps", "--resume_from_step", "--finish"):
        assert flag in done.stdout
    assert "--batch-tokens" not in done.stdout and done.stderr == ""


def test_help_does_not_show_what_the_parser_makes_of_a_flag_that_may_be_left_out() -> None:
    for command in ("train", "bench", "eval"):
        text = help_of(command)
        assert "None" not in text and re.search(r"--threads INT ", text)
    assert "--suite {skills,stories,reading,requests}" in help_of("eval")


def test_the_version_is_the_package_s() -> None:
    for flag in ("--version", "-V"):
        assert positron(flag).out == f"positron-mini {__version__}\n"


@pytest.mark.parametrize(("word", "meant"), [("tarin", "train"), ("genrate", "generate"), ("scores", "score"), ("run", "runs")])
def test_an_unknown_command_suggests_the_nearest(word: str, meant: str) -> None:
    result = positron(word)
    assert result.code == 2 and f"unknown command {word!r}" in result.sentence and result.hint == f"positron {meant} -h"
    assert positron("xyzzy").hint == "positron --help" and result.out == ""


# --- train ------------------------------------------------------------------------------------------------------------------------------


def test_train_writes_progress_to_stderr_and_nothing_to_stdout(workshop: Path) -> None:
    result = tiny_train("runs/new", "--max_steps", "12")
    assert result.code == 0 and result.out == ""
    lines = result.err.splitlines()
    assert lines[0].startswith("model      PicoGPT, ") and any(line.startswith("device     cpu, fp32") for line in lines)
    shape = r"\[step \d+/12\]  loss=\d\.\d{3}  lr=\d\.\d\de-\d\d  [\d,]+ tok/s(  val_loss=\d\.\d{3}  bits_per_byte=\d\.\d{3})?"
    steps = [line for line in lines if line.startswith("[step")]
    assert all(re.fullmatch(shape, line) for line in steps)
    assert [line.split("/")[0] for line in steps] == ["[step 1", "[step 10", "[step 12"]
    assert any("finished at step 12" in line for line in lines)


def test_a_progress_line_has_the_promised_shape() -> None:
    report = StepReport(500, 100, 6.2341, 3e-4, 1.0, 7200.4, 9.0)
    assert plain_line(report, 5000) == "[step 500/5000]  loss=6.234  lr=3.00e-04  7,200 tok/s"
    assert plain_line(report, None) == "[step 500]  loss=6.234  lr=3.00e-04  7,200 tok/s"


def test_kebab_case_equals_snake_case(workshop: Path) -> None:
    kebab = [word.replace("_", "-") if word.startswith("--") else word for word in TINY]
    assert positron("train", *kebab, "--threads", "1", "--out-dir=runs/kebab", "--max-steps=30", "--until-step", "5").code == 0
    assert positron("train", "--out-dir", "runs/kebab", "--lr", "1e-3").code == 1  # what is spelled out must agree, in kebab-case too
    assert positron("train", "--out-dir", "runs/kebab", "--batch-tokens", "1024").code == 1
    assert tiny_train("runs/kebab", "--max_steps", "30", "--until_step", "6").code == 0


def test_a_finished_run_says_so_and_exits_0_as_a_whole_process(workshop: Path) -> None:
    process = spawn("train", "--out_dir", "runs/base")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "" and "this run is finished" in err


# --- generate ---------------------------------------------------------------------------------------------------------------------------


def test_generate_prints_the_prompt_and_its_continuation_and_nothing_else(workshop: Path) -> None:
    words = ("generate", "--ckpt", "runs/base/latest.pt", "--prompt", "Lily saw", "--max_tokens", "12", "--temperature", "0")
    result = positron(*words)
    data = json.loads(positron(*words, "--json").out)
    assert result.code == 0 and result.out == f"Lily saw{printable(data['text'])}\n" and result.err == ""


def test_generate_json_is_one_object_with_the_promised_keys(workshop: Path) -> None:
    result = positron("generate", "--ckpt", "runs/base", "--prompt", "Once", "--max_tokens", "6", "--seed", "3", "--json")
    data = json.loads(result.out)
    assert result.out.count("\n") == 1 and set(data) == GENERATION_KEYS and result.err == ""
    tokenizer = find_checkpoint("runs/base").tokenizer
    assert data["prompt_token_ids"] == [1, *tokenizer.encode("Once")]
    assert data["finish_reason"] in ("stop", "length") and len(data["token_ids"]) <= 6
    assert not data["text"].startswith("Once") and data["tok_per_s"] > 0 and data["first_token_s"] >= 0


def test_n_samples_are_an_object_of_samples_each_by_its_own_seed(workshop: Path) -> None:
    words = ("generate", "--ckpt", "runs/base", "--max_tokens", "8", "--temperature", "1", "--seed", "4", "--json")
    data = json.loads(positron(*words, "--n", "2").out)
    assert set(data) == {"samples"} and [set(sample) for sample in data["samples"]] == [GENERATION_KEYS] * 2
    one = json.loads(positron(*words).out)
    assert one["token_ids"] == data["samples"][0]["token_ids"] != data["samples"][1]["token_ids"]


def test_a_prompt_may_come_from_stdin_and_stop_strings_may_be_many(workshop: Path) -> None:
    base = ("generate", "--ckpt", "runs/base", "--max_tokens", "30", "--temperature", "0", "--json")
    told = json.loads(positron(*base, "--prompt", "-", stdin=b"Tom had").out)
    assert told["token_ids"] == json.loads(positron(*base, "--prompt", "Tom had").out)["token_ids"]
    stop = told["text"][4:6]
    stopped = json.loads(positron(*base, "--prompt", "Tom had", "--stop", "zzz", "--stop", stop).out)
    assert stopped["text"] == told["text"][: told["text"].index(stop)] and stopped["finish_reason"] == "stop"


def test_the_command_line_draws_what_python_draws(workshop: Path) -> None:
    from positron_mini.config import SampleConfig

    words = ("--top_k", "20", "--top_p", "0.9", "--min_p", "0.01", "--repetition_penalty", "1.1", "--temperature", "0.8", "--seed", "9")
    data = json.loads(positron("generate", "--ckpt", "runs/base", "--prompt", "Mia", "--max_tokens", "10", *words, "--json").out)
    checkpoint = find_checkpoint("runs/base")
    config = SampleConfig(max_tokens=10, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.1, seed=9)
    assert data["token_ids"] == generate(load_model(checkpoint), checkpoint.tokenizer, "Mia", config)[0].token_ids


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07\x9b\x7f\r\n\tc — é…") == "a[31mb\n\tc — é…"


# --- score and eval ---------------------------------------------------------------------------------------------------------------------


def test_score_answers_every_line_split_on_newlines_only(workshop: Path) -> None:
    lines = ["Lily saw a dog.", "", "a\u2028b\x0bc\x1dd\u0085e\x0cf", "  spaced", "naïve — café", "x"]
    result = positron("score", "--ckpt", "runs/base", "--json", stdin="\n".join(lines).encode())
    rows = [json.loads(line) for line in result.out.split("\n")[:-1]]
    assert [row["text"] for row in rows] == lines and all(set(row) == {"text", "logprob", "tokens"} for row in rows)
    checkpoint = find_checkpoint("runs/base")
    expected = line_logprobs(load_model(checkpoint), checkpoint.tokenizer, lines)
    assert [(row["logprob"], row["tokens"]) for row in rows] == [(pytest.approx(logprob), count) for logprob, count in expected]
    assert rows[1] == {"text": "", "logprob": 0.0, "tokens": 0}
    assert all(row["tokens"] == len(checkpoint.tokenizer.encode(row["text"])) for row in rows)


@pytest.mark.parametrize(("stdin", "count"), [(b"", 0), (b"\n", 1), (b"a", 1), (b"a\n", 1), (b"a\n\n", 2), (b"a\nb", 2)])
def test_the_end_of_the_last_line_is_not_a_line(workshop: Path, stdin: bytes, count: int) -> None:
    result = positron("score", "--ckpt", "runs/base", stdin=stdin)
    assert result.code == 0 and len(result.out.splitlines()) == count


WINDOWS = ["  Lily saw a dog.", "", "naïve — café", "x "]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_score_reads_lines_of_windows_as_any_others(workshop: Path, mark: bytes, end: str) -> None:
    plain = positron("score", "--ckpt", "runs/base", stdin="\n".join(WINDOWS).encode())
    windows = positron("score", "--ckpt", "runs/base", stdin=mark + ("\r\n".join(WINDOWS) + end).encode())
    assert windows.out == plain.out and [json.loads(line)["text"] for line in plain.out.splitlines()] == WINDOWS


def test_score_mends_within_a_line_what_prepare_mends_and_says_what_it_scored(workshop: Path) -> None:
    result = positron("score", "--ckpt", "runs/base", stdin=b"a\rb\r\r\nc\x00d\xe2\x96\x81e\n")
    assert [json.loads(line)["text"] for line in result.out.splitlines()] == ["a\nb\n", "cd e"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
@pytest.mark.parametrize("command", ["score", "generate"])
def test_text_that_is_not_utf_8_is_refused_with_the_way_to_convert_it(workshop: Path, command: str, encoding: str) -> None:
    prompt = ("--prompt", "-") if command == "generate" else ()
    result = positron(command, "--ckpt", "runs/base", *prompt, stdin="Größe\n".encode(encoding))
    assert result.code == 1 and "iconv" in result.hint and "not" in result.sentence and "UTF-8" in result.sentence


@pytest.mark.parametrize("stdin", [b"Lily saw\r\na dog", b"Lily saw\ra dog", b"\xef\xbb\xbfLily saw\na dog"])
def test_a_prompt_from_stdin_has_newlines_of_one_kind(workshop: Path, stdin: bytes) -> None:
    words = ("generate", "--ckpt", "runs/base", "--prompt", "-", "--max_tokens", "3", "--json")
    ids = [json.loads(positron(*words, stdin=given).out)["prompt_token_ids"] for given in (stdin, b"Lily saw\na dog")]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(("mark", "end"), [(b"", "\r\n"), (b"", "\r"), (b"\xef\xbb\xbf", "\n"), (b"\xef\xbb\xbf", "\r\n")])
@pytest.mark.parametrize("separator", ["<|endoftext|>", ""])
def test_eval_reads_line_ends_of_any_system_alike(workshop: Path, mark: bytes, end: str, separator: str) -> None:
    text = f"Lily saw a dog.\nShe ran.\n{separator}\nTom had a ball.\n"
    Path("plain.txt").write_bytes(text.encode())
    Path("other.txt").write_bytes(mark + text.replace("\n", end).encode())
    words = ("eval", "--ckpt", "runs/base", "--json", "--text")
    assert json.loads(positron(*words, "plain.txt").out) == json.loads(positron(*words, "other.txt").out)
    assert json.loads(positron(*words, "plain.txt").out)["documents"] == 2


def test_eval_counts_every_document_and_byte_and_agrees_with_score(workshop: Path) -> None:
    texts = ["Lily saw a big dog.", "Tom had a ball.\nHe was happy."]
    Path("two.txt").write_text(SEPARATOR.join(texts))
    result = positron("eval", "--ckpt", "runs/base/step_000030", "--text", "two.txt", "--json")
    data = json.loads(result.out)
    assert set(data) == {"loss", "bits_per_byte", "tokens", "bytes", "documents"} and result.out.count("\n") == 1
    tokenizer = find_checkpoint("runs/base").tokenizer
    assert (data["documents"], data["bytes"]) == (2, sum(len(text.encode()) for text in texts))
    assert data["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in texts)  # eos is predicted, bos is not
    assert data["bits_per_byte"] == pytest.approx(data["loss"] * data["tokens"] / data["bytes"] / math.log(2))
    assert f"{data['loss']:.4f} nats per token" in positron("eval", "--ckpt", "runs/base", "--text", "two.txt").out


# --- runs and info ----------------------------------------------------------------------------------------------------------------------


def test_runs_lists_what_there_is(workshop: Path) -> None:
    (row,) = json.loads(positron("runs", "--json").out)["runs"]
    assert (row["run"], row["kind"], row["step"], row["horizon"]) == ("runs/base", "pretrain", 30, 30)
    assert row["val_bpb"] > 0 and row["bytes"] > 100_000
    assert "runs/base" in positron("runs").out and "step 30/30" in positron("runs").out
    assert "no runs under nowhere" in positron("runs", "--root", "nowhere").out


def test_info_tells_presets_and_checkpoints(workshop: Path) -> None:
    presets = json.loads(positron("info", "--json").out)
    assert {"PicoGPT", "MicroGPT", "TinyGPT", "SmallGPT", "BaseGPT"} <= set(presets)
    assert presets["TinyGPT"]["n_layer"] == 8 and 14.5e6 < presets["TinyGPT"]["parameters"] < 15.5e6
    result = positron("info", "--ckpt", "runs/base", "--json")
    assert '"n_embd": 32' in result.out and json.loads(result.out)


# --- when things break ------------------------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_not_an_error(workshop: Path) -> None:
    command = f"yes 'Lily saw a dog.' | head -600 | '{sys.executable}' -m positron_mini score --ckpt runs/base --threads 1 | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


def test_an_error_of_ours_is_one_sentence_unless_debug_is_asked_for(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("positron_mini.cli.info.parse", broken)
    result = positron("info")
    assert result.code == 1 and result.sentence == "unexpected RuntimeError: on purpose" and "--debug" in result.hint
    with pytest.raises(RuntimeError, match="on purpose"):
        positron("info", "--debug")


def test_ctrl_c_outside_training_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("positron_mini.cli.info.parse", interrupted)
    assert positron("info").code == 130
