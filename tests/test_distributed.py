"""Laws of several processes: the run that they make is the run of one, whoever is stopped, killed or added on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from helpers.processes import Together, losses_together, started, train_together
from helpers.runs import TINY, last_step_logged, lines_of, needs_fork, positron, timeless, tiny_train, trained, wait_for
from positron_mini import distributed
from positron_mini.config import TrainConfig
from positron_mini.distributed import ALONE, Group
from positron_mini.errors import UsageError
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_folder import RunFolder
from positron_mini.train.open_run import open_session

pytestmark = [needs_fork, pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")]


STEPS = 20  # benchmarks/processes.py makes 50, with a preset and real text
MANY = "20000"  # steps, which take minutes: such a run is ended
PLAIN = ("--milestones", "none")  # no samples, no skills


# --- the loop ---------------------------------------------------------------------------------------------------------------------------


def test_in_float64_one_two_and_four_processes_have_the_same_losses(tmp_path: Path) -> None:
    (one,), *others = (losses_together(count, tmp_path, STEPS, torch.float64) for count in (1, 2, 4))
    assert len(one) == STEPS and one[-1] < one[0] - 0.3
    for found in others:
        assert all(ranks == found[0] for ranks in found)  # every process knows the loss of all rows
        assert max(abs(a - b) for a, b in zip(one, found[0], strict=True)) < 1e-9


def test_in_fp32_they_agree_at_first_to_rounding_and_at_the_end_to_half_a_percent(tmp_path: Path) -> None:
    (one,), *others = (losses_together(count, tmp_path, STEPS, torch.float32) for count in (1, 2, 4))
    for found, *_ in others:
        assert abs(one[0] - found[0]) < 1e-5 * one[0]
        assert abs(one[-1] - found[-1]) < 5e-3 * one[-1]


@pytest.mark.parametrize(("rows", "size"), [(8, 2), (9, 4), (4, 4), (7, 3), (1, 1)])
def test_every_row_belongs_to_one_process_and_none_is_idle(rows: int, size: int) -> None:
    shares = [Group(rank, size).share(rows) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and min(map(len, shares)) >= 1


def test_a_process_alone_has_nothing_to_do_with_torch_distributed() -> None:
    assert not torch.distributed.is_initialized() and distributed.join("cpu") is ALONE
    assert ALONE.is_first and ALONE.sums([1.5, 2]) == [1.5, 2]


# --- a run ------------------------------------------------------------------------------------------------------------------------------


def near(one: Path, other: Path, rel: float) -> None:
    """The logs of two runs agree within `rel`."""
    here, there = timeless(one), timeless(other)
    assert [row["step"] for row in here] == [row["step"] for row in there]
    for row, twin in zip(here, there, strict=True):
        assert row.keys() == twin.keys()
        assert row["loss"] == pytest.approx(twin["loss"], rel=rel) and row["lr"] == twin["lr"]
        assert row.get("val_loss", 0) == pytest.approx(twin.get("val_loss", 0), rel=rel)


def test_two_processes_write_the_run_that_one_writes(workshop: Path) -> None:
    assert train_together(2, "runs/two", "--max_steps", "30") == [0, 0], Path("rank0.err").read_text()
    near(Path("runs/base"), Path("runs/two"), 5e-3)
    assert RunFolder(Path("runs/two")).steps() == RunFolder(Path("runs/base")).steps()
    samples = [[row["step"] for row in lines_of(Path("runs", name, "samples.jsonl"))] for name in ("two", "base")]
    assert samples[0] == samples[1] == [0, 0, 0, 20, 20, 20, 30, 30, 30]
    assert json.loads(Path("runs/two/run.json").read_text())["config"]["nproc"] == 2
    said = [Path(f"rank{rank}.err").read_text() for rank in range(2)]
    assert "2 processes of 1 threads" in said[0] and "finished at step 30" in said[0] and said[1] == ""
    assert not positron("verify", "runs/two").code


def test_a_run_goes_on_with_any_number_of_processes(workshop: Path) -> None:
    for count, until in ((2, 8), (1, 14), (4, 22), (2, 30)):
        codes = train_together(count, "runs/mixed", "--max_steps", "30", "--until_step", str(until), *PLAIN)
        assert codes == [0] * count, Path("rank0.err").read_text()
        assert find_checkpoint("runs/mixed").step == until
    near(Path("runs/base"), Path("runs/mixed"), 5e-3)
    changes = [row for row in lines_of(Path("runs/mixed/events.jsonl")) if row["kind"] == "changed" and row["name"] == "nproc"]
    assert [(row["step"], row["before"], row["now"]) for row in changes] == [(8, 2, 1), (14, 1, 4), (22, 4, 2)]


def test_C1_a_run_of_three_that_was_stopped_has_the_bytes_of_one_that_was_not(workshop: Path) -> None:
    # of three numbers the sum depends on the order, of two it does not
    assert train_together(3, "runs/whole", "--max_steps", "12", *PLAIN) == [0, 0, 0]
    for until in ("7", "12"):
        assert train_together(3, "runs/parts", "--max_steps", "12", "--until_step", until, *PLAIN) == [0, 0, 0]
    shutil.rmtree("runs/parts/step_000007", ignore_errors=True)  # saved because the run paused there
    assert trained(Path("runs/whole"), 12) == trained(Path("runs/parts"), 12) != {}
    assert timeless(Path("runs/whole")) == timeless(Path("runs/parts"))


def test_C7_a_signal_to_one_of_them_stops_all_after_one_save(workshop: Path) -> None:
    def act(rank: int) -> int:
        return positron("train", *TINY, "--threads", "1", "--out_dir", "runs/x", "--max_steps", MANY, *PLAIN).code

    with Together(2, act) as together:
        wait_for(lambda: last_step_logged(Path("runs/x")) >= 12)
        os.kill(together.pids[1], signal.SIGINT)
        assert together.codes() == [130, 130]
    step = last_step_logged(Path("runs/x"))
    assert find_checkpoint("runs/x").step == step
    assert train_together(2, "runs/x", "--until_step", str(step + 3), *PLAIN) == [0, 0]
    assert train_together(2, "runs/twin", "--max_steps", MANY, "--until_step", str(step + 3), *PLAIN) == [0, 0]
    assert timeless(Path("runs/x")) == timeless(Path("runs/twin"))
    assert trained(Path("runs/x"), step + 3) == trained(Path("runs/twin"), step + 3) != {}


def test_T1_a_value_that_is_not_finite_stops_all_with_one_evidence(workshop: Path) -> None:
    assert train_together(2, "runs/x", "--max_steps", "30", "--grad_limit", "0.001", *PLAIN) == [3, 3]
    (event,) = [row for row in lines_of(Path("runs/x/events.jsonl")) if row["kind"] == "non_finite"]
    assert event["step"] == 1


def test_what_all_of_them_meet_is_said_once(workshop: Path) -> None:
    assert train_together(2, "runs/x", "--dataset_path", "gone.txt")[0] == 1
    assert "gone.txt: no such file" in Path("rank0.err").read_text() and Path("rank1.err").read_text() == ""
    assert train_together(4, "runs/x", "--batch_tokens", "128")[0] == 2
    assert "a step of 2 rows cannot be shared by 4 processes" in Path("rank0.err").read_text()
    assert not Path("runs/x").exists()


def test_C8_a_lost_process_ends_the_others_and_what_was_done_is_saved(workshop: Path) -> None:
    def act(rank: int) -> int:
        return positron("train", *TINY, "--threads", "1", "--out_dir", "runs/x", "--max_steps", MANY, *PLAIN).code

    with Together(3, act) as together:
        wait_for(lambda: last_step_logged(Path("runs/x")) >= 7)
        os.kill(together.pids[1], signal.SIGKILL)
        began = time.monotonic()
        codes = together.codes()
    assert time.monotonic() - began < 30 and codes[1] == -signal.SIGKILL and codes[0] == codes[2] == 1
    assert find_checkpoint("runs/x").step == last_step_logged(Path("runs/x")) and not positron("verify", "runs/x").code


def test_the_number_of_processes_is_what_was_started(workshop: Path) -> None:
    with pytest.raises(UsageError, match="--nproc 3: there is only this one process"):
        open_session(TrainConfig(dataset_path="text.txt", tokenizer_path="spm.model", nproc=3))
    assert tiny_train("runs/x", "--max_steps", "2", "--nproc", "1").code == 0
    assert train_together(2, "runs/y", "--max_steps", "2", "--nproc", "2")[0] == 2
    assert "--nproc 2: 2 processes have been started already" in Path("rank0.err").read_text() and Path("rank1.err").read_text() == ""


def test_a_budget_is_for_one_process(workshop: Path) -> None:
    refused = positron("train", *TINY, "--nproc", "2", "--budget", "5m", "--out_dir", "runs/x")
    assert refused.code == 2 and refused.sentence == "--budget 5m is for one process, not 2"
    assert train_together(2, "runs/x", "--budget", "5m")[0] == 2  # as torchrun starts them
    assert "--budget 5m is for one process, not 2" in Path("rank0.err").read_text() and Path("rank1.err").read_text() == ""
    assert not Path("runs/x").exists()


# --- torchrun ---------------------------------------------------------------------------------------------------------------------------


def test_nproc_is_torchrun_and_a_killed_process_stops_all_within_30_seconds(workshop: Path) -> None:
    words = ("--threads", "1", "--out_dir", "runs/x", "--max_steps", MANY, *PLAIN)
    with started("train", *TINY, "--nproc", "2", *words) as process:
        wait_for(lambda: last_step_logged(Path("runs/x")) >= 11)
        ranks = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children()}
        assert {"0", "1"} <= ranks.keys()
        ranks["1"].kill()
        began = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - began < 30 and not ranks["0"].is_running()
    assert process.returncode == 1 and "another process of this run has ended" in err and "Traceback" not in err, err
    step = find_checkpoint("runs/x").step
    assert step >= 11 and not positron("verify", "runs/x").code
    assert tiny_train("runs/x", "--until_step", str(step + 2)).code == 0
    assert last_step_logged(Path("runs/x")) == step + 2


def test_an_error_of_the_run_is_the_exit_code_of_the_command(workshop: Path) -> None:
    with started("train", *TINY, "--nproc", "2", "--out_dir", "runs/x", "--dataset_path", "gone.txt") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in err, err
    assert re.findall("error: .*", err) == ["error: gone.txt: no such file or folder"]
    assert not Path("runs/x").exists()
