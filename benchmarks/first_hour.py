"""A newcomer's first hour: every command of the README, typed as printed into a fresh clone in an empty home, with the clock beside it.

    python benchmarks/first_hour.py [--repo .] [--pages README.md README_QUICKSTART.md] [--text my.txt] [--tinystories FILE]
           [--limit 60] [--out first-hour.md]

The bash blocks of the pages run line by line. A person presses Ctrl-C at a command that takes longer than they want; this script does so
after `--limit` seconds, but not at what the first block of the README says takes minutes. Questions are asked through standard input.
`--text` stands in for the files that a page calls the reader's own (my.txt, my_texts.txt, other.txt), `--tinystories` for a corpus that the
hub would give (data/tinystories.txt).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

OWN_FILES = ("my.txt", "my_texts.txt", "other.txt")
OURS = ("HOME", "PYTHON", "POSITRON", "VIRTUAL_ENV", "XDG_", "HF_", "OMP_", "MPL", "GIT_")  # of the developer, not of the machine
TYPED = {"./ask_model.sh": "Who are you?\nWho found the red ball?\n/quit\n"}  # a line that waits for a person -> what they type
SLOW_STEP_LIMIT = 180  # seconds for a line whose single optimizer step takes minutes on a CPU
SHOWN_LINES, CHECK_S = 12, 0.2
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@dataclass(frozen=True)
class Outcome:
    """One line that was typed: how it ended, in what time, and what stood on the screen."""

    line: str
    seconds: float
    code: int
    interrupted: bool
    output: str

    @property
    def is_good(self) -> bool:
        """It ended by itself without an error, or by Ctrl-C the way a command should."""
        return self.code == 0 or (self.interrupted and self.code in (130, -signal.SIGINT))


def typed_lines(page: str) -> Iterator[tuple[int, str]]:
    """(number of the block, line) of every command in the bash blocks of a page; a line that goes on with a backslash is one."""
    for number, block in enumerate(re.findall(r"```bash\n(.*?)```", page, re.S)):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+#.*$", "", line).strip()
            if command:
                yield number, re.sub(r"\s+", " ", command)


def run_line(line: str, before: str, folder: Path, environment: dict[str, str], limit: float | None) -> Outcome:
    """The outcome of one line, typed into bash after `before` (what sets up the shell); Ctrl-C after `limit` seconds."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as screen:
        started = time.monotonic()
        process = subprocess.Popen(
            ["bash", "-c", f"{before}{line}"], cwd=folder, env=environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=screen, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(TYPED.get(line, ""))
        process.stdin.close()
        interrupted = False
        while process.poll() is None:
            if limit is not None and not interrupted and time.monotonic() - started > limit:
                os.killpg(process.pid, signal.SIGINT)
                interrupted = True
            time.sleep(CHECK_S)
        screen.seek(0)
        output = ESCAPES.sub("", screen.read())
    return Outcome(line, time.monotonic() - started, process.returncode, interrupted, output)


def limit_of(line: str, block: int, page: str, limit: float) -> float | None:
    """Seconds after which a person would press Ctrl-C: never at what the README promises for the first hour."""
    if page == "README.md" and block < 2:
        return None
    if "pip install" in line or "venv" in line:
        return None
    return max(limit, SLOW_STEP_LIMIT) if "--batch_tokens 98304" in line else limit


def transcript(outcomes: list[tuple[str, Outcome]], total_s: float, limit_s: float) -> str:
    """The page of results; trainings were given `limit_s` seconds."""
    good = sum(outcome.is_good for _, outcome in outcomes)
    parts = [
        "# The first hour, typed from the README\n",
        f"{date.today()}, {os.cpu_count()} CPU cores, {platform.system()}, no network but a package index; a fresh clone, an empty home. "
        "Every line of every bash block, as printed;\nwhere a training would take longer than a look, Ctrl-C after "
        f"{limit_s:g} seconds ({SLOW_STEP_LIMIT} at the step of 98,304 tokens). Made by "
        f"`benchmarks/first_hour.py`.\n\n**{good} of {len(outcomes)} lines ran as printed**, in {total_s / 60:.0f} minutes.\n",
        "| page | typed | seconds | ended |\n|---|---|---|---|",
    ]
    for page, outcome in outcomes:
        end = "by Ctrl-C, saved" if outcome.interrupted and outcome.is_good else "well" if outcome.is_good else f"**code {outcome.code}**"
        parts.append(f"| {page} | `{outcome.line.replace('|', '')}` | {outcome.seconds:,.1f} | {end} |")
    parts.append(f"\nThe last lines that each showed (at most {SHOWN_LINES}):\n")
    for _, outcome in outcomes:
        lines = [line.rstrip()[:160] for line in outcome.output.splitlines() if line.strip()]
        parts.append(f"```\n$ {outcome.line}\n" + "\n".join(lines[-SHOWN_LINES:]) + "\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Type everything; 0 when every line ran as printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", default=".")
    parser.add_argument("--pages", nargs="+", default=["README.md", "README_QUICKSTART.md"])
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tinystories", type=Path)
    parser.add_argument("--limit", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("first-hour.md"))
    flags = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="first-hour-"))
    folder = home / "positron-mini"
    subprocess.run(["git", "clone", "-q", str(Path(flags.repo).resolve()), str(folder)], check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment |= {"HOME": str(home), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "TERM": "dumb"}
    outcomes: list[tuple[str, Outcome]] = []
    started = time.monotonic()
    for page in flags.pages:
        before = ""
        for block, line in typed_lines((folder / page).read_text(encoding="utf-8")):
            for name in OWN_FILES:
                if flags.text is not None and name in line:
                    shutil.copy(flags.text, folder / name)
            if flags.tinystories is not None and "data/tinystories.txt" in line:
                shutil.copy(flags.tinystories, folder / "data" / "tinystories.txt")
            outcome = run_line(line, before, folder, environment, limit_of(line, block, page, flags.limit))
            outcomes.append((page, outcome))
            print(f"{outcome.seconds:8.1f} s  code {outcome.code:>4}  {line}", file=sys.stderr, flush=True)
            if line.startswith("source "):
                before += f"{line}\n"
            flags.out.write_text(transcript(outcomes, time.monotonic() - started, flags.limit), encoding="utf-8")
    print(flags.out)
    return 0 if all(outcome.is_good for _, outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
