"""Laws of training in chunks: the dialogue, word by word, through a pseudo-terminal; and that chunks leave no trace in the weights."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.runs import TINY, Result, lines_of, listing, needs_fork, positron, spawn, tiny_train, trained, wait_for
from positron_mini.cli import incremental, main
from positron_mini.cli.curve import curve_lines
from positron_mini.cli.progress import Progress
from positron_mini.store.run_folder import RunFolder
from positron_mini.text.prepare import pipeline

RUN = RunFolder(Path("runs/mine"))
SETTINGS = [*TINY, "--threads", "1", "--out_dir", "runs/mine"]
QUESTION = "[c]ontinue  [f]inish (cool down)  [a]sk it something  [q]uit > "


def chunk(*words: str) -> Result:
    """`positron incremental` without a terminal."""
    return positron("incremental", *words, *SETTINGS)


class Dialogue:
    """A person at a terminal, in front of a forked `positron incremental`; what it says on stderr goes to `said.txt`."""

    def __init__(self, handle: int, pid: int) -> None:
        from pexpect.fdpexpect import fdspawn

        self.pid, self.terminal = pid, fdspawn(handle, timeout=60, encoding="utf-8")
        self.code: int | None = None

    def hears(self, text: str) -> str:
        """What was said before `text`, once it was said."""
        self.terminal.expect_exact(text)
        return str(self.terminal.before)

    def says(self, line: str) -> None:
        self.terminal.send(line)

    def end(self) -> str:
        """The last words; `code` is the exit code then."""
        import pexpect

        self.terminal.expect(pexpect.EOF)
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return str(self.terminal.before)


@contextmanager
def dialogue(*words: str) -> Iterator[Dialogue]:
    """A forked command on a terminal of its own; a fork has torch loaded already."""
    pid, handle = pty.fork()
    if pid == 0:
        code = 99
        try:
            log = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(log, 2)
            for number, name in enumerate(("stdin", "stdout", "stderr")):
                setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell leaves out for what it starts in the background
            code = main(["incremental", *words, *SETTINGS])
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    talk = Dialogue(handle, pid)
    try:
        yield talk
    finally:
        if talk.code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(handle)


# --- the dialogue -----------------------------------------------------------------------------------------------------------------------


@needs_fork
def test_nonsense_ask_continue_and_finish_at_a_terminal(workshop: Path) -> None:
    with dialogue("6") as person:
        shown = person.hears(QUESTION)
        assert "loss (nats per token)" in shown and "│" in shown and "└" in shown and "[step 0]" not in shown  # it has learned nothing yet
        person.says("banana\n")
        assert "please type c, f, a or q" in person.hears(QUESTION)
        person.says("\n")
        assert "please type c, f, a or q" in person.hears(QUESTION)
        person.says("ASK\n")
        person.hears("begin a story > ")
        person.says("Once Tom\n")
        person.hears("\n")  # the echo
        assert person.hears(QUESTION).startswith("Once Tom")
        assert RUN.steps()[-1] == 6 and len(RUN.metrics()) == 6  # talking trains nothing
        person.says("c\n")
        assert "validation at step 10: " in person.hears(QUESTION)
        assert RUN.steps()[-1] == 12
        person.says("finish\n")
        last = person.end()
        assert person.code == 0 and "step 15 is saved in runs/mine" in last and "positron generate --ckpt runs/mine" in last
    said = Path("said.txt").read_text()
    assert "cooling down over 3 steps, to end at step 15" in said
    # the same by hand: 12 steps of an open-ended run, then --finish
    assert tiny_train("runs/hand", "--until_step", "12").code == 0 and tiny_train("runs/hand", "--finish").code == 0
    assert trained(RUN.path, 15) == trained(Path("runs/hand"), 15)
    mine, hand = RUN.read(), RunFolder(Path("runs/hand")).read()
    assert mine is not None and hand is not None and mine.events == hand.events and mine.identity == hand.identity
    result = chunk("6")
    assert result.code == 0 and "this run is finished at step 15" in result.err and "--max_steps 30" in result.err


@needs_fork
@pytest.mark.parametrize("word", ["q\n", "quit\n", "\x04"])  # the last is the end of input
def test_quit_and_the_end_of_input_leave_the_chunk_saved(workshop: Path, word: str) -> None:
    with dialogue("3") as person:
        person.hears(QUESTION)
        person.says(word)
        last = person.end()
    assert person.code == 0 and "step 3 is saved in runs/mine" in last
    assert "go on: positron incremental --out_dir runs/mine --chunk 3" in last
    assert RUN.steps()[-1] == 3


@needs_fork
@pytest.mark.parametrize("moment", [QUESTION, "begin a story > "], ids=["at the question", "in the story"])
def test_ctrl_c_between_two_chunks_ends_as_training_does(workshop: Path, moment: str) -> None:
    with dialogue("3") as person:
        person.hears(QUESTION)
        if moment != QUESTION:
            person.says("a\n")
            person.hears(moment)
        person.says("\x03")
        person.end()
    said = Path("said.txt").read_text()
    assert person.code == 130 and "error" not in said and "Traceback" not in said
    assert said.endswith("stopped by Ctrl-C; step 3 is saved in runs/mine\n  go on: positron incremental --out_dir runs/mine --chunk 3\n")


@needs_fork
def test_what_cannot_be_asked_does_not_end_the_dialogue(workshop: Path) -> None:
    with dialogue("3") as person:
        person.hears(QUESTION)
        person.says("a\n")
        person.hears("begin a story > ")
        person.says("\x04")
        person.hears(QUESTION)
        person.says("a\n")
        person.hears("begin a story > ")
        person.says("dog " * 300 + "\n")  # longer than the context
        person.hears(QUESTION)
        person.says("q\n")
        person.end()
    assert person.code == 0


@needs_fork
def test_ctrl_c_in_a_chunk_then_again_equals_an_uninterrupted_run(workshop: Path) -> None:
    assert chunk("40").code == 0
    os.rename("runs/mine", "runs/whole")
    with dialogue("40") as person:
        wait_for(lambda: len(lines_of(RUN.path / "metrics.jsonl")) >= 5)
        person.says("\x03")
        person.end()
    assert person.code == 130
    stopped = RUN.steps()[-1]
    said = Path("said.txt").read_text()
    assert 5 <= stopped < 40 and f"step {stopped} is saved in runs/mine" in said and "error" not in said
    again = said.splitlines()[-1].removeprefix("  go on: positron ").split()
    assert positron(*again).code == 0 and len(RUN.metrics()) == 40  # the chunk is completed, not shifted
    assert trained(RUN.path, 40) == trained(Path("runs/whole"), 40)


def test_C7_sigint_at_any_step_leaves_no_trace(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chunk("12").code == 0
    os.rename("runs/mine", "runs/whole")
    real = Progress.show

    def stop_at(step: int) -> Callable[[Progress, Any], None]:
        def show(self: Progress, report: Any) -> None:
            real(self, report)
            if report.step == step:
                os.kill(os.getpid(), signal.SIGINT)

        return show

    for step in (1, 7):
        monkeypatch.setattr(Progress, "show", stop_at(step))
        result = chunk("12")
        assert result.code == 130 and RUN.steps()[-1] == step
    monkeypatch.setattr(Progress, "show", real)
    assert chunk("12").code == 0
    assert trained(RUN.path, 12) == trained(Path("runs/whole"), 12)


# --- without a terminal -----------------------------------------------------------------------------------------------------------------


def test_without_a_terminal_it_trains_one_chunk_and_ends(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = chunk("5")
    assert first.code == 0 and RUN.steps()[-1] == 5 and QUESTION not in first.out
    assert "go on: positron incremental --out_dir runs/mine --chunk 5" in first.out
    monkeypatch.setattr(pipeline, "_encode", lambda *_: pytest.fail("the text was prepared already"))
    second = chunk("5")
    assert second.code == 0 and RUN.steps()[-1] == 10
    assert tiny_train("runs/hand", "--until_step", "10").code == 0
    assert trained(RUN.path, 10) == trained(Path("runs/hand"), 10)


def test_samples_are_shown_once_after_the_chunk_that_made_them(workshop: Path) -> None:
    shown = [re.findall(r"\[step (\d+)\]", chunk("10").out) for _ in range(3)]  # milestones: 0, 20
    assert shown == [[], ["20", "20"], []]


def test_the_first_lines_tell_the_time_of_the_chunk_before_the_first_step(workshop: Path) -> None:
    for expected, first in (("steps 1 to 5 at about", "[step 1/5]"), ("steps 6 to 10 at about", "[step 6/10]")):
        before, found, _ = chunk("5").err.partition(first)
        assert found and "time       about " in before and expected in before


def test_a_started_process_does_the_same(workshop: Path) -> None:
    process = spawn("incremental", "4", *SETTINGS)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "step 4 is saved in runs/mine" in out and RUN.steps()[-1] == 4


def test_settings_follow_the_run_and_the_chunk_may_change(workshop: Path) -> None:
    chunk("5")
    result = positron("incremental", "--chunk", "3", "--out_dir", "runs/mine")
    assert result.code == 0 and RUN.steps()[-1] == 6  # the next multiple of three
    assert positron("incremental", "--chunk", "3", "--out_dir", "runs/mine", "--lr", "1e-3").sentence.endswith(
        "lr is 0.004 there and 0.001 here"
    )


def test_a_run_with_a_horizon_goes_on_in_chunks_until_its_cool_down_which_is_not_cut(workshop: Path) -> None:
    assert tiny_train("runs/mine", "--max_steps", "20", "--until_step", "2").code == 0  # its cool-down begins after step 8
    for end in (5, 10, 20):
        assert chunk("5").code == 0 and RUN.steps()[-1] == end
    assert tiny_train("runs/hand", "--max_steps", "20").code == 0
    assert trained(RUN.path, 20) == trained(Path("runs/hand"), 20)


def test_a_finished_run_is_left_alone(workshop: Path) -> None:
    shutil.copytree("runs/base", "runs/mine", symlinks=True)
    before = listing(RUN.path)
    result = chunk("5")
    assert result.code == 0 and "this run is finished at step 30" in result.err and listing(RUN.path) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("0",), "--chunk is 0"),
        (("--until_step", "7"), "--until_step: every chunk ends in a pause"),
        (("--more_steps", "7"), "--more_steps: every chunk ends in a pause"),
    ],
)
def test_what_cannot_be_is_refused(workshop: Path, words: tuple[str, ...], said: str) -> None:
    result = chunk(*words)
    assert result.code == 2 and said in result.sentence and not RUN.path.exists()


@pytest.mark.parametrize(("words", "steps"), [((), 1_000), (("500",), 500), (("--chunk", "7"), 7), (("500", "--seed", "3"), 500)])
def test_the_steps_of_a_chunk_may_stand_first(words: tuple[str, ...], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def take(flags: incremental.IncrementalFlags, given: frozenset[str]) -> None:
        assert flags.chunk == steps
        raise Enough

    monkeypatch.setattr(incremental, "_open", take)
    with pytest.raises(Enough):
        incremental.run(words)


# --- the curve --------------------------------------------------------------------------------------------------------------------------


def test_the_curve_of_three_falling_points_by_hand() -> None:
    # 3 columns, 2 rows of 8 eighths: values 3, 2, 1 stand 1 + 15, 1 + round(7.5) = 9 and 1 eighths high
    assert curve_lines([(1, 3.0), (2, 2.0), (3, 1.0)], width=3, height=2) == [
        "  3.000 │█▁ ",
        "  1.000 │██▁",
        "        └───",
        "         step 1 3",
    ]


def test_values_of_one_column_are_averaged_and_empty_columns_stay_empty() -> None:
    lines = curve_lines([(0, 4.0), (1, 2.0), (9, 1.0)], width=5, height=1)
    assert lines[0] == "  3.000 │█   ▁"  # steps 0 and 1 share the first column: 3


def test_a_flat_curve_lies_at_the_bottom_and_one_point_is_none() -> None:
    assert curve_lines([]) == [] == curve_lines([(1, 2.0)])
    flat = curve_lines([(1, 2.0), (2, 2.0)], width=2, height=2)
    assert flat[:2] == ["  2.000 │  ", "  2.000 │▁▁"]


def test_the_curve_is_as_wide_and_high_as_asked_and_names_both_ends() -> None:
    lines = curve_lines([(step, 5.0 / step) for step in range(1, 501)])
    assert len(lines) == 8 + 2 and {len(line) for line in lines[:8]} == {9 + 60}
    assert lines[0].startswith("  ") and lines[-1].split() == ["step", "1", "500"] and len(lines[-1]) == 9 + 60
