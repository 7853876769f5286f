"""A run folder: run.json, the logs, the step folders, `latest`.

The folder is the truth: everything shown about a run is read from here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron_mini import checkpoint as ckpt
from positron_mini import files
from positron_mini.config import is_milestone
from positron_mini.errors import CheckpointError, PositronError, RunError
from positron_mini.store import run_logs
from positron_mini.store.choice import by_rule
from positron_mini.store.run_record import RUN_JSON, RunRecord, read_record
from positron_mini.store.run_state import RunState, look, run_folders
from positron_mini.store.steps import saved_steps
from positron_mini.store.writer import LOCK, OWNER, owner_of, writer_of

LOOKS_S = 0.3  # a program that only looks whether somebody trains here holds the lock for less

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. It creates nothing until something is written."""

    path: Path

    @property
    def run_json(self) -> Path:
        """The file that says what the run is."""
        return self.path / RUN_JSON

    def read(self) -> RunRecord | None:
        """The run's record, or None for a folder without one. Errors: RunError when it is damaged or of an unknown format."""
        return read_record(self.path)

    def steps(self) -> list[int]:
        """The saved steps, ascending, without checking them."""
        return saved_steps(self.path)

    def folder(self, step: int) -> Path:
        """The folder of a step."""
        return self.path / ckpt.step_name(step)

    def resumable(self) -> list[int]:
        """The saved steps whose manifest lists a training state, ascending; damaged ones are left out."""
        return [step for step in self.steps() if _lists_training(self.folder(step))]

    def newest(self, *, training: bool, say: Say) -> ckpt.Checkpoint | None:
        """The newest checkpoint that is complete and undamaged, or None. `say` is told of each one passed over."""
        for step in reversed(self.steps()):
            if training and not _lists_training(self.folder(step), damaged=True):
                continue
            try:
                return ckpt.open_checkpoint(self.folder(step))
            except PositronError as error:
                say(f"warning: {error.message}; falling back to an earlier step")
        return None

    def point(self, pointer: str, step: int) -> None:
        """Make `latest` or `best` name this step: a link, or where links are not allowed a text file with the name."""
        name, latest = ckpt.step_name(step), self.path / pointer
        temporary = self.path / f".tmp-{pointer}-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        files.fault_point("before_latest")
        try:
            temporary.symlink_to(name, target_is_directory=True)
        except OSError:
            files.write_text(temporary, name + "\n")
        with files.translate_os_errors(f"writing {latest}"):
            os.replace(temporary, latest)

    def points_to(self, pointer: str) -> str | None:
        """The folder's name that `latest` or `best` holds, or None where there is no such pointer."""
        path = self.path / pointer
        if path.is_symlink():
            return os.readlink(path)
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None

    def log(self, name: str, record: dict[str, Any]) -> None:
        """Append a record to one of the run's line files."""
        run_logs.append(self.path, name, record)

    def metrics(self) -> list[dict[str, Any]]:
        """All reports of the run so far. Errors: PositronError naming a line that is none."""
        return list(run_logs.step_rows(run_logs.log_path(self.path, "metrics")))

    def rewind(self, step: int, *, keep_lines: bool) -> None:
        """Make `step` the newest: later folders move to superseded/, later log lines are cut (or move there too: with `keep_lines`, or
        when folders do). A kill on the way leaves a run whose newest step is a later one, and no line is lost."""
        later = [s for s in self.steps() if s > step]
        last = step if step > 0 or 0 in self.steps() else -1  # the samples of step 0 stand before its folder does
        attic = next(path for path in (self.path / "superseded" / f"{n:03d}" for n in range(1, 10_000)) if not path.exists())
        logs = {path: list(run_logs.step_rows(path)) for path in (self.path / name for name in run_logs.STEP_LOGS) if path.is_file()}
        for path, rows in logs.items():
            cut = [row for row in rows if row["step"] > last]
            if cut and (keep_lines or later):
                files.write_text(attic / path.name, _lines(cut))
        if later:
            (self.path / "best").unlink(missing_ok=True)  # it may name one of them; whoever keeps a best step points it anew
            if self.folder(step).is_dir():
                self.point("latest", step)
        for old in reversed(later):
            files.fault_point("before_supersede")
            attic.mkdir(parents=True, exist_ok=True)
            os.replace(self.folder(old), attic / ckpt.step_name(old))
        for path, rows in logs.items():
            files.write_text(path, _lines([row for row in rows if row["step"] <= last]))

    def surplus(self, newest: int, milestones: frozenset[int] | None, keep_training: frozenset[int]) -> list[int]:
        """The steps that hold more than the retention rule keeps: the state of all but the two newest and `keep_training`, or any model
        but the milestones' and theirs. A `training/` that no manifest lists is what a kill left of a drop."""
        spared = set(self.resumable()[-2:]) | keep_training | {newest}
        others = [step for step in self.steps() if step < newest and step not in spared]
        return [step for step in others if not is_milestone(step, milestones) or (self.folder(step) / "training").is_dir()]

    def prune(self, newest: int, milestones: frozenset[int] | None, keep_training: frozenset[int]) -> None:
        """Apply the retention rule after saving `newest`: two newest and `keep_training` keep their state, milestones their model.

        Nothing is removed while `newest` is not whole: another step may then be the last that is.
        """
        try:
            ckpt.verify(self.folder(newest), content=False)  # its checksums were made a moment ago, or checked when the run was opened
        except PositronError:
            return
        for step in self.surplus(newest, milestones, keep_training):
            if is_milestone(step, milestones):
                ckpt.drop_training(self.folder(step))
            else:
                files.fault_point("before_prune")
                doomed = self.path / f".tmp-old-{ckpt.step_name(step)}"
                os.replace(self.folder(step), doomed)  # out of sight first: a half-removed step is never seen
                shutil.rmtree(doomed, ignore_errors=True)

    def writer(self) -> str | None:
        """The number of the process that writes this run, as text, or None when nobody does."""
        return writer_of(self.path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run for this process. Errors: RunError naming the process that holds it. A dead process holds nothing."""
        from filelock import FileLock, Timeout

        with files.translate_os_errors(f"writing {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            lock, owner = FileLock(self.path / LOCK), self.path / OWNER
            try:
                lock.acquire(timeout=LOOKS_S)
            except Timeout:
                pid = owner_of(self.path)
                raise RunError(
                    f"{self.path}: process {pid} is training in this folder",
                    f"wait for it, stop it with: kill -INT {pid}, or choose another --out_dir",
                ) from None
        try:
            files.write_json(owner, {"pid": os.getpid()})
            files.remove_leftovers(self.path)
            files.cut_unfinished_lines(self.path)
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()


def _lists_training(folder: Path, *, damaged: bool = False) -> bool:
    """Whether a manifest lists a training state; `damaged` is the answer for a manifest that cannot be read."""
    try:
        return ckpt.STATE_FILE in ckpt.read_manifest(folder)
    except PositronError:
        return damaged


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def find_checkpoint(path: str | Path, *, say: Say = lambda _: None) -> ckpt.Checkpoint:
    """The checkpoint that a command was given: a step folder, a run folder, `runs/x/latest`, or `latest.pt` / `step_1000.pt` as older
    commands spell them. Errors: CheckpointError, listing the runs there are."""
    given = Path(path)
    if given.is_file() and given.name not in ("latest", "best"):
        raise CheckpointError(
            f"{given}: a single file is not a checkpoint of this project; a checkpoint is a folder, and .pt files are never unpickled",
            _known_runs(),
        )
    target = given if given.exists() or given.is_symlink() else given.with_suffix("") if given.suffix in (".pt", ".pth") else given
    step = ckpt.step_number(target.name)
    if step is not None and not target.exists():
        target = target.with_name(ckpt.step_name(step))
    if (target / ckpt.MANIFEST).is_file() and target.name != "latest":
        return ckpt.open_checkpoint(target)
    if target.name in ("latest", "best"):
        return _follow(target, say)
    if (target / RUN_JSON).is_file() or RunFolder(target).steps():
        return _newest_of(RunFolder(target), say)
    if target.is_dir():
        ckpt.read_manifest(target)
    raise CheckpointError(f"{given}: no checkpoint there", _known_runs())


def _follow(pointer: Path, say: Say) -> ckpt.Checkpoint:
    """The checkpoint that `latest` or `best` names; the newest undamaged one when it names none."""
    run = RunFolder(pointer.parent)
    name = run.points_to(pointer.name) or ""
    if ckpt.step_number(name) is not None:
        try:
            return ckpt.open_checkpoint(run.path / name)
        except PositronError as error:
            say(f"warning: {error.message}; falling back to the newest complete step")
    elif pointer.is_dir():
        return ckpt.open_checkpoint(pointer)
    else:
        say(f"warning: {pointer} {'names no step' if name or pointer.exists() else 'is missing'}; taking the newest complete step")
    return _newest_of(run, say)


def _newest_of(run: RunFolder, say: Say) -> ckpt.Checkpoint:
    found = run.newest(training=False, say=say)
    if found is None:
        raise CheckpointError(f"{run.path}: no complete checkpoint there", _known_runs())
    return found


def newest_checkpoint(root: Path = Path("runs"), *, talks: bool, say: Say = lambda _: None) -> ckpt.Checkpoint:
    """The checkpoint that a command means which names none: of the newest finished run, a fine-tuned one where the command `talks`
    (`store.choice.by_rule`); of a fine-tuned run the best step. `say` is told of runs that cannot be used. Errors: CheckpointError."""
    for state in usable_runs(root, talks=talks, say=say):
        best = state.path / "best"
        try:
            return find_checkpoint(best if best.exists() or best.is_symlink() else state.path, say=say)
        except PositronError as error:
            say(f"warning: {error.message}; passed over")
    raise CheckpointError(f"there is no trained model in {root}", "train one: ./bootstrap_tiny_llm.sh, then ./sft_quickstart.sh")


def usable_runs(root: Path = Path("runs"), *, talks: bool, say: Say = lambda _: None) -> list[RunState]:
    """The runs with a saved step, the one that a command means first. `say` is told of those whose record cannot be read."""
    states = [look(path) for path in list_runs(root)]
    for state in states:
        if state.record is None:
            say(f"warning: {state.damaged}; passed over")
    return by_rule(states, talks=talks)


def list_runs(root: Path = Path("runs")) -> list[Path]:
    """The run folders under `root`, newest first."""
    found = {path: _modified(path / RUN_JSON) for path in run_folders(root)}
    return sorted(found, key=lambda path: found[path], reverse=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # just being removed
        return 0.0


def readable_runs(root: Path = Path("runs"), *, say: Say = lambda _: None) -> Iterator[tuple[RunFolder, RunRecord]]:
    """The runs under `root` with their records, newest first. `say` is told of those whose record cannot be read."""
    for path in list_runs(root):
        run = RunFolder(path)
        try:
            recorded = run.read()
        except PositronError as error:
            say(f"warning: {error.message}; passed over")
        else:
            if recorded is not None:
                yield run, recorded


def _known_runs() -> str:
    runs = list_runs()
    return f"runs here: {', '.join(map(str, runs[:8]))}" if runs else "no runs here yet; train one with: positron train --dataset_path FILE"
