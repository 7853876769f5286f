"""docs/reliability.md: what is promised when something fails, the tests that show it, and what they showed.

python benchmarks/reliability.py --run        run every test that carries the id of a row, keep the results, write the page
python benchmarks/reliability.py --run C L    the same for some groups of rows; the results of the others are kept
python benchmarks/reliability.py              write the page from the kept results

The page is made from ROWS below, from benchmarks/fault_kinds.md, from the names of the tests (`test_C5_...` shows row C5) and from two
files of measured results: docs/results/reliability.json, which --run writes, and docs/results/kill_runs.json, which
benchmarks/kill_runs.py writes with --out.
tests/faults/test_fault_page.py fails when a row that matters has no test, and when the page is not what this script would write.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "docs" / "results" / "reliability.json"
KILLS = ROOT / "docs" / "results" / "kill_runs.json"
KINDS = ROOT / "benchmarks" / "fault_kinds.md"
TEST_NAME = re.compile(r"test_([CLTDSFXO]\d+)_")


class Row(NamedTuple):
    """One fault: P0 and P1 must have tests, P2 may."""

    id: str
    level: str
    fault: str
    promise: str


GROUPS = {
    "C": "Checkpoints",
    "L": "Loading files",
    "T": "Training",
    "D": "Data",
    "S": "The server",
    "F": "Files that are not ours",
    "X": "Code that is not ours",
    "O": "One bad thing among good ones",
}
ROWS = [
    Row("C1", "P0", "stopped at any step and started again, pretraining and fine-tuning",
        "weights, optimizer state and log equal byte for byte those of a run that was never stopped"),
    Row("C2", "P0", "any split of the steps into parts",
        "the same bytes, the same rates"),
    Row("C3", "P0", "SIGKILL at any point of the writer and at any moment; `latest` missing, empty or wrong",
        "the newest whole checkpoint loads, no half step is ever seen, the end is that of C1"),
    Row("C4", "P0", "a file of the right length with a tail of zeros or cut short",
        "found by its checksum; the step before is used, saying so"),
    Row("C5", "P0", "disk full at any byte, quota, file size limit",
        "exit code 4 and a sentence; old steps intact, no half file left; the same command goes on. Free space is checked before a save"),
    Row("C6", "P0", "a flipped bit in any file of a checkpoint",
        "never loads; the error names the file; an earlier step is used"),
    Row("C7", "P1", "Ctrl-C once or twice, SIGTERM, also during a save",
        "the last finished step is saved once, exit code 130 or 143, and the run goes on as in C1"),
    Row("C8", "P1", "two trainings in one folder; a lock left by a killed one",
        "the second is refused and names the first; a dead one holds nothing"),
    Row("C9", "P1", "another micro-batch, thread count, device or version of torch",
        "allowed and said; the same data at the same rates"),
    Row("C10", "P1", "a compiled model; weights with missing, unknown or misshapen tensors",
        "plain names in files; refused, naming what differs"),
    Row("C11", "P1", "another horizon or cool-down when a run goes on",
        "smaller pauses; larger moves the horizon or goes back to the last constant step; another cool-down acts until the rate falls"),
    Row("C12", "P1", "the machine sleeps",
        "the same bytes; the pause is no training time"),
    Row("C13", "P2", "a checkpoint of an earlier release",
        "loads and goes on"),
    Row("L1", "P0", "a pickle, a `.pt` or one under another name, as checkpoint or tokenizer",
        "refused before anything in it runs; nothing in the package can run what it reads"),
    Row("L3", "P1", "weight files with huge headers, overlaps, holes, wrong shapes and types, a million tensors",
        "one sentence within a second and 200 MB"),
    Row("L4", "P1", "config, manifest, log: huge, negative, of another type; paths out of the folder; links",
        "refused before anything is allocated"),
    Row("L5", "P1", "a tokenizer file that was cut off, crafted or has flipped bits",
        "refused before the library sees it"),
    Row("L6", "P1", "a chat template that carries code",
        "never rendered, never passed on"),
    Row("L7", "P1", "exported GGUF and Hugging Face folders",
        "other programs load them and continue with the same tokens"),
    Row("T1", "P0", "a loss, gradient or weight that is not a finite number",
        "nothing is updated or saved, exit code 3, evidence in `events.jsonl`; `--on_nan skip` leaves such steps out"),
    Row("T2", "P1", "a gradient a thousand times too large",
        "scaled down; its true norm is in the log; `--grad_limit` stops or skips"),
    Row("T3", "P1", "out of memory at the first step, at a later one",
        "half the rows at once with the same tokens a step, said and kept; later: the last step is saved, exit code 5"),
    Row("T4", "P1", "which device and precision",
        "a table of decisions; a device that is not there is refused"),
    Row("T5", "P1", "a device that computes wrongly",
        "`positron doctor` finds it and says what"),
    Row("T6", "P2", "another working directory, spaces and any script in paths, read-only text and disk",
        "works, or one sentence"),
    Row("D1", "P0", "an empty file, a single story, less text than a context, no separators",
        "said before training; nothing is written"),
    Row("D2", "P0", "vocabularies of 65,535, 65,536 and 70,000",
        "ids come back; two or four bytes each as needed"),
    Row("D3", "P0", "broken UTF-8, byte order marks, CRLF, NUL, lines of 50 MB",
        "mended and counted, in bounded memory; valid text comes back exactly"),
    Row("D4", "P0", "the same story in training and validation, also in other case or spacing",
        "on one side only; copies are counted"),
    Row("D5", "P0", "conversations with missing fields, wrong types, cut lines, nothing to train on, too long",
        "file and line are named; `--skip_bad` leaves them out and counts; only answers are trained"),
    Row("D6", "P0", "another tokenizer with as many pieces",
        "refused by its fingerprint"),
    Row("D7", "P1", "a token file cut off, damaged, of another vocabulary, changed under training",
        "found at opening or at the next step; prepared anew, saying so"),
    Row("D8", "P1", "downloads cut, damaged, replaced by a login page",
        "go on where they stopped; only what has the promised hash becomes data"),
    Row("D9", "P1", "preparation killed, repeated, with other threads",
        "the same bytes"),
    Row("S1", "P0", "foreign names in Host",
        "403"),
    Row("S2", "P0", "foreign Origin, OPTIONS, a POST that is not JSON",
        "403 or 415, and no permission in the answer"),
    Row("S3", "P0", "open to the network without a key; a wrong key",
        "refuses to start; 401 on everything but the page and /health"),
    Row("S4", "P0", "requests made from the schema, right and wrong",
        "no server error; answers as documented"),
    Row("S5", "P0", "absurd numbers, lengths and nesting, letters that are none",
        "4xx at once, in little memory"),
    Row("S6", "P0", "bodies and headers without end, one byte a second",
        "a 4xx or the end of the connection within 10 s; others notice nothing"),
    Row("S7", "P0", "the client goes away, or stops reading",
        "the work stops within a second and the place is free"),
    Row("S8", "P0", "64 requests at once",
        "one runs, 8 wait in order, the rest are told when to come again; /health stays quick"),
    Row("S9", "P1", "the model writes HTML, scripts, terminal codes",
        "shown as letters"),
    Row("S10", "P1", "paths that climb out of the page's folder",
        "404"),
    Row("S11", "P1", "an unknown model name, a path as a model",
        "404; neither disk nor network is touched"),
    Row("S12", "P1", "role markers in what a user writes",
        "letters, never control tokens"),
    Row("S13", "P1", "thousands of requests; SIGTERM during an answer",
        "memory and files stay flat; it drains and frees the port"),
    Row("F1", "P0", "a person's own files in a run folder, under any name, links among them",
        "never written, cut or deleted; only names that this program made are"),
    Row("F2", "P0", "a link in a run folder that leads out of it",
        "never followed when something is moved or deleted; what `runs prune` lists is what goes"),
    Row("F3", "P0", "a run copied by any usual means, with `latest` and `best` as folders, as files or missing",
        "generates from its newest whole step and goes on; nothing that differs is thrown away"),
    Row("F4", "P0", "`runs prune` on a full disk",
        "frees space without writing a byte first"),
    Row("F5", "P0", "`runs`, `export`, `verify`, the lab beside a training that saves and drops steps",
        "a whole step, or the next one"),
    Row("F6", "P0", "a FIFO, a device or a link to one in place of a file",
        "refused at once in one sentence; nothing waits and no memory is taken"),
    Row("X1", "P0", "`numpy.py`, `queue.py`, `torch.py` lying beside a text",
        "never run, by no process that this program starts"),
    Row("X2", "P0", "compiled kernels that are cut, zeroed, empty, foreign or in a folder that others can write to",
        "never loaded; built anew, or PyTorch computes, with the true reason"),
    Row("X3", "P1", "a compiler that hangs",
        "said at once, ended with all its children, not tried again at every start"),
    Row("O1", "P0", "one run, log line or tokenizer with values that are odd, huge or of another type",
        "that one is shown as damaged, the others as ever; work in proportion to its size"),
    Row("O2", "P1", "a log of hundreds of thousands of lines, asked for several times at once",
        "read in bounded pieces, in bounded memory"),
    Row("O3", "P0", "a small file that unpacks to gigabytes",
        "read in bounded pieces, or refused"),
    Row("O4", "P1", "weights that are finite and so large that what is computed from them is not",
        "one sentence; never NaN in JSON, never a server error"),
    Row("O5", "P1", "fine-tuned runs in the lab, before a model was loaded and while they train",
        "listed, charted and named as what they are"),
    Row("O6", "P1", "a measurement on a busy machine",
        "not stored as a verdict that later runs obey"),
]  # fmt: skip


def tests_by_row() -> dict[str, list[tuple[str, str]]]:
    """The tests that carry the id of a row, as (file, name), read from the source."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match = TEST_NAME.match(node.name) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
            if match:
                found.setdefault(match[1], []).append((path.relative_to(ROOT).as_posix(), node.name))
    return found


