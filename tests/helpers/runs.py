"""Runs: a workshop to train tiny models in, commands in this process, a forked child or a new process; run folders written by hand."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from helpers.project import ROOT
from helpers.texts import made_stories
from positron_mini import device, files
from positron_mini.cli import main
from positron_mini.config import TrainConfig
from positron_mini.evaluate.interval import wilson
from positron_mini.store.run_folder import RunFolder
from positron_mini.text.prepare import prepare_corpus
from positron_mini.train import pretrain

SEPARATOR = "\n<|endoftext|>\n"
# a model of 37 thousand weights; its cool-down (60 % of 30) begins after step 12
_FLAGS = (
    "--config PicoGPT --dataset_path text.txt --tokenizer_path spm.model --n_layer 2 --n_embd 32 --n_head 2 --head_dim 16 --ffn 64 "
    "--context_len 64 --batch_tokens 512 --warmup_steps 4 --lr 4e-3 --save_every 5 --eval_every 10 --milestones 0,20 --compile off"
)
TINY = _FLAGS.split()
BASE = Path("runs/base")  # the finished run of a workshop: 0, 12, 20, 25 and 30 are saved, 12, 25 and 30 with their training state
needs_compiler = pytest.mark.skipif(device.compiler() is None, reason="no C++ compiler")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    def ok(self) -> Result:
        """Return this result. Fail with what the command said unless it succeeded."""
        assert self.code == 0, self.err
        return self

    @property
    def sentence(self) -> str:
        """The one error sentence. Fails unless there is exactly one, with exactly one hint, as the last two lines."""
        lines = self.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        hints = [line for line in lines if line.startswith("  hint: ")]
        assert len(errors) == 1 and len(hints) == 1, self.err
        assert lines[-2:] == [errors[0], hints[0]], self.err
        assert len(hints[0]) > len("  hint: ") and "Traceback" not in self.err
        return errors[0].removeprefix("error: ")

    @property
    def hint(self) -> str:
        return self.err.splitlines()[-1].removeprefix("  hint: ")


def positron(*words: str | Path, stdin: bytes = b"") -> Result:
    """Run a command in this process. Milestone samples, which take most of the time of a tiny run, are kept short."""
    out, err = io.StringIO(), io.StringIO()
    short = mock.patch.object(pretrain, "SAMPLING", replace(pretrain.SAMPLING, max_tokens=6))
    given = mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
    with short, given, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # one of several processes that leaves the talking to another
            code = int(stop.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def tiny_train(out_dir: str, *words: str) -> Result:
    """`positron train` with the tiny settings in this process, on one thread."""
    return positron("train", *TINY, "--threads", "1", "--out_dir", out_dir, *words)


def forked(act: Callable[[], int], *, fault: str = "") -> int:
    """The exit code of `act` in a forked child, negative for a signal. A fork has torch loaded already."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            files._passed.clear()
            os.environ["FAULT"] = fault
            code = act()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def spawn(*words: str) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    # two spinning threads on a busy machine take a hundred times as long as two that wait
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "positron_mini", *words]
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return as soon as `condition` holds. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records of a line file, read strictly."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def last_step_logged(run: Path) -> int:
    """The step of the last complete line of metrics.jsonl, 0 for none."""
    rows = files.read_lines(run / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def timeless(run: Path) -> list[dict[str, Any]]:
    """The reports of a run without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in ("tok_per_s", "elapsed_s")} for row in lines_of(run / "metrics.jsonl")]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def trained(run: Path, step: int) -> dict[str, str]:
    """SHA-256 of the weights and of the training state of a step."""
    found = digests(run / f"step_{step:06d}")
    return {name: digest for name, digest in found.items() if name == "model.safetensors" or name.startswith("training/")}


def assert_same_run(one: Path, other: Path) -> None:
    """Equal steps, equal bytes in every step folder, equal logs apart from times, equal `latest`."""
    assert RunFolder(one).steps() == RunFolder(other).steps()
    for step in RunFolder(one).steps():
        assert digests(RunFolder(one).folder(step)) == digests(RunFolder(other).folder(step)), step
    assert timeless(one) == timeless(other)
    for log in ("samples.jsonl", "skills.jsonl"):
        assert lines_of(one / log) == lines_of(other / log), log
    assert os.readlink(one / "latest") == os.readlink(other / "latest")
    assert not [entry for entry in other.iterdir() if entry.name.startswith(".tmp")]


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder: equal before and after means that nothing was written."""
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_size if path.is_file() else 0, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def build_workshop(folder: Path, spm: Any) -> Path:
    """A folder with a text, a tokenizer, its token cache, and `runs/base`: a finished run of 30 steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(SEPARATOR.join(made_stories(200, seed=11)))
    spm.save(folder / "spm.model")
    with contextlib.chdir(folder):
        tiny_train("runs/base", "--max_steps", "30").ok()
    return folder


@contextlib.contextmanager
def copied(template: Path, folder: Path) -> Iterator[Path]:
    """A copy of a workshop as the working directory. Its cache knows the copied text."""
    shutil.copytree(template, folder, symlinks=True)
    with contextlib.chdir(folder):
        prepare_corpus(Path("text.txt"), tokenizer_path=Path("spm.model"), vocab_size=None, say=lambda _: None)
        yield folder


# --- run folders written by hand, whose curves, samples and skills are known, for tests of what reads them ------------------------------

SHAPE = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_kv_head": 2, "head_dim": 16, "ffn": 64, "context_len": 64, "vocab_size": 512}
SKILLS = ("word_order", "agreement_near", "tracking_who", "feelings")
HOSTILE = "</blockquote><script>alert(1)</script>&amp;<img src=x onerror=alert(2)>\x1b[31m\x07\u202e\ud800\u2028\x85\"' | `$x$` ](http://evil.example)"


def record(**changes: Any) -> dict[str, Any]:
    """The content of a run.json."""
    config = {"config": "PicoGPT", "dataset_path": "data/none.txt", "out_dir": "runs/made", "batch_tokens": 512, "eval_every": 10}
    base = {
        "format": 1,
        "kind": "pretrain",
        "identity": {"model": SHAPE, "text": "a" * 64, "tokenizer": "b" * 64},
        "config": {**{name: getattr(TrainConfig, name) for name in ("warmup_steps", "seed", "short_steps")}, **config},
        "device": {"device": "cpu", "precision": "fp32", "reason": "as asked"},
        "versions": {"positron_mini": "0.1.0", "torch": "2.13.0", "processor": "2 cores, Testchip 9"},
        "started": "2026-11-01",
        "events": [{"kind": "schedule", "step": 0, "warmup_steps": 20, "cooldown_steps": 0, "horizon": None}],
        "command": "positron train",
    }
    return {**base, **changes}


def metric(step: int, loss: float, val_bpb: float | None = None) -> dict[str, Any]:
    """A line of metrics.jsonl; a validation costs two nats per token for each bit per byte."""
    row = {"step": step, "tokens": 512 * step, "loss": loss, "lr": 1e-3, "grad_norm": 1.0, "tok_per_s": 1000.0, "elapsed_s": float(step)}
    return row if val_bpb is None else {**row, "val_loss": 2 * val_bpb, "val_bpb": val_bpb}


def sample(step: int, text: str, prompt: str = "Once upon a time") -> dict[str, Any]:
    """A line of samples.jsonl."""
    return {"step": step, "prompt": prompt, "text": text, "seed": 42, "temperature": 0.7}


def skill(step: int, name: str, right: float, pairs: int = 200) -> dict[str, Any]:
    """A line of skills.jsonl."""
    low, high = wilson(right, pairs)  # type: ignore[arg-type]
    return {"step": step, "skill": name, "accuracy": right / pairs, "low": low, "high": high, "pairs": pairs}


def write_run(
    folder: Path,
    *,
    metrics: Sequence[dict[str, Any]] = (),
    samples: Sequence[dict[str, Any]] = (),
    skills: Sequence[dict[str, Any]] = (),
    happened: Sequence[dict[str, Any]] = (),
    **changes: Any,
) -> Path:
    """A run folder without checkpoints; `happened` are the lines of events.jsonl, `changes` go into run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record(**changes)))
    for name, rows in (("metrics", metrics), ("samples", samples), ("skills", skills), ("events", happened)):
        if rows:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def grown_run(folder: Path, steps: int = 400, **changes: Any) -> Path:
    """A run whose loss falls, whose samples change and whose skills rise one after the other; tracking never does."""
    rng = random.Random(3)
    milestones = [0, *(step for step in range(100, steps + 1, 100))]
    words = "the little dog was happy and ran to the big red house with a ball".split()  # noqa: SIM905
    rises = {"word_order": 100, "agreement_near": 200, "feelings": steps}
    return write_run(
        folder,
        metrics=[
            metric(step, 6 / (1 + step / 100) + 1 + rng.random() / 9, 3 / (1 + step / 100) + 0.5 if step % 10 == 0 else None)
            for step in range(1, steps + 1)
        ],
        samples=[
            sample(step, " " + " ".join(words[: 4 + step // 100] + rng.sample(words, 4)), prompt)
            for step in milestones
            for prompt in ("Once upon a time", "One day")
        ],
        skills=[
            skill(step, name, 190 if step >= rises.get(name, steps + 1) else 98 + i) for step in milestones for i, name in enumerate(SKILLS)
        ],
        **changes,
    )
