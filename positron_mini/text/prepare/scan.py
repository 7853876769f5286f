"""The first pass over a text: list its parts, hash its documents, decide the use of each."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from positron_mini.errors import Say
from positron_mini.text.corpus.files import ReadStats
from positron_mini.text.corpus.report import Progress, reading_report
from positron_mini.text.corpus.split import KeyTable, Split, split_by_file, split_documents
from positron_mini.text.prepare.parts import LEFT_OUT, PART_BYTES, TRAIN, VALIDATION, Part, Sides, list_parts, scan_part
from positron_mini.text.prepare.unfinished import Origin
from positron_mini.text.prepare.workers import Job, run

FORMAT = 2  # part of the content fingerprint: raise it when equal stories should give other files


@dataclass(frozen=True)
class Plan:
    """Parts to read: those of the text, then those of the validation text if there is one."""

    origin: Origin
    parts: list[Part]
    n_train_parts: int
    source_bytes: int
    stats: ReadStats  # from listing the files

    @property
    def is_small(self) -> bool:
        """Whether it is too small for several processes and a folder for unfinished parts."""
        return self.source_bytes <= PART_BYTES


@dataclass(frozen=True)
class Scan:
    """Results of the first pass. `kept`: use of the documents of the validation text, if there is one."""

    content: str
    table: KeyTable
    split: Split
    kept: NDArray[np.bool_] | None
    counts: list[int]  # documents of each part
    reading: dict[str, Any]
    seconds: float

    def sides(self) -> list[Sides]:
        """Use of the documents of each part."""
        sides = np.where(self.split.train, TRAIN, np.where(self.split.validation, VALIDATION, LEFT_OUT)).astype(np.uint8)
        if self.kept is not None:
            sides = np.append(sides, np.where(self.kept, VALIDATION, LEFT_OUT).astype(np.uint8))
        return np.split(sides, np.cumsum(self.counts)[:-1])


def make_plan(origin: Origin) -> Plan:
    """List the parts of all texts. Errors: DataError if a file is no text."""
    stats = ReadStats()
    parts, size = list_parts(origin.path, stats)
    n_train_parts = len(parts)
    if origin.validation is not None:
        more, more_bytes = list_parts(origin.validation, stats)
        parts, size = parts + more, size + more_bytes
    return Plan(origin, parts, n_train_parts, size, stats)


def scan_text(plan: Plan, folder: Path | None, workers: int, say: Say) -> Scan:
    """Fingerprint, keys and split of all texts, read by `workers` or taken from `folder`. Errors: DataError for fewer than two stories."""
    started = time.monotonic()
    blocks: Sequence[bytes | Path]
    if folder is None:
        blocks, results = _scan_here(plan, Progress(say, "reading", plan.source_bytes))
    else:
        job = Job("scan", folder / "scan")
        results = do_parts(job, plan, workers, "reading", say)
        blocks = [job.file(index, "keys") for index in range(len(plan.parts))]
    stats = ReadStats()
    stats.add(plan.stats)
    for result in results:
        stats.add(ReadStats(**result))
    tables = [KeyTable(blocks[: plan.n_train_parts]), KeyTable(blocks[plan.n_train_parts :])]
    if plan.origin.validation is None:
        split, kept = split_documents(tables[0], str(plan.origin.path)), None
    else:
        split, kept = split_by_file(tables[0], tables[1], str(plan.origin.path))
    counts = [*tables[0].counts, *tables[1].counts]
    return Scan(_fingerprint(plan, tables), tables[0], split, kept, counts, reading_report(stats), time.monotonic() - started)


def _scan_here(plan: Plan, progress: Progress) -> tuple[list[bytes], list[dict[str, Any]]]:
    """Packed keys and results of the parts of a small text; writes nothing."""
    blocks, results = [], []
    for part in plan.parts:
        keys, result = scan_part(part, progress.update)
        blocks.append(keys)
        results.append(result)
    return blocks, results


def _fingerprint(plan: Plan, tables: list[KeyTable]) -> str:
    """One hash of all documents in order, independent of their division into files and parts."""
    digest = hashlib.sha256(f"positron_mini tokens {FORMAT}".encode())
    for table in tables[: 1 if plan.origin.validation is None else 2]:
        for keys in table.exact_bytes():
            digest.update(keys)
        digest.update(len(table).to_bytes(8, "little"))
    return digest.hexdigest()


def do_parts(job: Job, plan: Plan, workers: int, what: str, say: Say) -> list[dict[str, Any]]:
    """Do all parts and return their results; those that an earlier process finished are not repeated."""
    everything = range(len(plan.parts))
    done = {index: result for index in everything if (result := job.result(index)) is not None}
    before = sum(result["source_bytes"] for result in done.values())
    if done:
        say(f"{what}: {before / 1e6:,.0f} of {plan.source_bytes / 1e6:,.0f} MB were done before, going on from there")
    todo = {index: plan.parts[index] for index in everything if index not in done}
    run(job, todo, workers, Progress(say, what, plan.source_bytes, before=before))
    results = [job.result(index) for index in everything]
    return [result for result in results if result is not None]
