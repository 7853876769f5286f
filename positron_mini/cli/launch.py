"""One command, several processes: torchrun starts and watches them, and each joins the process group here."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from positron_mini.errors import Interrupted

if TYPE_CHECKING:
    from positron_mini.distributed import Processes

LINGER_S = 2.0  # how long a process that lost the first one waits, so that the first can report why


def launched() -> bool:
    """Whether torchrun has started this process."""
    return "WORLD_SIZE" in os.environ


def launch(words: Sequence[str], count: int) -> int:
    """Run `positron WORDS` as `count` processes on this machine; return the exit code of the first that failed, else 0."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    from positron_mini.device import children

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo resolves the host's name, which fails on some hosts
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes report their own errors
    python, *rest = children.python("positron_mini", *words)
    try:
        torchrun(["--standalone", "--local_addr", "127.0.0.1", "--nproc_per_node", str(count), "--no-python", python, "-u", *rest])
    except ChildFailedError as error:
        code: int = error.failures.get(0, error.get_first_failure()[1]).exitcode
        if code == -signal.SIGTERM:  # sent by torchrun, which ends the others when one has failed
            return 1
        return code if code > 0 else 128 - code
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """A context in which this process is a member of its run's process group. Only the first process reports a common error."""
    from positron_mini import device as devices
    from positron_mini.distributed import ALONE, PeerError, join

    if not launched():
        yield ALONE
        return
    kind = devices.choose(devices.this_machine(), device).device
    devices.take_local(kind, int(os.environ.get("LOCAL_RANK", "0")))
    processes = join(kind)
    try:
        yield processes
    except Exception as error:  # connections close only when a process ends, so the first to end must be the one that reports the cause
        known = processes.explain(error) or error
        if isinstance(known, PeerError | Interrupted) and not processes.is_first:
            time.sleep(LINGER_S)
            raise SystemExit(known.exit_code) from error
        if known is error:
            raise
        raise known from error
    processes.leave()
