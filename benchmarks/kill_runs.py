"""SIGKILL at random moments, over pretraining and fine-tuning: every run that is started again must end like one that was never killed.

python benchmarks/kill_runs.py [--count 200] [--jobs 2] [--out docs/results/kill_runs.json] [--add]

A tiny model is trained (12 steps, saved every 4). Each try trains it in a child process, kills the child after a random time between its
first instruction and a little past its end, starts the same command again and compares every byte of every step folder, the logs without
their times, and where `latest` and `best` point. Children are forked from a process that has torch loaded: a try takes half a second.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from kill_table import table  # noqa: E402
from reliability import this_device  # noqa: E402

from helpers.faults import differences, kill_after  # noqa: E402
from helpers.runs import TINY, forked, positron  # noqa: E402
from helpers.texts import made_stories  # noqa: E402
from positron_mini import files  # noqa: E402
from positron_mini.store.checkpoint import open_checkpoint  # noqa: E402
from positron_mini.store.run_folder import RunFolder  # noqa: E402
from positron_mini.text.tokenizer import train_tokenizer  # noqa: E402
from positron_mini.train import speed  # noqa: E402

Say = Callable[[str], None]
STEPS, SAVE_EVERY = 12, 4
PRETRAIN = [
    *("train", *TINY, "--threads", "1", "--save_every", str(SAVE_EVERY), "--eval_every", "6", "--milestones", "0"),
    *("--max_steps", str(STEPS), "--cooldown_steps", "7", "--dropout", "0.1"),
]  # fmt: skip
SFT = [
    *("sft", "--base_ckpt", "base", "--sft_data", "rows.jsonl", "--epochs", "2", "--batch_size", "6", "--val_share", "0.1"),
    *("--lr", "1e-2", "--warmup_steps", "2", "--save_every", str(SAVE_EVERY), "--eval_every", "3", "--threads", "1", "--dropout", "0.1"),
]  # fmt: skip
KINDS = {"pretraining": PRETRAIN, "fine-tuning": SFT}


def prepare(folder: Path) -> dict[str, float]:
    """Seconds that one whole run of each kind takes, after filling `folder` with a text, a tokenizer, a base model and conversations."""
    stories = made_stories(200, seed=11)
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(stories))
    train_tokenizer(stories, 512, threads=1).save(folder / "spm.model")
    things = ["ball", "cat", "dog", "boat", "hat"] * 8
    rows = [{"question": f"What did number {n} find?", "answer": f"Number {n} found a {thing}."} for n, thing in enumerate(things)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seconds = {}
    with contextlib.chdir(folder):
        assert forked(lambda: positron(*PRETRAIN, "--out_dir", "base").code) == 0
        for kind, words in KINDS.items():
            began = time.monotonic()
            assert forked(lambda words=words, kind=kind: positron(*words, "--out_dir", f"whole/{kind}/run").code) == 0  # type: ignore[misc]
            seconds[kind] = time.monotonic() - began
    return seconds


def where_it_died(run: Path) -> tuple[str, int]:
    """What the kill interrupted, and how many finished steps it undid."""
    folder = RunFolder(run)
    if not folder.run_json.is_file():
        return "before the run was there", 0
    for step in folder.steps():
        open_checkpoint(folder.folder(step))  # nothing that looks complete is damaged
    done = max((row["step"] for row in files.read_lines(run / "metrics.jsonl")), default=0)
    lost = done - max(folder.resumable(), default=0)
    if any(run.glob(".tmp-step_*")):
        return "while a step was being saved", lost
    if any(run.glob(".tmp-*")):
        return "while another file was being written", lost
    return ("after the last step", 0) if done >= STEPS else ("between two saves", lost)


def one_try(kind: str, seconds: dict[str, float], draw: random.Random) -> dict[str, Any] | None:
    """The outcome of one kill, or None when the run had ended before it came. `seconds` follow how long a whole run takes now."""
    run, words = Path(f"cut/{kind}/run"), KINDS[kind]
    shutil.rmtree("cut", ignore_errors=True)
    moment, began = draw.random() * 1.05 * seconds[kind], time.monotonic()
    if not kill_after(moment, lambda: positron(*words, "--out_dir", run).code):
        seconds[kind] += 0.5 * (time.monotonic() - began - seconds[kind])
        return None
    where, lost = where_it_died(run)
    code = forked(lambda: positron(*words, "--out_dir", run).code)
    seconds[kind] += 0.2 * (time.monotonic() - began - seconds[kind])
    wrong = [f"exit code {code}"] if code else differences(Path(f"whole/{kind}/run"), run)
    return {"kind": kind, "after_s": round(moment, 4), "where": where, "steps_again": lost, "differences": wrong}


def work(template: Path, folder: Path, tries: int, seconds: dict[str, float], seed: int, say: Say) -> list[dict[str, Any]]:
    """The outcomes of `tries` kills, half of each kind."""
    shutil.copytree(template, folder, symlinks=True)
    draw, outcomes = random.Random(seed), []
    seconds = dict(seconds)
    with contextlib.chdir(folder):
        while len(outcomes) < tries:
            kind = list(KINDS)[len(outcomes) % 2]
            outcome = one_try(kind, seconds, draw)
            if outcome is not None:
                outcomes.append(outcome)
                if outcome["differences"]:
                    say(f"NOT EQUAL: {outcome}")
                elif len(outcomes) % 10 == 0:
                    say(f"{len(outcomes)} of {tries}")
    return outcomes


def in_parallel(jobs: int, count: int, act: Callable[[int, int], list[dict[str, Any]]], folder: Path) -> list[dict[str, Any]]:
    """The outcomes of `count` tries, shared by `jobs` forked processes."""
    shares = [count // jobs + (job < count % jobs) for job in range(jobs)]
    children = []
    for job, share in enumerate(shares):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                (folder / f"{job}.json").write_text(json.dumps(act(job, share)))
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert not any(ended), f"a worker ended with {ended}"
    return [outcome for job in range(jobs) for outcome in json.loads((folder / f"{job}.json").read_text())]


def main() -> int:
    """Run, print the table, write the file; 0 when every run ended equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="kills, half of them of each kind")
    parser.add_argument("--jobs", type=int, default=1, help="processes that kill at the same time")
    parser.add_argument("--seed", type=int, default=None, help="seed of the moments (default: another one every time)")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the outcomes")
    parser.add_argument("--add", action="store_true", help="add to the outcomes that --out holds")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    speed.measure_speed = lambda *_, **__: 1e4  # what a person is told beforehand takes as long as the run
    seed = random.SystemRandom().randrange(2**31) if flags.seed is None else flags.seed

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "template").mkdir()
        seconds = prepare(folder / "template")
        say(f"a whole run takes {', '.join(f'{s:.2f} s ({kind})' for kind, s in seconds.items())}")
        began = time.monotonic()
        outcomes = in_parallel(
            flags.jobs,
            flags.count,
            lambda job, share: work(folder / "template", folder / f"work{job}", share, seconds, seed + job, say),
            folder,
        )
        took = time.monotonic() - began
    print("\n".join(table(outcomes)))
    print(f"\n{len(outcomes)} kills in {took:.0f} s, seed {seed}; a save every {SAVE_EVERY} of {STEPS} steps")
    if flags.out is not None:
        before = json.loads(flags.out.read_text()) if flags.add and flags.out.is_file() else {"seeds": [], "seconds": 0, "outcomes": []}
        record = {"date": datetime.date.today().isoformat(), "device": this_device(), "steps": STEPS, "save_every": SAVE_EVERY}
        record |= {"seeds": [*before["seeds"], seed], "seconds": before["seconds"] + round(took)}
        flags.out.write_text(json.dumps({**record, "outcomes": before["outcomes"] + outcomes}, indent=1) + "\n")
    return int(any(outcome["differences"] for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