# --- running ----------------------------------------------------------------------------------------------------------------------------


def run_tests(groups: Sequence[str], jobs: int) -> dict[str, dict[str, Any]]:
    """The results of all tests that carry the id of a row in `groups`, by row, with their date."""
    nodes = sorted({f"{path}::{name}" for row, tests in tests_by_row().items() if row[0] in groups for path, name in tests})
    parallel = ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else []
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", *parallel, "-o", "junit_family=xunit1", f"--junitxml={report}", *nodes]
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode > 1:  # 1: some tests failed, which is a result
            raise SystemExit("the tests could not be run, so nothing is written")
        return count_cases(list(ElementTree.parse(report).iter("testcase")), datetime.date.today().isoformat())


def count_cases(cases: Iterable[ElementTree.Element], date: str) -> dict[str, dict[str, Any]]:
    """By row: cases, tries and failures, and the most steps that a try cost, None where nothing was counted."""
    rows: dict[str, dict[str, Any]] = {}
    for case in cases:
        match = TEST_NAME.match(case.get("name", ""))
        if match is None or case.find("skipped") is not None:
            continue
        row = rows.setdefault(match[1], {"date": date, "cases": 0, "tried": 0, "failed": 0, "again": None})
        told = [(item.get("name"), int(item.get("value", "0"))) for item in case.iter("property")]
        tried, again = ([value for name, value in told if name == wanted] for wanted in ("tried", "again"))
        row["cases"] += 1
        row["tried"] += sum(tried) or len(again) or 1
        row["failed"] += case.find("failure") is not None or case.find("error") is not None
        row["again"] = max([*again, *([] if row["again"] is None else [row["again"]])], default=None)
    return rows


