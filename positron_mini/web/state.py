"""The server's state: the models it may use, the engine that computes, and who may send requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from positron_mini.config import Weights
from positron_mini.errors import CheckpointError
from positron_mini.fast.decoder import Decoder
from positron_mini.model import GPT
from positron_mini.store.checkpoint import MANIFEST, Checkpoint, open_checkpoint, step_name
from positron_mini.store.find import find_checkpoint, read_found
from positron_mini.store.run_folder import RunFolder
from positron_mini.web.engine import Engine

if TYPE_CHECKING:
    from positron_mini.chat.model import Model

Place = tuple[Path, tuple[int, int] | None]  # a step folder, and which manifest lies in it
MAX_LOADED = 4  # models in memory at once, besides those that stay; the lab page asks for the steps of a run one after the other


@dataclass(frozen=True)
class Served:
    """A loaded model under the id that clients use. `created` is in seconds since 1970."""

    id: str
    speaker: Model
    created: int
    folder: Path | None = None

    @cached_property
    def writer(self) -> GPT | Decoder:
        """What writes tokens soonest, made at the first answer and kept: laying out the weights anew takes as long as some tokens."""
        return self.speaker.writer(self.speaker.context_len)

    @cached_property
    def longest_text(self) -> int:
        """Characters that fit the context if every token is the longest piece: a longer text is refused without encoding it."""
        return self.speaker.context_len * max(len(piece.text) for piece in self.speaker.tokenizer.pieces())


def load_served(id: str, checkpoint: Checkpoint, weights: Weights = "f32") -> Served:
    """The model of a checkpoint in memory, under `id`, which writes with `weights` where it can.

    Errors: CheckpointError, OSError when the folder vanishes meanwhile.
    """
    from positron_mini.chat.model import read_model

    created = int(checkpoint.folder.stat().st_mtime)
    return Served(id, read_model(checkpoint, weights), created, checkpoint.folder)


class Models:
    """The models that clients may name: those that stay in memory, and those of the runs that `list_folders` returns.

    A run `NAME` offers `NAME`, its best checkpoint when it was fine-tuned and its newest one otherwise, and `NAME@STEP` for every saved
    step; their models write with `weights`. Which ids there are is decided when the list is made: a name outside it touches no file.
    """

    def __init__(self, staying: Sequence[Served] = (), list_folders: Callable[[], Sequence[Path]] = list, weights: Weights = "f32") -> None:
        self._staying = {served.id: served for served in staying}
        self._list_folders, self._weights = list_folders, weights
        self._runs: dict[str, tuple[RunFolder, list[int]]] = {}  # with the saved steps; replaced as a whole, so any thread may read it
        self._loaded: dict[str, tuple[Place, Served]] = {}  # id -> (what it meant when it was read, model), least recently used first
        self.refresh()

    def refresh(self) -> list[str]:
        """Look at the run folders again and return the ids, without steps."""
        folders = [RunFolder(path) for path in self._list_folders()]
        self._runs = {run.path.name: (run, run.steps()) for run in folders}
        return self.ids()

    def ids(self) -> list[str]:
        """The ids as of the last refresh, the default one first, without steps. A run without a checkpoint has none."""
        return [*self._staying, *(name for name, (_, steps) in self._runs.items() if steps and name not in self._staying)]

    def runs(self) -> dict[str, RunFolder]:
        """The run folders as of the last refresh, by name, newest first."""
        return {name: run for name, (run, _) in self._runs.items()}

    def knows(self, id: str) -> bool:
        """Whether `id` is available, without looking at any file."""
        return id in self._staying or self._find(id) is not None

    def created(self, id: str) -> int:
        """Seconds since 1970 at which the model `id` was saved; 0 if it was removed meanwhile."""
        if id in self._staying:
            return self._staying[id].created
        try:
            return int(self._folder(id).stat().st_mtime)
        except OSError:
            return 0

    def in_memory(self, id: str) -> Served | None:
        """The model if it is in memory and current: a run's own name means its newest step, which may change with each refresh."""
        if id in self._staying or id not in self._loaded:
            return self._staying.get(id)
        (folder, manifest), served = self._loaded[id]
        now, found = self._place(id)
        return served if now == folder and found in (manifest, None) else None

    def load(self, id: str) -> Served:
        """The model, read if it is not in memory. Runs in the engine's thread. Errors: CheckpointError."""
        if not self.knows(id):
            raise CheckpointError(f"there is no model {id!r:.80}", f"models: {', '.join(self.ids()) or 'none yet'}")
        if id in self._staying:
            return self._staying[id]
        served, place = self.in_memory(id), self._place(id)  # before it is read: what changes meanwhile is then read again
        if served is None:
            served = read_found(partial(self._open, id), partial(load_served, id, weights=self._weights))
        else:
            place = self._loaded[id][0]
        self._loaded.pop(id, None)
        self._loaded[id] = (place, served)
        while len(self._loaded) > MAX_LOADED:
            self._loaded.pop(next(iter(self._loaded)))
        return served

    def _find(self, id: str) -> tuple[RunFolder, int | None] | None:
        """The run that `id` names, and the step if it names one."""
        run, steps = self._runs.get(id, (None, []))
        if run is not None and steps:
            return run, None
        name, at, step = id.rpartition("@")
        run, steps = self._runs.get(name, (None, []))
        return next(((run, known) for known in steps if str(known) == step), None) if run is not None and at else None

    def _folder(self, id: str) -> Path:
        """The folder that a known `id` means now."""
        found = self._find(id)
        if found is None:
            raise CheckpointError(f"the model {id!r:.80} is no longer there", f"models: {', '.join(self.ids()) or 'none yet'}")
        run, step = found
        return run.folder(step) if step is not None else run.path / (run.points_to("best") or step_name(self._runs[run.path.name][1][-1]))

    def _place(self, id: str) -> Place:
        """The folder that a known `id` means now, and which manifest lies in it: another run may have taken its name."""
        folder = self._folder(id)
        try:
            status = (folder / MANIFEST).stat()
        except OSError:
            return folder, None
        return folder, (status.st_ino, status.st_mtime_ns)

    def _open(self, id: str) -> Checkpoint:
        """The checkpoint that `id` means now; for a run's own name an earlier one if the newest is damaged."""
        found = self._find(id)
        if found is None or found[1] is not None:
            return open_checkpoint(self._folder(id))
        run = found[0]
        return find_checkpoint(run.path / "best" if run.points_to("best") else run.path)


@dataclass(frozen=True)
class ServerState:
    """The state that all routes share. `api_key` None: whoever reaches the port may use the server.

    `hosts`: names for this machine besides loopback's; None if the server listens on loopback only. `origins`: sites whose pages may send
    requests. `drops_oldest`: leave out the oldest text that does not fit the context, unless a request says `truncation: disabled`.
    """

    models: Models
    engine: Engine = field(default_factory=Engine)
    api_key: str | None = None
    hosts: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()
    drops_oldest: bool = False
