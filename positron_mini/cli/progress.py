"""The progress of a training run: a bar on a terminal, plain lines in a pipe or a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from positron_mini.cli.terminal import print
from positron_mini.device import SpeedWatch, peak_memory
from positron_mini.store.curve import reference_for, standing
from positron_mini.store.opening import try_it
from positron_mini.train.session import better_before

if TYPE_CHECKING:
    from positron_mini.store.run_logs import StepReport
    from positron_mini.train.session import Session

LINE_EVERY_STEPS = 10
LINE_EVERY_S = 15.0


def plain_line(report: StepReport, end: int | None) -> str:
    """`[step 500/5000]  loss=6.234  lr=3.00e-04  7,200 tok/s`, with validation if there was one."""
    goal = f"/{end}" if end is not None else ""
    validation = "" if report.val_loss is None else f"  val_loss={report.val_loss:.3f}  bits_per_byte={report.val_bpb:.3f}"
    return f"[step {report.step}{goal}]  loss={report.loss:.3f}  lr={report.lr:.2e}  {report.tok_per_s:,.0f} tok/s{validation}"


class Progress:
    """Shows reports on stderr; use it as a context manager."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.first = session.trainer.step
        self.last: StepReport | None = None
        self.validated: StepReport | None = None
        known = session.record.config
        self._reference = None if session.is_chat else reference_for(known["config"], known["dataset_path"])
        self._has_warned = False
        self._speed = SpeedWatch()
        self._tokens = session.trainer.tokens
        self._shown_at = 0.0
        self._bar: Any = None
        self._task: Any = None

    @property
    def end(self) -> int | None:
        """The step at which this call will stop, as planned now (a budget may move it)."""
        plan = self.session.plan
        return min((e for e in (plan.until, plan.schedule.horizon) if e is not None), default=None)

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._open_bar()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        wait = " (compiling takes up to a minute)" if self.session.task.settings.compile else ""
        self._bar = Bar(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task(f"first step{wait}", total=self.end, completed=self.first)
        self._bar.start()

    def show(self, report: StepReport) -> None:
        """Show one report."""
        self.last = report
        if report.val_loss is not None:
            self.validated = report
            self._compare(report)
        self._watch_speed(report)
        if self._bar is not None:
            text = plain_line(report, self.end).replace("[", "\\[", 1)
            self._bar.update(self._task, completed=report.step, total=self.end, description=f"{text}  {peak_memory() / 1e9:.1f} GB")
            if report.val_loss is not None:
                self._bar.console.print(plain_line(report, self.end), markup=False, highlight=False)
            return
        due = report.step % LINE_EVERY_STEPS == 0 or time.monotonic() - self._shown_at > LINE_EVERY_S
        if due or report.val_loss is not None or report.step in (1, self.end):
            self._shown_at = time.monotonic()
            print(plain_line(report, self.end), file=sys.stderr, flush=True)

    def _compare(self, report: StepReport) -> None:
        """Report once, also in events.jsonl, if the curve is far above that of a shipped run of the same preset and corpus."""
        if self._reference is None or report.val_bpb is None or self._has_warned:
            return
        found = standing(self._reference, report.tokens, report.val_bpb)
        if found is not None and found[1]:
            self._has_warned = True
            self.session.trainer.tell({"kind": "curve", "step": report.step, "reference_bpb": round(found[0], 4), "text": found[1]})

    def _watch_speed(self, report: StepReport) -> None:
        """Report, also in events.jsonl, that training has slowed down or recovered."""
        remark = self._speed.look(report.tokens - self._tokens, report.tok_per_s)
        self._tokens = report.tokens
        if remark:
            self.session.trainer.tell({"kind": "speed", "step": report.step, "is_slow": self._speed.is_slow, "text": remark})

    def _better(self) -> list[str]:
        """Lines that name a better step than the newest, and how to use it."""
        recorder, found = self.session.recorder, better_before(self.session.run)
        lines = [f"better     {found}"] if found else []
        if recorder.turn is not None and recorder.best is not None:
            best = recorder.best
            lines.append(
                f"best       step {best.step:,}, {best.bpb:.3f} bits per byte, as {self.session.run.path}/best, for which "
                f"{self.session.run.path} stands. After it the text was learned by heart: more text helps more than more minutes"
            )
        return lines

    def summary(self) -> list[str]:
        """Lines with the result and the next command."""
        if self.last is None:
            return []
        session, path = self.session, self.session.run.path
        horizon = session.plan.schedule.horizon
        done = horizon is not None and self.last.step >= horizon
        measured = (
            ""
            if self.validated is None
            else f"; validation {self.validated.val_loss:.3f} nats per token, {self.validated.val_bpb:.3f} bits per byte"
        )
        lines = [
            f"{'finished' if done else 'paused'} at step {self.last.step:,} after {self.last.elapsed_s / 60:.1f} min of training{measured}"
        ]
        if self._reference is not None and self.validated is not None and self.validated.val_bpb is not None:
            found = standing(self._reference, self.validated.tokens, self.validated.val_bpb)
            if found is not None:
                lines.append(f"curve      a run of ours had {found[0]:.3f} bits per byte after as many tokens")
        if done and self.validated is not None and session.pacer is not None and session.record.expected_bpb is not None:
            from positron_mini.train.budget import reached

            turn = session.recorder.turn
            expected, bits = session.record.expected_bpb, self.validated.val_bpb if turn is None else turn.best.bpb
            assert bits is not None
            lines.append(reached(expected, bits, session.pacer.budget_s, session.trainer.clock.elapsed_s))
        lines += self._better()
        lines.append(f"saved      {path}/latest  ({peak_memory() / 1e9:.2f} GB of memory at the most)")
        is_chat = session.is_chat
        lines.append(f"try it     {try_it(path, path, is_chat=is_chat)}")
        if not done:
            lines.append(
                f"go on      {session.resume_command()}"
                + ("" if horizon is not None else f"    end it: {session.resume_command()} --finish")
            )
        return lines
