"""`positron train`: begin or continue a run, with its progress on the terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from positron_mini.cli.flags import flag_words, note, parse
from positron_mini.config import TrainConfig, given_flags
from positron_mini.errors import Say
from positron_mini.store.opening import try_it

if TYPE_CHECKING:
    from positron_mini.distributed import Processes
    from positron_mini.store.run_folder import RunFolder
    from positron_mini.train.session import Session



def run(argv: Sequence[str]) -> int:
    """Train, showing progress; 0 when the planned steps are done."""
    from positron_mini.cli.launch import launch, launched
    from positron_mini.train.find_run import budget_checks

    config, given = parse(TrainConfig, argv, "train"), given_flags(list(argv))
    if config.nproc is not None and config.nproc > 1 and not launched():
        budget_checks(config, config.nproc)
        return launch(["train", *flag_words(replace(config, nproc=None), given)], config.nproc)
    train(config, given)
    return 0


def train(config: TrainConfig, given: frozenset[str]) -> RunFolder:
    """Train by `config` to the end of the planned steps and return the run. `given`: the flags that were typed."""
    from positron_mini.cli.launch import joined

    with joined(config.device) as processes:
        return _train(config, given, processes)


def _train(config: TrainConfig, given: frozenset[str], processes: Processes) -> RunFolder:
    from positron_mini.device import awake
    from positron_mini.train.open_run import open_session
    from positron_mini.trainer import StopFlag

    say = note if processes.is_first else _silent
    with processes.in_turn():
        session = open_session(config, given=given, say=say, stop=StopFlag(), processes=processes)
    if not processes.is_first:
        with stop_signals(session.stop, _silent):
            for _ in session.steps():
                pass
        return session.run
    with awake(config.keep_awake, note):
        watch(session)
    return session.run


def _silent(_: str) -> None:
    """Say nothing: only the first process speaks."""


def watch(session: Session) -> None:
    """Train the session with first lines, progress and summary; for a finished one print only that, and the next command."""
    from positron_mini.cli.progress import Progress

    if session.plan.finished:
        list(session.steps())  # only completes a save that was interrupted
        note(session.plan.say)
        note(f"  try it: {try_it(session.run.path, session.run.path, is_chat=session.is_chat)}")
        return
    session.say = note
    for line in session.lines:
        note(line)
    with stop_signals(session.stop), Progress(session) as progress:
        for report in session.steps():
            progress.show(report)
    for line in progress.summary():
        note(line)


@contextmanager
def stop_signals(stop: Any, say: Say = note) -> Iterator[None]:
    """A context in which Ctrl-C and SIGTERM only set `stop`; a second one does too, so that a save is never interrupted."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.signal_number is None:
            say("\nstopping after this micro-batch; the last finished step will be saved")
        stop.signal_number = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
