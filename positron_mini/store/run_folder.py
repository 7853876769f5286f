"""Run folders: run.json, the logs, the step folders, `latest`.

The folder is the truth: everything shown about a run is read from here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from positron_mini import files
from positron_mini.config import is_milestone
from positron_mini.errors import DroppedError, PositronError, Say
from positron_mini.own_files import foreign, leftovers, read_small, refuse_link, temporary_name
from positron_mini.store import checkpoint as ckpt
from positron_mini.store import run_logs
from positron_mini.store.run_logs import LOGS, STEP_LOGS
from positron_mini.store.run_record import RUN_JSON, RunRecord, read_record
from positron_mini.store.steps import saved_steps
from positron_mini.store.writer import OWNER, held, signed, writer_of

if TYPE_CHECKING:
    pass

POINTERS = ("latest", "best")
NAMES = frozenset((RUN_JSON, OWNER, "report.html", *POINTERS, *LOGS))  # names in a run folder, besides steps
TRIES = 100  # attempts of a reader to open the newest step while the training process deletes old ones
T = TypeVar("T")


@dataclass(frozen=True)
class RunFolder:
    """Folder of one run. Creates nothing until something is written."""

    path: Path

    @property
    def run_json(self) -> Path:
        """Path of the run's record."""
        return self.path / RUN_JSON

    def read(self) -> RunRecord | None:
        """Read the run's record; None for a folder without one. Errors: RunError when it is damaged or of an unknown format."""
        return read_record(self.path)

    def steps(self) -> list[int]:
        """Saved steps, ascending, unchecked."""
        return saved_steps(self.path)

    def folder(self, step: int) -> Path:
        """Folder of a step."""
        return self.path / ckpt.step_name(step)

    def resumable(self) -> list[int]:
        """Saved steps whose manifest lists a training state, ascending, without damaged ones."""
        return [step for step in self.steps() if _lists_training(self.folder(step))]

    def newest(self, *, training: bool, say: Say) -> ckpt.Checkpoint | None:
        """Open the newest complete, undamaged checkpoint; None if there is none. `say` is told of each one passed over.

        If the training process deletes the step meanwhile, the search starts again.
        """
        damaged: set[int] = set()
        for _ in range(TRIES):
            try:
                return self._newest_but(damaged, training=training, say=say)
            except DroppedError:
                files.fault_point("step_dropped")
        return None

    def _newest_but(self, damaged: set[int], *, training: bool, say: Say) -> ckpt.Checkpoint | None:
        """Open the newest sound checkpoint that is not in `damaged`, adding those passed over to it. Errors: DroppedError."""
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
        """Point `latest` or `best` to this step: a link, or where links are not allowed a text file with the name."""
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
        """Remove `best`, when no step is preferred to the newest."""
        self._make_room(pointer)
        (self.path / pointer).unlink(missing_ok=True)

    def points_to(self, pointer: str) -> str | None:
        """Folder name that `latest` or `best` holds, or None without such a pointer.

        If a program that copies no links turned the pointer into a folder: the step here that it copies.
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
        """Name of the newest step with the same manifest as `folder`."""
        manifest = ckpt.manifest_bytes(folder)
        names = (ckpt.step_name(step) for step in reversed(self.steps()))
        return next((name for name in names if manifest is not None and ckpt.manifest_bytes(self.path / name) == manifest), None)

    def _make_room(self, pointer: str) -> None:
        """Clear the place of a pointer: delete an empty folder, or a copy of a complete step that is here.

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
        """Folder below superseded/ for the next set-back. Errors: PositronError when superseded/ is a link."""
        refuse_link(self.path / "superseded")
        return next(path for path in (self.path / "superseded" / f"{n:03d}" for n in range(1, 10_000)) if not os.path.lexists(path))

    def log(self, name: str, record: dict[str, Any]) -> None:
        """Append a record to one of the run's line files."""
        run_logs.append(self.path, name, record)

    def metrics(self) -> list[dict[str, Any]]:
        """All reports of the run so far. Errors: PositronError naming an invalid line."""
        return list(run_logs.step_rows(run_logs.log_path(self.path, "metrics")))

    def rewind(self, step: int, *, keep_lines: bool) -> None:
        """Make `step` the newest: later folders move to superseded/, later log lines are cut (or move there too: with `keep_lines`, or
        when folders do). After a kill in between, the newest step is still a later one, and no line is lost.
        """
        later = [s for s in self.steps() if s > step]
        last = step if step > 0 or 0 in self.steps() else -1  # the samples of step 0 are written before its folder
        logs = {path: list(run_logs.step_rows(path)) for path in (self.path / name for name in STEP_LOGS) if os.path.lexists(path)}
        moved = {path: cut for path, rows in logs.items() if (cut := [row for row in rows if row["step"] > last]) and (keep_lines or later)}
        if moved or later:
            attic = self.attic()
            for path, cut in moved.items():
                files.write_text(attic / path.name, _lines(cut))
        if later:
            self.unpoint("best")  # it may name a step that goes; who keeps a best step points it again
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
        """Names in a step's folder that this program did not make."""
        return foreign(self.folder(step), ckpt.FILES.__contains__)

    def _beyond(self, newest: int, milestones: frozenset[int] | None, keep_training: frozenset[int]) -> list[int]:
        """Steps with more than the retention rule keeps: a training state, except in the two newest and `keep_training`; a model, except in
        these and the milestones. A `training/` that no manifest lists is left over from a killed deletion.
        """
        spared = set(self.resumable()[-2:]) | keep_training | {newest}
        others = [step for step in self.steps() if step < newest and step not in spared]
        return [step for step in others if not is_milestone(step, milestones) or ckpt.holds_training(self.folder(step))]

    def surplus(self, newest: int, milestones: frozenset[int] | None, keep_training: frozenset[int]) -> list[int]:
        """Steps that `prune` would change."""
        return [
            step for step in self._beyond(newest, milestones, keep_training) if is_milestone(step, milestones) or not self.foreign(step)
        ]

    def prune(self, newest: int, milestones: frozenset[int] | None, keep_training: frozenset[int]) -> dict[int, list[str]]:
        """Apply the retention rule after saving `newest`: two newest and `keep_training` keep their training state, milestones their model.

        Delete nothing unless `newest` is complete: otherwise another step may be the last good one. A step folder with files that are not
        ours stays; the names of those files are returned.
        """
        stay: dict[int, list[str]] = {}
        try:
            ckpt.verify(self.folder(newest), content=False)  # its checksums were just made, or checked when the run was opened
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
        """Process id, as text, of the process that trains this run; None without one."""
        return writer_of(self.path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the run for training by this process, and delete leftovers of a killed one. Errors: RunError when another process has it."""
        with files.translate_os_errors(f"writing {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path), signed(self.path):
            files.remove_leftovers(self.path, is_run_name)
            for name in LOGS:
                files.own_lines(self.path / name)
            yield

    def leftovers(self) -> list[Path]:
        """Half-written and half-deleted entries of killed processes."""
        return leftovers(self.path, is_run_name)


def is_run_name(name: str) -> bool:
    """Whether a name is one that this program uses in a run folder."""
    step = ckpt.step_number(name)
    return name in NAMES or (step is not None and ckpt.step_name(step) == name)


def _is_whole(folder: Path) -> bool:
    try:
        ckpt.verify(folder)
    except PositronError:
        return False
    return True


def _lists_training(folder: Path, *, damaged: bool = False) -> bool:
    """Whether a manifest lists a training state; `damaged` is returned for an unreadable manifest."""
    try:
        return ckpt.STATE_FILE in ckpt.read_manifest(folder)
    except PositronError:
        return damaged


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(files.json_line(row) + "\n" for row in rows)
