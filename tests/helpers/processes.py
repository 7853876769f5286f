"""Several processes of one run, forked from this one, which has torch loaded already; or started as a user starts them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from helpers.models import TextLikeRows, lively_model, shape
from helpers.project import ROOT
from helpers.runs import TINY, positron, spawn
from positron_mini import distributed
from positron_mini.distributed import Processes
from positron_mini.fast.losses import loss_function
from positron_mini.optim import Schedule, build_optimizer
from positron_mini.trainer import LoopConfig, StopFlag

PATIENCE_S = 120.0  # what a group of processes that wait for each other may take


def free_port() -> int:
    """A port of this machine that nothing listens to."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


class Together:
    """`count` forked processes that do `act(rank)`, as torchrun would start them. Leaving ends what is left of them."""

    def __init__(self, count: int, act: Callable[[int], int]) -> None:
        port = free_port()
        self.ended: list[int] = []
        self.pids = [self._fork(rank, count, port, act) for rank in range(count)]

    def _fork(self, rank: int, count: int, port: int, act: Callable[[int], int]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo" if sys.platform == "linux" else "lo0",
            )  # fmt: skip
            code = act(rank)
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def codes(self) -> list[int]:
        """The exit codes in order of ranks, negative for a signal, when all have ended. Fails when one is still there in the end."""
        codes: dict[int, int] = {}
        end = time.monotonic() + PATIENCE_S
        while len(codes) < len(self.pids):
            for pid in set(self.pids) - codes.keys():
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                self.pids = [pid for pid in self.pids if pid not in codes]
                raise AssertionError(f"{len(self.pids)} processes still wait after {PATIENCE_S:.0f} s")
            time.sleep(0.005)
        self.ended = [codes[pid] for pid in self.pids]
        return self.ended

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.ended:
            for pid in self.pids:
                os.kill(pid, signal.SIGKILL)
            for pid in self.pids:
                os.waitpid(pid, 0)


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own. Leaving ends it, and the processes that it had started by then."""
    process = spawn(*words)
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.communicate()


def in_a_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What Python code does in a process of its own that finds the package and these helpers, with another hash seed than this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))), "PYTHONHASHSEED": "random"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def train_together(count: int, out_dir: str, *words: str, before: Callable[[int], None] = lambda rank: None) -> list[int]:
    """The exit codes of `positron train` with the tiny settings as `count` processes; what each says is in `rank<N>.err`."""

    def act(rank: int) -> int:
        before(rank)
        result = positron("train", *TINY, "--threads", "1", "--out_dir", out_dir, *words)
        Path(f"rank{rank}.err").write_text(result.err)
        return result.code

    with Together(count, act) as together:
        return together.codes()


# --- the loop alone ---------------------------------------------------------------------------------------------------------------------


def losses(processes: Processes, steps: int, *, dtype: torch.dtype, **settings: Any) -> list[float]:
    """The losses of a tiny training run in `dtype`, for the rest of this process's life."""
    torch.set_default_dtype(dtype)
    if dtype == torch.float64:
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  # the model computes norms and logits in fp32
    model = lively_model(shape()).to(dtype)
    optimizer = build_optimizer(model, "muon", lr=0.01, muon_lr=None, weight_decay=0.1)
    loop = LoopConfig(
        lr=0.01, schedule=Schedule(5, 20, steps), micro_batch=2, grad_clip=1.0, dropout=0.0, seed=3, device="cpu", precision="fp32",
        **settings,
    )  # fmt: skip
    trainer = processes.trainer(model, optimizer, TextLikeRows(9, 16), loop, loss=loss_function(model, "cpu", compiled=False))
    return [report.loss for report in trainer.run(None, StopFlag())]


def losses_together(count: int, folder: Path, steps: int, dtype: torch.dtype) -> list[list[float]]:
    """The losses that each of `count` processes sees."""

    def act(rank: int) -> int:
        found = losses(distributed.join("cpu"), steps, dtype=dtype)
        (folder / f"losses{rank}").write_text(" ".join(map(repr, found)))
        return 0

    with Together(count, act) as together:
        assert together.codes() == [0] * count
    return [list(map(float, (folder / f"losses{rank}").read_text().split())) for rank in range(count)]
