"""A run folder: run.json, the logs, the step folders, `latest`.

The folder is the truth: everything shown about a run is read from here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from positron_mini import checkpoint as ckpt
from positron_mini import files
from positron_mini.config import is_milestone
from positron_mini.errors import CheckpointError, DroppedError, PositronError
from positron_mini.ours import foreign, leftovers, read_small, refuse_link, temporary_name
from positron_mini.store import run_logs
from positron_mini.store.choice import by_rule
from positron_mini.store.run_logs import LOGS, STEP_LOGS
from positron_mini.store.run_record import RUN_JSON, RunRecord, read_record
from positron_mini.store.run_state import RunState, look, run_folders
from positron_mini.store.steps import saved_steps
from positron_mini.store.writer import OWNER, held, signed, writer_of

if TYPE_CHECKING:
    from positron_mini.model import GPT

POINTERS = ("latest", "best")
NAMES = frozenset((RUN_JSON, OWNER, "report.html", *POINTERS, *LOGS))  # that stand in a run folder, besides steps
TRIES = 100  # how often a reader takes the newest step anew while the process that trains the run drops them
Say = Callable[[str], None]
T = TypeVar("T")


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
        """The newest checkpoint that is complete and undamaged, or None. `say` is told of each one passed over.

        A step that another process drops while it is read is none of those: the newest one is taken anew.
        """
        damaged: set[int] = set()
        for _ in range(TRIES):
            try:
                return self._newest_but(damaged, training=training, say=say)
            except DroppedError:
                files.fault_point("step_dropped")
        return None

    def _newest_but(self, damaged: set[int], *, training: bool, say: Say) -> ckpt.Checkpoint | None:
        """The newest right checkpoint that is not among the `damaged`, which then has those passed over too. Errors: DroppedError."""
        for step in reversed(self.steps()):
            if step in damaged or (training and not _lists_training(self.folder(step), damaged=True)):
                continue
            try:
                return ckpt.open_checkpoint(self.folder(step))
            except PositronError as error:
                if not self.folder(step).is_dir():
                    raise ckpt.dropped(self.folder(step)) from error
                say(f"warning: {error.message}; falling back to an earlier step")
                damaged.add(step)
        return None

    def point(self, pointer: str, step: int) -> None:
        """Make `latest` or `best` name this step: a link, or where links are not allowed a text file with the name."""
        name, place = ckpt.step_name(step), self.path / pointer
        temporary = temporary_name(place)
        temporary.unlink(missing_ok=True)
        files.fault_point("before_latest")
        self._make_room(pointer)
        try:
            temporary.symlink_to(name, target_is_directory=True)
        except OSError:
            files.write_text(temporary, name + "\n")
        with files.translate_os_errors(f"writing {place}"):
            os.replace(temporary, place)

    def unpoint(self, pointer: str) -> None:
        """Take `best` away, where no step is to be preferred to the newest."""
        self._make_room(pointer)
        (self.path / pointer).unlink(missing_ok=True)

    def points_to(self, pointer: str) -> str | None:
        """The folder's name that `latest` or `best` holds, or None where there is no such pointer.

        Where a program that copies no links made a folder of it: the step here that it is a copy of.
        """
        path = self.path / pointer
        if path.is_symlink():
            return os.readlink(path)
        if path.is_dir():
            return self._copied(path)
        try:
            return read_small(path, 4_096).decode("utf-8", "replace").strip()
        except OSError:
            return None

    def _copied(self, folder: Path) -> str | None:
        """The newest step with the same manifest as `folder`, by its name."""
        manifest = ckpt.manifest_bytes(folder)
        names = (ckpt.step_name(step) for step in reversed(self.steps()))
        return next((name for name in names if manifest is not None and ckpt.manifest_bytes(self.path / name) == manifest), None)

    def _make_room(self, pointer: str) -> None:
        """Remove what stands in the place of a pointer: an empty folder, or a copy of a whole step that is here.

        Anything else that points to no step moves to superseded/. A link or a file with a step's name stays, to be replaced.
        """
        path, name = self.path / pointer, self.points_to(pointer)
        is_folder = path.is_dir() and not path.is_symlink()
        if not os.path.lexists(path) or path.is_symlink() or (not is_folder and ckpt.step_number(name or "") is not None):
            return
        is_copy = name is not None and not foreign(path, ckpt.FILES.__contains__) and _is_whole(self.path / name)
        if is_folder and (is_copy or not foreign(path, lambda _: False)):
            files.discard(path)
            return
        with files.translate_os_errors(f"writing {self.path / 'superseded'}"):
            attic = self.attic()
            attic.mkdir(parents=True)
            os.replace(path, attic / pointer)

    def attic(self) -> Path:
        """The folder below superseded/ that the next set-back moves to. Errors: PositronError when superseded/ is a link."""
        refuse_link(self.path / "superseded")
        return next(path for path in (self.path / "superseded" / f"{n:03d}" for n in range(1, 10_000)) if not os.path.lexists(path))

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
        logs = {path: list(run_logs.step_rows(path)) for path in (self.path / name for name in STEP_LOGS) if os.path.lexists(path)}
        moved = {path: cut for path, rows in logs.items() if (cut := [row for row in rows if row["step"] > last]) and (keep_lines or later)}
        if moved or later:
            attic = self.attic()
            for path, cut in moved.items():
                files.write_text(attic / path.name, _lines(cut))
        if later:
            self.unpoint("best")  # it may name one of them; whoever keeps a best step points it anew
            if self.folder(step).is_dir():
                self.point("latest", step)
        for old in reversed(later):
            files.fault_point("before_supersede")
            with files.translate_os_errors(f"writing {attic}"):
                attic.mkdir(parents=True, exist_ok=True)
                os.replace(self.folder(old), attic / ckpt.step_name(old))
        for path, rows in logs.items():
            files.write_text(path, _lines([row for row in rows if row["step"] <= last]))

    def foreign(self, step: int) -> list[str]:
        """The names in a step's folder that this program did not make there."""
        return foreign(self.folder(step), ckpt.FILES.__contains__)

    def _beyond(self, newest: int, milestones: frozenset[int] | None, keep_training: frozenset[int]) -> list[int]:
        """The steps that hold more than the retention rule keeps: the state of all but the two newest and `keep_training`, or any model
        but the milestones' and theirs. A `training/` that no manifest lists is what a kill left of a drop."""
        spared = set(self.resumable()[-2:]) | keep_training | {newest}
        others = [step for step in self.steps() if step < newest and step not in spared]
        return [step for step in others if not is_milestone(step, milestones) or ckpt.holds_training(self.folder(step))]

    def surplus(self, newest: int, milestones: frozenset[int] | None, keep_training: frozenset[int]) -> list[int]:
        """The steps that `prune` would change."""
        return [
            step for step in self._beyond(newest, milestones, keep_training) if is_milestone(step, milestones) or not self.foreign(step)
        ]

    def prune(self, newest: int, milestones: frozenset[int] | None, keep_training: frozenset[int]) -> dict[int, list[str]]:
        """Apply the retention rule after saving `newest`: two newest and `keep_training` keep their state, milestones their model.

        Nothing is removed while `newest` is not whole: another step may then be the last that is. A step into whose folder somebody put
        files of their own stays; the names of those are returned.
        """
        stay: dict[int, list[str]] = {}
        try:
            ckpt.verify(self.folder(newest), content=False)  # its checksums were made a moment ago, or checked when the run was opened
        except PositronError:
            return stay
        for step in self._beyond(newest, milestones, keep_training):
            if is_milestone(step, milestones):
                ckpt.drop_training(self.folder(step))
            elif names := self.foreign(step):
                stay[step] = names
            else:
                files.fault_point("before_prune")
                files.discard(self.folder(step))
        return stay

    def writer(self) -> str | None:
        """The number of the process that writes this run, as text, or None when nobody does."""
        return writer_of(self.path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run for this process, which trains it, free of what a killed one left. Errors: RunError when another process has it."""
        with files.translate_os_errors(f"writing {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path), signed(self.path):
            files.remove_leftovers(self.path, is_run_name)
            for name in LOGS:
                files.own_lines(self.path / name)
            yield

    def leftovers(self) -> list[Path]:
        """What killed processes left half written or half removed."""
        return leftovers(self.path, is_run_name)


def is_run_name(name: str) -> bool:
    """Whether this program gives the name to something in a run folder."""
    step = ckpt.step_number(name)
    return name in NAMES or (step is not None and ckpt.step_name(step) == name)


def _is_whole(folder: Path) -> bool:
    try:
        ckpt.verify(folder)
    except PositronError:
        return False
    return True


def _lists_training(folder: Path, *, damaged: bool = False) -> bool:
    """Whether a manifest lists a training state; `damaged` is the answer for a manifest that cannot be read."""
    try:
        return ckpt.STATE_FILE in ckpt.read_manifest(folder)
    except PositronError:
        return damaged


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(files.json_line(row) + "\n" for row in rows)


def find_checkpoint(path: str | Path, *, say: Say = lambda _: None) -> ckpt.Checkpoint:
    """The checkpoint that a command was given: a step folder, a run folder, `runs/x/latest`, or `latest.pt` / `step_1000.pt` as older
    commands spell them. Errors: CheckpointError, listing the runs there are."""
    given = Path(path)
    if given.is_file() and given.name not in POINTERS:
        raise CheckpointError(
            f"{given}: a single file is not a checkpoint of this project; a checkpoint is a folder, and .pt files are never unpickled",
            _known_runs(),
        )
    target = _meant(given)
    if target.name in POINTERS:
        return _follow(target, say)
    if (target / ckpt.MANIFEST).is_file():
        return ckpt.open_checkpoint(target)
    if os.path.lexists(target / RUN_JSON) or RunFolder(target).steps():
        return _preferred(RunFolder(target), say)
    if target.is_dir():
        ckpt.read_manifest(target)
    raise CheckpointError(f"{given}: no checkpoint there", _known_runs())


def _meant(given: Path) -> Path:
    """The path without the suffix of older commands, a step under the name that its folder has."""
    target = given if given.exists() or given.is_symlink() else given.with_suffix("") if given.suffix in (".pt", ".pth") else given
    step = ckpt.step_number(target.name)
    return target.with_name(ckpt.step_name(step)) if step is not None and not target.exists() else target


def read_found(find: Callable[[], ckpt.Checkpoint], read: Callable[[ckpt.Checkpoint], T]) -> T:
    """What `read` makes of the checkpoint that `find` finds. Where the process that trains the run drops the step meanwhile, it is found
    anew: the newest one is read then. Errors: those of both; DroppedError for a step that was asked for by its own name."""
    gone = None
    for _ in range(TRIES):
        try:
            checkpoint = find()
        except CheckpointError as error:
            if gone is None:
                raise
            raise ckpt.dropped(gone) from error
        try:
            return read(checkpoint)
        except (PositronError, OSError):
            if checkpoint.folder.is_dir():
                raise
            gone = checkpoint.folder
    assert gone is not None
    raise ckpt.dropped(gone)


def find_model(path: str | Path, *, say: Say = lambda _: None) -> tuple[ckpt.Checkpoint, GPT]:
    """The checkpoint that a command was given, and its model. Errors: as `find_checkpoint`, DroppedError."""
    return read_found(lambda: find_checkpoint(path, say=say), lambda found: (found, ckpt.load_model(found)))


def _follow(pointer: Path, say: Say) -> ckpt.Checkpoint:
    """The checkpoint that `latest` or `best` names; the newest undamaged one when it names none.

    Where a copy without links made a folder of it, `latest` still means the newest step beside it, and `best` the step it is a copy of.
    """
    run = RunFolder(pointer.parent)
    is_copy = pointer.is_dir() and not pointer.is_symlink()
    if is_copy and pointer.name == "latest" and (found := run.newest(training=False, say=say)) is not None:
        return found
    name = run.points_to(pointer.name) or ""
    if ckpt.step_number(name) is not None:
        try:
            return ckpt.open_checkpoint(run.path / name)
        except PositronError as error:
            if run.points_to(pointer.name) != name:
                return _follow(pointer, say)  # it was moved meanwhile
            say(f"warning: {error.message}; falling back to the newest complete step")
    elif (pointer / ckpt.MANIFEST).is_file():
        return ckpt.open_checkpoint(pointer)
    else:
        say(f"warning: {pointer} {'names no step' if name or pointer.exists() else 'is missing'}; taking the newest complete step")
    return _newest_of(run, say)


def _preferred(run: RunFolder, say: Say) -> ckpt.Checkpoint:
    """What a run's own name stands for: its newest step; of a pretraining whose held-out loss has turned the one that `best` names, saying
    so. A fine-tuning has a best step from the first one on, which has to be asked for."""
    best = run.points_to("best")
    if best is None or (run.path / best / "chat_template.jinja").is_file():
        return _newest_of(run, say)
    found, newest = _follow(run.path / "best", say), max(run.steps())
    if found.folder.name == best and found.step is not None and found.step < newest:
        say(f"{run.path}: taking step {found.step:,}, where the held-out loss is lowest (the newest is step {newest:,})")
    return found


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
