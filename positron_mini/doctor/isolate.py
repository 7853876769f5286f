"""Examination in a child process: a faulty kernel may crash it (Metal aborts on a failed assertion) or hang."""

from __future__ import annotations

import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any

from positron_mini.device import Machine, children
from positron_mini.doctor.examine import Examination, Scope, examine
from positron_mini.doctor.subject import Check, Subject

PATIENCE_S = 300.0  # for one check
Work = Callable[[Connection, Subject, Machine, Scope], None]


def examine_in_child(connection: Connection, subject: Subject, machine: Machine, scope: Scope) -> None:
    """Send every check, then the examination. Runs in the child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which ends this process
    examination = examine(subject, machine, scope, lambda check: connection.send(check))
    connection.send(examination)
    connection.close()


def examine_apart(
    subject: Subject,
    machine: Machine,
    scope: Scope,
    tell: Callable[[Check], None],
    *,
    work: Work = examine_in_child,
    patience_s: float = PATIENCE_S,
) -> Examination:
    """Like `examine`, in a child process; if that crashes or hangs, the device fails with this reason."""
    ours, theirs = Pipe(duplex=False)
    process = children.spawn(work, theirs, subject, machine, scope)
    theirs.close()
    checks: list[Check] = []
    try:
        while True:
            received: Any = _receive(ours, patience_s)
            if isinstance(received, Examination):
                return received
            if not isinstance(received, Check):
                break
            checks.append(received)
            tell(received)
        is_silent = received is None and process.is_alive()
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        ours.close()
    after = f"after {checks[-1].name}" if checks else "at the first operation"
    how = f"no answer for {patience_s:.0f} s" if is_silent else _end_of(process.exitcode)
    check = Check("staying alive", False, f"{how} {after}")
    tell(check)
    return Examination(subject, (*checks, check), {})


def _receive(connection: Connection, patience_s: float) -> Any:
    """The next message, None if none comes in time, False if the other end is closed."""
    try:
        return connection.recv() if connection.poll(patience_s) else None
    except (EOFError, OSError):
        return False


def _end_of(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with code {code}"