def this_device() -> str:
    """The computer, as the page names it."""
    sys.path.insert(0, str(ROOT))
    import torch

    from positron_mini.device import this_machine

    machine = this_machine()
    chip = " ".join(machine.chip.split()[:2])
    return f"{machine.cores} CPU cores, {chip}, {machine.vector}, fp32, torch {torch.__version__.split('+')[0]}, {platform.system()}"


def _order(row: str) -> tuple[int, int]:
    return list(GROUPS).index(row[0]), int(row[1:])


# --- the page ---------------------------------------------------------------------------------------------------------------------------

BEGINNING = """# What happens when something fails

This page lists every fault that training, loading, preparing and serving must survive, what is promised for each, and the tests that show
it. Training takes hours, and in these hours lids are closed, disks fill up and processes are killed; a model is worth as much as the
promise that none of this spoils it. P0 must hold before a release; P1 holds; P2 is welcome.

The page is made by `benchmarks/reliability.py` from the names of the tests and the results they gave; a test fails when it is out of date.
A *case* is one test with one set of values. A *try* is one fault inside a case, for example one byte at which the disk was full. Property
tests count as one try, though each makes 25 to 150 examples, and `benchmarks/nightly_fuzz.py` makes thousands. *Held*: the cases whose
promise was kept. *Lost*: finished steps that had to be computed again, at most; a save comes every 4 or 5 steps in these runs, and steps
computed again give the same bytes. A dash stands where no training was under way.
"""

