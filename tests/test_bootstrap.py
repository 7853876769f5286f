"""Laws of the one command: it ends with a model and with what to type next, goes on where it stopped, and needs no network."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.devices import MAC
from helpers.runs import Result, lines_of, listing, positron, trained
from positron_mini.cli import bootstrap
from positron_mini.cli.bootstrap import CPU_BATCH_TOKENS, BootstrapFlags, choose_dataset, fill_defaults
from positron_mini.config import TrainConfig
from positron_mini.device import Machine
from positron_mini.store.run_folder import RunFolder
from positron_mini.text.corpus import sources
from positron_mini.text.prepare import pipeline
from positron_mini.train import budget

_FLAGS = (
    "--tokenizer_path spm.model --n_layer 1 --n_embd 32 --n_head 2 --head_dim 16 --ffn 64 --context_len 64 --batch_tokens 512 "
    "--warmup_steps 2 --milestones 0 --compile off --threads 1 --out_dir runs/mine"
)
TINY = _FLAGS.split()
RUN = RunFolder(Path("runs/mine"))
LAPTOP = Machine(("cpu",), (), 16 << 30, 8, True, "Linux")


def start(*words: str, dataset: str | None = "text.txt") -> Result:
    """`positron bootstrap` with the tiny settings."""
    return positron("bootstrap", *TINY, *(() if dataset is None else ("--dataset", dataset)), *words)


def fail(*_: Any, **__: Any) -> Any:
    raise AssertionError("this work was done already")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that refuses connections."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


# --- from nothing to a model ------------------------------------------------------------------------------------------------------------


def test_it_ends_with_samples_and_what_to_type_next(workshop: Path) -> None:
    result = start("--steps", "6")
    assert result.code == 0 and RUN.steps() == [0, 2, 6]
    rows = [row for row in lines_of(RUN.path / "samples.jsonl") if row["step"] == 6]
    assert len(rows) == 3
    for row in rows:
        assert f"\n[step 6, temperature 0.7]\n{row['prompt']}" in result.out
    after = result.out.partition("your model is in runs/mine. Next:\n")[2]
    assert "positron generate --ckpt runs/mine --prompt 'Once upon a time'  " in after
    assert "positron quicksft --base_ckpt runs/mine  " in after
    assert "positron bootstrap --out_dir runs/mine --steps 12  " in after
    assert "[step 6/6]" in result.err and "time       about" in result.err.partition("[step 1/")[0]


def test_a_second_start_of_a_finished_run_says_so_and_trains_nothing(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start("--steps", "6")
    before = listing(RUN.path)
    for name in ("_encode", "_train"):
        monkeypatch.setattr(pipeline, name, fail)
    for words, dataset in ((("--steps", "6"), "text.txt"), ((), None)):
        result = start(*words, dataset=dataset)
        assert result.code == 0 and "this run is finished: 6 of 6 steps are done" in result.err and "[step 6, " in result.out
    assert listing(RUN.path) == before


def test_a_second_start_goes_on_where_the_first_stopped_without_preparing_again(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start("--steps", "9")
    whole = trained(RUN.path, 9)
    os.rename("runs/mine", "runs/whole")
    assert start("--steps", "9", "--until_step", "3").code == 0 and RUN.steps() == [0, 3]
    for name in ("_encode", "_train"):
        monkeypatch.setattr(pipeline, name, fail)
    monkeypatch.setattr(bootstrap, "choose_dataset", fail)
    monkeypatch.setattr(budget, "measured_speed", fail)
    result = start(dataset=None)  # not even the data set need be named again
    assert result.code == 0 and "going on from step 3" in result.err
    assert trained(RUN.path, 9) == whole and [row["step"] for row in RUN.metrics()] == list(range(1, 10))


def test_more_steps_later_go_on_from_the_last_constant_step(workshop: Path) -> None:
    start("--steps", "10")
    result = start("--steps", "20")
    assert result.code == 0 and "the horizon moves to 20 steps; going back to step 4" in result.err and "[step 20, " in result.out
    assert RUN.steps()[-1] == 20 and (RUN.path / "superseded/001/step_000010").is_dir()
    os.rename("runs/mine", "runs/moved")
    start("--steps", "20", "--short_steps", "6")  # what the run of ten steps was given
    assert trained(Path("runs/moved"), 20) == trained(RUN.path, 20)


def test_a_run_without_a_recorded_text_used_the_default_one(workshop: Path) -> None:
    start("--steps", "6", "--until_step", "2")
    os.rename("text.txt", "data/tinystories.txt")
    record = json.loads(RUN.run_json.read_text())
    record["config"]["dataset_path"] = None
    RUN.run_json.write_text(json.dumps(record))
    assert start(dataset=None).code == 0 and RUN.steps()[-1] == 6


def test_a_missing_text_is_named_and_leaves_nothing(workshop: Path) -> None:
    result = start(dataset="gone.txt")
    assert result.code == 1 and "gone.txt" in result.sentence and not RUN.path.exists()


@pytest.mark.parametrize("words", [("--steps", "0"), ("--steps", "-1"), ("--stepz", "5")])
def test_what_cannot_be_is_refused(workshop: Path, words: tuple[str, str]) -> None:
    result = positron("bootstrap", "--dataset", "text.txt", *words)
    assert result.code == 2 and words[0].removeprefix("--")[:4] in result.sentence


# --- without a network ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refused", "HF_HUB_OFFLINE"])
def test_without_a_network_one_line_says_so_and_the_story_world_is_used(
    workshop: Path, offline: None, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    began = time.perf_counter()
    assert choose_dataset("auto") == "storyworld" and time.perf_counter() - began < 30
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "no network" in said.err and "story world" in said.err


def test_without_a_network_it_trains_on_the_story_world_and_uses_it_again(
    workshop: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "STORYWORLD_STORIES", 40)
    result = start("--steps", "2", dataset=None)
    assert result.code == 0 and result.err.count("no network") == 1 and RUN.steps()[-1] == 2
    record = RUN.read()
    assert record is not None and record.config["dataset_path"] == "data/storyworld.txt"
    os.rename("runs/mine", "runs/first")
    monkeypatch.setattr("positron_mini.text.corpus.hub.hub_reachable", fail)  # what is here needs no asking
    result = start("--steps", "2", dataset=None)
    assert result.code == 0 and "data/storyworld.txt is already there" in result.err
    assert trained(Path("runs/first"), 2) == trained(RUN.path, 2)


def test_a_data_set_that_was_named_is_not_replaced_by_another(workshop: Path, offline: None) -> None:
    assert choose_dataset("storyworld") == "storyworld" and choose_dataset("tinystories") == "tinystories"
    Path("data/tinystories.json").write_text("{}")  # an earlier start brought it here
    assert choose_dataset("auto") == "tinystories"


# --- what fits the machine --------------------------------------------------------------------------------------------------------------


def test_a_gpu_gets_the_missions_model_and_a_cpu_ten_minutes() -> None:
    for device in ("mps", "cuda"):
        gpu = fill_defaults(BootstrapFlags(), device)
        assert (gpu.config, gpu.max_steps, gpu.batch_tokens, gpu.budget) == ("TinyGPT", 5_000, None, None)
    cpu = fill_defaults(BootstrapFlags(), "cpu")
    assert (cpu.max_steps, cpu.budget) == (None, "10m")
    for device in ("cpu", "mps"):
        kept = fill_defaults(BootstrapFlags(config="PicoGPT", batch_tokens=512, steps=7), device)
        assert (kept.config, kept.max_steps, kept.batch_tokens, kept.budget) == ("PicoGPT", 7, 512, None)
        assert fill_defaults(BootstrapFlags(budget="3m"), device).budget == "3m"


@pytest.mark.parametrize(
    ("machine", "words", "expected"),
    [
        (MAC, (), ("TinyGPT", 5_000, None, None, "runs/positron-mini-15M-v1-base")),
        (MAC, ("--budget", "15m"), ("TinyGPT", None, None, "15m", None)),
        (LAPTOP, (), ("TinyGPT", None, None, "10m", None)),  # a budget chooses the preset itself
        (LAPTOP, ("--steps", "600"), ("MicroGPT", 600, CPU_BATCH_TOKENS, None, "runs/positron-mini-3M-v1-base")),
    ],
)
def test_the_command_gives_each_machine_its_run(
    workshop: Path, machine: Machine, words: tuple[str, ...], expected: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainConfig] = []
    monkeypatch.setattr("positron_mini.device.this_machine", lambda: machine)
    monkeypatch.setattr("positron_mini.cli.train.train", lambda config, _given: asked.append(config) or RunFolder(Path("runs/base")))
    assert positron("bootstrap", "--dataset", "text.txt", "--threads", "1", *words).code == 0
    (config,) = asked
    assert (config.config, config.max_steps, config.batch_tokens, config.budget, config.out_dir) == expected
    assert config.dataset_path == "text.txt"


def test_with_a_budget_the_second_start_goes_on_with_the_run_of_the_first(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = budget.Candidate("PicoGPT", budget.model_config(TrainConfig(config="PicoGPT"), 512), 2_000.0, 512, 12, 1.5)
    monkeypatch.setattr(budget, "choose", lambda *_: plan)
    words = ("--dataset", "text.txt", "--tokenizer_path", "spm.model", "--threads", "1", "--budget", "1000s", "--until_step")
    assert positron("bootstrap", *words, "2").code == 0
    (run,) = [path for path in Path("runs").iterdir() if path.name.endswith("-v1-base")]
    monkeypatch.setattr(budget, "choose", fail)
    result = positron("bootstrap", *words, "3")
    assert result.code == 0 and f"going on from step 2 of {run}" in result.err, result.err


@pytest.mark.parametrize("words", [("--dataset", "storyworld"), ("--dataset_path", "data/storyworld.txt")])
def test_the_story_world_has_settings_of_its_own_which_flags_override(
    workshop: Path, words: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainConfig] = []
    monkeypatch.setattr(sources, "STORYWORLD_STORIES", 4)
    monkeypatch.setattr("positron_mini.cli.train.train", lambda config, _given: asked.append(config) or RunFolder(Path("runs/base")))
    for machine, more in ((LAPTOP, ()), (LAPTOP, ("--lr", "0.004", "--vocab_size", "512")), (LAPTOP, ("--config", "MicroGPT")), (MAC, ())):
        monkeypatch.setattr("positron_mini.device.this_machine", lambda machine=machine: machine)
        if words[0] == "--dataset_path":
            Path("data/storyworld.txt").write_text("Once upon a time.\n")
        assert positron("bootstrap", *words, "--threads", "1", "--steps", "5", *more).code == 0
    shapes = [(c.config, c.vocab_size, c.context_len, c.lr, c.embedding_std, c.copy_init, c.align_rows) for c in asked]
    assert all(c.short_steps == 1_000_000 for c in asked)
    assert shapes == [
        ("PicoGPT", 3_072, 512, 1.2e-2, 0.3, 0.2, True),
        ("PicoGPT", 512, 512, 4e-3, 0.3, 0.2, True),
        ("MicroGPT", None, None, 1.2e-2, 0.3, 0.2, True),
        ("TinyGPT", None, None, 1.2e-2, 0.3, 0.2, True),
    ]
    assert asked[0].out_dir == "runs/positron-mini-1M-v1-base" and asked[2].out_dir == "runs/positron-mini-3M-v1-base"


def test_a_cpu_asks_the_hub_for_a_part_of_tinystories_only(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(sources, "obtain", lambda _name, *, stories, seed, say: asked.append(stories) or Path("text.txt"))
    for device in ("cpu", "mps"):
        bootstrap.find_text(BootstrapFlags(dataset="tinystories"), None, device)
    assert asked == [20_000, None]
