"""`positron lab`: a page in the browser that looks inside all models of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from positron_mini.cli.flags import note, parse
from positron_mini.cli.serve import NetworkFlags, check_extra, serve
from positron_mini.errors import UsageError


@dataclass(frozen=True)
class LabFlags(NetworkFlags):
    """Look inside your models: a local page to chat with them, watch them train, and see why they say what they say."""

    root: str = "runs"
    """folder that holds run folders"""
    no_browser: bool = False
    """only print the address"""


def run(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C, then return 0."""
    flags = parse(LabFlags, argv, "lab")
    check_extra()
    from positron_mini.store.choice import in_words, newest_base, outdated, runs
    from positron_mini.web.state import Models

    root = Path(flags.root)
    if not root.is_dir():
        raise UsageError(f"--root {root}: no such folder", "--root runs")

    def models() -> Models:
        found = Models(list_folders=lambda: [state.path for state in runs(root)], weights=flags.weights)
        count = len(found.runs())
        note(f"{count} run{'s' if count != 1 else ''} in {root}" if count else f"no runs in {root} yet: they appear when one is started")
        for run in runs(root)[:1]:
            note(f"model: {run.path} ({in_words(run)})" if run.steps else f"{run.path}: no step is saved yet")
            if old := outdated(run, newest_base(root)):
                note(old)
        return found

    return serve(flags, models, (lambda _: None) if flags.no_browser else _open_browser)


def _open_browser(address: str) -> None:
    """Open the page in a thread: some browsers return only when they are closed."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
