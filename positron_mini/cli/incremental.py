"""`positron incremental`: train in chunks; after each, show a short report and ask the person what to do next."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from positron_mini.cli.bootstrap import find_text, small_steps, train_flags
from positron_mini.cli.curve import print_curve
from positron_mini.cli.flags import note, parse
from positron_mini.cli.spelling import here
from positron_mini.cli.terminal import print
from positron_mini.config import SampleConfig, TrainConfig, check_ranges, given_flags, parse_duration
from positron_mini.errors import Interrupted, PositronError, UsageError, command
from positron_mini.store.opening import try_it
from positron_mini.train.session import Session

QUESTION = "[c]ontinue  [f]inish (cool down)  [a]sk it something  [q]uit > "
ASKING = SampleConfig(max_tokens=80, temperature=0.7)


@dataclass(frozen=True)
class IncrementalFlags(TrainConfig):
    """Train in chunks on an open-ended schedule. Started again, it goes on where it stopped. All flags of train are accepted too."""

    dataset: str = "auto"
    """tinystories, storyworld, a hub data set or a path (default: tinystories, without a network the story world)"""
    chunk: int = 1_000
    """steps per chunk"""
    budget: str | None = None
    """time per chunk, such as 5m, instead of a number of steps"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"chunk": 1})
        for name in ("until_step", "more_steps"):
            if getattr(self, name) is not None:
                raise UsageError(f"--{name}: every chunk ends in a pause of its own", "say how many steps a chunk has: --chunk 500")


def run(argv: Sequence[str]) -> int:
    """Train chunk by chunk until the person finishes or quits; one chunk without a terminal."""
    words = list(argv)
    if words and words[0].isdigit():  # ./train_incremental.sh 500
        words[:1] = ["--chunk", words[0]]
    flags, given = parse(IncrementalFlags, words, "incremental"), given_flags(words)
    session = _open(flags, given)
    if session.is_done:
        done, folder = session.trainer.step, session.run.path
        note(f"this run is finished at step {done:,}; try it: {try_it(folder, folder)}")
        further = command("train", "--out_dir", folder, "--max_steps", 2 * done)
        note(f"  train it further: {further}   or start another: --out_dir runs/NAME")
        return 0
    for line in session.lines:
        note(line)
    pace = {name: getattr(flags, name) for name in ("chunk", "budget") if name in given}
    again = command("incremental", "--out_dir", session.run.path, *(word for name in pace for word in (f"--{name}", pace[name])))
    try:
        return _chunk_by_chunk(session, flags, again)
    except Interrupted as stopped:
        raise Interrupted(stopped.message, again, signal_number=stopped.exit_code - 128) from None
    except KeyboardInterrupt:  # between two chunks: the last one is saved
        message = f"\nstopped by Ctrl-C; step {session.trainer.step:,} is saved in {session.run.path}"
        raise Interrupted(message, again, signal_number=signal.SIGINT) from None


def _chunk_by_chunk(session: Session, flags: IncrementalFlags, again: str) -> int:
    """Train and ask in turn; 0 when the person quits or the run is done. `again`: the command to continue with."""
    while True:
        before = session.trainer.step
        _train_chunk(session, flags)
        _show(session, before)
        if session.is_done or not (sys.stdin.isatty() and sys.stdout.isatty()):
            _farewell(session, again)
            return 0
        choice = _choose(session)
        if choice == "finish":
            session.cool_down()
            note(session.plan.say or "the cool-down has begun already; it goes on to its end")
        elif choice == "quit":
            _farewell(session, again)
            return 0


def _open(flags: IncrementalFlags, given: frozenset[str]) -> Session:
    """The session to train, with data and device chosen as by bootstrap."""
    from positron_mini import device as devices
    from positron_mini.store.run_folder import RunFolder
    from positron_mini.train.find_run import default_out_dir
    from positron_mini.train.open_run import open_session
    from positron_mini.trainer import StopFlag

    choice = devices.choose(devices.this_machine(), flags.device, flags.precision)
    flags = small_steps(flags, given, choice.device)
    run_folder = RunFolder(Path(flags.out_dir or default_out_dir(flags)))
    recorded = run_folder.read()
    text = find_text(flags, recorded, choice.device)
    newest = max(run_folder.resumable(), default=0) if flags.resume_from_step is None else flags.resume_from_step
    is_counted = not flags.finish and flags.budget is None
    until = _end_of_chunk(newest, flags.chunk) if is_counted else None  # so that the first lines show the time of the chunk
    config = replace(train_flags(flags, text), out_dir=str(run_folder.path), until_step=until, budget=None)
    return open_session(config, given=(given | {"dataset_path"}) - {"budget"}, say=note, stop=StopFlag())


def _end_of_chunk(step: int, chunk: int) -> int:
    """The next multiple of `chunk`, so that an interrupted chunk is completed, not shifted."""
    return (step // chunk + 1) * chunk


def _train_chunk(session: Session, flags: IncrementalFlags) -> None:
    """Train to the end of the chunk; a cool-down that has begun is not interrupted."""
    from positron_mini.cli.progress import Progress
    from positron_mini.cli.train import stop_signals

    clock, step, cooldown_start = session.trainer.clock, session.trainer.step, session.plan.schedule.cooldown_start
    is_cooling = cooldown_start is not None and step >= cooldown_start
    end_s = math.inf if flags.budget is None or is_cooling else clock.elapsed_s + parse_duration(flags.budget, "budget")
    session.go_on(None if is_cooling or flags.budget is not None else _end_of_chunk(step, flags.chunk))
    with stop_signals(session.stop), Progress(session) as progress, contextlib.closing(session.steps()) as steps:
        for report in steps:
            progress.show(report)
            if clock.elapsed_s >= end_s:
                break


def _show(session: Session, before: int) -> None:
    """Print the short report: the loss so far, samples, and the skills learned since step `before`."""
    from positron_mini.cli.terminal import printable
    from positron_mini.report.short import short_form

    print("\nloss (nats per token)")
    print_curve(session.run)
    for line in short_form(session.run.path, before):
        print(printable(line))
    print(flush=True)


def _choose(session: Session) -> str:
    """Ask the person until they choose continue, finish or quit; questions to the model are answered meanwhile."""
    while True:
        try:
            answer = input(QUESTION).strip().lower()
        except EOFError:
            return "quit"
        for word in ("continue", "finish", "quit"):
            if answer and word.startswith(answer):
                return word
        if answer and "ask".startswith(answer):
            _ask(session)
        else:
            print("please type c, f, a or q")


def _ask(session: Session) -> None:
    """Let the model, as it would be saved now, continue a line; an error is shown and the session goes on."""
    from positron_mini.cli.terminal import printable
    from positron_mini.generate import stream
    from positron_mini.text.tokenizer import BOS

    try:
        prompt = input("begin a story > ")
    except EOFError:
        return
    try:
        ids = [BOS, *session.tokenizer.encode(prompt)]
    except PositronError as error:
        print(f"{error.message}; {error.hint}")
        return
    with session.trainer.best_weights() as model:
        print(printable(prompt), end="", flush=True)
        for token in stream(model, session.tokenizer, ids, ASKING):
            print(printable(token.text), end="", flush=True)
        print("\n")


def _farewell(session: Session, again: str) -> None:
    print(f"step {session.trainer.step:,} is saved in {session.run.path}")
    if session.is_done:
        print(f"finished. Try it: {here(try_it(session.run.path, session.run.path))}")
    else:
        print(f"go on: {here(again)}")
