"""What the server holds: the models it may use, the engine that computes, and who may ask."""

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
from positron_mini.store.checkpoint import Checkpoint, open_checkpoint, step_name
from positron_mini.store.find import find_checkpoint, read_found
from positron_mini.store.run_folder import RunFolder
from positron_mini.web.engine import Engine

if TYPE_CHECKING:
    from positron_mini.chat.model import Model

MAX_LOADED = 4  # models in memory at once, besides those that stay; a page that steps through a run asks for one after the other


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
        """Characters that the context could hold if every token were the longest piece: a longer text need not be encoded to refuse it."""
        return self.speaker.context_len * max(len(piece.text) for piece in self.speaker.tokenizer.pieces())


def load_served(id: str, checkpoint: Checkpoint, weights: Weights = "f32") -> Served:
    """The model of a checkpoint in memory, under `id`, which writes with `weights` where it can.

    Errors: CheckpointError, OSError when the folder vanishes meanwhile.
    """
    from positron_mini.chat.model import read_model

    created = int(checkpoint.folder.stat().st_mtime)
    return Served(id, read_model(checkpoint, weights), created, checkpoint.folder)


class Models:
    """The models that clients may name: those that stay in memory, and those of the runs that `list_folders` gives.

    A run `NAME` offers `NAME`, its best checkpoint when it was fine-tuned and its newest one otherwise, and `NAME@STEP` for every saved
    step; their models write with `weights`. Which ids there are is decided when the list is made: a name outside it touches no file.
    """

    def __init__(self, staying: Sequence[Served] = (), list_folders: Callable[[], Sequence[Path]] = list, weights: Weights = "f32") -> None:
        self._staying = {served.id: served for served in staying}
        self._list_folders, self._weights = list_folders, weights
        self._runs: dict[str, tuple[RunFolder, list[int]]] = {}  # with the saved steps; replaced as a whole, so any thread may read it
        self._loaded: dict[str, tuple[Path, Served]] = {}  # id -> (the folder it meant then, model), the last used one last
        self.refresh()

    def refresh(self) -> list[str]:
        """The ids after looking at the run folders again, steps left out."""
        folders = [RunFolder(path) for path in self._list_folders()]
        self._runs = {run.path.name: (run, run.steps()) for run in folders}
        return self.ids()

    def ids(self) -> list[str]:
        """The ids as of the last refresh, the default one first, steps left out. A run without a checkpoint has none."""
        return [*self._staying, *(name for name, (_, steps) in self._runs.items() if steps and name not in self._staying)]

    def runs(self) -> dict[str, RunFolder]:
        """The run folders as of the last refresh, by name, newest first."""
        return {name: run for name, (run, _) in self._runs.items()}

    def knows(self, id: str) -> bool:
        """Whether `id` may be asked for; looks at no file."""
        return id in self._staying or self._find(id) is not None

    def created(self, id: str) -> int:
        """Seconds since 1970 at which the model `id` was saved; 0 when it was removed meanwhile."""
        if id in self._staying:
            return self._staying[id].created
        try:
            return int(self._folder(id).stat().st_mtime)
        except OSError:
            return 0

    def in_memory(self, id: str) -> Served | None:
        """The model if it need not be read. A run's own name means its newest step, which changes from one refresh to the next."""
        if id in self._staying or id not in self._loaded:
            return self._staying.get(id)
        folder, served = self._loaded[id]
        return served if folder == self._folder(id) else None

    def load(self, id: str) -> Served:
        """The model, read if it has to be; for the engine's thread. Errors: CheckpointError."""
        if not self.knows(id):
            raise CheckpointError(f"there is no model {id!r:.80}", f"models: {', '.join(self.ids()) or 'none yet'}")
        served = self.in_memory(id) or read_found(partial(self._open, id), partial(load_served, id, weights=self._weights))
        if id not in self._staying:
            self._loaded.pop(id, None)
            self._loaded[id] = (self._folder(id), served)
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

    def _open(self, id: str) -> Checkpoint:
        """The checkpoint that `id` means now; for a run's own name an earlier one where the newest is damaged."""
        found = self._find(id)
        if found is None or found[1] is not None:
            return open_checkpoint(self._folder(id))
        run = found[0]
        return find_checkpoint(run.path / "best" if run.points_to("best") else run.path)


@dataclass(frozen=True)
class ServerState:
    """What every route may use. `api_key` None: whoever reaches the port may ask.

    `hosts`: names for this machine besides loopback's; None when the server listens on loopback only. `origins`: sites whose pages may
    ask. `drops_oldest`: what does not fit the context is left out, the oldest first, unless a request says `truncation: disabled`.
    """

    models: Models
    engine: Engine = field(default_factory=Engine)
    api_key: str | None = None
    hosts: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()
    drops_oldest: bool = False