HOW = """
## How the faults are made

- **Kills.** One training is copied at every point at which the writer has told the system something new; each copy is what a SIGKILL there
  would leave. Every different state is started again and must end like the run that was not killed. Real processes are killed too, at
  chosen points and at random moments, because a copy cannot show what a process keeps in its own memory.
- **Full disks.** The writer's files are opened on a stand-in that takes so many bytes and then says ENOSPC, for many numbers of bytes, and
  with a real file size limit (EFBIG).
- **Damage.** One bit anywhere in any file; files cut, lengthened, zeroed, exchanged for links and folders; files crafted by hand.
- **Numbers and memory.** A loss times NaN, infinity or a thousand; the texts with which CUDA, MPS and the CPU say that memory is gone.
"""

END = """
## Check a run of your own

```
positron verify runs/NAME                 every file against its checksum; every step loaded
positron verify runs/NAME --replay 10     the last steps trained again, byte for byte
positron runs                             what there is, how large, and what it is doing
positron runs prune                       what could go; --yes removes it, and never the newest step that is right
```

What is not promised: equal bytes on another device, with another thread count or another version of torch. Such a change is allowed, said
when the run goes on, and written to `events.jsonl`. A disk that loses what it said it had stored is found by the checksums, not mended.
"""

HEAD = "| | | fault | promise | tests | cases | tries | held | lost |\n|---|---|---|---|---|---|---|---|---|\n"


def page() -> str:
    """The whole page."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": {}}
    parts = [BEGINNING, *_kill_lines(), HOW, "\n## Fault by fault\n"]
    if results["rows"]:
        dates = sorted({row["date"] for row in results["rows"].values()})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        total, failed = (sum(row[name] for row in results["rows"].values()) for name in ("tried", "failed"))
        parts.append(f"\n{total:,} tries in the rows with figures, {failed:,} failed cases; {when}, {results['device']}.\n")
    tests = tests_by_row()
    for letter, title in GROUPS.items():
        parts.append(f"\n### {title}\n\n{HEAD}")
        parts.extend(_row_line(row, tests.get(row.id, []), results["rows"].get(row.id)) for row in ROWS if row.id.startswith(letter))
    return "".join([*parts, "\n", KINDS.read_text(), END])


def _row_line(row: Row, tests: list[tuple[str, str]], result: dict[str, Any] | None) -> str:
    where = ", ".join(f"[{path.split('/')[-1]}](../{path})" for path in dict.fromkeys(path for path, _ in tests)) or "none yet"
    figures = ["", "", "", ""]
    if result is not None:
        held = "all" if not result["failed"] else f"{result['cases'] - result['failed']} of {result['cases']}"
        lost = {None: "-", 0: "nothing", 1: "at most 1 step"}.get(result["again"], f"at most {result['again']} steps")
        figures = [f"{result['cases']:,}", f"{result['tried']:,}", held, lost]
    return f"| {row.id} | {row.level} | {row.fault} | {row.promise} | {where} | {' | '.join(figures)} |\n"


def _kill_lines() -> Iterable[str]:
    """The section on random kills, from the file of their outcomes."""
    if not KILLS.is_file():
        return []
    record = json.loads(KILLS.read_text())
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from kill_table import table

    outcomes = record["outcomes"]
    equal = sum(not outcome["differences"] for outcome in outcomes)
    return [
        f"\n## Random kills\n\n{len(outcomes)} times a training was killed at a random moment and started again: {equal} of "
        f"{len(outcomes)} ended equal, byte for byte, to\none that was never killed. What is lost is time: the steps since the last save "
        f"are computed again (here {record['save_every']} of {record['steps']}\nsteps lie between two saves).\n\n",
        "\n".join(table(outcomes)),
        f"\n\n`benchmarks/kill_runs.py`, {record['date']}, {record['device']}.\n",
    ]


def main() -> None:
    """Write the page, after running the tests where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="*", choices=GROUPS, metavar="GROUP", help="run the tests of these groups of rows first (all)")
    parser.add_argument("--jobs", type=int, default=1, help="test files that run at the same time")
    flags = parser.parse_args()
    if flags.run is not None:
        groups = flags.run or list(GROUPS)
        kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else {}
        rows = {name: row for name, row in kept.items() if name[0] not in groups} | run_tests(groups, flags.jobs)
        record = {"device": this_device(), "rows": dict(sorted(rows.items(), key=lambda item: _order(item[0])))}
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
