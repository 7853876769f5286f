"""Preparation of a corpus as large as TinyStories: its speed from text to tokens, the memory of all its processes, and what kills do to it.

python benchmarks/preparation_scale.py make --text REAL.txt --out big.txt --megabytes 2200
python benchmarks/preparation_scale.py time --text big.txt [--workers 2] [--tokenizer spm.model]
python benchmarks/preparation_scale.py kill --text big.txt [--workers 2] [--kills 5] [--seed 1]

The corpus: real stories and, one in five, 10,000 of the story world, again and again, each copy ending in a sentence with a name that
stands nowhere else. `kill` prepares it once undisturbed, by one process; then by `--workers`, killed with SIGKILL at random moments and
started again; then by one process, likewise. Every file must have the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count, cycle, islice
from pathlib import Path

import paired
import psutil
from paired import Row, say

from positron_mini import storyworld
from positron_mini.text.corpus.files import ReadStats, read_documents

SEPARATOR = "\n<|endoftext|>\n"
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "or")]


def corpus(real: list[str]) -> Iterator[str]:
    """Stories without end, no two of them equal: four real ones and one of the story world, each with an ending of its own, and so on."""
    rng, true, told = random.Random(0), cycle(real), cycle([story.text for story in islice(storyworld.stories(0), 10_000)])
    for number in count():
        name = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4))).capitalize()
        yield f"{next(told if number % 5 == 4 else true)} {name} heard it {number} times."


def make(text: Path, out: Path, megabytes: float) -> None:
    """Write at least so many megabytes."""
    real = list(read_documents(text, stats=ReadStats()))
    size = 0
    with open(out, "wb") as handle:
        for story in corpus(real):
            size += handle.write(f"{story}{SEPARATOR}".encode())
            if size >= megabytes * 1e6:
                break
    say(f"{out}: {size / 1e6:,.1f} MB")


class Memory(threading.Thread):
    """The most memory that a process and its children hold together, looked at five times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.peak, self.peak_unique = psutil.Process(pid), 0, 0
        self.start()

    def run(self) -> None:
        """Look until the process has ended."""
        with contextlib.suppress(psutil.Error):
            while self.process.status() != psutil.STATUS_ZOMBIE:
                held = [found for process in (self.process, *self.process.children(recursive=True)) if (found := _held(process))]
                self.peak = max(self.peak, sum(rss for rss, _ in held))
                self.peak_unique = max(self.peak_unique, sum(pss for _, pss in held))
                time.sleep(0.2)


def _held(process: psutil.Process) -> tuple[int, int] | None:
    """Resident memory of a process, and with shared pages divided among those that share them; None when it has ended."""
    try:
        found = process.memory_full_info()
        return found.rss, found.pss
    except psutil.Error:
        return None


def prepare(folder: Path, text: Path, tokenizer: Path | None, workers: int, kills: list[float]) -> Row:
    """What one preparation took and left, in a new `folder`; it is killed after each of the `kills` seconds and started again."""
    model = folder / "spm.model" if tokenizer is None else tokenizer
    words = ["prepare", "--dataset", str(text), "--tokenizer_path", str(model), "--workers", str(workers), "--json"]
    if tokenizer is None:
        words += ["--vocab_size", "16000"]
    command = [sys.executable, "-m", "positron_mini", *words]
    folder.mkdir()
    began, killed, peaks = time.perf_counter(), 0, [(0, 0)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    for patience in [*kills, None]:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        memory = Memory(process.pid)
        try:
            out, err = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            continue
        finally:
            memory.join()
            peaks.append((memory.peak, memory.peak_unique))
        if process.returncode != 0:
            raise SystemExit(err)
        break
    report = json.loads(out)
    found = Path(folder, report["folder"])
    return {
        "workers": workers,
        "killed": killed,
        "seconds": time.perf_counter() - began,
        "parts_s": report.get("seconds", {}),
        "bytes": text.stat().st_size,
        "peak_rss_bytes": max(rss for rss, _ in peaks),
        "peak_pss_bytes": max(pss for _, pss in peaks),
        "sha256": {path.name: _sha256(path) for path in sorted(found.iterdir())},
        "left_over": sorted(path.name for path in found.parent.iterdir() if path.name not in (found.name, ".lock", "index.json")),
        "said": [line for line in err.splitlines() if "going on from there" in line],
        "report": {name: report[name] for name in ("stories", "tokens", "duplicates", "variants", "bytes_per_token")},
    }


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def table(rows: list[Row]) -> str:
    """What each preparation took; the first is the one whose bytes the others must have."""
    head = ("workers", "killed", "s", "MB/s", "memory MB", "shared pages once MB", "scan, tokenizer, encoding s", "same bytes", "left over")
    cells = [
        (
            row["workers"], row["killed"], f"{row['seconds']:.1f}", f"{row['bytes'] / 1e6 / row['seconds']:.1f}",
            f"{row['peak_rss_bytes'] / 1e6:.0f}", f"{row['peak_pss_bytes'] / 1e6:.0f}",
            ", ".join(f"{row['parts_s'].get(part, 0):.1f}" for part in ("scan", "tokenizer", "encode")),
            "yes" if row["sha256"] == rows[0]["sha256"] else "NO", ", ".join(row["left_over"]) or "nothing",
        )
        for row in rows
    ]  # fmt: skip
    return paired.markdown(head, cells)


def main() -> None:
    """Make the corpus, or print what was measured and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "time", "kill"))
    parser.add_argument("--text", type=Path, required=True, help="the real stories (make), or the corpus")
    parser.add_argument("--out", type=Path, default=Path("results/preparation-scale.json"), help="the corpus (make), or the figures")
    parser.add_argument("--megabytes", type=float, default=2_200, help="make: size of the corpus")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer to use (default: one is trained, which counts)")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()), help="where the cache is made")
    flags = parser.parse_args()
    if flags.what == "make":
        make(flags.text, flags.out, flags.megabytes)
        return
    text = flags.text.resolve()
    place = Path(tempfile.mkdtemp(prefix="positron-scale-", dir=flags.place))
    rows: list[Row] = []
    try:
        if flags.what == "time":
            tokenizer = flags.tokenizer.resolve() if flags.tokenizer else None
            rows.append(prepare(place / "cache", text, tokenizer, flags.workers, []))
        else:
            rng = random.Random(flags.seed)
            rows.append(prepare(place / "clean", text, None, 1, []))
            for workers in (flags.workers, 1):
                # a start that goes on needs less time than a whole one
                longest = rows[0]["seconds"] / flags.workers / (flags.kills + 1) * 1.6
                kills = [1.0 + rng.random() * longest for _ in range(flags.kills)]
                rows.append(prepare(place / f"killed {workers}", text, None, workers, kills))
                say(f"{workers} workers, killed {rows[-1]['killed']} times: {rows[-1]['sha256'] == rows[0]['sha256']}")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(table(rows))
    where = paired.circumstances(flags.workers, ("sentencepiece", "pyarrow", "numpy"))
    paired.write({**where, "what": flags.what, "rows": rows}, flags.out)


if __name__ == "__main__":
    main()
